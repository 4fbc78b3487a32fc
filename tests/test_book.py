"""The book: what it shows is what the program prints, and its chunks are short."""
import re
import sys
from pathlib import Path

import pytest

import book
import tangle

TEXT = book.BOOK.read_text(encoding="utf-8")
CHAPTERS = re.split(r"(?m)^(?=## )", TEXT)[1:]
BLOCKS, PROBLEMS = tangle.read_blocks(TEXT)
TANGLED = [block for block in BLOCKS if block.kind]


def title(chapter):
    return chapter.split("\n", 1)[0].removeprefix("## ")


def chapters_with_output():
    return [c for c in CHAPTERS if "```pycon" in c or "<!-- output: " in c]


@pytest.mark.parametrize("chapter", chapters_with_output(), ids=title)
def test_what_a_chapter_shows_is_what_the_program_prints(chapter):
    line = TEXT.count("\n", 0, TEXT.index(chapter))
    wrong = book.stale("\n" * line + chapter)      # the lines are those of the book
    assert not wrong, "\n".join(wrong)


def test_every_session_belongs_to_a_chapter_that_is_tested():
    tested = {title(chapter) for chapter in chapters_with_output()}
    assert {session.chapter for session in book.sessions(TEXT)} <= tested


def test_the_book_has_sessions_and_outputs():
    assert len(list(book.sessions(TEXT))) > 5
    assert book.OUTPUT.search(TEXT)


def test_every_output_comment_has_its_output():
    assert len(book.OUTPUT.findall(TEXT)) == len(re.findall(r"^<!-- (?:output|long): ",
                                                            TEXT, re.MULTILINE))


def test_a_wrong_number_in_the_book_is_noticed():
    text = "## 1\n```pycon\n>>> 1 + 1\n3\n```\n"
    assert len(book.stale(text)) == 1
    assert book.stale(text.replace("3", "2")) == []


def test_no_chunk_has_more_than_25_lines():
    long = [f"simple_llm.md:{block.line}: {block.name} has {n} lines"
            for block in TANGLED
            if (n := sum(bool(line.strip()) for line in block.body)) > 25]
    assert not long, "\n".join(long)


def test_no_line_of_code_is_longer_than_88_columns():
    long = [f"simple_llm.md:{number}: {len(line)} columns" for block in TANGLED
            for number, line in enumerate(block.body, block.line + 1) if len(line) > 88]
    assert not long, "\n".join(long)


def test_prose_stands_before_every_chunk():
    """A sentence or more, between a chunk and the block or heading before it."""
    lines, silent, last = TEXT.split("\n"), [], 0
    for block in BLOCKS:
        between = lines[last:block.line - 1]
        last = block.line + len(block.body) + 1
        prose = [line for line in between
                 if line.strip() and not line.startswith(("#", "<!--", "<a id"))]
        if block.kind == "chunk" and not prose:
            silent.append(f"simple_llm.md:{block.line}: {block.name}")
    assert not silent, "\n".join(silent)


def test_every_chapter_opens_with_what_the_reader_will_be_able_to_do():
    for chapter in CHAPTERS:
        if re.match(r"## \d+\. ", chapter):
            opening = chapter.split("\n", 2)[2].lstrip()
            assert opening.startswith("*At the end of this chapter"), title(chapter)


def test_nothing_is_left_to_be_filled_in():
    """Numbers that the writer has yet to put in stand in capitals, as X_Y."""
    outside = re.sub(r"(?s)```.*?```|`[^`]*`", "", TEXT)
    left = re.findall(r"\b[A-Z]{3,}_[A-Z_]+\b|\bTODO\b|\bFIXME\b|\bTBD\b", outside)
    assert not left, left


def test_every_link_within_the_book_leads_somewhere():
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", TEXT))
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
    anchors |= set(re.findall(r'<a id="([^"]+)"', TEXT))
    dead = [link for link in re.findall(r"\]\(#([^)]+)\)", TEXT) if link not in anchors]
    assert not dead, dead


def test_every_file_compiles_and_uses_all_that_it_imports(tmp_path):
    import ast
    for path in Path(book.ROOT, "build").rglob("*.py"):
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
    for path in Path(book.ROOT, "build").rglob("*.py"):
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
    for path in Path(book.ROOT, "build").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        optional = {"parallel.py": {"mpi4py"},
                    "continue_in_torch.py": {"torch", "transformers"}}.get(path.name, set())
        for name in re.findall(r"(?m)^\s*(?:from|import) (\w+)", text):
            assert name in {*sys.stdlib_module_names, "numpy", "simple_llm", *optional}, \
                path.name
