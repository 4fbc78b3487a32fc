"""The exercises of the book, and the program with a reader's chunk in place of one."""
from __future__ import annotations

import ast
import builtins
import math
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Iterator, NamedTuple

import tangle
from exercises.guard import Refused

MEASURES = "numpy", "numpy.linalg", "numpy.random", "numpy._core.numeric"
HINTS = Path(__file__).with_name("hints.md")
EXERCISE = re.compile(
    r"^- \*(?P<number>\d+\.\d+)\* \((?P<kind>paper|rewrite|project), "
    r"(?P<stars>★{1,3}), (?P<time>\d+ (?:minutes|hours?))\) "
    r"(?P<text>.+(?:\n(?!- |\n|\*).+)*)", re.MULTILINE)


class Wrong(Exception):
    """What is wrong with an answer, in one sentence."""


class NotYours(ImportError):
    """An answer wants the book's own solution, or the graders."""


class Exercise(NamedTuple):
    """An exercise as the book states it; `name` is the chunk's, if it is a rewrite."""
    number: str
    kind: str
    stars: str
    time: str
    text: str
    name: str


class Program(NamedTuple):
    """A module that has the reader's chunk in it, and where each of its lines is from."""
    module: ModuleType
    lines: list[tangle.Line]
    ends: str = ""  # what in it ends Python as soon as it is imported


class Book:
    """What the book says about its exercises."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text or tangle.read_document()
        blocks, _ = tangle.read_blocks(self.text)
        self.chunks = tangle.gather_chunks(blocks)
        self.files = [block for block in blocks if block.kind == "file"]
        self.exercises = list(read_exercises(self.text))
        self.rewrites = {e.name: e for e in self.exercises if e.name}
        self.homes: dict[str, tangle.Block] = {}
        self.rooms: dict[str, Room] = {}

    def chunk(self, name: str) -> str:
        """The book's own solution, with the chunks that it uses in their places."""
        whole = tangle.Block("file", "", 1, "python", 0, [f"<<{name}>>"])
        lines = tangle.expand(whole, self.chunks)
        return "".join(line.text + "\n" for line in lines)

    def place(self, name: str) -> str:
        """Where the chunk stands: the section, and the lines of the code."""
        first, *_, last = [self.chunks[name][0], *self.chunks[name]]
        heading = ""
        for line in self.text.split("\n")[: first.line]:
            heading = line.lstrip("# ") if re.match("##+ ", line) else heading
        return (f'{tangle.DOCUMENT.name}:{first.line + 1}-{last.line + len(last.body)}, '
                f'in "{heading}"')

    def starter(self, name: str) -> str:
        """The chunk with the bodies of its functions left out, but not of __init__."""
        code = self.chunk(name)
        raising = (f'raise NotImplementedError("exercise {name}: '
                   f'{tangle.DOCUMENT.name}:{self.chunks[name][0].line}")')
        lines: list[str | None] = list(code.split("\n"))
        functions = functions_of(code)
        for function in functions:
            body = function.body
            if ast.get_docstring(function):
                body = body[1:]
            if function.name != "__init__":
                start, end = body[0].lineno - 1, body[-1].end_lineno
                lines[start:end] = [" " * body[0].col_offset + raising,
                                    *[None] * (end - start - 1)]
        kept = "\n".join(line for line in lines if line is not None)
        return kept if functions else raising + "\n"

    def package(self, answers: dict[str, str]) -> dict[str, str]:
        """Every file of the program, with these answers in their places."""
        chunks = {**self.chunks, **{name: [in_place(name, answer)]
                                    for name, answer in answers.items()}}
        return tangle.texts({file.name: list(tangle.expand(file, chunks))
                             for file in self.files})

    def file_of(self, name: str) -> tangle.Block:
        """The file that the chunk is in."""
        if name not in self.homes:
            self.homes[name] = next(file for file in self.files if any(
                line.block.name == name for line in tangle.expand(file, self.chunks)))
        return self.homes[name]

    def program(self, name: str, answer: str | None = None) -> Program:
        """The module of the program with this answer, or the book's, in it."""
        file, chunks = self.file_of(name), self.chunks
        if answer is not None:
            chunks = {**chunks, name: [in_place(name, answer)]}
        lines = list(tangle.expand(file, chunks))
        source = "".join(line.text + "\n" for line in lines)
        whose = "book" if answer is None else "answer"
        module = ModuleType(f"{whose}_{Path(file.name).stem}")
        module.__file__ = f"<{whose}>"
        program = Program(module, lines)
        sys.modules[module.__name__] = module  # where dataclasses look for it
        try:
            exec(compile(source, module.__file__, "exec"), module.__dict__)
        except BaseException as error:
            error.program = program
            raise
        finally:
            del sys.modules[module.__name__]
        return program

    def room(self, name: str) -> Room:
        """Where answers of this name run, with the book's own module outside of it."""
        file = self.file_of(name).name
        if file not in self.rooms:
            with modules_hidden("simple_llm"):
                theirs = self.program(name)
                self.rooms[file] = Room(theirs, {
                    each: module for each, module in sys.modules.items()
                    if each.split(".")[0] == "simple_llm"})
        return self.rooms[file]


class Room(NamedTuple):
    """The book's module, and those of the package that it imports itself."""
    theirs: Program
    imported: dict[str, ModuleType]


@contextmanager
def modules_hidden(*packages: str) -> Iterator[None]:
    """Within it these packages, and their modules, are as if never imported."""
    hidden = {name: module for name, module in sys.modules.items()
              if name.split(".")[0] in packages}
    for name in hidden:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[name]
        sys.modules.update(hidden)


class Doorkeeper:
    """First among the finders of modules: refuses those that hold a solution."""
    names = "simple_llm", "exercises", "tangle", "__main__"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in self.names:
            raise NotYours(name)


@contextmanager
def closed_book(room: Room) -> Iterator[None]:
    """Within it an answer finds neither the book's module nor the graders.

    Nor may it change what the graders measure with: that is seen, and put back.
    """
    keeper = Doorkeeper()
    tools = [vars(math), vars(builtins), *(
        vars(module) for name, module in sys.modules.items()
        if name.split(".")[0] == "exercises" or name in MEASURES)]
    before = [dict(tool) for tool in tools]
    with modules_hidden(*Doorkeeper.names):
        sys.modules.update(room.imported)
        sys.meta_path.insert(0, keeper)  # type: ignore[arg-type]
        try:
            yield
        finally:
            sys.meta_path[:] = [each for each in sys.meta_path if each is not keeper]
            changed = [(tool, key, old) for tool, olds in zip(tools, before)
                       for key, old in olds.items() if tool.get(key) is not old
                       and key != "_"]
            for tool, key, old in changed:
                tool[key] = old
            if changed:
                raise Wrong(f"It puts something of its own in the place of `{changed[0][1]}`, "
                            "with which it is graded, too.")


def in_place(name: str, answer: str) -> tangle.Block:
    """An answer as the block of a chunk; its lines count from 1."""
    return tangle.Block("chunk", name, 1, "python", 0, answer.split("\n"))


def read_exercises(text: str) -> list[Exercise]:
    found = []
    for match in EXERCISE.finditer(text):
        name = re.search(r"EX=([\w-]+)", match["text"])
        name = name[1] if name and match["kind"] == "rewrite" else ""
        words = " ".join(re.sub(r"`make exercise EX=.*?`", "", match["text"]).split())
        found.append(Exercise(match["number"], match["kind"], match["stars"],
                              match["time"], words, name))
    return found


def functions_of(code: str) -> list[ast.FunctionDef]:
    """The functions and methods of a piece of code, from the last to the first."""
    found = [node for node in ast.walk(ast.parse(code))
             if isinstance(node, ast.FunctionDef)]
    return sorted(found, key=lambda function: -function.lineno)


def read_hints() -> dict[str, tuple[str, list[str]]]:
    """For each exercise what is to be known before, and the hints."""
    hints = {}
    for section in re.split(r"(?m)^## ", HINTS.read_text(encoding="utf-8"))[1:]:
        title, _, body = section.partition("\n")
        before, *each = re.split(r"(?m)^\d+\. ", body)
        hints[title.strip()] = (before.strip(),
                                [" ".join(hint.split()) for hint in each])
    return hints


def check_answer(book: Book, name: str, answer: str) -> None:
    """Is this Python, and does it define what the book's chunk defines?"""
    try:
        tree = ast.parse(answer)
    except SyntaxError as error:
        raise Wrong(f"Python cannot read line {error.lineno}: {error.msg}.") from None
    if not tree.body:
        raise Wrong("There is no code in it yet.")
    for line in answer.split("\n"):
        used = tangle.REFERENCE.fullmatch(line)
        if used and used[2] not in book.chunks:
            raise Wrong(f"The book has no chunk <<{used[2]}>>.")
    defined = {node.name for node in tree.body if hasattr(node, "name")}
    wanted = [node.name for node in ast.parse(book.chunk(name)).body
              if hasattr(node, "name")]
    for each in wanted:
        if each not in defined:
            raise Wrong(f"It does not define `{each}`.")


def load(book: Book, name: str, answer: str) -> Program:
    """The program with this answer in it; Wrong if it is not Python."""
    check_answer(book, name, answer)
    ends = ""
    while True:
        try:
            return book.program(name, answer)._replace(ends=ends)
        except SyntaxError as error:
            raise Wrong(f"In its place in the program this is not Python: {error.msg}.") \
                from None
        except SystemExit as error:
            ends = ends or (f"{where(error, error.program)[:-1]}: leave that out, for the "
                            "program would end there, too.")
            if (shorter := without_exit(answer, error)) == answer:
                raise Wrong(ends) from None
            answer = shorter
        except (NotYours, Refused) as error:
            raise Wrong(where(error, error.program)) from None
        except BaseException as error:
            raise Wrong(f"Defining it raises {describe(error)}.") from None


def without_exit(answer: str, error: BaseException) -> str:
    """The answer without the statement that ended Python, to see what the rest is worth."""
    number = answer_line(error, error.program)[0]
    lines = answer.split("\n")
    for node in ast.parse(answer).body:
        if node.lineno <= number <= (node.end_lineno or 0):
            lines[node.lineno - 1:node.end_lineno] = [
                "pass", *[""] * (node.end_lineno - node.lineno)]
    return "\n".join(lines)


def describe(error: BaseException) -> str:
    words = " ".join(str("" if error.args == (None,) else error).split())
    return type(error).__name__ + (f": {words.rstrip('.')}" if words else "")


def answer_line(error: BaseException, program: Program) -> tuple[int, str]:
    """The last of the reader's lines that an exception came through; 0 if there is none."""
    found = 0, ""
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == program.module.__file__:
            line = program.lines[trace.tb_lineno - 1]
            if line.block.line == 0:
                found = line.number, line.text.split("  #")[0].strip()
        trace = trace.tb_next
    return found


def not_yours(error: ImportError) -> str:
    return (f"It imports {error}: what stands there is the book's, not yours. Write it "
            "without.")


def not_needed(who: str, what: object) -> str:
    return f"{who} {what}: no answer needs that, and it is not done while one is graded."


def where(error: BaseException, program: Program) -> str:
    """A sentence on an exception, with the reader's line or the book's."""
    if isinstance(error, NotYours):
        return not_yours(error)
    place = "It raises"
    number, code = answer_line(error, program)
    if isinstance(error, Refused):
        return not_needed(f"Line {number}, `{code}`," if number else "It", error)
    if number:
        return f"Line {number}, `{code}`, raises {describe(error)}."
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == program.module.__file__:
            line = program.lines[trace.tb_lineno - 1]
            code = line.text.split("  #")[0].strip()
            place = f"What it leaves makes {tangle.DOCUMENT.name}:{line.number}, `{code}`, raise"
            break
        trace = trace.tb_next
    return f"{place} {describe(error)}."


Module = Any  # a module of the program, with somebody's chunk in it
