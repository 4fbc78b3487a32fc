"""The book: what it shows is what the program prints. (Its rules: test_lint.py.)"""
import ast
import builtins
import re
import symtable
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest

import book
import claims
import tangle

TEXT = book.BOOK.read_text(encoding="utf-8")
NUMBERS = claims.TABLE.read_text(encoding="utf-8")
OPENING, *CHAPTERS = re.split(r"(?m)^(?=## )", TEXT)
BLOCKS, PROBLEMS = tangle.read_blocks(TEXT)
TANGLED = [block for block in BLOCKS if block.kind]


def title(chapter):
    return chapter.split("\n", 1)[0].removeprefix("## ")


@pytest.fixture(scope="module")
def drawn_meanwhile():
    """Other processes draw the pictures while the first chapters are tried."""
    draw, locks = book.drawings, defaultdict(Lock)

    def wait_or_draw(command):
        with locks[command]:
            return draw(command)

    book.drawings = wait_or_draw
    with ThreadPoolExecutor(1) as pool:
        for command in book.DRAWERS:
            pool.submit(wait_or_draw, command)
        yield
    book.drawings = draw


@pytest.mark.parametrize("chapter", [OPENING, *CHAPTERS], ids=title)
def test_what_a_chapter_shows_is_what_the_program_prints(chapter, drawn_meanwhile):
    line = TEXT.count("\n", 0, TEXT.index(chapter))
    part = "\n" * line + chapter                           # its lines are the book's
    wrong = book.stale(part, TEXT, NUMBERS)
    wrong = [one for one in wrong if book.NEVER not in one]     # `make book-check` waits
    assert not wrong, "\n".join(wrong)


def test_the_book_has_sessions_and_outputs():
    assert len(list(book.sessions(TEXT))) > 5
    assert book.OUTPUT.search(TEXT)


def test_every_chapter_opens_with_what_the_reader_will_be_able_to_do():
    for chapter in CHAPTERS:
        if re.match(r"## \d+\. ", chapter):
            opening = chapter.split("\n", 2)[2].lstrip()
            assert opening.startswith("*At the end of this chapter"), title(chapter)


def test_nothing_is_left_to_be_filled_in():
    """Numbers that the writer has yet to put in stand in capitals, as X_Y."""
    outside = re.sub(r"(?s)```.*?```|`[^`]*`|<!--.*?-->", "", TEXT)
    left = re.findall(r"\b[A-Z]{3,}_[A-Z_]+\b|\bTODO\b|\bFIXME\b|\bTBD\b", outside)
    assert not left, left


def tangled_files():
    """What the book defines; build/ may hold other things."""
    paths = [Path(book.ROOT, "build", block.name) for block in TANGLED
             if block.kind == "file" and block.name.endswith(".py")]
    assert len(paths) > 10
    return paths


def test_every_file_compiles_and_uses_all_that_it_imports():
    for path in tangled_files():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        names = {alias.asname or alias.name.split(".")[0]: node.lineno
                 for node in ast.walk(tree)
                 if isinstance(node, (ast.Import, ast.ImportFrom))
                 and "as they are" not in text.split("\n")[node.lineno - 1]     # a module that hands on
                 for alias in node.names}
        for name, line in names.items():
            used = len(re.findall(rf"\b{re.escape(name)}\b", text))
            assert used > 1 or name == "annotations", f"{path.name}:{line}: {name}"


def test_every_name_that_a_file_uses_is_defined_there():
    """A missing import shows only when its line runs; this finds it before."""
    known = set(dir(builtins)) | {"__file__", "__name__", "__doc__"}
    for path in tangled_files():
        text = path.read_text(encoding="utf-8")
        top = symtable.symtable(text, str(path), "exec")
        defined = {s.get_name() for s in top.get_symbols()
                   if s.is_assigned() or s.is_imported() or s.is_namespace()}

        def check(table):
            for symbol in table.get_symbols():
                name = symbol.get_name()
                if symbol.is_global() and symbol.is_referenced():
                    assert name in defined | known, f"{path.name}: {name}"
            for child in table.get_children():
                check(child)

        check(top)


def test_numpy_is_all_that_the_package_needs():
    for path in tangled_files():
        text = path.read_text(encoding="utf-8")
        optional = {"parallel.py": {"mpi4py"}, "chat.py": {"jinja2"}, "places.py": {"tangle"},
                    "continue_in_torch.py": {"torch", "transformers"},
                    "traceback.py": {"tangle"},
                    "weave.py": {"tangle", "pygments", "markdown_it", "math_core"}}
        allowed = {*sys.stdlib_module_names, "numpy", "simple_llm",
                   *optional.get(path.name, set())}
        for name in re.findall(r"(?m)^\s*(?:from|import) (\w+)", text):
            assert name in allowed, path.name


def test_the_table_of_ingredients_has_a_row_for_each_experiment():
    import experiments
    table = re.search(r"experiments\.py ingredients -->\n```text\n.*\n([^`]*)```", TEXT)[1]
    assert [row[:34].strip() for row in table.splitlines()] == list(experiments.INGREDIENTS)


# What the README and the figure of the training show


def test_what_the_readme_shows_of_the_training_stands_in_the_book():
    readme = Path(book.ROOT, "README.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", readme, re.S)[1].splitlines()
    [told] = [match["text"].splitlines() for match in book.OUTPUT.finditer(TEXT)
              if match["command"].endswith("train --out ../model")]
    at = [told.index(line) for line in shown if line]
    assert at == sorted(at) and len(at) > 12


def curves():
    """The lines of figures/loss.svg by their colours, from 0 at the bottom to 1."""
    picture = Path(book.ROOT, "figures", "loss.svg").read_text(encoding="utf-8")
    found = re.findall(r'points="([^"]*)" fill="none" stroke="(#\w+)"', picture)
    return picture, {color: [(372 - float(pair.split(",")[1])) / 308 for pair in points.split()]
                     for points, color in found}


def test_the_loss_in_the_figure_falls_to_the_floor_and_each_rung_is_named():
    picture, lines = curves()
    loss, [floor, _] = lines["#1f5fa8"], lines["#b3312c"]
    assert loss[0] == max(loss) and floor < loss[-1] < floor + 0.01
    assert loss[0] > 0.9 and loss[len(loss) // 2] < floor + 0.05
    for rung in ("floor", "1 layer", "trigram", "bigram", "unigram", "uniform"):
        assert re.search(rf">(transformer, )?{rung} [0-9.]+<", picture), rung


def test_in_the_figure_answers_against_habit_fall_before_they_jump():
    _, lines = curves()
    answers, unusual = lines["#8a5300"], lines["#7a4fa3"]
    assert answers[-1] > 0.99 and unusual[-1] > 0.99
    jump = next(i for i, share in enumerate(unusual) if share > 0.8)
    high = max(range(jump - 1), key=lambda i: unusual[i] if unusual[i] < 0.2 else 0)
    low = next(i for i in range(high, jump) if unusual[i + 1] > 0.2)
    assert unusual[low] < unusual[high] < 0.2                  # it falls
    assert answers[low] > 2 * answers[high]                    # while the other climbs
    assert jump - low <= 2                                     # of 26 looks
