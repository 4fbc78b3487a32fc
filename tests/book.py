"""The outputs in the book: check that they are what the program prints, or renew them.

    python tests/book.py check       the sessions and the quick commands; exit 1 if stale
    python tests/book.py refresh     renew these outputs in simple_llm.md
    python tests/book.py refresh all       also the long runs (minutes)
    python tests/book.py refresh WORD      of the long runs, those with this in the command

Two kinds of output stand in the book. A session is a ```pycon block; the sessions of a
chapter share their names. A command's output is a ```text block below a comment such as
<!-- output: python -m simple_llm.tiny -->; with `long` in place of `output`, the command
takes minutes and its numbers depend on the machine, so it is renewed, not compared.
"""
from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "simple_llm.md"
OUTPUT = re.compile(
    r"^<!-- (output|long): (.+?) -->\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


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
        elif line.startswith("## "):
            chapter = line.removeprefix("## ")


def run_chapter(blocks: list[Session]) -> Iterator[tuple[int, doctest.Example, str]]:
    """Run a chapter's sessions; yield each example's book line, itself, and its output."""
    names: dict[str, object] = {}
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
    done = subprocess.run(
        words, cwd=ROOT / "build", env=environment, stdout=subprocess.PIPE, text=True,
        check=True,
    )
    return done.stdout


def stale(text: str) -> list[str]:
    """What the book shows that is not so, one message for each."""
    wrong = []
    for blocks in by_chapter(text).values():
        for line, example, got in run_chapter(blocks):
            if got != example.want:
                wrong.append(f"{BOOK.name}:{line}: {example.source.strip()}\n"
                             f"  the book says {example.want!r}\n  it is         {got!r}")
    for match in OUTPUT.finditer(text):
        if match[1] == "output" and command_output(match[2]) != match[3]:
            line = text.count("\n", 0, match.start()) + 1
            wrong.append(f"{BOOK.name}:{line}: the output of `{match[2]}` is stale")
    return wrong


def refresh(text: str, word: str | None) -> str:
    """The book with its outputs renewed; the long ones if `word` is in the command."""
    lines = text.split("\n")
    changes = []
    for blocks in by_chapter(text).values():
        for line, example, got in run_chapter(blocks):
            first = line - 1 + example.source.count("\n")
            changes.append((first, first + example.want.count("\n"), got))
    for first, last, got in sorted(changes, reverse=True):
        lines[first:last] = got.split("\n")[:-1]

    def renew(match: re.Match[str]) -> str:
        if match[1] == "long" and (word is None or word not in match[2]):
            return match[0]
        head = match[0][: match[0].index("```text\n")]
        return f"{head}```text\n{command_output(match[2])}```"

    return OUTPUT.sub(renew, "\n".join(lines))


def main(arguments: list[str]) -> int:
    sys.path[:0] = [str(ROOT / "build")]
    text = BOOK.read_text(encoding="utf-8")
    if arguments[:1] == ["refresh"]:
        word = arguments[1] if arguments[1:] else None
        word = "" if word == "all" else word
        BOOK.write_text(refresh(text, word), encoding="utf-8")
        return 0
    wrong = stale(text)
    print("\n".join(wrong) or "every output in the book is what the program prints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
