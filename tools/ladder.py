"""Plain layers against fast ones: python tools/ladder.py steps [NAME] | layers [NAME]

`steps` swaps one for the other, layer by layer, and times a training step of a model of
bench.SIZES after each swap. `layers` times each layer alone, forward and backward, in the
shapes of a micro-batch. One process and one BLAS thread, but for the last two rows of steps.
"""
from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable, ContextManager

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import bench  # noqa: E402  (it finds build/)
import numpy as np  # noqa: E402

from simple_llm import layers as plain  # noqa: E402
from simple_llm.batches import Batch  # noqa: E402
from simple_llm.engine import fast  # noqa: E402
from simple_llm.engine.parallel import (  # noqa: E402
    MICRO, Worker, gradient_in_micro_batches,
)
from simple_llm.model import SimpleLLM  # noqa: E402
from simple_llm.optimizer import AdamW  # noqa: E402
from simple_llm.train import Alone  # noqa: E402

Array = np.ndarray


class GELUWithPower(plain.GELU):
    """GELU as most people write it first: with x ** 3."""

    def forward(self, x: Array) -> Array:
        self.x, self.t = x, np.tanh(self.c * (x + self.k * x**3))
        return 0.5 * x * (1 + self.t)


class SortedIds(plain.Embedding):
    """plain.Embedding; its gradient sums runs of equal ids. NumPy's add.at is as quick by now."""

    def backward(self, dy: Array) -> None:
        order = np.argsort(self.ids, axis=None, kind="stable")
        ids = self.ids.reshape(-1)[order]
        starts = np.append(0, 1 + np.flatnonzero(ids[1:] != ids[:-1]))
        d = dy.reshape(len(order), -1)[order]
        self.weight.grad[ids[starts]] += np.add.reduceat(d, starts)


class OneExponential(plain.CrossEntropy):
    """plain.CrossEntropy, with one exponential in place of two."""

    def forward(self, logits: Array, targets: Array, n_targets: int | None = None) -> float:
        self.counts = targets >= 0
        self.n_targets = n_targets or int(self.counts.sum())
        self.right = (*np.nonzero(self.counts), targets[self.counts])
        self.p = logits - logits.max(axis=-1, keepdims=True)
        right_z = self.p[self.right]
        np.exp(self.p, out=self.p)
        sums = self.p.sum(axis=-1, keepdims=True)
        self.p /= sums
        losses = np.log(sums[self.counts][:, 0]) - right_z
        return float(losses.sum(dtype=np.float64)) / self.n_targets


class InMicroBatches(Alone):
    """One process that computes a few rows at a time."""

    def loss_and_gradient(self, batch: Batch) -> float:
        self.model.zero_grad()
        return gradient_in_micro_batches(self.model, batch, batch.targets.size)


class TwoThreads:
    """Like DataParallel with two workers, in threads."""

    def __init__(self, model: SimpleLLM, optimizer: fast.AdamW) -> None:
        self.parameters, self.optimizer = [optimizer.flat], optimizer
        other = fast.FastLLM(model.config)
        flat = fast.Flat(other)
        flat.attach(optimizer.flat.data, flat.grad)
        self.workers = [Worker(model, optimizer, optimizer.flat.grad),
                        Worker(other, optimizer, flat.grad)]
        self.pool = ThreadPoolExecutor(2)

    def loss_and_gradient(self, batch: Batch) -> float:
        halves = zip(*(np.array_split(array, 2) for array in batch))
        jobs = [self.pool.submit(worker.gradient, Batch(*half), batch.targets.size, (0,))
                for worker, half in zip(self.workers, halves)]
        loss = sum(job.result() for job in jobs)
        self.workers[0].grad += self.workers[1].grad
        return loss

    def step(self, learning_rate: float) -> None:
        self.optimizer.step(learning_rate)

    def __enter__(self) -> TwoThreads:
        return self

    def __exit__(self, *reason: Any) -> None:
        self.pool.shutdown()


RUNGS: list[tuple[str, dict[str, Any]]] = [            # each is added to those above
    ("plain layers, with x ** 3 in GELU", {"GELU": GELUWithPower}),
    ("plain layers", {"GELU": plain.GELU}),
    ("GELU in tiles", {"GELU": fast.GELU}),
    ("dropout that is off: no copy", {"Dropout": fast.Dropout}),
    ("attention on views", {"CausalSelfAttention": fast.CausalSelfAttention}),
    ("LayerNorm by products", {"LayerNorm": fast.LayerNorm}),
    ("sorted ids", {"Embedding": SortedIds}),
    ("Linear by columns", {"Linear": fast.Linear}),
    ("one exponential", {"CrossEntropy": OneExponential}),
]


def alone(model: SimpleLLM, team: type[Alone] = Alone) -> ContextManager[Alone]:
    return nullcontext(team(model, AdamW(model.parameters())))


def print_steps(name: str = "nano") -> None:
    """The step time as the plain layers give way to the fast ones, one by one."""
    config, batch = bench.SIZES[name]
    bound = bench.operations(config, batch, config.context_length) / bench.product_rate() * 1e3
    print(f"{name:34} {'ms':>7} {'before':>8} {'bound':>7}")
    before = None

    def row(label: str, model: SimpleLLM, make_team: Callable[..., Any],
            bound: float) -> float:
        ms = bench.step_time(model, batch, make_team) * 1e3
        change = f"{ms / before:7.2f}x" if before else " " * 8
        print(f"{label:34} {ms:7.1f} {change} {ms / bound:6.1f}x", flush=True)
        return ms

    kit = dict(vars(plain))
    for label, change in RUNGS:
        kit |= change
        model = SimpleLLM(config, layers=SimpleNamespace(**kit))
        before = row(label, model, alone, bound)
    model = fast.FastLLM(config)
    before = row("a few rows at a time", model, partial(alone, team=InMicroBatches), bound)
    before = row("AdamW on one vector", fast.FastLLM(config), bench.in_parallel, bound)
    row("two threads", fast.FastLLM(config), two_threads, bound / 2)
    row("two processes", fast.FastLLM(config), partial(bench.in_parallel, workers=2), bound / 2)


def two_threads(model: SimpleLLM) -> TwoThreads:
    return TwoThreads(model, fast.AdamW(fast.Flat(model)))


def both_ways(kit: Any, make: Callable[..., Any], inputs: tuple[Array, ...]) -> float:
    """Microseconds of a layer's forward and backward, the median of many."""
    layer = make(kit)
    y = layer.forward(*inputs)
    dy, times = np.ones_like(y), []
    for _ in range(60):
        start = time.perf_counter()
        layer.forward(*inputs)
        layer.backward(dy)
        times.append(time.perf_counter() - start)
    return float(np.median(times[10:])) * 1e6


def cases(name: str) -> dict[str, tuple[Callable[..., Any], tuple[Array, ...]]]:
    """Each layer, and what it is given in a micro-batch of a model."""
    config, _ = bench.SIZES[name]
    rng, C, H = np.random.default_rng(0), config.d_model, config.n_heads
    T = config.context_length
    B = max(1, MICRO // T)

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    x, mask = normal(B, T, C), plain.causal_mask(T, np.float32)

    def attention(kit: Any) -> Any:
        off = kit.Dropout(0.0, rng), kit.Dropout(0.0, rng)
        return kit.CausalSelfAttention(kit.Linear(normal(C, 3 * C)), kit.Linear(
            normal(C, C)), H, mask, *off)

    return {
        "Linear": (lambda kit: kit.Linear(normal(C, 4 * C)), (x,)),
        "LayerNorm": (lambda kit: kit.LayerNorm(C, np.float32), (x,)),
        "GELU": (lambda kit: kit.GELU(), (normal(B, T, 4 * C),)),
        "CausalSelfAttention": (attention, (x,)),
    }


def print_layers(*names: str) -> None:
    """Plain against fast, each layer alone, in microseconds."""
    names = names or ("small world", "nano", "big")
    print(f"{'forward and backward, in µs':28}" + "".join(f"{name:>26}" for name in names))
    for layer in cases(names[0]):
        row = f"{layer:28}"
        for name in names:
            make, inputs = cases(name)[layer]
            slow, quick = (both_ways(kit, make, inputs) for kit in (plain, fast))
            row += f"{slow:10,.0f} {quick:8,.0f} {quick / slow:5.2f}x"
        print(row, flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["steps", *name]:
            print_steps(*name)
        case ["layers", *names]:
            print_layers(*names)
        case _:
            sys.exit(__doc__)
