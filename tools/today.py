"""The tables of chapter 16: python tools/today.py NAME [SEEDS [ROWS]].

NAME is parts, lengths, race, text or spectrum. Needs build/ (make tangle), and NumPy alone; with one
process each takes some ten minutes to an hour, so that SEEDS, such as 0,1, may cut it short, and
ROWS, of parts alone, divide it among processes.
"""
from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from experiments import of_characters  # noqa: E402
from simple_llm.batches import Array  # noqa: E402
from simple_llm.engine import fast  # noqa: E402
from simple_llm.engine.fast import FastLLM, Flat  # noqa: E402
from simple_llm.engine.fast_today import FastTodayLLM  # noqa: E402
from simple_llm.engine.parallel import DataParallel  # noqa: E402
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.text import gather_text  # noqa: E402
from simple_llm.today.model import TodayConfig  # noqa: E402
from simple_llm.train import Moment, Options, Score, mark, train  # noqa: E402
from simple_llm.world import StoryCorpus, World, floor  # noqa: E402

GPT2 = dict(norm="layer", positions="learned", feed_forward="gelu", n_kv_heads=4, bias=True)
PARTS: dict[str, dict[str, Any] | None] = {
    "GPT-2's form": None, "RMSNorm": GPT2 | {"norm": "rms"}, "SwiGLU": GPT2 | {"feed_forward": "swiglu"},
    "no biases": GPT2 | {"bias": False}, "2 of 4 heads' keys and values": GPT2 | {"n_kv_heads": 2},
    "RoPE": GPT2 | {"positions": "rotary"}, "Llama's form: all of these": {},
}
FAR = World(questions=16)                               # stories of up to 143 tokens
STEPS = 800


class Result(NamedTuple):
    above: float        # nats per token above the floor
    score: Score
    jump: float         # the step by which four fifths were answered against habit, or infinity


def learn(model: SimpleLLM, corpus: Any, optimizer: Any, rate: float, steps: int) -> Result:
    """Train in one process; what came of it."""
    moments: list[Moment] = []
    options = Options(max_steps=steps, learning_rate=rate, workers=1)
    with DataParallel(model, optimizer) as team:
        score = train(team, corpus, options, moments.append)
    low = floor(corpus.held_out) if corpus.kind == "stories" else 0.0
    jump = next((float(m.step) for m in moments if m.score and (m.score.unusual or 0) > 0.8), np.inf)
    return Result(score.loss - low, score, jump)


def make_model(parts: dict[str, Any] | None, seed: int, context: int = 0) -> tuple[SimpleLLM, StoryCorpus]:
    """A model with some of today's parts, or GPT-2's (None), and stories for it."""
    corpus = StoryCorpus(World(), steps_per_epoch=10, seed=seed)
    V, L = corpus.tokenizer.vocab_size, context or corpus.longest
    if parts is None:
        return FastLLM(Config(V, L), seed), corpus
    return FastTodayLLM(TodayConfig(V, L, **parts), seed), corpus


def show_parts(seeds: Sequence[int], rows: Sequence[int] = range(7)) -> None:
    print(f"{'':31}{'parameters':>10}{'above the floor':>17}{'against habit':>15}{'80% of these by step':>22}")
    for name, parts in [[*PARTS.items()][row] for row in rows]:
        results = []
        for seed in seeds:
            model, corpus = make_model(parts, seed)
            results.append(learn(model, corpus, fast.AdamW(Flat(model)), 4e-3, STEPS))
        jumps = sorted(result.jump for result in results)
        above = [result.above for result in results]
        print(f"{name:31}{model.config.n_parameters:10,}{np.mean(above):9.3f} ±{np.std(above):6.3f}"
              f"{np.mean([result.score.unusual for result in results]):15.0%}"
              f"{f'{jumps[0]:.0f} to {jumps[-1]:.0f}':>22}", flush=True)


def answers_by_position(model: SimpleLLM, corpus: StoryCorpus, edges: Sequence[int]) -> Array:
    """The share of questions against habit that are answered between these positions."""
    rng, right = random.Random("stories that go on"), [[] for _ in edges[1:]]
    stories = [FAR.tell(rng) for _ in range(1000)]
    for start in range(0, len(stories), 50):
        group = stories[start : start + 50]
        _, hits = mark(model, corpus.batch(group))                          # (B, T)
        for b, story in enumerate(group):
            for position, habitual in story.answers:
                if not habitual:
                    right[np.searchsorted(edges, position, "right") - 1].append(hits[b, position])
    return np.array([np.mean(part) for part in right])


def show_lengths(seeds: Sequence[int]) -> None:
    edges = (0, 72, 96, 120, 146)
    print(f"{'answered against habit, at':28}" + "".join(f"{f'{a} to {b - 1}':>12}" for a, b in zip(edges, edges[1:])))
    for name, parts in {"learned positions": None, "RoPE, base 100": {}, "RoPE, base 10,000": {"rope_base": 10_000.0}}.items():
        rows = []
        for seed in seeds:
            model, corpus = make_model(parts, seed, 146)
            learn(model, corpus, fast.AdamW(Flat(model)), 4e-3, STEPS)
            rows.append(answers_by_position(model, corpus, edges))
        print(f"{name:28}" + "".join(f"{share:12.0%}" for share in np.mean(rows, axis=0)), flush=True)


class SGD:
    """optimizer.SGD with momentum, on one vector."""

    part = fast.TILE

    def __init__(self, flat: Flat) -> None:
        self.flat, self.v, self.step_count = flat, np.zeros_like(flat.data), 0

    def step(self, learning_rate: float, part: range | None = None) -> None:
        self.step_count += 1
        self.v *= 0.9
        self.v += self.flat.grad                                            # (P,)
        self.flat.data -= learning_rate * self.v


def optimizers_of(rates: dict[str, Sequence[float]]) -> dict[str, tuple[Any, Sequence[float]]]:
    makers = {"SGD, momentum 0.9": SGD, "AdamW": fast.AdamW,
              "Muon and AdamW": lambda flat, rate: fast.Muon(flat, 0.02 / rate)}
    return {name: (makers[name], tries) for name, tries in rates.items()}


def build(make: Any, flat: Flat, rate: float) -> Any:
    return make(flat) if isinstance(make, type) else make(flat, rate)


def show_race(seeds: Sequence[int], steps: int = 400) -> None:
    """Each at the rate that is best for the first two seeds."""
    rates = {"SGD, momentum 0.9": (0.1, 0.3), "AdamW": (4e-3, 8e-3), "Muon and AdamW": (4e-3,)}

    def run(make: Any, rate: float, seed: int) -> Result:
        model, corpus = make_model(None, seed)
        try:
            return learn(model, corpus, build(make, Flat(model), rate), rate, steps)
        except ValueError:                              # it blew up
            return Result(np.inf, Score(np.inf, 0.0, 0.0), np.inf)

    print(f"{f'{steps} steps':22}{'best rate':>9}{'above the floor':>17}{'against habit':>15}{'80% of these by step':>22}")
    for name, (make, tries) in optimizers_of(rates).items():
        first = {rate: [run(make, rate, seed) for seed in seeds[:2]] for rate in tries}
        best = min(first, key=lambda rate: np.mean([result.above for result in first[rate]]))
        results = first[best] + [run(make, best, seed) for seed in seeds[2:]]
        jumps, above = sorted(result.jump for result in results), [result.above for result in results]
        words = f"{jumps[0]:.0f} to {jumps[-1]:.0f}" if jumps[-1] < np.inf else f"{sum(j < np.inf for j in jumps)} of {len(jumps)}"
        print(f"{name:22}{best:9g}{np.mean(above):9.3f} ±{np.std(above):6.3f}"
              f"{np.mean([result.score.unusual for result in results]):15.0%}{words:>22}", flush=True)


def show_text(seeds: Sequence[int]) -> None:
    """The same on Python's documentation, by characters."""
    text = gather_text(["pydoc"])
    print(f"{'held-out nats per character after':36}{'500':>8}{'1,000 steps':>13}")
    rates = {"SGD, momentum 0.9": (0.1, 0.3), "AdamW": (1e-3, 2e-3), "Muon and AdamW": (2e-3,)}
    for name, (make, tries) in optimizers_of(rates).items():
        def loss(rate: float, steps: int) -> float:
            corpus, config = of_characters(text)
            model = FastLLM(config, seeds[0])
            return learn(model, corpus, build(make, Flat(model), rate), rate, steps).above

        first = {rate: loss(rate, 500) for rate in tries}
        best = min(first, key=first.__getitem__)
        print(f"{f'{name}, {best:g}':36}{first[best]:8.3f}{loss(best, 1000):13.3f}", flush=True)


def show_spectrum(seeds: Sequence[int], steps: int = 150) -> None:
    """How many directions hold nine tenths of the square of the momentum, for each matrix."""
    model, corpus = make_model(None, seeds[0])
    optimizer = fast.Muon(Flat(model), 5.0)
    learn(model, corpus, optimizer, 4e-3, steps)
    counts = []
    for _, (_, _, m) in optimizer.matrices():
        s = np.linalg.svd(m.astype(float), compute_uv=False)
        counts.append(1 + int(np.searchsorted((s**2).cumsum() / (s**2).sum(), 0.9)))
    print(f"after {steps} steps, directions that hold nine tenths: {min(counts)} to {max(counts)} of 64")


NAMES = {"spectrum": (show_spectrum, 1), "parts": (show_parts, 5), "lengths": (show_lengths, 3), "race": (show_race, 10), "text": (show_text, 1)}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(__doc__)
    show, count = NAMES[sys.argv[1]]
    numbers = [[*map(int, words.split(","))] for words in sys.argv[2:]]
    show(*numbers) if numbers else show(range(count))
