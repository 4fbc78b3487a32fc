"""The program of each chapter: it imports, and the chapter's sessions pass on it."""
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import book
import chapter
import index
import tangle

TEXT = book.BOOK.read_text(encoding="utf-8")
NUMBERS = sorted({int(n) for n in index.chapters(TEXT, tangle.read_blocks(TEXT)[0]).values()
                  if n.isdigit()})
TRY = """
import importlib, json, os, sys
sys.path[:0] = [{tools!r}, {root!r}]
import book
wrong = {{}}
for number, directory in {directories!r}.items():
    for name in [name for name in sys.modules if name.split(".")[0] == "simple_llm"]:
        del sys.modules[name]
    sys.path.insert(0, directory)
    os.chdir(directory)
    wrong[number] = []
    for file in sorted(os.listdir("simple_llm")):
        module = "simple_llm." + file.removesuffix(".py")
        if file.endswith(".py") and file != "__main__.py":
            try:
                importlib.import_module(module)
            except BaseException as error:
                wrong[number].append(f"{{module}}: {{error!r}}")
    for title, blocks in book.by_chapter(book.BOOK.read_text(encoding="utf-8")).items():
        if title.startswith(f"{{number}}. "):
            for line, example, got in book.run_chapter(blocks, {{}}):
                if got != example.want:
                    wrong[number].append(f"{{line}}: {{example.source}}: {{got}}")
    sys.path.remove(directory)
print(json.dumps(wrong))
"""


@functools.cache
def completed(number):
    """The prefix of a chapter, and its files; many tests ask for the same."""
    prefix = chapter.Prefix(TEXT, number)
    return prefix, prefix.complete()


def build(number, directory):
    _, files = completed(number)
    tangle.write(files, directory)
    return files


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What went wrong in each chapter's program; two processes try them all."""
    home, tries, wrong = tmp_path_factory.mktemp("chapters"), [], {}
    for part in NUMBERS[::2], NUMBERS[1::2]:
        for number in part:
            build(number, home / str(number))
        script = TRY.format(tools=str(book.ROOT / "tools"), root=str(book.ROOT),
                            directories={n: str(home / str(n)) for n in part})
        tries.append(subprocess.Popen([sys.executable, "-c", script], text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in tries:
        out, error = process.communicate()
        assert process.returncode == 0, error
        wrong |= json.loads(out.splitlines()[-1])
    return wrong


@pytest.mark.parametrize("number", NUMBERS)
def test_the_program_of_a_chapter_imports_and_its_sessions_pass(number, tried):
    assert tried[str(number)] == []


@pytest.mark.parametrize("number", [n for n in NUMBERS if n <= 12])
def test_a_chapter_has_no_chunk_of_a_later_one_but_those_it_borrows(number):
    prefix, _ = completed(number)
    for path, block in prefix.files.items():
        if prefix.has(block):
            for _, origin in prefix.expand(block):
                later = prefix.chapter[origin.line] > number
                assert (not later or origin.name in prefix.borrowed
                        or origin.kind == "file")


def test_the_last_chapter_has_the_whole_program(tmp_path):
    files = build(NUMBERS[-1], tmp_path)
    whole = tangle.texts(tangle.tangle(TEXT))
    for path, text in files.items():
        assert text == whole[path]
    assert {path for path in whole if path.startswith("simple_llm/")} == {
        path for path in files if path.startswith("simple_llm/")}


def test_the_one_page_model_runs_on_its_own(tmp_path, monkeypatch):
    build(1, tmp_path / "build")
    monkeypatch.setattr(book, "ROOT", tmp_path)
    shown = next(m for m in book.OUTPUT.finditer(TEXT) if "tiny" in m["command"])
    assert book.command_output(shown["command"]) == shown["text"]


SMALL = """## 1. One

```python {#a}
def a():
    raise Wrong(PI)
```

```python {#class}
class C:
    x = 1
    <<method>>
```

## 2. Two

```python {file=simple_llm/one.py}
from simple_llm.two import Never, PI, Wrong
<<a>>
<<class>>
<<b>>
```

```python {#method}
def method(self): return Never
```

```python {#b}
def b(): return a()
```

## 3. Three

```python {#wrong}
class Wrong(Base): pass
```

```python {#base}
class Base(Exception): pass
```

```python {#never}
class Never: pass
```

```python {file=simple_llm/two.py}
<<base>>
<<wrong>>
<<never>>
PI = 3
```
"""


def chapter_program(tmp_path, *arguments):
    assert chapter.main([*arguments, str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    return [line.strip() for line in text.split("\n") if line.startswith("    ")]


@pytest.mark.parametrize("number", ["9", str(NUMBERS[-1])])
def test_every_command_of_a_chapter_program_works_on_one_blas_thread(number, tmp_path):
    commands = chapter_program(tmp_path, number)
    assert "python -m simple_llm.tiny" in commands and len(commands) >= 4
    commands.remove("python -m simple_llm.first")  # takes a minute; see below
    environment = {"PATH": str(Path(sys.executable).parent), "PYTHONUTF8": "1"}
    shell = " &&\n".join([*commands, "python -c 'import simple_llm, os; "
                          'print("threads", os.environ["OPENBLAS_NUM_THREADS"])\''])
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=tmp_path, env=environment, input="",
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("threads 1\n")


@pytest.mark.parametrize("number", ["9", "16"])
def test_the_first_training_of_a_chapter_program_takes_its_steps_and_answers(number, tmp_path):
    chapter_program(tmp_path, number)
    done = subprocess.run(
        [sys.executable, "-c", "from simple_llm import first; first.main(steps=1)"],
        cwd=tmp_path, env={"PYTHONUTF8": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and "> anna went" in done.stdout, done.stderr


MODEL_OF_TODAY = """
import numpy as np
from simple_llm.gradcheck import check_layer
from simple_llm.today.layers import RMSNorm
from simple_llm.today.model import TodayConfig, TodayLLM

assert check_layer(RMSNorm(5, np.float64), np.random.default_rng(1).normal(size=(2, 3, 5))) < 1e-7
for parts in {}, {"norm": "layer", "positions": "learned", "feed_forward": "gelu", "bias": True}:
    model = TodayLLM(TodayConfig(9, 8, 8, n_layers=1, n_heads=2, **parts))
    model.loss(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))
    model.backward()
"""


def test_the_model_of_today_runs_in_the_program_of_its_chapter(tmp_path):
    build(16, tmp_path)
    done = subprocess.run([sys.executable, "-c", MODEL_OF_TODAY], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BOOK = chapter.Book(TEXT)
REWRITES = BOOK.rewrites
NESTED = {"gradient-of-the-scores": "attention-backward"}  # it is a part of that one


@pytest.mark.parametrize("number", sorted(
    {e.number.split(".")[0] for e in REWRITES.values()}, key=int))
def test_a_starter_raises_in_place_of_each_rewrite_of_its_chapter(number):
    files = chapter.Prefix(TEXT, int(number), starter=True).complete()
    text = "".join(files.values())
    for name, exercise in REWRITES.items():
        if exercise.number.startswith(f"{number}."):
            assert f'NotImplementedError("exercise {NESTED.get(name, name)}: simple_llm.md:' in text
            last = BOOK.chunk(name).rstrip().split("\n")[-1].split("  #")[0]
            assert last.strip().startswith("return") or last.strip() not in text, name


def test_what_comes_later_is_left_out_or_borrowed():
    prefix = chapter.Prefix(SMALL, 1)
    assert prefix.complete() == {
        "simple_llm/one.py": "from simple_llm.two import PI, Wrong\n"
        "def a():\n    raise Wrong(PI)\n"
        "class C:\n    x = 1\n    ...  # <<method>>: chapter 2\n"
        "...  # <<b>>: chapter 2\n",
        "simple_llm/two.py": "class Base(Exception): pass\nclass Wrong(Base): pass\n"
        "...  # <<never>>: chapter 3\nPI = 3\n"}
    assert prefix.borrowed == {"wrong": 3, "base": 3}


def test_a_method_that_is_called_already_is_borrowed():
    text = SMALL.replace("raise Wrong(PI)", "return C().method()")
    assert chapter.Prefix(text, 1).complete() == {
        "simple_llm/one.py": "from simple_llm.two import Never\ndef a():\n"
        "    return C().method()\nclass C:\n    x = 1\n    def method(self): return Never\n"
        "...  # <<b>>: chapter 2\n",
        "simple_llm/two.py": "...  # <<base>>: chapter 3\n...  # <<wrong>>: chapter 3\n"
        "class Never: pass\nPI = 3\n"}


def test_a_method_that_a_later_class_has_anew_is_still_the_first_ones():
    anew = SMALL.replace("class Never: pass", "class Never(C):\n    def method(self): return 1")
    text = anew.replace("raise Wrong(PI)", "return C().method()")
    one = chapter.Prefix(text, 1).complete()["simple_llm/one.py"]
    assert "    x = 1\n    def method(self): return Never\n" in one


def test_what_a_file_imports_for_others_to_take_of_it_is_kept():
    text = SMALL.replace("raise Wrong(PI)", "return two.PI").replace(
        "from simple_llm.two import Never, PI, Wrong", "from simple_llm.pack import two").replace(
        "file=simple_llm/two.py}", "file=simple_llm/pack/two.py}").replace(
        "PI = 3", "from simple_llm.three import EULER, PI") + (
        "\n```python {file=simple_llm/three.py}\n<<pi>>\nEULER = 0.577\n```\n"
        "\n```python {#pi}\nPI = 3\n```\n")
    files = chapter.Prefix(text, 1).complete()
    assert files["simple_llm/pack/two.py"].endswith("from simple_llm.three import PI\n")
    assert "PI = 3" in files["simple_llm/three.py"]


def test_a_function_that_is_borrowed_has_all_of_its_lines():
    text = SMALL.replace("class Wrong(Base): pass", "def Wrong(x):\n    <<never>>")
    assert chapter.Prefix(text, 1).complete()["simple_llm/two.py"].startswith(
        "...  # <<base>>: chapter 3\ndef Wrong(x):\n    class Never: pass\n")


def test_an_import_that_nothing_uses_yet_brings_no_file():
    text = SMALL.replace("raise Wrong(PI)", "return 1")
    assert chapter.Prefix(text, 1).complete().keys() == {"simple_llm/one.py"}


def test_a_chapter_that_there_is_not_is_refused(capsys):
    for arguments in ([], [""], ["0"], ["99"], ["x"]):
        assert chapter.main(arguments) == 1
        assert capsys.readouterr().err.startswith("say which chapter: make chapter N=")


def test_a_file_of_the_chapter_that_was_edited_is_not_overwritten(tmp_path, capsys):
    assert chapter.main(["1", str(tmp_path)]) == 0
    (tmp_path / "simple_llm/tiny.py").write_text("mine")
    assert chapter.main(["1", str(tmp_path)]) == 1
    assert "changed by hand" in capsys.readouterr().err
    assert Path(tmp_path, "simple_llm/tiny.py").read_text() == "mine"
