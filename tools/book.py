"""The numbers in the book: check that they are what the program prints, or renew them.

    python tools/book.py check         what is quick; exit 1 if something is stale
    python tools/book.py check all     also run the long commands again (minutes)
    python tools/book.py refresh       renew what is quick in simple_llm.md
    python tools/book.py refresh all       also the long runs (minutes)
    python tools/book.py refresh WORD      of the long runs, those with this in the command
    python tools/book.py seal          what is long stands as its command printed it

The marks. All but the first are comments, which GitHub does not show. (The numbers in
sentences have none: numbers.txt says where they come from; see claims.py.)

    ```pycon                           a session; those of a chapter share their names
    <!-- output: COMMAND -->           above a ```text block: what the command prints
    <!-- long SEAL ~ 20%: COMMAND -->  the same, but it takes minutes, or the machine has
                                       a say. It is not run again by `check`; the seal, a
                                       hash of command and output which `refresh` writes,
                                       tells whether somebody changed it by hand. With
                                       `check all` its numbers may differ by the tolerance
    <!-- figure: COMMAND ../figures --> above a picture, which the command draws (it is
                                       given another directory, and the two are compared);
                                       DRAWERS has short names for the usual commands
    <!-- long figure SEAL: COMMAND --> above a picture that took long: sealed, too

A command runs in build/. And below a picture, or alone, where the page gets a widget,

    <!-- live: NAME -->                NAME is one of weave.TITLES
"""
from __future__ import annotations

import doctest
import hashlib
import math
import os
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Iterator, NamedTuple

import claims
from claims import near, number
from weave import TITLES

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before a session imports NumPy
BOOK = ROOT / "simple_llm.md"
SEAL = r"(?: (?P<seal>[0-9a-f]{8}))?"
OUTPUT = re.compile(
    rf"^<!-- (?P<kind>output|long){SEAL}(?: ~ (?P<tolerance>[\d.]+%?))?: "
    r"(?P<command>.+?) -->\n```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(rf"^<!-- (?P<kind>(?:long )?figure){SEAL}: (?P<command>.+?) -->\n"
                    r"!\[[^\]]*\]\((?P<path>[^)]+)\)$", re.MULTILINE)
MARK = re.compile(r"<!--(?! index -->| live: (?:" + "|".join(TITLES) + r") -->$)", re.MULTILINE)
MOVED = re.compile(r"^\.\./tests/(?=\w+\.py$)")         # an older book says tests/
DRAWERS = {"pictures": "python ../tools/pictures.py ../figures",
           "pictures trained": "python ../tools/pictures.py ../figures ../tests/trained",
           "engine": "python ../tools/engine_pictures.py ../figures",
           "figures": "python ../tools/figures.py ../tests/trained ../figures"}
NEVER = "nobody has run"                               # how a message begins
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


class Session(NamedTuple):
    chapter: str
    line: int       # of the first line of the block's body
    text: str


def sessions(text: str) -> Iterator[Session]:
    """Every ```pycon block with its chapter, in order."""
    chapter, start, body = "", 0, []
    for number, line in enumerate(text.split("\n"), 1):
        if start and line.startswith("```"):
            yield Session(chapter, start, "".join(f"{each}\n" for each in body))
            start = 0
        elif start:
            body.append(line)
        elif line.startswith("```pycon"):
            start, body = number + 1, []
        elif line.startswith(("## ", "# Part ")):
            chapter = line.lstrip("# ")


def run_chapter(
    blocks: list[Session], names: dict[str, object]
) -> Iterator[tuple[int, doctest.Example, str]]:
    """Run a chapter's sessions; yield each example's book line, itself, and its output."""
    got: dict[int, str] = {}

    class Runner(doctest.DocTestRunner):
        def report_success(self, out, test, example, output):
            got[example.lineno] = output

        report_failure = report_success

        def report_unexpected_exception(self, out, test, example, exc_info):
            kind, value, _ = exc_info
            got[example.lineno] = f"Traceback: {kind.__name__}: {value}\n"

        def report_start(self, out, test, example):
            pass

    parser = doctest.DocTestParser()
    for block in blocks:
        test = parser.get_doctest(block.text, {}, block.chapter, BOOK.name, block.line)
        test.globs = names
        got.clear()
        Runner(verbose=False).run(test, out=lambda text: None, clear_globs=False)
        for example in test.examples:
            yield block.line + example.lineno, example, got.get(example.lineno, "")


def by_chapter(text: str) -> dict[str, list[Session]]:
    chapters: dict[str, list[Session]] = {}
    for session in sessions(text):
        chapters.setdefault(session.chapter, []).append(session)
    return chapters


def command_output(command: str) -> str:
    """What a command prints on stdout when it runs in build/."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build")}
    words = [sys.executable if word == "python" else word for word in command.split()]
    words = [MOVED.sub("../tools/", word) for word in words]
    done = subprocess.run(
        words, cwd=ROOT / "build", env=environment, stdout=subprocess.PIPE, text=True,
        check=True,
    )
    return done.stdout


@lru_cache
def drawings(command: str) -> dict[str, str]:
    """The pictures that a command draws into figures/, by name; they go elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        command = DRAWERS.get(command, command)
        command_output(command.replace("../figures", directory))
        return {path.name: path.read_text(encoding="utf-8")
                for path in Path(directory).iterdir()}


def seal(*what: str) -> str:
    """A short hash, by which a change made by hand is noticed."""
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:8]


def line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def namespaces(whole: str) -> dict[str, dict[str, object]]:
    """For each chapter, the names that its values start with."""
    outputs = [(match["command"], match["text"]) for match in OUTPUT.finditer(whole)]
    names = {**vars(math), **claims.readers(whole, outputs), "ROOT": ROOT,
             "__name__": "__main__"}
    titles = re.findall(r"^(?:## |# (?=Part ))(.*)$", whole, re.MULTILINE)
    return {title: dict(names) for title in ["", *titles]}


def renewed_numbers(
    text: str, table: str, names: dict[str, dict[str, object]]
) -> tuple[str, list[claims.Problem]]:
    """The text with the numbers of its sentences renewed; and what was wrong with them."""
    return claims.renewed(text, table, lambda title: next(
        space for chapter, space in names.items() if chapter.startswith(title)))


def stale(text: str, whole: str = "", table: str = "", run_all: bool = False) -> list[str]:
    """What a part of the whole book shows that is not so, one message for each.

    `table` says where the numbers in its sentences come from.
    """
    wrong = []

    def complain(place: int, message: str) -> None:
        wrong.append(f"{BOOK.name}:{line_of(text, place)}: {message}")

    names = namespaces(whole or text)
    for chapter, blocks in by_chapter(text).items():
        for line, example, got in run_chapter(blocks, names[chapter]):
            if got != example.want:
                wrong.append(f"{BOOK.name}:{line}: {example.source.strip()}\n"
                             f"  the book says {example.want!r}\n  it is         {got!r}")
    for match in OUTPUT.finditer(text):
        for message in stale_output(match, run_all):
            complain(match.start(), message)
    for match in FIGURE.finditer(text):
        path, command = ROOT / match["path"], match["command"]
        drawn = path.read_text(encoding="utf-8") if path.is_file() else ""
        if match["kind"] == "figure" and drawings(command).get(path.name) != drawn:
            complain(match.start(), f"{match['path']} is not what `{command}` draws")
        elif match["kind"] != "figure" and match["seal"] is None:
            complain(match.start(), f"{NEVER} `{command}`: then `python tools/book.py seal`")
        elif match["kind"] != "figure" and seal(command, drawn) != match["seal"]:
            complain(match.start(), f"{match['path']} is not what was sealed: draw it "
                     "again, then `python tools/book.py seal`")
    for problem in renewed_numbers(text, table, names)[1]:
        if problem.line:
            wrong.append(f"tools/{claims.TABLE.name}:{problem.line}: {problem.message}")
        else:
            complain(problem.place, problem.message)
    known = {match.start() for kind in (OUTPUT, FIGURE) for match in kind.finditer(text)}
    hidden = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    masked = hidden.sub(lambda m: " " * len(m[0]), text)
    for match in MARK.finditer(masked):
        if match.start() not in known:
            complain(match.start(), "this is no mark, or has nothing to mark: marks stand "
                     "right above a block or a picture")
    return wrong


def stale_output(match: re.Match[str], run_all: bool) -> Iterator[str]:
    """What is wrong with a command's output."""
    command, text = match["command"], match["text"]
    if match["kind"] == "output":
        if command_output(command) != text:
            yield f"the output of `{command}` is stale"
        return
    if match["seal"] is None:
        yield f"{NEVER} `{command}`: `python tools/book.py refresh WORD` does"
    elif match["seal"] != seal(command, text):
        yield f"the output of `{command}` was changed by hand"
    if run_all and match["tolerance"]:
        old, new = (NUMBER.findall(one) for one in (text, command_output(command)))
        for one, other in zip(old, new):
            if not near(number(one), number(other), match["tolerance"]):
                yield f"`{command}` prints {other} where the book has {one}"
        if len(old) != len(new):
            yield f"`{command}` prints {len(new)} numbers, and the book has {len(old)}"


def refresh(text: str, word: str | None, table: str = "") -> str:
    """The book with its numbers renewed; the long ones if `word` is in the command."""
    lines = text.split("\n")
    changes = []
    names = namespaces(text)
    for chapter, blocks in by_chapter(text).items():
        for line, example, got in run_chapter(blocks, names[chapter]):
            first = line - 1 + example.source.count("\n")
            changes.append((first, first + example.want.count("\n"), got))
    for first, last, got in sorted(changes, reverse=True):
        lines[first:last] = got.split("\n")[:-1]

    def renew(match: re.Match[str]) -> str:
        if match["kind"] == "long" and (word is None or word not in match["command"]):
            return match[0]
        output = command_output(match["command"])
        return sealed(match, f"```text\n{output}```", seal(match["command"], output))

    text = OUTPUT.sub(renew, "\n".join(lines))
    for match in FIGURE.finditer(text):
        if match["kind"] == "figure":
            path = ROOT / match["path"]
            path.write_text(drawings(match["command"])[path.name], encoding="utf-8")
    for chapter, fresh in namespaces(text).items():     # the transcripts may be new ones
        names[chapter].update({name: fresh[name] for name in ("shown", "code", "said")})
    text, _ = renewed_numbers(text, table, names)
    for left in renewed_numbers(text, table, names)[1]:     # in words, or not in the table
        print(f"cannot renew this: {left.message}", file=sys.stderr)
    return text


def sealed(match: re.Match[str], below: str, new: str) -> str:
    """A mark with its seal, if it is of the long kind, and what stands below it."""
    head = match["kind"] + (f" {new}" if match["kind"].startswith("long") else "")
    if match.re is OUTPUT and match["tolerance"]:
        head += f" ~ {match['tolerance']}"
    return f"<!-- {head}: {match['command']} -->\n{below}"


def seal_all(text: str) -> str:
    """The book with new seals on all that is long."""
    def output(match: re.Match[str]) -> str:
        if not match["text"].strip():
            return match[0]                             # there is no output yet
        below = match[0].partition("\n")[2]
        return sealed(match, below, seal(match["command"], match["text"]))

    def figure(match: re.Match[str]) -> str:
        path = ROOT / match["path"]
        drawn = path.read_text(encoding="utf-8") if path.is_file() else ""
        below = match[0].partition("\n")[2]
        return sealed(match, below, seal(match["command"], drawn))

    return FIGURE.sub(figure, OUTPUT.sub(output, text))


def main(arguments: list[str]) -> int:
    sys.path[:0] = [str(ROOT / "build")]
    text, table = (path.read_text(encoding="utf-8") for path in (BOOK, claims.TABLE))
    if arguments[:1] == ["refresh"]:
        word = arguments[1] if arguments[1:] else None
        word = "" if word == "all" else word
        BOOK.write_text(refresh(text, word, table), encoding="utf-8")
        return 0
    if arguments == ["seal"]:
        BOOK.write_text(seal_all(text), encoding="utf-8")
        return 0
    wrong = stale(text, table=table, run_all=arguments == ["check", "all"])
    print("\n".join(wrong) or "every number in the book is what the program prints, or printed "
          "in a long run that is sealed (make refresh-all repeats those)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
