"""The exercises of the book, and the program with a reader's chunk in place of one."""
from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import tangle

HINTS = Path(__file__).with_name("hints.md")
EXERCISE = re.compile(
    r"^- \*(?P<number>\d+\.\d+)\* \((?P<kind>paper|rewrite|project), "
    r"(?P<stars>★{1,3}), (?P<time>\d+ (?:minutes|hours?))\) "
    r"(?P<text>.+(?:\n(?!- |\n|\*).+)*)", re.MULTILINE)


class Wrong(Exception):
    """What is wrong with an answer, in one sentence."""


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


class Book:
    """What the book says about its exercises."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text or tangle.read_document()
        blocks, _ = tangle.read_blocks(self.text)
        self.chunks = tangle.gather_chunks(blocks)
        self.files = [block for block in blocks if block.kind == "file"]
        self.exercises = list(read_exercises(self.text))
        self.rewrites = {e.name: e for e in self.exercises if e.name}

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

    def program(self, name: str, answer: str | None = None) -> Program:
        """The module of the program with this answer, or the book's, in it."""
        chunks = self.chunks
        file = next(file for file in self.files if any(
            line.block.name == name for line in tangle.expand(file, chunks)))
        if answer is not None:
            chunks = {**chunks, name: [in_place(name, answer)]}
        lines = list(tangle.expand(file, chunks))
        source = "".join(line.text + "\n" for line in lines)
        whose = "book" if answer is None else "answer"
        module = ModuleType(f"{whose}_{Path(file.name).stem}")
        module.__file__ = f"<{whose}>"
        sys.modules[module.__name__] = module  # where dataclasses look for it
        exec(compile(source, module.__file__, "exec"), module.__dict__)
        return Program(module, lines)


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
    try:
        return book.program(name, answer)
    except SyntaxError as error:
        raise Wrong(f"In its place in the program this is not Python: {error.msg}.") \
            from None
    except Exception as error:
        raise Wrong(f"Defining it raises {describe(error)}.") from None


def describe(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return type(error).__name__ + (f": {words.rstrip('.')}" if words else "")


def where(error: BaseException, program: Program) -> str:
    """A sentence on an exception, with the reader's line or the book's."""
    place = "It raises"
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == program.module.__file__:
            line = program.lines[trace.tb_lineno - 1]
            code = line.text.split("  #")[0].strip()
            if line.block.line == 0:
                place = f"Line {line.number}, `{code}`, raises"
            elif place == "It raises":
                place = (f"What it leaves makes {tangle.DOCUMENT.name}:{line.number}, "
                         f"`{code}`, raise")
        trace = trace.tb_next
    return f"{place} {describe(error)}."


Module = Any  # a module of the program, with somebody's chunk in it
