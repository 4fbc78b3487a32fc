"""Rewrite a chunk of the book and have it graded: python -m exercises [COMMAND NAME].

    (nothing)        the list: what there is, what is begun, what is done
    exercise NAME    lay out answers/NAME.py, the chunk with its code left out
    grade NAME       is it right? if not, what is wrong
    hint NAME        one hint more each time; `hint NAME 2` the second
    solution NAME    the chunk as it stands in the book
"""
from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple

import tangle
from exercises import chunks
from exercises.chunks import Book, Wrong
from exercises.guard import stand_guard

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
    answer = desk.answer(name)
    verdict = grade_apart(book, name, answer, limit)
    if verdict.printed:
        print("Your code prints:")
        print(textwrap.indent(verdict.printed.rstrip(), "  | "))
    desk.note(name, "passed", digest(answer) if verdict.right else "")
    if not verdict.right:
        raise Wrong(f"{desk.shown(name)}: {verdict.sentence}")
    print(fill(f"Right: {desk.shown(name)} does what the book's does. {verdict.sentence}"))
    done = {each: desk.answer(each) for each in book.rewrites
            if desk.state(each) == "done"}
    tangle.write(book.package(done), desk.directory / "package", force=True)
    print(fill(f"{how_to_train(book, name)} ({len(done)} of {len(book.rewrites)} done)."))
    return 0


def how_to_train(book: Book, name: str) -> str:
    """With which commands the reader's chunk works in the book's place."""
    if book.file_of(name).name == "simple_llm/today/gguf.py":
        return "It is chapter 17's table, and no training, that is made with it"
    if Path(book.file_of(name).name).stem in ("assistant", "reward"):
        return ("`make assistant MINE=1` makes an assistant with your chunks of chapter 18 in "
                "the book's place")
    if book.file_of(name).name.startswith("simple_llm/today/"):
        return ('`make train MINE=1 ARGS="--plain --form llama"` trains with your chunks of '
                "chapter 16 in the book's place")
    return ("`make first MINE=1` trains with it in the book's place, and so does "
            "`make train MINE=1 ARGS=--plain`")


class Verdict(NamedTuple):
    right: bool
    sentence: str
    printed: str = ""


def grade_apart(book: Book, name: str, answer: str, limit: float) -> Verdict:
    """Grade in a process of its own, and do not believe it alone; see proof.py."""
    said = run_apart(["grade-here", name], answer.encode(), limit)
    last = said.report.decode(errors="replace").rstrip("\n").rpartition("\n")[2]
    word, _, sentence = last.partition(" ")
    if word not in ("right", "wrong"):
        word, sentence = "wrong", said.ending
    if word == "right":
        try:
            prove(book, name, answer, limit)
        except Wrong as wrong:
            word, sentence = "wrong", str(wrong)
    return Verdict(word == "right", sentence, visible(said.printed.decode(errors="replace")))


def prove(book: Book, name: str, answer: str, limit: float) -> None:
    """Wrong, unless an answer that is said to be right gives what the book's chunk does."""
    from exercises import proof

    luck = secrets.randbits(32)
    with tempfile.TemporaryDirectory() as directory:
        tangle.write(book.package({name: answer}), Path(directory))
        words = ["prove-here", name, "--package", directory,
                 "--file", book.file_of(name).name]
        said = run_apart(words, str(luck).encode(), limit)
    word, _, sentence = said.report[:2000].partition(b" ")
    if word == b"wrong":
        raise Wrong(sentence.decode(errors="replace"))
    try:
        proof.judge(book, name, said.report, luck)
    except ValueError:
        raise Wrong(said.ending) from None


class Said(NamedTuple):
    """What came out of a process: its report, what it printed, and how it ended."""
    report: bytes
    printed: bytes
    ending: str


def run_apart(words: list[str], given: bytes, limit: float) -> Said:
    """Run one of our own commands in a process that is stopped if it does not end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(
        ROOT / "build")]), "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1"}
    printed: list[bytes] = []
    with tempfile.TemporaryFile() as report, tempfile.TemporaryDirectory() as directory:
        child = subprocess.Popen(
            [sys.executable, "-m", "exercises", *words, "--report", str(report.fileno())],
            env=environment, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, pass_fds=(report.fileno(),), start_new_session=True)
        reader = threading.Thread(target=keep_the_first, args=(child.stdout, printed),
                                  daemon=True)
        reader.start()
        try:
            with suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(given)
            child.wait(limit)
            how = f"exit status {child.returncode}" if child.returncode >= 0 else \
                f"signal {-child.returncode}"
            ending = (f"Python ended before the grading did ({how}). Does it leave Python, "
                      "or need too much memory, or is there a recursion without an end?")
        except subprocess.TimeoutExpired:
            ending = f"It did not end within {limit:g} seconds: is there a loop without an end?"
        finally:
            with suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)  # and whatever it has started
            child.wait()
        reader.join(1)
        report.seek(0)
        return Said(report.read(100_000_000), b"".join(printed), ending)


def visible(text: str, limit: int = 40) -> str:
    """The first lines of a text, in which nothing moves the cursor or changes colours."""
    lines = text.split("\n")
    more = [f"[... and {len(lines) - limit} lines more]"] * (len(lines) > limit)
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1]
                   for c in "\n".join(lines[:limit] + more))


def keep_the_first(pipe: IO[bytes], kept: list[bytes], limit: int = 4000) -> None:
    """Read all that a process prints, and keep the beginning of it."""
    with pipe:
        for line in iter(lambda: pipe.read1(65536), b""):
            if limit > 0:
                kept.append(line[:limit] + b"\n[...]\n" * (len(line) > limit))
            limit -= len(line)


def command_grade_here(book: Book, name: str, report: int) -> int:
    """What the process of its own does: the answer comes in, the report goes out."""
    from exercises import graders  # noqa: F401, since later no file of ours can be read

    answer, pid = sys.stdin.read(), os.getpid()
    write, leave, own = os.write, os._exit, os.getpid  # as they are now
    sys.argv[:] = sys.argv[:1]

    def end(status: int) -> None:
        raise SystemExit(status)  # so that the line that leaves can be named

    book.room(name)
    refused = stand_guard()
    os._exit = end  # type: ignore[assignment]
    try:
        race = grade(book, name, answer, refused)
        write(report, b"right It is far slower than the book's: the grading ended before a "
                      b"race did. Let one call of NumPy do a whole array.\n")
        result = f"right {race()}"
    except Wrong as wrong:
        result = f"wrong {wrong}"
    with suppress(Exception):
        sys.stdout.flush()
    if own() == pid:  # and no copy of it that the answer has made
        write(report, " ".join(result.split())[:2000].encode(errors="backslashreplace"))
    leave(0)
    return 0


def command_prove_here(name: str, package: str, file: str, report: int) -> int:
    """The same for proof.py: a number comes in, and the results go out."""
    from exercises import proof

    luck, write, leave = int(sys.stdin.read()), os.write, os._exit
    sys.argv[:] = sys.argv[:1]
    stand_guard()
    try:
        data = proof.results_of_answer(name, package, file, luck)
    except Wrong as wrong:
        data = f"wrong {wrong}".encode()
    except BaseException as error:
        data = (f"wrong It raises {chunks.describe(error)}, when all numbers are others."
                ).encode(errors="backslashreplace")
    while data:
        data = data[write(report, data):]
    leave(0)
    return 0


def grade(book: Book, name: str, answer: str, refused: list[str] = []) -> Callable[[], str]:
    """Wrong, with what is wrong; or a function that times it, and says how fast it is."""
    import numpy as np  # only here, so that the rest works at once

    from exercises.graders import GRADERS

    room = book.room(name)
    with chunks.closed_book(room), np.errstate(all="ignore"):
        mine = chunks.load(book, name, answer)
        race = tried(mine, lambda: GRADERS[name](mine.module, room.theirs.module))
    if mine.ends:
        raise Wrong(mine.ends)
    if refused:
        raise Wrong(chunks.not_needed("It", refused[0]))

    def time_both() -> str:
        with chunks.closed_book(room), np.errstate(all="ignore"):
            times = tried(mine, lambda: best_times(
                [race(mine.module), race(room.theirs.module)]))
        return verdict(*times, loops_in(answer))
    return time_both


def tried(mine: chunks.Program, call: Callable[[], Any]) -> Any:
    """What a call returns; Wrong, with the place, if it raises."""
    try:
        return call()
    except Wrong:
        raise
    except NotImplementedError:
        raise Wrong("Something is still to be written, in place of a `raise`.") from None
    except BaseException as error:
        raise Wrong(chunks.where(error, mine)) from None


def loops_in(code: str) -> bool:
    kinds = ast.For, ast.While, ast.comprehension
    return any(isinstance(node, kinds) for node in ast.walk(ast.parse(code)))


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


def verdict(ours: float, book: float, loops: bool = False) -> str:
    """A sentence on the times of the two, and advice to who is far slower."""
    unit, scale = ("ms", 1e3) if max(ours, book) > 1e-3 else ("µs", 1e6)
    times = f"{ours * scale:.3g} {unit}, the book's {book * scale:.3g} {unit}"
    if ours < 0.9 * book:
        return f"And it is faster: it takes {times}."
    if ours < 1.15 * book:
        return f"It is as fast, too: it takes {times}."
    ratio = ours / book
    advice = "" if ratio < 8 else (
        " The time goes into loops in Python: let one call of NumPy do a whole array."
        if loops else
        " Is something computed again and again, or copied, or larger than it need be?")
    return f"It takes {times}: {ratio:.{1 if ratio < 10 else 0}f} times as long.{advice}"


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
    commands = ["list", "exercise", "grade", "grade-here", "prove-here", "hint", "solution"]
    add("command", nargs="?", choices=commands, default="list", metavar="COMMAND")
    add("name", nargs="?", help="of the chunk; without it, the list")
    add("number", nargs="?", type=int, help="of the hint")
    add("--force", action="store_true", help="lay out anew what was begun")
    add("--answers", type=Path, default=ROOT / "answers",
        help="where the answers lie: %(default)s; a teacher names another")
    add("--limit", type=float, default=30, help="seconds for grading: %(default)s")
    for ours in ("--package", "--file"):  # for the processes that grade starts
        add(ours, help=argparse.SUPPRESS)
    add("--report", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if args.command.endswith("-here") and args.report is None:
        raise Wrong(f"{args.command} is what `grade` runs.")
    if args.command == "prove-here":  # where the book must not be read
        return command_prove_here(args.name, args.package, args.file, args.report)
    book, desk = Book(), Desk(args.answers)
    if args.command == "list" or (args.command == "exercise" and not args.name):
        return command_list(book, desk)
    if not args.name:
        raise Wrong(f"Say which: make {args.command} EX=softmax; `make exercise` lists them.")
    if args.name not in book.rewrites:
        raise Wrong(f"There is no exercise {args.name}; `make exercise` lists them.")
    match args.command:
        case "exercise":
            return command_exercise(book, desk, args.name, args.force)
        case "grade":
            return command_grade(book, desk, args.name, args.limit)
        case "grade-here":
            return command_grade_here(book, args.name, args.report)
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
