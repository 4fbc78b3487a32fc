"""An exception in the package names the line of the book, in training as in a test."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tangle

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "simple_llm.md").read_text(encoding="utf-8").split("\n")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the book, tangle.py and what it makes."""
    for name in ("simple_llm.md", "tangle.py"):
        shutil.copy(ROOT / name, tmp_path)
    build(tmp_path)
    return tmp_path


def build(home, *options):
    subprocess.run([sys.executable, home / "tangle.py", *options], check=True,
                   stdout=subprocess.DEVNULL)


def run(home, *arguments, build="build"):
    return subprocess.run(
        [sys.executable, *arguments], cwd=home, capture_output=True, text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(home / build), "PYTHONIOENCODING": "utf-8"})


def spoil(home, old, new):
    """Change a line of the book, and build it."""
    book = home / "simple_llm.md"
    text = book.read_text(encoding="utf-8")
    assert old in text
    book.write_text(text.replace(old, new, 1), encoding="utf-8")
    build(home)


def named(stderr):
    return re.findall(r"(?m)^in the book: simple_llm\.md:(\d+) ⟨([\w./-]+)⟩$", stderr)


WRONG = "from simple_llm.model import *\nSimpleLLM(Config(8, 4), seed=0).forward('no ids')"


def test_an_uncaught_exception_names_the_line_and_the_chunk(checkout):
    done = run(checkout, "-c", "from simple_llm.model import Config; Config(4, 4).nothing()")
    assert done.returncode == 1 and not named(done.stderr)      # no line of the package
    book = checkout / "simple_llm.md"
    for before in (0, 2):                                       # the book has changed since
        book.write_text("New.\n" * before + "\n".join(LINES), encoding="utf-8")
        done = run(checkout, "-c", WRONG)
        assert "Traceback" in done.stderr and named(done.stderr)
        for line, chunk in named(done.stderr):
            assert LINES[int(line) - 1 - before].strip() in done.stderr  # as the traceback shows
        assert done.stderr.rstrip().endswith("⟩")


def test_training_names_the_line_too_in_this_process_and_in_a_worker(checkout):
    line = next(line for line in LINES if line.startswith("def gradient_of_share"))
    number = LINES.index(line)
    end = next(n for n in range(number, number + 40) if LINES[n].endswith('"""'))
    spoil(checkout, LINES[end], LINES[end] + "\n    assert model is None")
    for workers in ("1", "2"):
        done = run(checkout, "-m", "simple_llm", "train", "--epochs", "1", "--no-ladder",
                   "--workers", workers, "--out", str(checkout / "model"))
        assert done.returncode == 1
        assert (str(end + 2), "gradient-of-share") in named(done.stderr), done.stderr


@pytest.mark.parametrize("spoil_it", [
    lambda home: (home / "simple_llm.md").unlink(),
    lambda home: (home / "tangle.py").unlink(),
    lambda home: (home / "simple_llm.md").write_text("```python {#x}\n"),
    lambda home: (home / "tangle.py").write_text("nonsense("),
], ids=["no book", "no tangle.py", "a broken book", "a broken tangle.py"])
def test_without_the_book_it_is_silent(checkout, spoil_it):
    spoil_it(checkout)
    done = run(checkout, "-c", WRONG)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert "in the book" not in done.stderr


def test_importing_the_package_reads_no_book(checkout):
    done = run(checkout, "-c", "import sys, simple_llm, simple_llm.model\n"
               "print('tangle' in sys.modules)")
    assert done.stdout == "False\n"


def test_a_failing_test_names_the_line_of_the_book(checkout):
    (checkout / "tests").mkdir()
    shutil.copy(ROOT / "tests/conftest.py", checkout / "tests")
    (checkout / "tests/test_it.py").write_text(
        "from simple_llm.model import *\n"
        "def test_it():\n    SimpleLLM(Config(8, 4), seed=0).forward('no ids')\n")
    done = run(checkout, "-m", "pytest", "-q", "tests", "-p", "no:cacheprovider")
    assert "in the book" in done.stdout
    found = re.findall(r"(?m)^simple_llm\.md:(\d+) ⟨", done.stdout)
    assert found and all(LINES[int(n) - 1].strip() in done.stdout for n in found)


def test_every_line_of_the_package_is_found():
    from simple_llm.places import find_place
    files = tangle.tangle(tangle.read_document())
    for path, lines in files.items():
        for number, line in enumerate(lines, 1):
            if line.text.strip():
                place = find_place(files, ROOT / "build", str(ROOT / "build" / path), number)
                assert place == f"simple_llm.md:{line.number} ⟨{line.block.name}⟩"


def test_a_bug_in_one_process_of_mpiexec_ends_the_others_too(tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").touch()
    (tmp_path / "mpi4py" / "MPI.py").write_text(
        "class COMM_WORLD:\n    Abort = staticmethod(lambda status: print('aborted', status))\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "build"), str(tmp_path)])}
    for size, said in (("2", "aborted 1\n"), ("1", "")):
        done = subprocess.run([sys.executable, "-c", "import simple_llm; [][1]"],
                              env={**env, "PMI_SIZE": size, "PMI_RANK": "0"},
                              capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, said) and "IndexError" in done.stderr
