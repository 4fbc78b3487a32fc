"""Surroundings that are not ours: set-up under strange settings, modules beside the book.

What takes a whole clone, and several locales, is tried by `make test-hostile`.
"""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STRANGE = """[global]
user = true
require-virtualenv = true
no-deps = true
python = /nowhere/python
[install]
target = {home}/elsewhere
prefix = {home}/elsewhere
root = {home}/elsewhere
dry-run = true
"""


def write_wheel(directory: Path, name: str, requires: str = "") -> None:
    """A package with one empty module, as an index would offer it."""
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/__init__.py": "", f"{info}/WHEEL":
             "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
             f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}"}
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def tool(home: Path, name: str, *lines: str) -> None:
    """A program that stands in for another, first in PATH."""
    (home / "bin").mkdir(exist_ok=True)
    (home / "bin" / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (home / "bin" / name).chmod(0o755)


def set_up(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """setup.sh in this directory, with the wheels of the directory and no network."""
    (home / "bin").mkdir(exist_ok=True)
    tool(home, "uv", "echo no uv here; exit 1")
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", ROOT / "setup.sh", ".venv"], cwd=home, capture_output=True, encoding="utf-8",
        errors="replace", env={**os.environ, "PATH": path, "PYTHON3": sys.executable,
                               "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(home), **env})


@pytest.mark.skipif("HOSTILE" not in os.environ, reason="takes long (make test-hostile)")
def test_set_up_ends_in_the_new_environment_whatever_pip_is_told(tmp_path):
    write_wheel(tmp_path, "wanted", "Requires-Dist: needed\n")
    write_wheel(tmp_path, "needed")
    (tmp_path / "requirements.txt").write_text("wanted>=1\nneeded\n")
    (tmp_path / "pip.conf").write_text(STRANGE.format(home=tmp_path))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with zipfile.ZipFile(tmp_path / "wanted-1.0-py3-none-any.whl") as wheel:
        wheel.extractall(theirs)                           # already satisfied, pip would say
    for module in ("json", "random", "site"):
        (theirs / f"{module}.py").write_text("raise SystemExit('not this one')")
        (tmp_path / f"{module}.py").write_text("raise SystemExit('nor this one')")
    done = set_up(tmp_path, PYTHONPATH=str(theirs), PYTHONHOME="/nowhere",
                  PIP_CONFIG_FILE=str(tmp_path / "pip.conf"), PIP_USER="1",
                  PIP_TARGET=str(tmp_path / "elsewhere"), PIP_PREFIX=str(tmp_path / "elsewhere"))
    assert done.returncode == 0, done.stderr
    packages = next(tmp_path.glob(".venv/lib/python*/site-packages"))
    assert (packages / "wanted/__init__.py").exists() and (packages / "needed").exists()
    assert not (tmp_path / "elsewhere").exists()


# A Python whose venv makes one that can do as little as the test says.
STAND_IN = """case "$*" in
    *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *_base_executable*) echo "$0" ;;
esac"""


@pytest.mark.parametrize(("fault", "says"), [
    ('*"-m venv"*) echo; echo "Error: Refusing to create a venv in /a:b" >&2; exit 1 ;;',
     "setup: python -m venv cannot make .venv: Error: Refusing to create a venv in /a:b\n"),
    ('*"-m venv"*) echo "BlockingIOError: [Errno 11] Resource temporarily unavailable"; exit 1 ;;',
     "no more processes can be started here (ulimit -u): BlockingIOError: [Errno 11]"),
    ('*"pip install"*) echo "WARNING: trying"; echo "ERROR: 503"; exit 1 ;;',
     "\nsetup: pip could not install what requirements.txt lists: ERROR: 503\n"),
    ('*importlib*) echo "ModuleNotFoundError: No module named numpy"; exit 1 ;;',
     "pip reported no error, but .venv lacks what requirements.txt lists: ModuleNotFoundError"),
    ('*ensurepip* | *"pip --version") echo "No module named pip"; exit 1 ;;',
     "has neither ensurepip nor pip (on Debian: sudo apt install python3-venv): No module"),
    ('*version_info*) echo 3.9.1; exit 1 ;;', "Python 3.10 or newer is needed, and "),
])
def test_set_up_shows_the_last_line_of_the_tool_that_failed_and_leaves_nothing(
        tmp_path, fault, says):
    tool(tmp_path, "python", STAND_IN.replace("in\n", f"in\n    {fault}\n", 1))
    done = set_up(tmp_path, PYTHON3=str(tmp_path / "bin/python"))
    assert done.returncode == 1 and says in done.stderr
    assert "network" not in done.stderr and not (tmp_path / ".venv").exists()


def test_set_up_names_a_folder_that_cannot_be_written(tmp_path):
    tool(tmp_path, "mkdir", "echo \"mkdir: cannot create '.venv': Permission denied\" >&2; exit 1")
    done = set_up(tmp_path)
    assert (done.returncode, done.stderr) == (
        1, f"setup: cannot write .venv in {tmp_path}: "
        "mkdir: cannot create '.venv': Permission denied\n")


@pytest.mark.parametrize("command", [
    ("tools/run.py", "build", "simple_llm", "info", "tests/trained"), ("tangle.py", "check"),
    ("tools/run.py", "build", "pytest", "--version"), ("tools/index.py", "check")])
def test_a_module_beside_the_book_does_not_replace_another(tmp_path, command):
    for path in ("tangle.py", "simple_llm.md", "index.md", "tools", "build", "tests", "exercises"):
        if path in ("tangle.py", "tools"):                 # what says where it lies
            subprocess.run(["cp", "-r", ROOT / path, tmp_path / path], check=True)
        else:
            (tmp_path / path).symlink_to(ROOT / path)
    for module in ("random", "json", "numpy", "argparse", "typing", "runpy", "re"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('not this one')")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True,
                          encoding="utf-8", errors="replace", env=env)
    assert done.returncode == 0, done.stderr


def test_git_is_told_to_keep_the_ends_of_lines():
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text().splitlines()
