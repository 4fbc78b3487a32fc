"""The tables of chapters 9 and 11: python tools/experiments.py ingredients|seeds|optimizers.

Needs build/ (make tangle), and NumPy alone; it takes some minutes.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

from simple_llm.corpus import Batch, StoryCorpus, World  # noqa: E402
from simple_llm.experiments import INGREDIENTS, experiment  # noqa: E402
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.optimizer import SGD, AdamW, clip_gradients  # noqa: E402
from simple_llm.parallel import DataParallel  # noqa: E402
from simple_llm.train import evaluate  # noqa: E402


def compare_ingredients() -> None:
    """Train with and without what matters."""
    print(f"{'':34} {'above the floor':>15} {'against habit':>14}")
    for name, change in INGREDIENTS.items():
        above, scores = experiment(**change)
        print(f"{name:34} {above:15.3f} {scores[-1][1].unusual:14.0%}", flush=True)


def compare_seeds() -> None:
    """The whole training, with ten seeds; the scores on the way tell when the jump was over."""
    print(f"{'seed':>4} {'above the floor':>16} {'answered':>9} {'against habit':>14} "
          f"{'80% of these by':>17}")
    for seed in range(10):
        above, scores = experiment(seed, epochs=100)
        jump = next((epoch for epoch, s in scores if s.unusual > 0.8), "never")
        score = scores[-1][1]
        print(f"{seed:4} {above:16.3f} {score.answers:9.1%} {score.unusual:14.1%} "
              f"{f'epoch {jump}':>17}", flush=True)


def compare_optimizers() -> None:
    """Two hundred batches, the same for each, at the best of four rates."""
    corpus = StoryCorpus(World(), steps=200, seed=1)
    batches = list(corpus.batches(1))
    print(f"{'':20} {'best rate':>9} {'held-out loss':>14}")
    for name, make, rates in (
        ("SGD", SGD, [0.3, 1.0, 3.0, 10.0]),
        ("SGD, momentum 0.9", lambda m: SGD(m, 0.9), [0.03, 0.1, 0.3, 1.0]),
        ("AdamW", AdamW, [0.002, 0.004, 0.008, 0.016]),
    ):
        loss, best = min((race(corpus, batches, make, rate), rate) for rate in rates)
        print(f"{name:20} {best:9} {loss:14.3f}", flush=True)


def race(
    corpus: StoryCorpus, batches: list[Batch], make: Callable[[SimpleLLM], Any],
    rate: float,
) -> float:
    """The held-out loss after training on the batches at one learning rate."""
    model = SimpleLLM(Config(corpus.tokenizer.vocab_size, corpus.longest), seed=1)
    optimizer = make(model)
    with DataParallel(model, workers=2) as workers:
        for step, batch in enumerate(batches):
            loss = workers.loss_and_gradient(batch.ids, batch.targets)
            if not loss < 100:                         # too fast, and it blew up
                return float("inf")
            clip_gradients(model, 1.0)
            optimizer.step(rate * min(1.0, (step + 1) / 20))
    return evaluate(model, corpus).loss


if __name__ == "__main__":
    tables = {"optimizers": compare_optimizers, "ingredients": compare_ingredients,
              "seeds": compare_seeds}
    if sys.argv[1:2] == [] or sys.argv[1] not in tables:
        sys.exit(__doc__)
    tables[sys.argv[1]]()
