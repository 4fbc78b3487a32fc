"""The tables of chapter 18: what each stage of the assistant bought, and what it cost.

    python ../tools/assistant.py seeds         ten assistants, from ten seeds
    python ../tools/assistant.py instruct      how many examples, and what is forgotten
    python ../tools/assistant.py estimates     REINFORCE's gradient beside the exact one
    python ../tools/assistant.py reward        before and after, pass@k
    python ../tools/assistant.py faulty        a wrong reward, and the leash
    python ../tools/assistant.py pairs         DPO

Run in build/. The ten pretrained models are kept in build/pretrained/.
"""
from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simple_llm.batches import Array, Batch
from simple_llm.cli.progress import Progress
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.parallel import make_optimizer, make_team
from simple_llm.layers import CrossEntropy
from simple_llm.today.assistant import (
    TaleCorpus, again_and_again, hold_talk, judge, judged, last_answer, lay_out, tune,
)
from simple_llm.today.chat import Turn
from simple_llm.today.reward import (
    WeightedLoss, advantages, answers, draw, practise, weigh_pairs, weigh_samples,
)
from simple_llm.train import Alone, Moment, Options, evaluate, train
from simple_llm.world import floor

KEPT = Path("pretrained")
CORPUS = TaleCorpus()
TOKENIZER, WORLD = CORPUS.tokenizer, CORPUS.world
FLOOR = floor(CORPUS.held_out)


def pretrained(seed: int) -> FastLLM:
    """The model after 600 steps on stories, trained once for each seed."""
    home = KEPT / str(seed)
    if not (home / "config.json").exists():
        corpus = TaleCorpus(seed=seed)
        model = FastLLM(corpus.config, seed)
        options = Options(max_steps=600, matrix_rate=0.02, min_lr=0.0, workers=WORKERS,
                          evaluations=1)
        with make_team(model, options) as team:
            train(team, corpus, options, lambda moment: None)
        model.save_pretrained(home)
    return FastLLM.from_pretrained(home)


WORKERS = 1


def talks(name: str, absent: float = 0.0) -> Iterator[list[Turn]]:
    rng = random.Random(name)
    while True:
        yield hold_talk(WORLD, rng, absent)


def some(n: int, name: str, absent: float = 0.0) -> list[list[Turn]]:
    return list(itertools.islice(talks(name, absent), n))


def fine_tune(model: FastLLM, batches: Iterator[Batch], steps: int, rate: float = 1e-3) -> FastLLM:
    team = Alone(model, make_optimizer(model, Options(learning_rate=rate, weight_decay=0.0)))
    tune(team, batches, steps, rate, lambda moment: None)
    model.cross_entropy = CrossEntropy()
    return model


def instructed(seed: int, examples: int, absent: float = 0.0, model: FastLLM | None = None,
               steps: int = 100) -> FastLLM:
    rng = random.Random(f"examples {seed}")
    shown = [hold_talk(WORLD, rng, absent) for _ in range(examples)]
    return fine_tune(model or pretrained(seed), again_and_again(shown, TOKENIZER, rng), steps)


def tasks(name: str, absent: float = 0.0, size: int = 32):
    source = talks(name, absent)
    while True:
        yield judged(list(itertools.islice(source, size)), TOKENIZER)


def rewarded(model: FastLLM, seed: int, steps: int, absent: float = 0.0, **how) -> FastLLM:
    return fine_tune(model, practise(model, tasks(f"questions {seed}", absent), seed=seed, **how), steps)


def verdict(model: FastLLM, absent: float = 0.0):
    return judge(model, TOKENIZER, WORLD, some(1000, "held-out talks", absent))


def forgotten(model: FastLLM) -> float:
    return evaluate(Alone(model), CORPUS).loss - FLOOR
