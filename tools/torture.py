"""Kill a training again and again; it must end in the bytes of one that was never killed.

    python tools/torture.py             a hundred kills and more (a few minutes)
    python tools/torture.py --kills 9   so many

A kill is a SIGKILL, which a program can neither catch nor delay. It comes in three ways:

    at a random moment      by the clock
    while a file is written when the temporary file of write_atomically can be seen
    at a point of writing   before, within and after each of open, write, fsync, replace

After each kill, everything that is in the model directory must be readable. Then
`train --resume` goes on, and is killed again, until it is let live. What it leaves must
be, to the byte, what the run left that nobody disturbed: the model, its loss curve,
everything but the time that it took.
"""
from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "build"), "PYTHONIOENCODING": "utf-8"}
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40
SMALL = ("--layers", "1", "--heads", "2", "--width", "8", "--dropout", "0.1")
TEXTS = ("--corpus", "text.txt", "--context", "8", "--no-ladder", *SMALL)
RUNS = {                                   # what is trained; a second or two each
    "text, 1 worker": (*TEXTS, "--workers", "1", "--epochs", "90"),
    "text, 2 workers": (*TEXTS, "--workers", "2", "--epochs", "90"),
    "stories, 2 workers": ("--batch-size", "4", "--workers", "2", "--epochs", "20",
                           "--no-ladder", *SMALL),
}

# The trainer that kills itself at the n-th point: a point is a step of writing a file.
SUICIDE = """
import os, signal, sys
from simple_llm import files
from simple_llm.cli.main import main

left = int(sys.argv.pop(1))

def point():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

class File:
    def __init__(self, *args): self.file = open(*args)
    def __enter__(self): return self
    def __exit__(self, *reason): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data):
        self.file.write(data[:len(data) // 2])
        self.file.flush()
        point()
        self.file.write(data[len(data) // 2:])

def around(function):
    def wrapped(*args):
        point()
        done = function(*args)
        point()
        return done
    return wrapped

files.open = around(File)
os.fsync, os.replace = around(os.fsync), around(os.replace)
sys.exit(main())
"""
POINTS = 7                                 # in each file that is written


def start(home: Path, arguments: tuple[str, ...], point: int | None = None):
    """A training that resumes what is in home/model."""
    program = ["-m", "simple_llm"] if point is None else ["-c", SUICIDE, str(point)]
    return subprocess.Popen(
        [sys.executable, *program, "train", "--resume", *arguments], cwd=home, env=ENV,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")


def finish(process) -> str:
    """Let a training live to its end; what it printed."""
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def temporaries(home: Path) -> list[Path]:
    return list(home.glob("model/.*.tmp"))


def kill_in(
    home: Path, arguments: tuple[str, ...], way: str, dice: random.Random
) -> tuple[str, str]:
    """Start, and kill; what was hit (nothing if the training was faster), what it said."""
    if way == "point":
        process = start(home, arguments, dice.randrange(POINTS * 5 * 8))
    else:
        for old in temporaries(home):      # so that a new one can be told
            old.unlink()
        process = start(home, arguments)
        end = time.monotonic() + dice.uniform(0.25, 1.5)
        while process.poll() is None and (way == "write" or time.monotonic() < end):
            if way == "write" and temporaries(home) and dice.random() < 0.2:
                break
        process.kill()
    said, _ = process.communicate(timeout=60)
    if process.returncode != -signal.SIGKILL:
        return "", said
    return "while a file was written" if temporaries(home) else "elsewhere", said


def check_directory(home: Path) -> None:
    """Whatever has been killed, each file that is there is whole."""
    from simple_llm.model import SimpleLLM
    from simple_llm.engine.resume import CHECKPOINT, read_checkpoint
    from simple_llm.tokenizer import Tokenizer
    model = home / "model"
    if (model / CHECKPOINT).exists():
        read_checkpoint(model / CHECKPOINT)
    if (model / "model.safetensors").exists():
        SimpleLLM.from_pretrained(model)
        Tokenizer.load(model)


def make_home(home: Path) -> Path:
    home.mkdir()
    (home / "text.txt").write_text(TEXT)
    return home


def result(home: Path) -> dict[str, bytes]:
    """What a training leaves, but for the checkpoint, which knows the time it took."""
    return {path.name: path.read_bytes() for path in (home / "model").iterdir()
            if path.name[0] != "." and path.name != "training.safetensors"}


def torture(
    home: Path, arguments: tuple[str, ...], wanted: dict[str, bytes], ways: list[str],
    dice: random.Random,
) -> Counter:
    """One training, killed in each of these ways; count what was hit."""
    make_home(home)
    hits = Counter()
    for way in ways:
        hit, said = kill_in(home, arguments, way, dice)
        hits[hit] += 1
        hits["resumed"] += "resumed at step" in said
        check_directory(home)
    hits["resumed"] += "resumed at step" in finish(start(home, arguments))
    got = result(home)
    assert got.keys() == wanted.keys(), (got.keys(), wanted.keys())
    differ = [name for name in wanted if got[name] != wanted[name]]
    assert not differ, f"{differ} differ after {ways}"
    return hits


def reference(home: Path, arguments: tuple[str, ...]) -> dict[str, bytes]:
    finish(start(make_home(home), arguments))
    return result(home)


def cost(place: Path) -> str:
    """What a checkpoint of the model of the small world costs, in a sentence."""
    from simple_llm.engine.fast import FastLLM
    from simple_llm.engine.parallel import make_team
    from simple_llm.engine.resume import Run
    from simple_llm.model import Config
    from simple_llm.train import Options, train
    from simple_llm.world import StoryCorpus, World
    corpus, saves = StoryCorpus(World(), steps_per_epoch=30), []
    model = FastLLM(Config(corpus.tokenizer.vocab_size, corpus.longest))
    options = Options(epochs=1, evaluations=1)
    run = Run(model, corpus, options, place / "checkpoint", {})
    with make_team(model, options, run.optimizer) as team:
        train(team, corpus, options, lambda moment: None)
    for _ in range(25):
        began = time.perf_counter()
        run.save()
        saves.append(time.perf_counter() - began)
    return f"a checkpoint of the small world's model: {run.path.stat().st_size / 1e6:.2f} MB, {1000 * median(saves):.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "build")]
    dice, hits, rounds = random.Random(args.seed), Counter(), 0
    place = Path(tempfile.mkdtemp(prefix="torture-"))
    wanted = {name: reference(place / f"alone {name}", arguments)
              for name, arguments in RUNS.items()}
    kinds = list(RUNS)
    while hits["elsewhere"] + hits["while a file was written"] < args.kills:
        name = kinds[rounds % len(kinds)]
        rounds += 1
        ways = dice.choices(["clock", "write", "point"], k=4)
        hits += torture(place / str(rounds), RUNS[name], wanted[name], ways, dice)
        if sys.stderr.isatty():
            print(f"\r{rounds} trainings", end="", file=sys.stderr, flush=True)
    price = cost(place)
    shutil.rmtree(place)
    written, elsewhere = hits["while a file was written"], hits["elsewhere"]
    print(f"{rounds} trainings, killed {written + elsewhere} times, {written} of these while "
          f"a file was being written;\nresumed {hits['resumed']} times in the middle; each "
          f"ended in the bytes of the one that nobody killed\n{price}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
