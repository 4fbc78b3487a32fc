"""How fast is it? python tools/bench.py [--json | ladder [NAME] | layouts | figures DIRECTORY]

Needs build/ (make tangle), and NumPy alone; bench_torch.py puts PyTorch beside it.
"""
from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from bench_charts import draw_growth, draw_roofline, draw_token_times  # noqa: E402
from simple_llm.layers import (  # noqa: E402
    GELU, Array, CausalSelfAttention, Embedding, Layer, LayerNorm,
)
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.optimizer import AdamW, clip_gradients  # noqa: E402
from simple_llm.parallel import DataParallel, gradient_of_share  # noqa: E402
from simple_llm.speed import (  # noqa: E402
    adam_by_parameter, add_at, attend, attend_backward, best_time, fresh_array,
    gelu_at_once, gelu_with_power, jobs, memory_rate, norm_backward, norm_forward,
    operations, product_rate,
)


SIZES = {                                               # and the batch of each
    "small world": (Config(27, 73, 64, 2, 4), 64),
    "tiny": (Config(65, 32, 64, 2, 2), 32),
    "nano": (Config(65, 64, 128, 4, 4), 12),
    "big": (Config(65, 256, 384, 6, 6), 8),
}


def make_batch(config: Config, batch: int) -> tuple[Array, Array]:
    """Random ids and targets, (B, T) each."""
    rng = np.random.default_rng(0)
    shape = (batch, config.context_length)
    return rng.integers(config.vocab_size, size=shape), rng.integers(
        config.vocab_size, size=shape)


def step_time(
    config: Config, batch: int, make_team: Callable[..., Any], steps: int = 40
) -> float:
    """Seconds for a training step: gradient, clip, AdamW."""
    model, (ids, targets), times = SimpleLLM(config), make_batch(config, batch), []
    with make_team(model, optimizer=AdamW(model)) as team:
        for _ in range(3 + steps):
            start = time.perf_counter()
            team.loss_and_gradient(ids, targets)
            clip_gradients(model, 1.0)
            team.step(1e-4)
            times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def generation_rate(config: Config, tokens: int = 200) -> float:
    """Tokens per second, one text at a time, with the cache."""
    model = SimpleLLM(replace(config, context_length=max(256, config.context_length)))
    start = time.perf_counter()
    for _ in model.generate([1], max_new_tokens=tokens, seed=0):
        pass
    return tokens / (time.perf_counter() - start)


def measure(name: str, workers: int) -> dict[str, float]:
    """What `make bench` shows about one model."""
    config, batch = SIZES[name]
    seconds = step_time(config, batch, partial(DataParallel, workers=workers))
    work = operations(config, batch, config.context_length)
    return {
        "step_ms": seconds * 1e3,
        "tokens_per_s": batch * config.context_length / seconds,
        "gflop_per_s": work / seconds / 1e9,
        "generated_per_s": generation_rate(config),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_apart(name: str, workers: int) -> dict[str, float]:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "one", name, str(workers)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def bench(workers: int, as_json: bool) -> None:
    """Measure this machine, and each model on it."""
    models = {name: measure_apart(name, workers) for name in SIZES}
    rates = {"product_gflop_per_s": product_rate() / 1e9,
             "memory_gb_per_s": memory_rate() / 1e9}
    if as_json:
        print(json.dumps({**rates, "workers": workers, "models": models}, indent=2))
    else:
        print_bench(rates, workers, models)


def print_bench(
    rates: dict[str, float], workers: int, models: dict[str, dict[str, float]]
) -> None:
    peak = rates["product_gflop_per_s"]
    print(f"one core: {peak:.0f} billion operations per second in a matrix product, "
          f"{rates['memory_gb_per_s']:.0f} GB/s to and from memory\n")
    print(f"{f'{workers} workers':12} {'step':>9} {'tokens/s':>9} {'of the peak':>11} "
          f"{'generates':>13} {'memory':>8}")
    for name, found in models.items():
        share = found["gflop_per_s"] / (peak * workers)
        print(f"{name:12} {found['step_ms']:6.1f} ms {found['tokens_per_s']:9,.0f} "
              f"{share:11.0%} {found['generated_per_s']:7,.0f} tok/s "
              f"{found['memory_mb']:5.0f} MB")


def measure_jobs() -> dict[str, tuple[float, float]]:
    """For each job its operations per byte, and its operations per second."""
    return {name: (count / size, count / best_time(job, 50))
            for name, (job, count, size) in jobs().items()}


FIRST = [
    ("x * x * x for x**3", [(GELU, "forward", gelu_with_power)]),
    ("GELU in pieces, in place", [(GELU, "forward", gelu_at_once)]),
    ("attention: in place, on views", [
        (CausalSelfAttention, "forward", attend),
        (CausalSelfAttention, "backward", attend_backward)]),
    ("LayerNorm by products", [
        (LayerNorm, "forward", norm_forward), (LayerNorm, "backward", norm_backward)]),
    ("sorted ids for np.add.at", [(Embedding, "backward", add_at)]),
    ("AdamW on one vector", [(AdamW, "step", adam_by_parameter)]),
    ("workspaces", [(Layer, each, fresh_array) for each in ("workspace", "scratch")]),
]


@contextmanager
def first_versions(skip: int = 0) -> Iterator[None]:
    """Within this context, all methods but the first few are the first versions."""
    changes = [change for _, changes in FIRST[skip:] for change in changes]
    ours = [getattr(cls, name) for cls, name, _ in changes]
    for cls, name, method in reversed(changes):        # the earliest wins
        setattr(cls, name, method)
    try:
        yield
    finally:
        for (cls, name, _), method in reversed(list(zip(changes, ours))):
            setattr(cls, name, method)


class TwoThreads:
    """Like DataParallel with two workers, in threads."""

    def __init__(self, model: SimpleLLM, optimizer: AdamW | None = None) -> None:
        self.models, self.optimizer = [model, SimpleLLM(model.config)], optimizer
        self.models[1].attach(model.data, self.models[1].grad)
        self.pool = ThreadPoolExecutor(2)

    def loss_and_gradient(self, ids: Array, targets: Array) -> float:
        halves = zip(self.models, np.array_split(ids, 2), np.array_split(targets, 2))
        jobs = [self.pool.submit(gradient_of_share, *half, targets.size, (0, 0, worker))
                for worker, half in enumerate(halves)]
        loss = sum(job.result() for job in jobs)
        self.models[0].grad += self.models[1].grad
        return loss

    def step(self, learning_rate: float) -> None:
        self.optimizer.step(learning_rate)

    def __enter__(self) -> TwoThreads:
        return self

    def __exit__(self, *reason: Any) -> None:
        self.pool.shutdown()


def print_way_down(name: str = "nano") -> None:
    """The step time as the first versions give way to ours, one by one."""
    config, batch = SIZES[name]
    bound = operations(config, batch, config.context_length) / product_rate() * 1e3
    print(f"{name:34} {'ms':>7} {'before':>8} {'bound':>7}")
    before = None

    def row(label: str, team: Callable[..., Any], bound: float) -> float:
        ms = step_time(config, batch, team) * 1e3
        change = f"{ms / before:7.2f}x" if before else " " * 8
        print(f"{label:34} {ms:7.1f} {change} {ms / bound:6.1f}x", flush=True)
        return ms

    for skip in range(len(FIRST) + 1):
        label = FIRST[skip - 1][0] if skip else "as one writes it first"
        with first_versions(skip):
            before = row(label, DataParallel, bound)
    row("two threads", TwoThreads, bound / 2)
    row("two processes", partial(DataParallel, workers=2), bound / 2)


def by_rows(model: SimpleLLM) -> SimpleLLM:
    """Let each weight lie in memory row after row."""
    for p in model.flat:
        p.data = np.ascontiguousarray(p.data)
    return model


def print_layouts(config: Config = Config(50257, 1024, 768, 12, 12), rounds: int = 7) -> None:
    """What a token costs a model of GPT-2's smallest size, its weights in either order."""
    models = {"rows": by_rows(SimpleLLM(config)), "columns": SimpleLLM(config)}
    times: dict[str, list[float]] = {name: [] for name in models}
    for name in [*models] * rounds:
        times[name].append(float(np.median(time_tokens(models[name], 100, temperature=0))))
    for name, found in times.items():
        seconds = statistics.median(found)
        print(f"weights by {name:7} {seconds * 1e3:5.1f} ms per token, "
              f"{models[name].data.nbytes / seconds / 1e9:3.0f} GB/s")


def growth() -> dict[str, list[float]]:
    """Cost at 1, 2, 4 and 8 times the size, as multiples of the first."""
    nano, times = SIZES["nano"][0], (1, 2, 4, 8)
    measures: dict[str, Callable[[int], float]] = {
        "time, by batch": lambda k: step_time(nano, 4 * k, DataParallel, steps=10),
        "time, by layers": lambda k: step_time(
            replace(nano, n_layers=k), 12, DataParallel, steps=10),
        "workspaces, by batch": lambda k: workspace_bytes(nano, 4 * k),
    }
    costs = {name: [cost(k) for k in times] for name, cost in measures.items()}
    return {name: [each / found[0] for each in found] for name, found in costs.items()}


def workspace_bytes(config: Config, batch: int) -> float:
    """The memory of a model that has made a step, without its parameters."""
    Layer.shared.__dict__.clear()                      # what other models have claimed
    tracemalloc.start()
    model, (ids, targets) = SimpleLLM(config), make_batch(config, batch)
    before = tracemalloc.get_traced_memory()[0]
    model.loss(ids, targets)
    model.backward()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


def token_times(config: Config, tokens: int) -> Array:
    """Seconds for each token of a text that is generated with the cache."""
    model = SimpleLLM(replace(config, context_length=tokens))
    return np.median([time_tokens(model, tokens - 1) for _ in range(5)], axis=0)


def time_tokens(model: SimpleLLM, tokens: int, **sampling: float) -> Array:
    """(tokens,): seconds for each token of one text."""
    stamps = [time.perf_counter()]
    for _ in model.generate([1], max_new_tokens=tokens, seed=0, **sampling):
        stamps.append(time.perf_counter())
    return np.diff(stamps)


def smooth_token_times(name: str, tokens: int = 1024, each: int = 16) -> list[float]:
    """Milliseconds per generated token of a model, as medians of neighbours."""
    ms = token_times(SIZES[name][0], tokens) * 1e3                         # (tokens,)
    return [float(np.median(ms[t : t + each])) for t in range(0, tokens - each, each)]


def main(arguments: list[str]) -> None:
    workers = min(4, os.cpu_count() or 1)
    match arguments:
        case [] | ["--json"]:
            bench(workers, bool(arguments))
        case ["one", name, count]:
            print(json.dumps(measure(name, int(count))))
        case ["ladder", *name]:
            print_way_down(*name)
        case ["layouts"]:
            print_layouts()
        case ["figures", directory]:
            draw_roofline(Path(directory) / "roofline.svg", product_rate(), memory_rate(),
                          measure_jobs())
            draw_growth(Path(directory) / "growth.svg", growth())
            draw_token_times(Path(directory) / "tokens.svg", {
                name: smooth_token_times(name) for name in ("nano", "big")}, 16)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
