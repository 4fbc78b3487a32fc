"""Rewrite a chunk of the book and have it graded: python -m exercises [COMMAND NAME].

    (nothing)        the list: what there is, what is begun, what is done
    exercise NAME    lay out answers/NAME.py, the chunk with its code left out
    grade NAME       is it right? if not, what is wrong
    hint NAME        one hint more each time; `hint NAME 2` the second
    solution NAME    the chunk as it stands in the book
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Callable

import tangle
from exercises import chunks
from exercises.chunks import Book, Wrong

ROOT = Path(__file__).resolve().parent.parent


def fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 88, initial_indent=indent, subsequent_indent=indent,
                         break_long_words=False, break_on_hyphens=False)


class Desk:
    """Where the answers lie, and what is remembered about them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes = directory / ".notes.json"
        try:
            self.known = json.loads(self.notes.read_text())
        except (OSError, ValueError):
            self.known = {}

    def file(self, name: str) -> Path:
        return self.directory / f"{name}.py"

    def shown(self, name: str) -> str:
        return os.path.relpath(self.file(name))

    def answer(self, name: str) -> str:
        try:
            return self.file(name).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise Wrong(f"There is no {self.shown(name)} yet: `make exercise EX={name}` "
                        "lays it out.") from None
        except UnicodeDecodeError:
            raise Wrong(f"{self.shown(name)} is not UTF-8.") from None

    def note(self, name: str, key: str, value: object) -> None:
        self.known.setdefault(name, {})[key] = value
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.notes.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.known, indent=1))
        os.replace(temporary, self.notes)

    def noted(self, name: str, key: str) -> object:
        return self.known.get(name, {}).get(key)

    def state(self, name: str) -> str:
        if not self.file(name).is_file():
            return ""
        answer = self.file(name).read_text(encoding="utf-8-sig", errors="replace")
        if self.noted(name, "passed") == digest(answer):
            return "done"
        return "laid out" if self.noted(name, "starter") == digest(answer) else "begun"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def command_list(book: Book, desk: Desk) -> int:
    for exercise in book.rewrites.values():
        print(f"  {exercise.number:5} {exercise.stars:3}  {exercise.time:10}  "
              f"{exercise.name:26} {desk.state(exercise.name)}".rstrip())
    done = sum(desk.state(name) == "done" for name in book.rewrites)
    print(f"\n{done} of {len(book.rewrites)} done. `make exercise EX=softmax` "
          "begins one; then: make grade, make hint, make solution.")
    return 0


def command_exercise(book: Book, desk: Desk, name: str, force: bool) -> int:
    exercise, (before, hints) = book.rewrites[name], chunks.read_hints()[name]
    file, starter = desk.file(name), book.starter(name)
    head = [f"Exercise {exercise.number} ({exercise.stars}, {exercise.time}): "
            f"{exercise.text}", f"The book: {book.place(name)}."]
    head += [" ".join(each.split()) for each in before.split("\n\n") if each]
    text = "\n".join(fill(each, "# ") for each in head) + "\n\n" + starter
    if desk.state(name) in ("begun", "done") and not force:
        raise Wrong(f"{desk.shown(name)} holds your work; `make exercise EX={name} "
                    "ARGS=--force` lays it out anew (the old one becomes "
                    f"{name}.py.old).")
    if file.exists():
        os.replace(file, file.with_name(f"{name}.py.old"))
    desk.note(name, "starter", digest(text))
    file.write_text(text, encoding="utf-8")
    print(fill(f"{head[0]}"))
    print(f"\n  read    {book.place(name)}, up to the chunk; then shut the book\n"
          f"  write   {desk.shown(name)}, in place of the `raise`\n"
          f"  check   make grade EX={name}\n"
          f"  stuck?  make hint EX={name} ({len(hints)} of them), "
          f"make solution EX={name}")
    return 0


def command_grade(book: Book, desk: Desk, name: str, limit: float) -> int:
    """Grade in a process of its own, which can be stopped if it does not end."""
    answer = desk.answer(name)
    words = [sys.executable, "-m", "exercises", "--answers", str(desk.directory),
             "grade-here", name]
    path = os.pathsep.join([str(ROOT), str(ROOT / "build")])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    try:
        status = subprocess.run(words, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        raise Wrong(f"{desk.shown(name)}: it did not end within {limit:g} seconds: is "
                    "there a loop without an end?") from None
    if status == 0:
        desk.note(name, "passed", digest(answer))
        done = {each: desk.answer(each) for each in book.rewrites
                if desk.state(each) == "done"}
        tangle.write(book.package(done), desk.directory / "package", force=True)
        print(f"`make train MINE=1` trains with it in the book's place "
              f"({len(done)} of {len(book.rewrites)} done).")
    elif status != 1:
        raise Wrong(f"{desk.shown(name)}: Python itself broke down (exit status {status}): "
                    "too much memory, or a recursion without an end?")
    return status


def command_grade_here(book: Book, desk: Desk, name: str) -> int:
    try:
        race = grade(book, name, desk.answer(name))
    except Wrong as wrong:
        raise Wrong(f"{desk.shown(name)}: {wrong}") from None
    print(fill(f"Right: {desk.shown(name)} does what the book's does. {race}"))
    return 0


def grade(book: Book, name: str, answer: str, timed: bool = True) -> str:
    """Wrong, with what is wrong; or a sentence on its speed."""
    import numpy as np  # only here, so that the rest works at once

    from exercises.graders import GRADERS

    mine, theirs = chunks.load(book, name, answer), book.program(name)
    try:
        with np.errstate(all="ignore"):
            race = GRADERS[name](mine.module, theirs.module)
            times = best_times([race(mine.module), race(theirs.module)]) if timed else []
    except Wrong:
        raise
    except NotImplementedError:
        raise Wrong("Something is still to be written, in place of a `raise`.") from None
    except (Exception, SystemExit) as error:
        raise Wrong(chunks.where(error, mine)) from None
    return verdict(*times) if times else ""


def best_times(calls: list[Callable[[], object]], seconds: float = 0.5) -> list[float]:
    """The shortest time of each call, in seconds; they take turns."""
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or max(best) == float("inf"):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def verdict(ours: float, book: float) -> str:
    unit, scale = ("ms", 1e3) if max(ours, book) > 1e-3 else ("µs", 1e6)
    times = f"{ours * scale:.3g} {unit}, the book's {book * scale:.3g} {unit}"
    if ours < 0.9 * book:
        return f"And it is faster: it takes {times}."
    if ours < 1.15 * book:
        return f"It is as fast, too: it takes {times}."
    ratio = ours / book
    return f"It takes {times}: {ratio:.{1 if ratio < 10 else 0}f} times as long."


def command_hint(desk: Desk, name: str, number: int | None) -> int:
    hints = chunks.read_hints()[name][1]
    seen = desk.noted(name, "hints")
    number = number or min(len(hints), (seen if isinstance(seen, int) else 0) + 1)
    if not 1 <= number <= len(hints):
        raise Wrong(f"{name} has {len(hints)} hints.")
    desk.note(name, "hints", number)
    print(fill(f"Hint {number} of {len(hints)}. {hints[number - 1]}"))
    if number == len(hints):
        print(f"That was the last. `make solution EX={name}` shows the book's chunk.")
    return 0


def command_solution(book: Book, name: str) -> int:
    print(f"{book.place(name)}:\n\n{book.chunk(name)}", end="")
    return 0


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m exercises", description=description, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    commands = ["list", "exercise", "grade", "grade-here", "hint", "solution"]
    add("command", nargs="?", choices=commands, default="list", metavar="COMMAND")
    add("name", nargs="?", help="of the chunk; without it, the list")
    add("number", nargs="?", type=int, help="of the hint")
    add("--force", action="store_true", help="lay out anew what was begun")
    add("--answers", type=Path, default=ROOT / "answers",
        help="where the answers lie: %(default)s; a teacher names another")
    add("--limit", type=float, default=30, help="seconds for grading: %(default)s")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    book, desk = Book(), Desk(args.answers)
    if args.command == "list" or not args.name:
        return command_list(book, desk)
    if args.name not in book.rewrites:
        raise Wrong(f"There is no exercise {args.name}; `make exercise` lists them.")
    match args.command:
        case "exercise":
            return command_exercise(book, desk, args.name, args.force)
        case "grade":
            return command_grade(book, desk, args.name, args.limit)
        case "grade-here":
            return command_grade_here(book, desk, args.name)
        case "hint":
            return command_hint(desk, args.name, args.number)
    return command_solution(book, args.name)


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    try:
        return run(read_arguments(argv))
    except Wrong as wrong:
        print(fill(str(wrong)), file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stdout = None  # whoever read this has read enough
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    sys.exit(main())
