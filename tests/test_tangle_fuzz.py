"""tangle.py under attack: no traceback, no byte outside build/, no half-written tree."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import tangle

PIECES = ["```python {file=a.py}\n", "```python {file=b/c.py}\n", "```python {#one}\n",
          "```python {#two}\n", "```\n", "````\n", "~~~ {#one}\n", "~~~\n", "<<one>>\n",
          "    <<two>>\n", "<<three>>\n", "x <<one>>\n", "x = 1\n", "\n", "\r\n", "text\n",
          "```python {file=../out.py}\n", "```python {file=/tmp/out.py}\n", "\ufeff", "\0",
          "```python {file=a b.py}\n", "```python {file=link/x.py}\n", "{file=",
          "```python {file=é.py}\n", "```python {file=.tangled.json}\n", "\t<<one>>\n",
          "   ```python {#one}\n", "```python {#one }\n", "```python {#two} x\n",
          "```python {file=a.py/b.py}\n", "```python {file=" + "n" * 300 + ".py}\n",
          '<a id="chunk-one"></a><sub>**x**</sub>\n', "\u2028", "<!-- x -->\n", "$`x`$\n"]
GOOD = ("# A book\n\nSome prose.\n\n```python {file=a.py}\nx = 1\n<<one>>\n```\n\n"
        "More.\n\n```python {#one}\ny = 2\n```\n")


def tree(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes()
            for p in sorted(directory.rglob("*")) if p.is_file() and not p.is_symlink()}


def make_document(dice):
    if dice.random() < 0.5:
        return "".join(dice.choices(PIECES, k=dice.randrange(25))).encode()
    data = bytearray(GOOD.encode())
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(data) + 1)
        way = dice.randrange(4)
        if way == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif way == 1:
            del data[at:at + dice.randrange(30)]
        elif way == 2:
            data[at:at] = dice.choice(PIECES).encode()
        else:
            data[at:at] = bytes(dice.choices(range(256), k=3))
    return bytes(data)


def test_2000_documents_write_the_whole_tree_or_nothing(tmp_path, capsys):
    build, outside = tmp_path / "build", tmp_path / "outside"
    build.mkdir()
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (build / "link").symlink_to(outside)
    document = tmp_path / "book.md"
    dice, written = random.Random(7), 0
    for n in range(2000):
        data = make_document(dice)
        document.write_bytes(data)
        before = tree(build)
        command = dice.choice(["tangle", "tangle", "tangle", "check"])
        status = tangle.main([command, "--document", str(document), "--build", str(build)])
        capsys.readouterr()
        assert status in (0, 1), data
        if status or command == "check":
            assert tree(build) == before, data
        else:
            written += 1
            files = tangle.texts(tangle.tangle(data.decode()))
            found = tree(build)
            found.pop(tangle.MANIFEST, None)
            assert found == {path: text.encode() for path, text in files.items()}, data
        assert tree(outside) == {"precious": b"mine"}
        assert {p.name for p in tmp_path.iterdir()} == {"build", "outside", "book.md"}
    assert written > 100


def big_book(number):
    blocks = "".join(f"```python {{file=f{i}.py}}\nx = {number}\n```\n\n" for i in range(60))
    return f"# {number}\n\n{blocks}"


def run(document, build, *more):
    return subprocess.Popen(
        [sys.executable, tangle.__file__, "--document", str(document), "--build",
         str(build), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_runs_at_once_and_kills_in_the_middle_leave_whole_files(tmp_path):
    build, dice = tmp_path / "build", random.Random(3)
    books = []
    for number in (1, 2):
        books.append(tmp_path / f"{number}.md")
        books[-1].write_text(big_book(number))
    for _ in range(5):
        both = [run(book, build) for book in books]
        time.sleep(dice.uniform(0.05, 0.2))
        both[0].send_signal(signal.SIGKILL)
        for process in both:
            _, said = process.communicate(timeout=30)
            assert "Traceback" not in said
        assert both[1].returncode == 0, said   # the one that was not killed
        found = tree(build)
        assert all(found[f"f{i}.py"] in (b"x = 1\n", b"x = 2\n") for i in range(60))
    last = run(books[1], build)
    _, said = last.communicate(timeout=30)
    assert last.returncode == 0, said
    assert all(text == b"x = 2\n" for path, text in tree(build).items()
               if path != tangle.MANIFEST)
    assert not [p for p in build.rglob("*.tmp")]


def test_a_build_directory_that_is_a_file_gives_a_sentence(tmp_path):
    document = tmp_path / "book.md"
    document.write_text(GOOD)
    (tmp_path / "build").write_text("precious")
    process = run(document, tmp_path / "build")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "Traceback" not in said
    assert (tmp_path / "build").read_text() == "precious"
    assert os.listdir(tmp_path) and Path(document).exists()


def test_a_name_that_is_too_long_is_refused_before_anything_is_written(tmp_path):
    document, long = tmp_path / "book.md", "n" * 300
    document.write_text(f"```python {{file=a.py}}\nx\n```\n```python {{file={long}.py}}\n```\n")
    process = run(document, tmp_path / "build")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "book.md:4" in said and "longer" in said
    assert not (tmp_path / "build").exists()
