"""The exercises: each grader names the mistakes that people make, and accepts the rest."""
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import chapter
from exercises import chunks, diagnose
from exercises.__main__ import Desk, grade, grade_apart, how_to_train, main, verdict
from exercises.chunks import Book, Wrong
from exercises.graders import GRADERS

ROOT = Path(__file__).resolve().parent.parent
BOOK = Book()
HINTS = chunks.read_hints()


def read_answers():
    """From answers.txt the mutants of each chunk (old, new, what is said), and the others."""
    mutants, others = {}, {}
    for section in Path(__file__).with_name("answers.txt").read_text("utf-8").split("\n## ")[1:]:
        name, *lines = section.rstrip("\n").split("\n")
        if name.startswith("right: "):
            others.setdefault(name.removeprefix("right: "), []).append("\n".join(lines))
            continue
        for line in "\n".join(lines).replace("\n... ", " ").split("\n"):
            old, _, rest = line.partition(" => ")
            new, _, part = rest.rpartition(" :: ")
            mutants.setdefault(name, []).append(
                (old.replace("\\n", "\n"), new.replace("\\n", "\n"), part))
    return mutants, others


MUTANTS, OTHERS = read_answers()


def sentence(name, answer):
    """What the grader says of an answer; nothing if it is accepted."""
    try:
        grade(BOOK, name, answer)
        return ""
    except Wrong as wrong:
        return str(wrong)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_grader_accepts_the_chunk_of_the_book_and_others_that_are_right(name):
    assert [sentence(name, right) for right in (BOOK.chunk(name), *OTHERS[name])] == [
        "", *[""] * len(OTHERS[name])]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_grader_asks_for_what_is_not_written_yet(name):
    assert "still to be written" in sentence(name, BOOK.starter(name))


@pytest.mark.parametrize("name, old, new, part", [
    (name, *mutant) for name, mutants in MUTANTS.items() for mutant in mutants])
def test_a_grader_names_a_usual_mistake(name, old, new, part):
    chunk = BOOK.chunk(name)
    assert old in chunk, "the book has changed: renew this mutant"
    said = sentence(name, chunk.replace(old, new) if old else new)
    assert said, "accepted"
    assert re.search(part, said), said
    assert said[-1] in ".?" and "\n" not in said


@pytest.mark.parametrize("name, old, new", [
    ("mark-the-answers", '"<end>"]', '"<end>"][:-1]'),
    ("subtract-the-mean-of-the-group", ".mean(", ".max("),
    ("weigh-what-was-drawn", "/ chosen.shape[1]", "/ chosen.size"),
    ("weigh-the-pairs", "np.exp(margin)", "np.exp(-margin)"),
    ("count-the-tries", "samples - right, k", "right, k"),
])
def test_the_graders_of_chapter_18_would_see_a_mistake_of_the_book(name, old, new):
    chunk = BOOK.chunk(name)
    assert old in chunk
    wrong = chunks.load(BOOK, name, chunk.replace(old, new)).module
    with pytest.raises(Wrong), np.errstate(all="ignore"):
        GRADERS[name](wrong, wrong)


@pytest.mark.parametrize("got, part", [
    (lambda a: 1 / a, "upside down"),
    (lambda a: a**2, "is the square"),
    (np.sqrt, "is the root"),
    (np.log, "is the logarithm"),
    (np.exp, "exponentiated"),
    (lambda a: a * [1, -1, 1, -1], "wrong signs"),
    (lambda a: a[::-1], "in the wrong places"),
    (lambda a: a + np.arange(3)[:, None], "off by one number in each row"),
    (lambda a: a * (1 + np.arange(3)[:, None]), "in each row one factor too many"),
    (lambda a: 0 * a + a.sum(), "over all axes"),
    (lambda a: a + (np.arange(4) == 2) * a**2, "all at column 2"),
    (lambda a: a + (np.arange(3)[:, None] > 0) * a**2 * [1, 2, 3, 4], "none of them at row 0"),
])
def test_a_wrong_array_is_compared_with_what_mistakes_make_of_the_right_one(got, part):
    right = np.random.default_rng(0).uniform(1, 2, (3, 4))
    with pytest.raises(Wrong, match=part):
        diagnose.check("The result", got(right), right)


def test_each_rewrite_has_a_grader_hints_and_mutants():
    assert len(BOOK.rewrites) >= 12
    assert set(BOOK.rewrites) == set(GRADERS) == set(HINTS) == set(MUTANTS) == set(OTHERS)
    assert all(len(hints) >= 2 for _, hints in HINTS.values())
    assert {name: n for name, m in MUTANTS.items() if (n := len(m)) < 8} == {}


def test_every_exercise_is_marked_with_kind_difficulty_and_time():
    bullets = re.findall(r"(?m)^- \*(\d+\.\d+)\*", BOOK.text)
    marked = {exercise.number for exercise in BOOK.exercises}
    assert not [number for number in bullets if number not in marked], \
        "mark them as (paper, ★, 10 minutes), (rewrite, ...) or (project, ★★★, 2 hours)"
    assert len(bullets) == len(set(bullets)) >= 30
    assert set(Counter(e.kind for e in BOOK.exercises)) == {"paper", "rewrite", "project"}
    assert all(e.name for e in BOOK.exercises if e.kind == "rewrite")


def test_exercises_are_numbered_from_1_in_the_chapter_where_they_stand():
    for chapter in re.split(r"(?m)^## ", BOOK.text)[1:]:
        number = re.match(r"(\d+)\. ", chapter)
        found = [e.number for e in chunks.read_exercises(chapter)]
        assert found == [f"{number[1]}.{i + 1}" for i in range(len(found))] if number else True
        assert found or not number, f"no exercise in {chapter[:30]!r}"


def test_every_exercise_on_paper_has_its_solution_folded_under_it():
    bullets = re.split(r"(?m)^(?=- \*\d+\.\d+\* |## |\*Read more)", BOOK.text)
    solved = {re.match(r"- \*([\d.]+)\* \((\w+)", each).groups() for each in bullets
              if each.startswith("- *") and "<details><summary>Solution</summary>" in each}
    assert {e.number for e in BOOK.exercises if e.kind == "paper"} <= {n for n, _ in solved}
    assert "rewrite" not in {kind for _, kind in solved}


@pytest.mark.parametrize("answer, part", [
    ("def softmax(z:", "Python cannot read line 1"),
    ("# nothing", "no code"),
    ("def soft_max(z):\n    return z", "does not define `softmax`"),
    ("def softmax(z):\n    return zz", "Line 2, `return zz`, raises NameError"),
    ("def softmax():\n    return 1", "raises TypeError"),
    ("def softmax(z):\n    return [1]", "is a list"),
    ("x = 1 / 0\ndef softmax(z):\n    return z", "raises ZeroDivisionError"),
    ("def softmax(z):\n    <<nowhere>>\n    return z", "Python cannot read line 2"),
    ("def softmax(z):\n    return softmax(z)", "RecursionError"),
    # Leaving Python, in the body and outside; what is left of the answer is judged, too.
    ("def softmax(z):\n    raise SystemExit", "Line 2, `raise SystemExit`, raises"),
    ("def softmax(z):\n    raise KeyboardInterrupt", "Line 2"),
    ("import sys\nsys.exit()\ndef softmax(z):\n    return z", "24 of 24 elements"),
    ("def softmax(z):\n    return z\nprint(0)\nexit()", "24 of 24 elements"),
    ("RIGHT\nexit()", r"Line 5, `exit\(\)`, raises SystemExit: leave that out"),
    ("if True:\n    exit(0)\nRIGHT", r"Line 2, `exit\(0\)`, raises SystemExit: 0: leave"),
    # The solution of the book, or what it is graded with.
    ("from simple_llm.layers import softmax", "does not define"),
    ("import simple_llm.layers as s\ndef softmax(z):\n    return s.softmax(z)", "not yours"),
    ("def softmax(z):\n    from simple_llm.layers import softmax\n    return softmax(z)",
     "imports simple_llm: .* not yours"),
    ("def softmax(z):\n    import simple_llm\n    return simple_llm.layers.softmax(z)",
     "not yours"),
    ("from simple_llm.generate import softmax as s\ndef softmax(z): return s(z)",
     "not yours"),
    ("import importlib\nm = importlib.import_module('simple_llm.engine.fast')\n"
     "def softmax(z):\n    return m.softmax(z)", "not yours"),
    ("import sys\ndef softmax(z):\n    return sys.modules['book_layers'].softmax(z)",
     "KeyError"),
    ("def softmax(z):\n    import exercises.diagnose as d\n    d.agree = lambda *a: True\n"
     "    return z", "not yours"),
    ("np.allclose = lambda *a, **k: True\ndef softmax(z):\n    return z", "`allclose`"),
    ("np.allclose = lambda *a, **k: True\nRIGHT", "`allclose`"),
    ("import sys\ndef softmax(z):\n    sys._getframe(1).f_globals['check'] = print\n"
     "    return z", "`check`"),
    ("import builtins\nbuiltins.any = lambda *a: True\nRIGHT", "`any`"),
])
def test_whatever_an_answer_does_gets_a_sentence(answer, part):
    said = sentence("softmax", answer.replace("RIGHT", BOOK.chunk("softmax").rstrip()))
    assert re.search(part, said), said
    assert sentence("softmax", BOOK.chunk("softmax")) == ""     # nothing of it is left


@pytest.mark.parametrize("name, answer", [
    ("split-heads", "import simple_llm.layers\ndef split_heads(x, n):\n"
     "    return simple_llm.layers.split_heads(x, n)"),
    ("go-all-the-way-back", "def backward(self):\n"
     "    from simple_llm.model import SimpleLLM\n    SimpleLLM.backward(self)"),
    ("run-a-block", "def forward(self, x, cache=None):\n    from simple_llm.layers import "
     "Block\n    return Block.forward(self, x, cache)\ndef backward(self, dy):\n    pass"),
    ("numerical-gradient", "def numerical_gradient(*a):\n    from simple_llm import gradcheck"
     "\n    return gradcheck.numerical_gradient(*a)"),
])
def test_the_module_of_the_book_is_not_yours(name, answer):
    assert "not yours" in sentence(name, answer)


def desk(tmp_path, *words, seconds=60):
    environment = {"PYTHONPATH": f"{ROOT / 'build'}", "PATH": "", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "exercises", "--answers", str(tmp_path), *words], cwd=ROOT,
        env=environment, capture_output=True, encoding="utf-8", timeout=seconds,
        start_new_session=True)


def test_an_exercise_from_the_beginning_to_the_end(tmp_path):
    answer = tmp_path / "softmax.py"
    done = desk(tmp_path, "exercise", "softmax")
    assert done.returncode == 0 and "simple_llm.md:" in done.stdout
    assert Desk(tmp_path).state("softmax") == "laid out"
    done = desk(tmp_path, "grade", "softmax")
    assert done.returncode == 1 and "still to be written" in done.stderr
    answer.write_text("print('hello')\n" + BOOK.chunk("softmax"))
    assert Desk(tmp_path).state("softmax") == "begun"
    done = desk(tmp_path, "grade", "softmax")
    assert done.returncode == 0 and "  | hello" in done.stdout and "\nRight" in done.stdout
    assert done.stderr == ""
    assert Desk(tmp_path).state("softmax") == "done"
    layers = (tmp_path / "package/simple_llm/layers.py").read_text()
    assert "\nprint('hello')\n" in layers


def test_a_chunk_of_the_model_of_today_says_how_to_train_with_it(tmp_path):
    (tmp_path / "orthogonalize.py").write_text(BOOK.chunk("orthogonalize"))
    done = desk(tmp_path, "grade", "orthogonalize")
    assert done.returncode == 0 and '"--plain --form llama"' in " ".join(done.stdout.split())
    assert "COEFFICIENTS" in (tmp_path / "package/simple_llm/today/muon.py").read_text()


def test_a_chunk_of_the_assistant_says_how_to_make_one_with_it():
    assert all("`make assistant MINE=1`" in how_to_train(BOOK, name)
               for name in ("mark-the-answers", "weigh-the-pairs"))
    assert "make assistant" not in how_to_train(BOOK, "orthogonalize")


@pytest.mark.parametrize("answer, part", [
    ("    import os\n    os._exit(0)", "Line 3, `os._exit(0)`, raises SystemExit: 0."),
    ("    import posix\n    print('Right: answers/softmax.py')\n    posix._exit(0)",
     "Python ended before the grading did (exit status 0)"),
    ("    import os\n    os.execv('/bin/true', ['true'])", "starts another process"),
    ("    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)", "sends a signal"),
    ("    import signal\n    signal.setitimer(0, 0.1)\n    while True: pass", "(signal 14)"),
    # What it writes into every pipe and file is no verdict.
    ("    import os\n    for fd in range(3, 99):\n        try:\n            os.write(fd, "
     "b'right It is as fast.')\n        except OSError:\n            pass\n"
     "    import posix; posix._exit(0)", "before the grading did"),
    ("    import os\n    os.closerange(3, 99)\n    return z / 2", "before the grading did"),
    ("    import json, os\n    json.dumps = os.write = os.read = lambda *a: b'right'\n"
     "    return z", "24 of 24 elements"),
    ("    import sys\n    sys.stdout.close(); sys.stdout = None\n    return input()",
     "raises RuntimeError"),
    ("    import os\n    try: os.fork()\n    except BaseException: pass\n    RIGHT",
     "It starts another process"),
    # The solution, by ways that no import goes.
    ("    return eval(open('build/simple_llm/layers.py').read())", "a file that is not its"),
    ("    import gc\n    return gc.get_objects()", "looks behind Python"),
    ("    try: raise ValueError\n    except ValueError as e: f = e.__traceback__.tb_frame\n"
     "    while f and 'right' not in f.f_code.co_varnames: f = f.f_back\n"
     "    return f.f_locals['book'].softmax(z) if f and 'book' in f.f_locals else z",
     "when all numbers are others"),
    # What grades is bent until the process says right: the numbers are judged elsewhere.
    ("    import sys\n    f = sys._getframe(1).f_globals\n    if 'agree' in f: "
     "f['agree'].__code__ = (lambda a, b: True).__code__\n"
     "    return np.nan_to_num(z)",
     "The result: once more, with other numbers"),
    ("    while True:\n        print('x' * 999)", "did not end within 0.5 seconds"),
])
def test_a_verdict_comes_from_the_grader_alone(answer, part):
    right = "e = np.exp(z - z.max(-1)[..., None]); return e / e.sum(axis=-1, keepdims=True)"
    answer = answer.replace("RIGHT", right).replace("build/", f"{ROOT}/build/")
    verdict = grade_apart(BOOK, "softmax", f"def softmax(z):\n{answer}\n",
                          limit=0.5 if "while True:\n" in answer else 10)
    assert not verdict.right and part in verdict.sentence, verdict
    assert "\n" not in verdict.sentence and len(verdict.printed) < 9000


def test_a_right_answer_that_is_too_slow_to_be_timed_is_right():
    answer = BOOK.chunk("softmax").replace("    e =", "    import time\n    if z.size > 9999: "
                                           "time.sleep(99)\n    e =")
    verdict = grade_apart(BOOK, "softmax", answer, limit=3)
    assert verdict.right and "far slower than the book's" in verdict.sentence


def test_an_answer_does_not_end_what_grades_it(tmp_path):
    (tmp_path / "softmax.py").write_text(
        "def softmax(z):\n    import os\n    print('\\rRight\\n' * 9999)\n"
        "    os.killpg(os.getpgid(os.getppid()), 9)\n")
    done = desk(tmp_path, "grade", "softmax")
    assert done.returncode == 1 and "sends a signal" in done.stderr, done
    assert done.stdout.count("\n") < 50 and "\nRight" not in done.stdout.replace("\r", "\n")
    assert Desk(tmp_path).state("softmax") == "begun"


def test_who_is_far_slower_gets_advice():
    assert "one call of NumPy" in verdict(0.2, 0.001, loops=True)
    assert "again and again" in verdict(0.2, 0.001)
    assert verdict(0.002, 0.001, loops=True).endswith("2.0 times as long.")


def run(capsys, tmp_path, *words):
    status = main(["--answers", str(tmp_path), *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_work_in_progress_is_not_overwritten_unless_forced(capsys, tmp_path):
    answer = tmp_path / "softmax.py"
    assert run(capsys, tmp_path, "exercise", "softmax")[0] == 0
    assert run(capsys, tmp_path, "exercise", "softmax")[0] == 0    # nothing is lost
    answer.write_text("my work")
    status, _, err = run(capsys, tmp_path, "exercise", "softmax")
    assert status == 1 and "--force" in err and answer.read_text() == "my work"
    assert run(capsys, tmp_path, "exercise", "softmax", "--force")[0] == 0
    assert (tmp_path / "softmax.py.old").read_text() == "my work"


def test_hints_come_one_by_one_and_by_number(capsys, tmp_path):
    said = [run(capsys, tmp_path, "hint", "softmax")[1] for _ in range(4)]
    assert [s[:11] for s in said] == ["Hint 1 of 3", "Hint 2 of 3", *["Hint 3 of 3"] * 2]
    assert run(capsys, tmp_path, "hint", "softmax", "2")[1] == said[1]
    assert run(capsys, tmp_path, "hint", "softmax", "4")[::2] == (
        1, "softmax has 3 hints.\n")


def test_the_solution_is_the_chunk_of_the_book(capsys, tmp_path):
    status, out, _ = run(capsys, tmp_path, "solution", "attention-backward")
    assert status == 0 and out.endswith(BOOK.chunk("attention-backward"))
    assert "Backwards through attention" in out and "<<" not in out


def test_without_a_name_the_exercises_are_listed(capsys, tmp_path):
    run(capsys, tmp_path, "exercise", "softmax")
    status, out, _ = run(capsys, tmp_path)
    assert status == 0 and all(name in out for name in BOOK.rewrites)
    assert re.search(r"softmax +laid out", out)


def test_grading_nothing_is_no_success(capsys, tmp_path):
    for command in ("grade", "hint", "solution"):
        status, out, err = run(capsys, tmp_path, command)
        assert (status, out) == (1, "") and f"make {command} EX=softmax" in err


def test_an_unknown_exercise_is_a_sentence(capsys, tmp_path):
    assert run(capsys, tmp_path, "grade", "nowhere")[::2] == (
        1, "There is no exercise nowhere; `make exercise` lists them.\n")
    status, _, err = run(capsys, tmp_path, "grade", "softmax")
    assert status == 1 and "make exercise EX=softmax" in err


def test_each_starter_says_before_what_holds_at_the_edges(capsys, tmp_path):
    assert [name for name, (before, _) in HINTS.items() if not before] == []
    run(capsys, tmp_path, "exercise", "next-token-probabilities")
    text = (tmp_path / "next-token-probabilities.py").read_text().replace("\n# ", " ")
    assert "a top_k below 1 counts as 1; a top_p of 0 leaves the likeliest" in text


def test_the_starter_of_a_class_keeps_its_constructor():
    starter = BOOK.starter("kv-cache")
    assert "self.length = 0" in starter and "new.stop" not in starter
    assert starter.count("NotImplementedError") == 1


def test_a_starter_has_the_chapter_without_its_solutions(tmp_path, capsys):
    assert chapter.main(["--starter", "9", str(tmp_path)]) == 0
    assert chapter.main(["9", str(tmp_path / "whole")]) == 0
    optimizer = (tmp_path / "simple_llm/optimizer.py").read_text()
    for name in ("sgd", "adamw-step", "clip-gradients", "learning-rate"):
        assert f'NotImplementedError("exercise {name}: simple_llm.md:' in optimizer
    assert "m_hat" not in optimizer and "class AdamW" in optimizer
    assert "Error(" not in (tmp_path / "whole/simple_llm/optimizer.py").read_text()
    assert "python -m simple_llm.first" in (tmp_path / "README.md").read_text()
    layers = [(tmp_path / each / "simple_llm/layers.py").read_text() for each in ("", "whole")]
    assert layers[0] == layers[1]                       # an earlier chapter's are written
