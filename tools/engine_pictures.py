"""The pictures of part III's chapters: python tools/engine_pictures.py DIRECTORY.

Each is drawn from a run of the package itself: a file that is replaced, a batch that is
shared, readers who come and go. Needs build/ (make tangle), and NumPy alone.
"""
from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))

import numpy as np  # noqa: E402

from chart import BLUE, CARD, GREY, INK, Drawing  # noqa: E402
from simple_llm import files  # noqa: E402
from simple_llm.engine import parallel, serve  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.model import Config  # noqa: E402
from simple_llm.world import StoryCorpus, World  # noqa: E402

LIGHT_BLUE, LIGHT_OCHRE, LIGHT_GREY = "#bcd2ea", "#f3e3bf", "#e9e5dc"


# Chapter 19: files

CALLS = ("open", "write", "flush", "fsync", "replace")


def watch_a_write() -> list[tuple[str, str, str]]:
    """After each call of write_atomically: its name, and what both files hold then."""
    seen = []
    with TemporaryDirectory() as home:
        path = Path(home) / "file"
        path.write_bytes(b"old")

        def look(frame: Any, event: str, called: Any) -> None:
            if (event == "c_return" and frame.f_code is files.write_atomically.__code__
                    and (name := getattr(called, "__name__", "")) in CALLS
                    and len(seen) <= len(CALLS)):
                seen.append(state(name))

        def state(name: str) -> tuple[str, str, str]:
            beside = [p.read_bytes() for p in Path(home).glob(".*")]
            return (name, path.read_text(),
                    f"{len(beside[0])} bytes" if beside else "none")

        seen.append(state("before"))
        sys.setprofile(look)
        try:
            files.write_atomically(path, b"new")
        finally:
            sys.setprofile(None)
    return seen


def draw_write(path: Path) -> None:
    seen = watch_a_write()
    drawing = Drawing(
        "After every call the file is all old or all new",
        "What is on the disk after each call of write_atomically. The file itself is old until "
        "the call replace, and new from then on. The temporary file beside it is empty when it "
        "is opened and written, has all bytes after flush, and is gone after replace.",
        276, ["What a program finds that is killed after each call: the file, and the one beside."])
    left, top, wide, high = 148, 92, 90, 44
    for row, name in enumerate(("the file", "the one beside")):
        drawing.text(left - 14, top + 36 + row * (high + 12) + 27, name, INK, 14, "end")
    for k, (call, file, beside) in enumerate(seen):
        x = left + k * wide
        drawing.text(x + wide / 2, top + 22, call if not k else f"{call}()", INK, 14, "middle")
        for row, (words, fill) in enumerate((
                (file, LIGHT_OCHRE if file == "old" else LIGHT_BLUE),
                (beside, {"none": CARD, "0 bytes": LIGHT_GREY}.get(beside, LIGHT_BLUE)))):
            y = top + 36 + row * (high + 12)
            drawing.rect(x, y, wide, high, fill, GREY, 0.8)
            drawing.text(x + wide / 2, y + 27, words, INK, 14, "middle")
    drawing.text(left, top + 36 + 2 * (high + 12) + 18,
                 "From fsync() on, the bytes beside survive a failure of power, too.", GREY, 13)
    drawing.save(path)


# Chapter 22: many workers

class Watched:
    """In place of a model: notes the targets of each micro-batch."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def loss(self, ids: np.ndarray, targets: np.ndarray, n_targets: int) -> float:
        self.seen.append(targets)
        return 0.0

    def backward(self) -> None:
        pass


def draw_shares(path: Path, workers: int = 2) -> None:
    corpus = StoryCorpus(World(), steps_per_epoch=1, held_out=10)
    batch = next(iter(corpus.batches(1)))
    B, T = batch.targets.shape
    drawing = Drawing(
        "One batch, two workers, micro-batches that are only as long as they must be",
        f"The {B} stories of a batch as bars, half of them for each worker, sorted by length and "
        "cut into micro-batches. Each micro-batch ends at its own longest story, far before the "
        "longest of the whole batch for most of them.",
        446, [f"The {B} stories of the first batch; each bar is a story. Outlines are micro-batches,",
              f"grey in them is padding; without them all would be as long as the longest, {T}."])
    top, thin, wide = 122, 8, 300
    n_words, computed = int((batch.targets >= 0).sum()), 0
    for worker in range(workers):
        left = 24 + worker * (wide + 66)
        drawing.text(left, top - 12, f"worker {worker + 1}", INK, 14, bold=True)
        share = type(batch)(*(parallel.share_of(a, worker, workers) for a in batch))
        watched = Watched()
        parallel.gradient_in_micro_batches(watched, share, n_words)
        y = top
        for targets in watched.seen:
            (rows, longest), lengths = targets.shape, (targets >= 0).sum(axis=1)
            computed += targets.size
            drawing.rect(left, y, wide * longest / T, thin * rows, LIGHT_GREY)
            for length in lengths:
                drawing.rect(left, y + 1, wide * length / T, thin - 2, LIGHT_BLUE)
                y += thin
            drawing.rect(left, y - thin * rows, wide * longest / T, thin * rows, "none", INK, 1)
            y += 3
        drawing.line([(left + wide, top), (left + wide, y)], GREY, 1, "2 4")
        drawing.text(left + wide, y + 16, f"{T} tokens", GREY, 12, "end")
    drawing.text(24, 430, f"Of {B * T:,} places {B * T - n_words:,} would be padding; in "
                 f"micro-batches {computed - n_words:,} are.", INK, 13)
    drawing.save(path)


# Chapter 24: serving

class Reader(NamedTuple):
    """Who comes in which step, with how long a prompt, for how many tokens."""

    name: str
    step: int
    prompt: int
    tokens: int


READERS = (Reader("A", 0, 9, 16), Reader("B", 0, 12, 6), Reader("C", 3, 420, 8),
           Reader("D", 4, 60, 11), Reader("E", 9, 150, 7), Reader("F", 12, 20, 6))


@cache
def serve_readers() -> list[dict[str, int]]:
    """For each step, who was computed, and how many tokens of hers."""
    steps: list[dict[str, int]] = [{}]
    seats: dict[Any, str] = {}
    readers = sorted(READERS, key=lambda reader: reader.step)
    threads: list[Thread] = []

    class Watching(serve.Engine):
        """Its loop computes a piece of a prompt, and then all newest tokens: that is a step."""

        halves = 0

        def compute(self, calls: list[Any]) -> list[Any]:
            steps[-1].update({seats[id(answers)]: piece.size for piece, _, answers in calls})
            done = super().compute(calls)
            self.halves += 1
            if self.halves % 2 == 0:
                steps.append({})
                come(self, len(steps) - 1)
            return done

    def come(engine: Any, step: int) -> None:
        while readers and readers[0].step <= step:
            reader = readers.pop(0)
            seat = serve.Seat(engine)
            seats[id(seat.answers)] = reader.name
            waiting = engine.calls.qsize()
            ids = np.arange(reader.prompt) % 20
            threads.append(Thread(target=lambda s=seat, i=ids, n=reader.tokens: list(
                s.generate(i, n, temperature=0))))
            threads[-1].start()
            while engine.calls.qsize() == waiting:      # nobody comes between two steps
                time.sleep(0.001)

    engine = Watching(FastLLM(Config(20, 600, 8, 1, 2)))
    moment, serve.MOMENT = serve.MOMENT, 0.3            # nobody is missed
    try:
        come(engine, 0)
        engine.start()
        while readers or any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
    finally:
        serve.MOMENT = moment
    return [step for step in steps if step]


def draw_serving(path: Path) -> None:
    steps = serve_readers()
    drawing = Drawing(
        "Readers come and go, and those who are here share a pass",
        "Six readers against the steps of the engine. In each step one piece of one prompt is read, "
        "in a pass of its own, and then all readers who are past their prompts get a token, in one "
        "pass. Whoever is done leaves at once, and whoever waits joins in the next step.",
        352, ["Six readers, by steps. A number: so many tokens of her prompt are read. A dot: a token of",
              "her answer, in one pass with all the dots above and below."])
    left, top, wide, high = 48, 96, 36.5, 34
    last = {reader.name: max(k for k, step in enumerate(steps) if reader.name in step)
            for reader in READERS}
    for row, reader in enumerate(READERS):
        y = top + row * high
        drawing.text(left - 14, y + 22, reader.name, INK, 15, "end", bold=True)
        for k in range(reader.step, last[reader.name] + 1):
            x, size = left + k * wide, steps[k].get(reader.name, 0)
            fill = LIGHT_BLUE if size == 1 else LIGHT_OCHRE if size else LIGHT_GREY
            drawing.rect(x + 1, y + 2, wide - 2, high - 4, fill, round_=3)
            if size == 1:
                drawing.dot(x + wide / 2, y + high / 2, BLUE, 4.5)
            else:
                drawing.text(x + wide / 2, y + 22, str(size) if size else "waits",
                             INK if size else GREY, 13 if size else 12, "middle")
    y = top + high * len(READERS)
    drawing.line([(left, y + 4), (left + wide * len(steps), y + 4)], GREY, 1)
    for k, step in enumerate(steps):
        rows = sum(size == 1 for size in step.values())
        drawing.text(left + (k + 0.5) * wide, y + 22, str(rows), INK, 13, "middle")
    drawing.text(left, y + 42, "rows of the shared pass, of 8 places", GREY, 13)
    drawing.save(path)


def main(out: str) -> None:
    for name, draw in OF_THE_ENGINE.items():
        draw(Path(out) / name)


OF_THE_ENGINE = {"write.svg": draw_write, "shares.svg": draw_shares, "serving.svg": draw_serving}

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
