"""A run that was stopped goes on, and ends in the bytes of one that never was."""
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import pytest

import torture
from simple_llm.checkpoint import UserError, load_safetensors
from simple_llm.resume import CHECKPOINT, read_checkpoint
from torture import ENV, RUNS, finish, make_home, reference, result, start

SHORT = (*torture.TEXTS, "--workers", "1", "--epochs", "4")


def run(*arguments, cwd, **more):
    return subprocess.run([sys.executable, "-m", "simple_llm", *map(str, arguments)],
                          cwd=cwd, env=ENV, capture_output=True, text=True,
                          encoding="utf-8", timeout=60, **more)


@pytest.mark.parametrize("name", ["text, 1 worker", "stories, 2 workers"])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(tmp_path, name):
    wanted = reference(tmp_path / "alone", RUNS[name])
    assert {"model.safetensors", "loss.svg", "config.json"} <= wanted.keys()
    ways = ["point", "clock", "point", "write"]
    hits = torture.torture(tmp_path / "killed", RUNS[name], wanted, ways, random.Random(1))
    assert hits["while a file was written"] + hits["elsewhere"] >= 3
