"""The proof that an answer is right, which does not rest on what its process says.

Whatever runs in the process of an answer can be bent by the answer: the functions that
compare, the numbers compared with, the sentence at the end. So a process that says "wrong"
is believed, and one that says "right" is not. The answer then runs once more, in a process
that has the package with the answer in it, and neither the book nor its chunk; the numbers
that go in are drawn here, after the answer was read; and what comes out is compared here,
with what the book's chunk gives for the same numbers.

Promised: "right" means that an answer has computed what the book's chunk computes, in all
that its grader asks. Not promised: that an answer written to deceive leaves its inputs
alone, as only its own process can tell; or that nobody learned the book's chunk by heart.
"""
from __future__ import annotations

import importlib
import io
import sys

import numpy as np

from exercises import common
from exercises.chunks import Book, Module, Wrong
from exercises.diagnose import agree, Array, SEEN
from exercises.graders import GRADERS
from exercises.guard import ROOT

Results = list[tuple[str, Array]]


def results(name: str, module: Module, luck: int) -> Results:
    """All that a module gives when its grader asks, beside what each is called."""
    common.LUCK[:] = [luck]
    SEEN.clear()
    try:
        with np.errstate(all="ignore"):
            GRADERS[name](module, module)
        return list(SEEN)
    finally:
        common.LUCK.clear()


def pack(found: Results) -> bytes:
    file = io.BytesIO()
    np.savez(file, *(array for _, array in found))
    return file.getvalue()


def unpack(data: bytes) -> list[Array]:
    """The arrays of `pack`; ValueError if it is anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
    except Exception as error:  # whatever the answer may have put there
        raise ValueError("no arrays") from error


def results_of_answer(name: str, directory: str, file: str, luck: int) -> bytes:
    """In the process of the answer, whose package lies in a directory."""
    sys.path.insert(0, directory)
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return pack(results(name, module, luck))


def judge(book: Book, name: str, data: bytes, luck: int) -> None:
    """Wrong, unless these are the results of the book's chunk for the same numbers."""
    sys.path.insert(0, str(ROOT / "build"))  # for what the chunk's module imports
    right = results(name, book.room(name).theirs.module, luck)
    got = unpack(data)
    if len(got) != len(right):
        raise Wrong("Once more, where the book cannot be seen, it does not give all that is "
                    "graded.")
    for (what, wanted), given in zip(right, got):
        if not agree(given, wanted):
            raise Wrong(f"{what}: once more, with other numbers and where the book cannot "
                        "be seen, this is not what the book's chunk gives.")
