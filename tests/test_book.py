"""The book: what it shows is what the program prints. (Its rules: test_lint.py.)"""
import re
import sys
from pathlib import Path

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


@pytest.mark.parametrize("chapter", [OPENING, *CHAPTERS], ids=title)
def test_what_a_chapter_shows_is_what_the_program_prints(chapter):
    line = TEXT.count("\n", 0, TEXT.index(chapter))
    part = "\n" * line + chapter                           # its lines are the book's
    wrong = book.stale(part, TEXT, NUMBERS)
    wrong = [one for one in wrong if book.NEVER not in one]     # `make book-check` waits
    assert not wrong, "\n".join(wrong)


def test_the_book_has_sessions_and_outputs():
    assert len(list(book.sessions(TEXT))) > 5
    assert book.OUTPUT.search(TEXT)


def test_a_wrong_number_in_the_book_is_noticed():
    text = "## 1\n```pycon\n>>> 1 + 1\n3\n```\n"
    assert len(book.stale(text)) == 1
    assert book.stale(text.replace("3", "2")) == []


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


def test_every_file_compiles_and_uses_all_that_it_imports(tmp_path):
    import ast
    for path in tangled_files():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        names = {alias.asname or alias.name.split(".")[0]: node.lineno
                 for node in ast.walk(tree)
                 if isinstance(node, (ast.Import, ast.ImportFrom))
                 for alias in node.names}
        for name, line in names.items():
            used = len(re.findall(rf"\b{re.escape(name)}\b", text))
            assert used > 1 or name == "annotations", f"{path.name}:{line}: {name}"


def test_every_name_that_a_file_uses_is_defined_there():
    """A missing import shows only when its line runs; this finds it before."""
    import builtins
    import symtable
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
        optional = {"parallel.py": {"mpi4py"}, "places.py": {"tangle"},
                    "continue_in_torch.py": {"torch", "transformers"},
                    "weave.py": {"tangle", "pygments", "markdown_it", "math_core"}}
        allowed = {*sys.stdlib_module_names, "numpy", "simple_llm",
                   *optional.get(path.name, set())}
        for name in re.findall(r"(?m)^\s*(?:from|import) (\w+)", text):
            assert name in allowed, path.name


def test_the_table_of_ingredients_has_a_row_for_each_experiment():
    import experiments
    table = re.search(r"experiments\.py ingredients -->\n```text\n.*\n([^`]*)```", TEXT)[1]
    assert [row[:34].strip() for row in table.splitlines()] == list(experiments.INGREDIENTS)
