"""How fast a chat model answers here, in transformers, and by the speed of memory: tools/bench_chat.py

Run with the Python of .venv-torch. Each program is a process of its own with the same number of threads, and they
take turns, a block of tokens each, so that what else the machine does strikes all alike; of the blocks, the median
counts. Ours and transformers' compute with the same weights in float32; llama.cpp, with its own 4-bit kernels on
the same file, where --llama names a Python that has the package llama-cpp-python.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
N_PARAMETERS = 134_515_008
SIZE = 4 * N_PARAMETERS                      # bytes of float32 that a token asks for
BLOCK, PROMPT = 16, 500                      # tokens
START = [1, 9690, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]    # any will do
# Settings that were made for other measurements.
FOREIGN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def long_prompt() -> list[int]:
    return [100 + 37 * n % 40_000 for n in range(PROMPT)]


# The programs: each has decode(), which returns seconds for a block of tokens, and prompt(), for PROMPT tokens.


class Ours:
    def __init__(self, path: str, threads: int) -> None:
        sys.path.insert(0, str(ROOT / "build"))
        import numpy as np
        from simple_llm.cli.models import load
        self.np, self.model = np, load(path)[0]
        self.words = np.ones(N_PARAMETERS, np.float32)
        self.rows = self.words[: N_PARAMETERS // 576 * 576].reshape(-1, 576)

    def first(self, ids: list[int]) -> int:
        self.caches = self.model.make_caches()
        return int(self.model.next_logits(self.np.array([ids]), self.caches)[0].argmax())

    def decode(self) -> float:
        token = self.first(START)
        start = time.perf_counter()
        for _ in range(BLOCK):
            token = int(self.model.next_logits(self.np.array([[token]]), self.caches)[0].argmax())
        return (time.perf_counter() - start) / BLOCK

    def prompt(self) -> float:
        start = time.perf_counter()
        self.first(long_prompt())
        return time.perf_counter() - start

    def read(self) -> float:
        """Seconds to read as many bytes as the weights have, the quicker of two ways."""
        ways, x = [], self.np.ones(576, self.np.float32)
        for way in (lambda: self.words.dot(self.words), lambda: self.rows.dot(x)):
            start = time.perf_counter()
            way()
            ways.append(time.perf_counter() - start)
        return min(ways)


class Theirs:
    def __init__(self, path: str, threads: int) -> None:
        os.environ["TRANSFORMERS_VERBOSITY"], os.environ["TQDM_DISABLE"] = "error", "1"
        sys.path.insert(0, str(ROOT / "tools"))
        import torch
        from parity_chat import read_theirs
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.model = torch, read_theirs(Path(path))[0]

    def first(self, ids: list[int]) -> int:
        out = self.model(self.torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def decode(self) -> float:
        token = self.first(START)
        start = time.perf_counter()
        for _ in range(BLOCK):
            out = self.model(self.torch.tensor([[token]]), past_key_values=self.past, use_cache=True)
            token = int(out.logits[0, -1].argmax())
        return (time.perf_counter() - start) / BLOCK

    def prompt(self) -> float:
        start = time.perf_counter()
        self.first(long_prompt())
        return time.perf_counter() - start


class LlamaCpp:
    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp
        self.model = llama_cpp.Llama(path, n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads,
                                     verbose=False)

    def feed(self, ids: list[int], n: int) -> float:
        """Seconds a token, for n tokens behind those."""
        times = []
        for _ in self.model.generate(ids, temp=0.0, reset=True):
            times.append(time.perf_counter())
            if len(times) > n:
                return (times[-1] - times[0]) / n
        return 0.0

    def decode(self) -> float:
        return self.feed(START, BLOCK)

    def prompt(self) -> float:
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(long_prompt())
        return time.perf_counter() - start


PROGRAMS = {"ours": Ours, "transformers": Theirs, "llama.cpp": LlamaCpp}


def serve(name: str, path: str, threads: int) -> None:
    """Do what is asked for on standard input, one line each, and say how long it took."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                            # what others print is no answer
    program = PROGRAMS[name](path, threads)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(getattr(program, line.strip())()), file=out, flush=True)


class Child:
    """A program in a process of its own."""

    def __init__(self, name: str, python: str, path: str, threads: int) -> None:
        env = {key: value for key, value in os.environ.items() if key not in FOREIGN}
        env |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.name = name
        self.process = subprocess.Popen([python, __file__, "--serve", name, path, str(threads)], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"bench_chat: {name} did not start with {python}")

    def ask(self, what: str) -> float:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"bench_chat: {self.name} died of {what}, with the status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(threads: int, path: str, blocks: int, llama: str) -> None:
    """Print a table for a number of threads."""
    pythons = {"ours": sys.executable, "transformers": sys.executable} | ({"llama.cpp": llama} if llama else {})
    children = [Child(name, python, path, threads) for name, python in pythons.items()]
    jobs = [(child, what) for child in children for what in ("decode", "prompt", "read")
            if what != "read" or child.name == "ours"]
    found: dict[tuple[str, str], list[float]] = {(child.name, what): [] for child, what in jobs}
    for child, what in jobs:                 # the first of each is not counted
        child.ask(what)
    for block in range(blocks):
        for child, what in jobs:
            if what != "prompt" or block % 3 == 0:
                found[child.name, what].append(child.ask(what))
    for child in children:
        child.close()
    middle = {key: statistics.median(times) for key, times in found.items()}
    best = {key: min(times) for key, times in found.items()}
    print(f"\n{threads} thread{'s' * (threads > 1)}, {blocks} blocks of {BLOCK} tokens; load "
          f"{os.getloadavg()[0]:.1f}\n{'':14}{'ms a token':>12}{'best':>8}{'tokens/s':>10}{'ratio':>7}"
          f"{f'prompt of {PROMPT}':>16}{'best':>8}{'ratio':>7}")
    for name in pythons:
        token, prompt = middle[name, "decode"], middle[name, "prompt"]
        print(f"{name:14}{1e3 * token:12.1f}{1e3 * best[name, 'decode']:8.1f}{1 / token:10.1f}"
              f"{token / middle['ours', 'decode']:7.2f}{prompt:14.2f} s{best[name, 'prompt']:6.2f} s"
              f"{prompt / middle['ours', 'prompt']:7.2f}")
    share = [kind["ours", "read"] / kind["ours", "decode"] for kind in (middle, best)]
    print(f"reading {SIZE / 1e6:.0f} MB: {1e3 * middle['ours', 'read']:.1f} ms (best "
          f"{1e3 * best['ours', 'read']:.1f}), {SIZE / middle['ours', 'read'] / 1e9:.1f} GB/s; decoding reaches "
          f"{share[0]:.0%} of what that allows (best of each: {share[1]:.0%})", flush=True)


def first_token(path: str) -> None:
    """From the command to the first of its answer."""
    cores, times = str(os.cpu_count()), []
    env = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    for _ in range(3):
        start = time.perf_counter()
        chat = subprocess.Popen(
            [sys.executable, str(ROOT / "tools/run.py"), str(ROOT / "build"), "simple_llm", "chat", "--model", path],
            env=env | {"OPENBLAS_NUM_THREADS": cores}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)
        chat.stdin.write(b"What is the capital of France?\n")
        chat.stdin.flush()
        chat.stdout.read(1)
        times.append(time.perf_counter() - start)
        chat.kill()
        chat.wait()
    print(f"from the command to the first token: {', '.join(f'{t:.1f}' for t in times)} s; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--llama", default="", metavar="PYTHON", help="one with the package llama-cpp-python")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "build"))
    from simple_llm.cli.fetch import find
    path = find(args.model)
    first_token(path)
    for threads in args.threads:
        measure(threads, path, args.blocks, args.llama)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
