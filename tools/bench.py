"""How fast is it? python tools/bench.py [--json | figures DIRECTORY]

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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from bench_charts import draw_roofline  # noqa: E402
from simple_llm.batches import Array, Batch  # noqa: E402
from simple_llm.engine.fast import AdamW, FastLLM, Flat  # noqa: E402
from simple_llm.engine.parallel import DataParallel, real_cores  # noqa: E402
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.optimizer import clip_gradients  # noqa: E402


SIZES = {                                               # and the batch of each
    "small world": (Config(27, 73, 64, 2, 4), 64),
    "tiny": (Config(65, 32, 64, 2, 2), 32),
    "nano": (Config(65, 64, 128, 4, 4), 12),
    "big": (Config(65, 256, 384, 6, 6), 8),
}


def operations(config: Config, batch: int, length: int) -> int:
    """Multiplications and additions in the matrix products of a training step."""
    C, n, T = config.d_model, config.n_layers, length
    token = n * (2 * 12 * C * C + 2 * 2 * T * C) + 2 * config.vocab_size * C
    return 3 * token * batch * T


def product_rate(size: int = 1024) -> float:
    """Operations per second of one core in a large matrix product."""
    a = np.ones((size, size), np.float32)
    return 2 * size**3 / best_time(lambda: np.matmul(a, a), 10)


def memory_rate(size: int = 2**24) -> float:
    """Bytes per second that one core moves when it adds two long vectors."""
    a, out = np.ones(size, np.float32), np.ones(size, np.float32)
    return 3 * a.nbytes / best_time(lambda: np.add(a, out, out=out), 10)


def best_time(job: Callable[[], Any], times: int) -> float:
    """Seconds for the quickest of several runs: the others were disturbed."""
    def once() -> float:
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
    return min(once() for _ in range(times))


def jobs() -> dict[str, tuple[Callable[[], Any], float, float]]:
    """Some jobs of a step of nano, with their operations and their bytes."""
    N, C = 384, 128
    x, wide = np.ones((N, C), np.float32), np.ones((N, 4 * C), np.float32)
    W, row = np.ones((C, 4 * C), np.float32), np.ones(4 * C, np.float32)
    q, scores = np.ones((24, 64, 32), np.float32), np.ones((24, 64, 64), np.float32)
    long, n = np.ones(2**24, np.float32), wide.size
    return {
        "widen": (lambda: np.matmul(x, W, out=wide), 2 * N * C * 4 * C,
                  4 * (x.size + W.size + n)),
        "scores": (lambda: np.matmul(q, q.transpose(0, 2, 1), out=scores),
                   2 * 24 * 64 * 64 * 32, 4 * (2 * q.size + scores.size)),
        "add bias": (lambda: np.add(wide, row, out=wide), n, 8 * n),
        "tanh": (lambda: np.tanh(wide, out=wide), n, 8 * n),
        "row maximum": (lambda: scores.max(axis=-1), scores.size, 4 * scores.size),
        "long sum": (lambda: np.add(long, long, out=long), long.size, 8 * long.size),
    }


def make_batch(config: Config, batch: int) -> Batch:
    """Random ids and targets, (B, T) each."""
    rng = np.random.default_rng(0)
    shape = (batch, config.context_length)
    return Batch(rng.integers(config.vocab_size, size=shape),
                 rng.integers(config.vocab_size, size=shape))


def in_parallel(model: SimpleLLM, workers: int = 1) -> DataParallel:
    """A team for a model, with AdamW on one vector."""
    return DataParallel(model, AdamW(Flat(model)), workers)


def step_time(
    model: SimpleLLM, batch: int, make_team: Callable[[SimpleLLM], Any] = in_parallel,
    steps: int = 40,
) -> float:
    """Seconds for a training step: gradient, clip, AdamW."""
    rows, times = make_batch(model.config, batch), []
    with make_team(model) as team:
        for _ in range(3 + steps):
            start = time.perf_counter()
            team.loss_and_gradient(rows)
            clip_gradients(team.parameters, 1.0)
            team.step(1e-4)
            times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def generation_rate(config: Config, tokens: int = 200) -> float:
    """Tokens per second, one text at a time, with the cache."""
    model = FastLLM(replace(config, context_length=max(256, config.context_length)))
    start = time.perf_counter()
    for _ in model.generate([1], max_new_tokens=tokens, seed=0):
        pass
    return tokens / (time.perf_counter() - start)


def measure(name: str, workers: int) -> dict[str, float]:
    """What `make bench` shows about one model."""
    config, batch = SIZES[name]
    seconds = step_time(FastLLM(config), batch, partial(in_parallel, workers=workers))
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
    alone = measure_apart("nano", 1) if workers > 1 else models["nano"]
    rates["share_of_one_worker"] = models["nano"]["step_ms"] / alone["step_ms"]
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
    if workers > 1:
        share = rates["share_of_one_worker"]
        advice = "that helps" if share < 0.9 else "no help here: train with --workers 1"
        print(f"\n{workers} workers need {share:.2f} of the time of one for a step of nano: {advice}")


def measure_jobs() -> dict[str, tuple[float, float]]:
    """For each job its operations per byte, and its operations per second."""
    return {name: (count / size, count / best_time(job, 50))
            for name, (job, count, size) in jobs().items()}


def main(arguments: list[str]) -> None:
    workers = min(4, real_cores())
    match arguments:
        case [] | ["--json"]:
            bench(workers, bool(arguments))
        case ["one", name, count]:
            print(json.dumps(measure(name, int(count))))
        case ["figures", directory]:
            draw_roofline(Path(directory) / "roofline.svg", product_rate(), memory_rate(),
                          measure_jobs())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
