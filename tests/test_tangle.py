"""tangle.py, from outside: what it writes, what it refuses, what it says.

The peer that checks us is Entangled 2.5. Given a document whose tangled fences are all
three backticks, with the entangled.toml below, `entangled tangle` writes the same files
up to white space at line ends:

    version = "2.0"
    watch_list = ["simple_llm.md"]
    annotation = "naked"

    [markers]
    open = '^(?P<indent> {0,3})```[^\\s{}`]+\\s+{(?P<properties>[^{}`]*)}\\s*$'
    close = '^(?P<indent> {0,3})```\\s*$'
    begin_ignore = '^ {0,3}(`{4,}[^`]*|~{3,}.*)$'
    end_ignore = '^ {0,3}(`{4,}|~{3,})\\s*$'
"""
from __future__ import annotations

import errno
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import tangle  # noqa: E402

F = "```"
BOOK = f"""# A book

{F}python {{file=pkg/a.py}}
def f(x):
    <<body>>

    return x
{F}

Prose, and an illustration that is never tangled:

{F}python
<<not-a-reference>> and x = <<v>>
{F}

{F}python {{#body}}
if x:

    <<deep>>
{F}

{F}python {{#deep}}
x += 1
{F}

The body goes on.

{F}python {{#body}}
x *= 2
{F}
"""
A_PY = """def f(x):
    if x:

        x += 1
    x *= 2

    return x
"""


def block(attributes: str, *body: str, language: str = "python") -> str:
    return "\n".join([f"{F}{language} {{{attributes}}}", *body, F, ""])


def read(text: str, **options) -> dict[str, str]:
    return tangle.texts(tangle.tangle(text, **options))


def problems(text: str, **options) -> list[tuple[int, str]]:
    with pytest.raises(tangle.TangleError) as caught:
        tangle.tangle(text, **options)
    return caught.value.problems


def tree(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes()
            for p in sorted(directory.rglob("*")) if p.is_file()}


class Desk:
    """A document and a build directory of its own, and the command run on them."""

    def __init__(self, home: Path, capsys) -> None:
        self.home, self.capsys = home, capsys
        self.document, self.build = home / "simple_llm.md", home / "build"
        self.a = self.build / "pkg/a.py"
        self.write(BOOK)

    def write(self, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        self.document.write_bytes(data)

    def run(self, *args: str) -> tuple[int, str, str]:
        status = tangle.main(
            [*args, "--document", str(self.document), "--build", str(self.build)])
        return (status, *self.capsys.readouterr())


@pytest.fixture
def desk(tmp_path, capsys) -> Desk:
    return Desk(tmp_path, capsys)


# What is tangled


def test_a_reference_is_replaced_by_its_chunk_with_its_indentation_added():
    assert read(BOOK) == {"pkg/a.py": A_PY}


def test_a_second_block_of_the_same_name_continues_the_first():
    book = block("file=a", "<<x>>") + block("#x", "1") + block("#x", "2")
    assert read(book) == {"a": "1\n2\n"}


def test_a_chunk_may_be_used_in_several_places():
    book = block("file=a", "<<x>>", "  <<x>>") + block("#x", "1")
    assert read(book) == {"a": "1\n  1\n"}


def test_blank_lines_stay_empty_under_indentation():
    book = block("file=a", "\t<<x>>") + block("#x", "1", "", "2")
    assert read(book) == {"a": "\t1\n\n\t2\n"}


def test_an_empty_block_is_an_empty_file():
    assert read(block("file=pkg/__init__.py")) == {"pkg/__init__.py": ""}


def test_another_language_with_a_file_is_tangled():
    assert read(block("file=p.toml", "a = 1", language="toml")) == {"p.toml": "a = 1\n"}


@pytest.mark.parametrize("info", ["python", "pycon", "sh", "math", "text", "", "c#"])
def test_a_fence_without_attributes_is_never_tangled(info):
    assert read(f"{F}{info}\n<<a>> = <<two words>>\n{F}\n") == {}


@pytest.mark.parametrize("fence", ["````", "~~~", "~~~~~"])
def test_a_fence_shown_inside_a_longer_or_other_fence_is_not_seen(fence):
    book = f"{fence}markdown\n{block('file=b', 'x')}{fence}\n" + block("file=a", "1")
    assert read(book) == {"a": "1\n"}


@pytest.mark.parametrize("fence", ["````", "~~~"])
def test_a_longer_or_other_fence_is_tangled_with_the_short_fences_in_it(fence):
    book = f"{fence}markdown {{file=a}}\n{F}python\nx\n{F}\n{fence}\n"
    assert read(book) == {"a": f"{F}python\nx\n{F}\n"}


def test_the_indentation_of_a_fence_is_taken_from_its_lines():
    assert read(f"  {F}python {{file=a}}\n  x\n    y\n z\n   {F}\n") == {"a": "x\n  y\nz\n"}


def test_four_spaces_make_no_fence():
    assert read(f"    {F}python {{file=a}}\n    x\n    {F}\n") == {}
    assert read(f"{F}py {{file=a}}\n    {F}\n{F}\n") == {"a": f"    {F}\n"}


def test_a_backtick_in_the_info_string_makes_no_fence():
    assert read(f"{F}python {{file=a}}{F}\n\ntext\n") == {}


def test_a_closing_fence_may_be_longer_and_have_spaces_after_it():
    assert read(f"{F}python {{file=a}}\nx\n`````  \n" + block("file=b", "y")) == {
        "a": "x\n", "b": "y\n"}


def test_shifts_with_spaces_are_left_alone():
    assert read(block("file=a", "x = 1 << 2 >> 3", "y = a << b>> c")) == {
        "a": "x = 1 << 2 >> 3\ny = a << b>> c\n"}


def test_crlf_and_a_byte_order_mark_change_nothing():
    assert read("\ufeff" + BOOK.replace("\n", "\r\n")) == {"pkg/a.py": A_PY}
    assert read("\ufeff" + block("file=a", "x")) == {"a": "x\n"}


def test_other_line_separators_are_text():
    assert read(block("file=a", "x\x0c\u2028y")) == {"a": "x\x0c\u2028y\n"}


def test_a_chain_of_three_thousand_chunks_is_no_deep_recursion():
    chain = [block(f"#n{i}", f"<<n{i + 1}>>") for i in range(3000)]
    book = block("file=a", "<<n0>>") + "".join(chain) + block("#n3000", "end")
    assert read(book) == {"a": "end\n"}


def test_the_blocks_are_there_for_others_to_read():
    blocks, wrong = tangle.read_blocks(BOOK)
    assert not wrong
    assert [(b.kind, b.name, b.part, b.line) for b in blocks] == [
        ("file", "pkg/a.py", 1, 3), ("", "", 1, 12), ("chunk", "body", 1, 16),
        ("chunk", "deep", 1, 22), ("chunk", "body", 2, 28)]
    assert blocks[1].language == "python" and blocks[3].body == ["x += 1"]


# What is wrong


X = block("file=a", "<<x>>")
WRONG = {
    "an undefined reference": (X, 2, "there is no chunk ⟨x⟩"),
    "a chunk nothing uses": (block("#x", "1"), 1, "nothing uses the chunk ⟨x⟩"),
    "a chunk that uses itself": (X + block("#x", "<<x>>"), 5, "cycle: ⟨x⟩ → ⟨x⟩"),
    "a cycle": (X + block("#x", "<<y>>") + block("#y", "<<x>>"), 8,
                "cycle: ⟨x⟩ → ⟨y⟩ → ⟨x⟩"),
    "a cycle no file uses": (block("#x", "<<y>>") + block("#y", "<<x>>"), 5, "cycle"),
    "a file defined twice": (block("file=a", "1") * 2, 4, "twice, first at line 1"),
    "an unclosed fence": (f"\n{F}python\nx\n", 2, "never closed"),
    "an unclosed tangled fence": (f"\n{F}python {{file=a}}\nx\n", 2, "never closed"),
    "a forgotten end": (f"{F}python\nx\n\n" + block("file=a", "1"), 4,
                        "inside the block that line 1 opens"),
    "a reference after code": (block("file=a", "x = <<v>>"), 2, "alone on its line"),
    "a reference in a comment": (block("file=a", "# <<v>>"), 2, "alone on its line"),
    "two references on a line": (block("file=a", "<<u>> <<v>>"), 2, "alone on its line"),
    "a shift without spaces": (block("file=a", "a <<b>> c"), 2, "a shift has spaces"),
    "a reference with spaces": (block("file=a", "  <<two words>>"), 2, "no spaces"),
    "a reference without name": (block("file=a", "<<>>"), 2, "no spaces in the name"),
    "a file without name": (block("file=", "1"), 1, "cannot read `python {file=}`"),
    "a chunk without name": (block("#", "1"), 1, "cannot read `python {#}`"),
    "a name with a space": (block("#two words", "1"), 1, "cannot read"),
    "a name with a digit first": (block("#2x", "1"), 1, "a name is a letter, then"),
    "a file and a chunk": (block("file=a #x", "1"), 1, "cannot read"),
    "an unknown attribute": (block("fil=a", "1"), 1, "cannot read"),
    "no language": (block("file=a", "1", language=""), 1, "cannot read"),
    "the brace at the language": (f"{F}python{{#x}}\n{F}\n", 1, "cannot read"),
    "no braces": (f"{F}python file=a\n{F}\n", 1, "cannot read"),
    "an unclosed brace": (f"{F}python {{#x\n{F}\n", 1, "cannot read"),
    "text after the braces": (f"{F}python {{#x}} y\n{F}\n", 1, "cannot read"),
    "an absolute path": (block("file=/tmp/a", "1"), 1, "path /tmp/a is absolute"),
    "a path upwards": (block("file=a/../../b", "1"), 1, "has a `..`"),
    "a drive": (block("file=C:/a", "1"), 1, "is not plain"),
    "a backslash": (block("file=a\\b", "1"), 1, "is not plain"),
    "a quoted path": (block('file="a"', "1"), 1, "is not plain"),
    "a NUL in a path": (block("file=a\0b", "1"), 1, "is not plain"),
    "an empty step": (block("file=a//b", "1"), 1, "is not plain"),
    "a dot": (block("file=./a", "1"), 1, "is not plain"),
    "a directory's path": (block("file=a/", "1"), 1, "is not plain"),
    "our manifest": (block("file=.tangled.json", "1"), 1, "keeps for itself"),
    "a file as a directory": (block("file=a", "1") + block("file=a/b/c", "1"), 4,
                              "needs a directory a, which is a file at line 1"),
    "a chunk called as a file": (block("file=x", "<<x>>") + block("#x", "1"), 4,
                                 "has the name of a file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_is_an_error_with_its_line_and_nothing_is_written(desk, case):
    book, line, wrong = WRONG[case]
    desk.write(book)
    status, out, err = desk.run()
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"simple_llm\.md:{line}: .*{re.escape(wrong)}.*\n", err), err
    assert not desk.build.exists()


def test_all_errors_are_reported_in_one_run_in_the_order_of_the_lines(desk):
    book = X + X + block("#y", "<<z>>", "w = <<v>>") + block("#", "1") + f"{F}python\n"
    desk.write(book)
    lines = desk.run()[2].splitlines()
    assert [re.match(r"simple_llm\.md:(\d+): ", x)[1] for x in lines] == [
        "2", "4", "5", "7", "8", "9", "11", "14"]


def test_both_cycles_through_a_chunk_are_reported():
    book = X + block("#x", "<<y>>", "<<z>>") + block("#y", "<<x>>") + block("#z", "<<x>>")
    assert [line for line, _ in problems(book)] == [9, 12]


def test_two_ways_to_one_chunk_are_no_cycle():
    book = X + block("#x", "<<y>>", "<<z>>") + block("#y", "<<z>>") + block("#z", "1")
    assert read(book) == {"a": "1\n1\n"}


def test_an_error_leaves_what_was_built_before(desk):
    desk.run()
    before = tree(desk.build)
    desk.write(BOOK + X)
    assert desk.run()[0] == 1
    assert tree(desk.build) == before


def test_a_document_that_is_not_utf8_is_reported_with_line_and_offset(desk):
    desk.write(b"a\nb\ncaf\xe9\n")
    assert desk.run() == (
        1, "", "simple_llm.md:3: not UTF-8: byte 0xe9 at offset 7\n")


def test_a_missing_document_is_one_sentence(desk):
    desk.document.unlink()
    for command in ("tangle", "check", "captions"):
        status, _, err = desk.run(command)
        assert status == 1 and err.count("\n") == 1
        assert "No such file" in err and str(desk.document) in err


@pytest.mark.parametrize("args", [
    ["--nonsense"], ["no-such-command"], ["where"], ["where", "a.py"],
    ["where", "a.py:x"], ["check", "a.py:1"], ["--blank"]])
def test_a_wrong_option_exits_2(desk, args):
    with pytest.raises(SystemExit) as caught:
        desk.run(*args)
    assert caught.value.code == 2


# Writing


def test_the_files_are_written_and_said(desk):
    status, out, err = desk.run()
    assert (status, out, err) == (0, "build: 1 of 1 files written, 0 removed\n", "")
    assert desk.a.read_text() == A_PY
    assert set(tree(desk.build)) == {"pkg/a.py", ".tangled.json"}


def test_a_file_has_the_mode_of_a_normal_file(desk):
    old = os.umask(0o022)
    try:
        desk.run()
    finally:
        os.umask(old)
    assert desk.a.stat().st_mode & 0o777 == 0o644


def test_lines_end_as_the_book_says_on_every_system(desk):
    desk.write(BOOK.replace("\n", "\r\n"))
    desk.run()
    assert desk.a.read_bytes() == A_PY.encode()


def test_a_second_run_touches_nothing(desk):
    desk.run()
    before = {p: p.stat().st_mtime_ns for p in desk.build.rglob("*")}
    time.sleep(0.02)
    assert desk.run() == (0, "nothing to do\n", "")
    assert {p: p.stat().st_mtime_ns for p in desk.build.rglob("*")} == before


def test_only_the_file_that_changed_is_touched(desk):
    desk.write(BOOK + block("file=b", "1"))
    desk.run()
    before = desk.a.stat()
    desk.write(BOOK + block("file=b", "2"))
    assert desk.run()[1] == "build: 1 of 2 files written, 0 removed\n"
    assert (desk.a.stat().st_mtime_ns, desk.a.stat().st_ino) == (
        before.st_mtime_ns, before.st_ino)


def test_what_the_book_no_longer_defines_is_removed_with_its_empty_directories(desk):
    desk.write(BOOK + block("file=old/deep/b", "1") + block("file=pkg/c", "1"))
    desk.run()
    desk.write(BOOK)
    assert desk.run()[1] == "build: 0 of 1 files written, 2 removed\n"
    assert set(tree(desk.build)) == {"pkg/a.py", ".tangled.json"}
    assert not (desk.build / "old").exists()


def test_files_that_are_not_ours_stay(desk):
    desk.write(BOOK + block("file=old/b", "1"))
    desk.run()
    (desk.build / "old/mine").write_text("mine")
    (desk.build / ".gitignore").write_text("*")
    desk.write(BOOK)
    assert desk.run()[0] == 0
    assert set(tree(desk.build)) == {
        "pkg/a.py", ".tangled.json", "old/mine", ".gitignore"}


def test_a_file_that_was_deleted_by_hand_is_written_again(desk):
    desk.run()
    desk.a.unlink()
    assert desk.run()[0] == 0
    assert desk.a.read_text() == A_PY


def test_a_file_changed_by_hand_stops_everything_and_is_named(desk):
    desk.run()
    desk.a.write_text("my fix\n")
    desk.write(BOOK + block("file=b", "1"))
    before = tree(desk.build)
    status, out, err = desk.run()
    assert (status, out) == (1, "")
    assert "pkg/a.py: changed by hand" in err
    assert "tangle.py where" in err and "--force" in err
    assert tree(desk.build) == before


def test_a_file_that_we_did_not_write_is_not_overwritten(desk):
    desk.a.parent.mkdir(parents=True)
    desk.a.write_text("not yours\n")
    status, _, err = desk.run()
    assert status == 1 and "pkg/a.py: not written by tangle.py" in err
    assert desk.a.read_text() == "not yours\n"


def test_every_file_in_the_way_is_named(desk):
    desk.write(BOOK + block("file=b", "1"))
    desk.run()
    desk.a.write_text("1")
    (desk.build / "b").write_text("2")
    err = desk.run()[2]
    assert "pkg/a.py" in err and "b: changed by hand" in err


def test_a_file_changed_by_hand_is_not_removed_in_silence(desk):
    desk.write(BOOK + block("file=b", "1"))
    desk.run()
    (desk.build / "b").write_text("my fix\n")
    desk.write(BOOK)
    assert desk.run()[0] == 1
    assert (desk.build / "b").read_text() == "my fix\n"
    assert desk.run("--force")[0] == 0
    assert not (desk.build / "b").exists()


def test_force_discards_the_change(desk):
    desk.run()
    desk.a.write_text("my fix\n")
    assert desk.run("--force")[0] == 0
    assert desk.a.read_text() == A_PY
    assert desk.run() == (0, "nothing to do\n", "")


def test_a_change_that_was_moved_into_the_book_is_accepted(desk):
    desk.run()
    desk.a.write_text(A_PY.replace("1", "7"))
    desk.write(BOOK.replace("x += 1", "x += 7"))
    assert desk.run()[0] == 0
    desk.write(BOOK)
    assert desk.run()[0] == 0
    assert desk.a.read_text() == A_PY


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"pkg/a.py": 7}', b"\xff",
                                      b'{"../b": ["x"]}', b'{"/b": ["x"]}', b"null"])
def test_a_spoilt_manifest_does_no_harm(desk, manifest):
    desk.run()
    (desk.home / "b").write_text("outside")
    (desk.build / ".tangled.json").write_bytes(manifest)
    assert desk.run()[0] == 0
    assert (desk.home / "b").read_text() == "outside"
    assert json.loads((desk.build / ".tangled.json").read_bytes()).keys() == {"pkg/a.py"}


@pytest.mark.parametrize("old, new", [("b", "b/c"), ("b/c", "b")])
def test_a_file_for_a_directory_or_the_reverse_is_said_and_nothing_is_lost(
        desk, old, new):
    desk.write(block(f"file={old}", "1"))
    desk.run()
    before = tree(desk.build)
    desk.write(block("file=a", "1") + block(f"file={new}", "1"))
    status, _, err = desk.run("--force")
    assert status == 1 and err.startswith("simple_llm.md:4: ") and "remove it" in err
    assert tree(desk.build) == before


# Nothing outside build/


@pytest.mark.parametrize("link", ["pkg", "pkg/a.py"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_path_through_a_symbolic_link_is_an_error(desk, link, inside):
    target = (desk.build if inside else desk.home) / "elsewhere"
    (target if link == "pkg" else target.parent).mkdir(parents=True, exist_ok=True)
    (desk.build / link).parent.mkdir(parents=True, exist_ok=True)
    (desk.build / link).symlink_to(target)
    before = tree(desk.home)
    for args in ([], ["--force"]):
        status, _, err = desk.run(*args)
        assert status == 1
        assert err.startswith("simple_llm.md:3: the path pkg/a.py goes through a symb")
    assert tree(desk.home) == before


def test_a_link_that_loops_is_an_error(desk):
    desk.build.mkdir()
    (desk.build / "pkg").symlink_to("pkg")
    assert "symbolic link" in desk.run()[2]


def test_build_itself_may_be_a_link(desk):
    (desk.home / "elsewhere").mkdir()
    desk.build.symlink_to(desk.home / "elsewhere")
    assert desk.run()[0] == 0
    assert (desk.home / "elsewhere/pkg/a.py").read_text() == A_PY
    assert desk.run()[1] == "nothing to do\n"


def test_nothing_is_removed_through_a_link(desk):
    desk.write(BOOK + block("file=old/b", "1"))
    desk.run()
    (desk.build / "old").rename(desk.home / "moved")
    (desk.build / "old").symlink_to(desk.home / "moved")
    desk.write(BOOK)
    assert desk.run()[0] == 0
    assert (desk.home / "moved/b").exists()


# Failures on the way


def many(word: str) -> str:
    return "".join(block(f"file=d{i}/f", word * 50) for i in range(5))


@pytest.mark.parametrize("call", range(1, 7))
def test_a_full_disk_at_any_moment_leaves_whole_files_and_the_next_run_repairs(
        desk, call, monkeypatch):
    desk.write(many("old") + block("file=gone", "1"))
    desk.run()
    old = tree(desk.build)
    desk.write(many("new"))
    calls, whole = [], Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) < call:
            return whole(path, data)
        whole(path, data[:len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        status, _, err = desk.run()
    assert status == 1 and "No space left" in err and err.count("\n") == 1
    new = {f"d{i}/f": ("new" * 50 + "\n").encode() for i in range(5)}
    for path, data in tree(desk.build).items():
        assert path == ".tangled.json" or data in (old.get(path), new.get(path))
    desk.write(many("newest"))  # and the book has gone on meanwhile
    assert desk.run()[0] == 0
    assert set(tree(desk.build)) == {*new, ".tangled.json"}


def test_a_run_that_is_killed_at_any_moment_is_repaired_by_the_next(desk):
    script = (
        "import os, sys, pathlib; sys.path.insert(0, sys.argv[1]); import tangle\n"
        "left = int(sys.argv[2])\n"
        "def dying(real):\n"
        "    def call(*args, **options):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os.kill(os.getpid(), 9)\n"
        "        return real(*args, **options)\n"
        "    return call\n"
        "os.replace = dying(os.replace)\n"
        "pathlib.Path.write_bytes = dying(pathlib.Path.write_bytes)\n"
        "pathlib.Path.unlink = dying(pathlib.Path.unlink)\n"
        "sys.exit(tangle.main(sys.argv[3:]))\n")
    for moment in (0, 1, 2, 3, 5, 8, 12, 16, 18, 19):
        desk.write(many(f"old{moment}") + block("file=gone/b", "1"))
        assert desk.run()[0] == 0
        old = tree(desk.build)
        desk.write(many(f"new{moment}"))
        killed = subprocess.run(
            [sys.executable, "-S", "-c", script, str(ROOT), str(moment),
             "--document", str(desk.document), "--build", str(desk.build)])
        assert killed.returncode == (-9 if moment < 19 else 0)
        new = (f"new{moment}" * 50 + "\n").encode()
        for path, data in tree(desk.build).items():
            assert path.startswith(".tangled") or ".tangled-" in path or (
                data in (old.get(path), new))
        desk.write(many("newest"))
        assert desk.run()[0] == 0
        assert set(tree(desk.build)) == {
            ".tangled.json", *(f"d{i}/f" for i in range(5))}


def test_two_runs_at_once_both_succeed_and_leave_one_whole_program(desk):
    commands = []
    for word in ("one", "two", "three"):
        book = desk.home / f"{word}.md"
        book.write_text(many(word))
        commands.append([sys.executable, "-S", str(ROOT / "tangle.py"),
                         "--document", str(book), "--build", str(desk.build)])
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL) for c in commands * 2]
    assert [process.wait() for process in running] == [0] * 6
    built = tree(desk.build)
    assert len(built) == 6
    assert len({data for path, data in built.items() if path != ".tangled.json"}) == 1


def test_build_that_is_a_file_is_one_sentence(desk):
    desk.build.write_text("")
    status, _, err = desk.run()
    assert status == 1 and err.count("\n") == 1 and "Traceback" not in err


def test_a_name_too_long_for_the_disk_is_one_sentence(desk):
    desk.write(BOOK + block("file=" + "x" * 300, "1"))
    status, _, err = desk.run()
    assert status == 1 and err.count("\n") == 1
    assert not desk.a.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may")
def test_a_build_that_cannot_be_written_is_one_sentence(desk):
    desk.build.mkdir(mode=0o500)
    status, _, err = desk.run()
    assert status == 1 and err.count("\n") == 1 and "Permission denied" in err


# Exercises


def test_a_blanked_chunk_raises_at_its_indentation_and_names_its_line():
    assert read(BOOK, blank=["deep"])["pkg/a.py"] == A_PY.replace(
        "x += 1", 'raise NotImplementedError("exercise deep: simple_llm.md:22")')


def test_a_chunk_with_chunks_inside_can_be_blanked_whole():
    assert read(BOOK, blank=["body"])["pkg/a.py"] == (
        "def f(x):\n"
        '    raise NotImplementedError("exercise body: simple_llm.md:16")\n'
        "\n    return x\n")


def test_a_blanked_chunk_is_located_at_its_fence_even_if_it_is_named_twice():
    lines = tangle.tangle(BOOK, blank=["deep", "deep"])["pkg/a.py"]
    assert (lines[3].number, lines[3].block.name) == (22, "deep")
    assert lines[3].text.endswith('simple_llm.md:22")')


def test_several_chunks_can_be_blanked(desk):
    assert desk.run("--blank", "deep", "--blank", "body")[0] == 0
    assert desk.a.read_text().count("raise") == 1


def test_blanking_a_chunk_that_does_not_exist_is_an_error(desk):
    status, _, err = desk.run("--blank", "nowhere")
    assert status == 1 and "nowhere" in err and not desk.build.exists()


# From code to book and back


@pytest.mark.parametrize("place, answer", [
    ("1", "simple_llm.md:4 `pkg/a.py`"),
    ("2", "simple_llm.md:17 ⟨body⟩"),
    ("4", "simple_llm.md:23 ⟨deep⟩"),
    ("5", "simple_llm.md:29 ⟨body⟩ 2"),
    ("7", "simple_llm.md:7 `pkg/a.py`")])
def test_where_finds_the_line_of_the_book(desk, place, answer):
    assert desk.run("where", f"pkg/a.py:{place}") == (0, answer + "\n", "")


def test_where_takes_a_path_from_here_from_the_root_or_from_build(desk, monkeypatch):
    desk.run()
    monkeypatch.chdir(desk.home)
    places = ["pkg/a.py", "./pkg/a.py", "build/pkg/a.py", str(desk.a)]
    assert {desk.run("where", f"{place}:4") for place in places} == {
        (0, "simple_llm.md:23 ⟨deep⟩\n", "")}
    monkeypatch.chdir(desk.build / "pkg")
    assert desk.run("where", "a.py:4")[1] == "simple_llm.md:23 ⟨deep⟩\n"


def test_where_goes_from_the_book_to_the_program(desk):
    desk.write(BOOK + block("file=b", "<<deep>>"))
    assert desk.run("where", "simple_llm.md:23")[1] == "build/pkg/a.py:4\nbuild/b:1\n"
    assert desk.run("where", f"{desk.document}:4")[1] == "build/pkg/a.py:1\n"


@pytest.mark.parametrize("place, wrong", [
    ("no/such.py:1", "no/such.py is not one of: pkg/a.py"), ("pkg/a.py:8", "ends at line 7"),
    ("pkg/a.py:0", "ends at line 7"), ("simple_llm.md:1", "no line of the program")])
def test_where_says_what_it_cannot_find(desk, place, wrong):
    status, out, err = desk.run("where", place)
    assert (status, out) == (1, "") and wrong in err


def test_every_line_knows_its_place_in_the_book():
    lines = tangle.tangle(BOOK)["pkg/a.py"]
    book = BOOK.split("\n")
    assert [line.text.strip() for line in lines] == [
        book[line.number - 1].strip() for line in lines]
    assert tangle.locate({"pkg/a.py": lines}, "pkg/a.py", 4).number == 23


# check


def built(desk: Desk) -> None:
    desk.run("captions")
    desk.run()


def test_check_is_silent_when_all_is_fresh(desk):
    built(desk)
    before = tree(desk.home)
    assert desk.run("check") == (0, "", "")
    assert tree(desk.home) == before


def test_check_shows_a_diff_when_build_is_stale_and_writes_nothing(desk):
    built(desk)
    desk.write(desk.document.read_text().replace("x += 1", "x += 2"))
    before = tree(desk.home)
    status, out, err = desk.run("check")
    assert status == 1 and "pkg/a.py is stale" in err
    assert "\n-        x += 1\n+        x += 2\n" in out and "@@" in out
    assert tree(desk.home) == before


def test_check_sees_a_missing_and_a_superfluous_file(desk):
    desk.write(BOOK + block("file=empty"))
    built(desk)
    desk.a.unlink()
    (desk.build / "empty").unlink()
    err = desk.run("check")[2]
    assert "pkg/a.py is stale" in err and "empty is stale" in err
    desk.run()
    desk.write(BOOK)
    desk.run("captions")
    status, _, err = desk.run("check")
    assert status == 1 and err.endswith("empty is stale\n") and err.count("\n") == 1


def test_check_shows_a_diff_when_a_caption_is_stale(desk):
    built(desk)
    desk.write(desk.document.read_text().replace("used in", "employed by"))
    status, out, _ = desk.run("check")
    assert status == 1 and "-<a id" in out and "+<a id" in out


def test_check_reports_errors_of_the_book(desk):
    desk.write(X)
    assert desk.run("check") == (1, "", "simple_llm.md:2: there is no chunk ⟨x⟩\n")


# Captions


CAPTIONS = [
    '<a id="f-pkg-a.py"></a><sub>**`pkg/a.py`**</sub>',
    '<a id="c-body"></a><sub>**⟨body⟩** · used in [`a.py`](#f-pkg-a.py)'
    " · continued in [⟨body⟩ 2](#c-body-2)</sub>",
    '<a id="c-deep"></a><sub>**⟨deep⟩** · used in [⟨body⟩](#c-body)</sub>',
    '<a id="c-body-2"></a><sub>**⟨body⟩ 2** · continues [⟨body⟩](#c-body)'
    " · used in [`a.py`](#f-pkg-a.py)</sub>",
]


def test_captions_stand_directly_above_the_tangled_fences():
    lines = tangle.add_captions(BOOK).split("\n")
    at = [n for n, line in enumerate(lines) if line.startswith("<a id=")]
    assert [lines[n] for n in at] == CAPTIONS
    assert all(lines[n - 1] == "" and "{" in lines[n + 1] for n in at)


def test_captions_change_nothing_else():
    kept = [x for x in tangle.add_captions(BOOK).split("\n") if x not in CAPTIONS]
    assert "\n".join(kept) == BOOK


def test_a_blank_line_goes_before_a_caption_where_there_is_none():
    assert tangle.add_captions("Text\n" + block("file=a", "1")) == (
        'Text\n\n<a id="f-a"></a><sub>**`a`**</sub>\n' + block("file=a", "1"))


def test_captions_are_idempotent_and_do_not_change_the_program(desk):
    once = tangle.add_captions(BOOK)
    assert tangle.add_captions(once) == once
    assert read(once) == read(BOOK)
    assert desk.run("captions")[0] == 0
    assert desk.document.read_text() == once
    before = desk.document.stat().st_mtime_ns
    assert desk.run("captions") == (0, "nothing to do\n", "")
    assert desk.document.stat().st_mtime_ns == before


def test_a_stale_caption_is_replaced():
    once = tangle.add_captions(BOOK)
    stale = once.replace("used in", "formerly in").replace("**⟨deep⟩**", "**⟨shallow⟩**")
    assert tangle.add_captions(stale) == once


def test_an_orphaned_caption_is_removed_with_one_of_its_blank_lines():
    assert tangle.add_captions(f"A\n\n{CAPTIONS[2]}\n\nB\n") == "A\n\nB\n"
    assert tangle.add_captions(f"A\n{CAPTIONS[2]}\nB\n") == "A\nB\n"
    assert tangle.add_captions(f"{CAPTIONS[2]}\nB\n") == "B\n"


def test_a_caption_shown_inside_a_block_is_left_alone():
    shown = f"{F}markdown\n{CAPTIONS[2]}\n{F}\n"
    assert tangle.add_captions(shown) == shown


def test_all_places_of_use_are_named_once():
    book = block("file=a", "<<x>>", "<<x>>") + block("file=b", "<<x>>") + block("#x", "1")
    assert ("used in [`a`](#f-a), [`b`](#f-b)</sub>") in tangle.add_captions(book)


def test_captions_keep_crlf_a_byte_order_mark_and_indentation(desk):
    book = "\ufeff" + (f"  {F}python {{file=a}}\n  x\n  {F}\n").replace("\n", "\r\n")
    desk.write("\ufeffHi\r\n" + book[1:])
    desk.run("captions")
    assert desk.document.read_bytes().decode() == (
        '\ufeffHi\r\n\r\n  <a id="f-a"></a><sub>**`a`**</sub>\r\n' + book[1:])


def test_captions_are_not_written_into_a_book_with_errors(desk):
    desk.write(X)
    assert desk.run("captions")[0] == 1
    assert desk.document.read_text() == X


# Families of documents


def random_program(seed: int) -> tuple[str, dict[str, str]]:
    """A document, and the files that it must become."""
    dice = random.Random(seed)
    blocks: list[str] = []
    expected: dict[str, str] = {}
    names = iter(f"chunk-{n}" for n in range(10_000))

    def code(depth: int) -> tuple[list[str], list[str]]:
        """The lines as written in the book, and as they must come out."""
        written, out = [], []
        for _ in range(dice.randint(0, 4)):
            indent = " " * dice.choice([0, 2, 4])
            if depth and dice.random() < 0.5:
                name = next(names)
                written.append(f"{indent}<<{name}>>")
                for _ in range(dice.randint(1, 3)):
                    inner, result = code(depth - 1)
                    blocks.append((name, inner))
                    out += [indent + line if line else "" for line in result]
            else:
                line = dice.choice(["", indent + f"x = {dice.random()}  # é << 1 >> "])
                written.append(line)
                out.append(line)
        return written, out

    for n in range(dice.randint(1, 4)):
        path = dice.choice(["", "d/", "d/e/"]) + f"f{n}.py"
        written, out = code(3)
        blocks.append((path, written))
        expected[path] = "".join(line + "\n" for line in out)
    parts: dict[str, list] = {}
    for name, lines in blocks:
        parts.setdefault(name, []).append(lines)
    order = [name for name, lines in blocks]
    dice.shuffle(order)  # any order of chunks, but each chunk's parts in theirs
    text = ""
    for name in order:
        kind = "file=" if name in expected else "#"
        text += dice.choice(["", "Prose.\n\n", f"{F}pycon\n>>> 1\n{F}\n\n", "~~~\n```\n~~~\n"])
        fence = dice.choice([F, "````", "~~~"])
        lines = [f"{fence}python {{{kind}{name}}}", *parts[name].pop(0), fence, ""]
        text += "\n".join(lines)
    return text, expected


@pytest.mark.parametrize("seeds", [range(n, n + 50) for n in range(0, 300, 50)], ids=str)
def test_random_programs_come_out_as_they_went_in(seeds):
    for seed in seeds:
        text, expected = random_program(seed)
        assert read(text) == expected, seed
        captioned = tangle.add_captions(text)
        assert read(captioned) == expected, seed
        assert tangle.add_captions(captioned) == captioned, seed
        for lines in tangle.tangle(text).values():
            book = text.split("\n")
            assert all(x.text.strip() == book[x.number - 1].strip() for x in lines)


PIECES = [F, "````", "~~~", "<<", ">>", "<<body>>", "{", "}", "{#body}", "{file=pkg/a.py}",
          "{file=../x}", "{file=/x}", "{file=pkg}", "\n", "\r\n", "    ", "\0", "\ufeff",
          "é", f"\n{F}python {{#deep}}\n<<body>>\n{F}\n", '<a id="c-x"></a><sub></sub>']


def mutated(seed: int) -> str:
    dice = random.Random(seed)
    text = tangle.add_captions(BOOK)
    for _ in range(dice.randint(1, 6)):
        i, j = sorted((dice.randrange(len(text) + 1), dice.randrange(len(text) + 1)))
        j = min(j, i + 30)
        text = dice.choice([text[:i] + text[j:], text[:i] + dice.choice(PIECES) + text[i:],
                            text[:j] + text[i:], text[:i] + dice.choice(PIECES) + text[j:]])
    return text


def test_two_thousand_broken_books_raise_nothing_but_the_reported_errors():
    outcomes = set()
    for seed in range(2000):
        text = mutated(seed)
        try:
            for path in read(text):
                assert not path.startswith("/") and ".." not in path
            outcomes.add("tangled")
        except tangle.TangleError as error:
            assert all(0 < line <= text.count("\n") + 1 for line, _ in error.problems)
            outcomes.add("refused")
        again = tangle.add_captions(text)
        assert tangle.add_captions(again) == again, seed
    assert outcomes == {"tangled", "refused"}


def test_three_hundred_broken_books_write_nothing_outside_build(desk):
    (desk.home / "outside").write_text("outside")
    for seed in range(300):
        data = mutated(seed).encode("utf-8")
        data = data.replace("é".encode(), b"\xe9") if seed % 3 else data
        desk.write(data)
        before = tree(desk.build)
        status, out, err = desk.run("--force")
        assert status in (0, 1) and (out if status == 0 else err)
        assert status == 0 or tree(desk.build) == before
        found = set(os.listdir(desk.home))
        assert found - {"build"} == {"simple_llm.md", "outside"}
    assert (desk.home / "outside").read_text() == "outside"


# The program as a program


def test_a_book_of_400_kilobytes_is_tangled_in_a_third_of_a_second(desk):
    n = 1000
    chunks = "".join("Prose. " * 40 + "\n\n" + block(f"#c{i}", *["    x = 1"] * 12) + "\n"
                     for i in range(n))
    desk.write(block("file=a", *[f"  <<c{i}>>" for i in range(n)]) + chunks)
    assert desk.document.stat().st_size > 400_000
    command = [sys.executable, "-S", str(ROOT / "tangle.py"), "where", "a:12000",
               "--document", str(desk.document), "--build", str(desk.build)]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0  # 0.2 s on an idle machine


def test_a_terminal_without_angle_brackets_gets_an_answer(desk):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "tangle.py"), "where", "pkg/a.py:4",
         "--document", str(desk.document)], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"simple_llm.md:23 \\u27e8deep\\u27e9\n")


def test_help_shows_the_fences_and_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        tangle.main(["--help"])
    assert caught.value.code == 0
    words = capsys.readouterr().out
    assert all(word in words for word in ("{#", "{file=", "check", "where", "captions"))


def test_only_the_standard_library_is_imported():
    imports = re.findall(r"^\s*(?:import|from) (\w+)", (ROOT / "tangle.py").read_text(), re.M)
    assert set(imports) <= set(sys.stdlib_module_names)


def test_a_line_with_a_number_of_many_digits_is_refused_in_one_sentence(capsys):
    with pytest.raises(SystemExit):
        tangle.main(["where", "simple_llm/tiny.py:" + "9" * 5000])
    assert "takes one FILE:LINE" in capsys.readouterr().err


@pytest.mark.parametrize("last", ["pass", ""])
def test_chunks_that_double_at_each_level_are_refused_and_do_not_fill_the_memory(last):
    chunks = [f"{F}python {{#c{n}}}\n<<c{n + 1}>>\n<<c{n + 1}>>\n{F}\n" for n in range(60)]
    text = "\n".join([f"{F}python {{file=a.py}}\n<<c0>>\n{F}\n", *chunks,
                      f"{F}python {{#c60}}\n{last}\n{F}\n"])
    with pytest.raises(tangle.TangleError, match="more than 1,000,000 lines"):
        tangle.tangle(text)
