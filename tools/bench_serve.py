"""What one, two, four and eight clients get from `serve`, together: tools/bench_serve.py

The server is a process of its own. Each client asks for the same number of tokens of a text of its own, with a seed;
the settings take turns, so that what else the machine does strikes all alike, and of the rounds the median counts.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # settings that were made for other measurements
CLIENTS = (1, 2, 4, 8)


def start(model: str, threads: int) -> tuple[subprocess.Popen[str], str]:
    """A server, and its address."""
    env = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/run.py"), str(ROOT / "build"), "simple_llm", "serve", "--port=0",
         f"--model={model}"], env=env | {"OPENBLAS_NUM_THREADS": str(threads)}, text=True, stdout=subprocess.PIPE)
    line = server.stdout.readline()
    if not (found := re.search(r"http://\S+:\d+", line)):
        raise SystemExit(f"bench_serve: the server did not start: {line}")
    return server, found[0]


def ask(url: str, number: int, tokens: int, times: list[float]) -> None:
    """One request; the times at which its tokens came."""
    said = {"prompt": f"This is the story number {number}, and it begins", "max_tokens": tokens, "seed": number,
            "temperature": 0.7, "stream": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(said).encode())
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())


def measure(url: str, clients: int, tokens: int) -> tuple[float, float]:
    """Tokens a second of all clients, and the milliseconds from one token of a client to its next."""
    times: list[list[float]] = [[] for _ in range(clients)]
    threads = [threading.Thread(target=ask, args=(url, n, tokens, mine)) for n, mine in enumerate(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin = max(mine[0] for mine in times)                   # when all of them speak ...
    end = min(mine[-2] for mine in times)                    # ... and none has ended
    said = sum(begin < at <= end for mine in times for at in mine)
    gaps = [after - before for mine in times for before, after in zip(mine, mine[1:])]
    return said / (end - begin), 1e3 * statistics.median(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    server, url = start(args.model, args.threads)
    try:
        measure(url, 1, 8)                                   # the first is not counted
        found = [[measure(url, n, args.tokens) for n in CLIENTS] for _ in range(args.rounds)]
    finally:
        server.kill()
    rates, gaps = ([statistics.median(one[n][what] for one in found) for n in range(len(CLIENTS))] for what in (0, 1))
    print("clients  tokens/s together  times one  ms from token to token")
    for n, rate, gap in zip(CLIENTS, rates, gaps):
        print(f"{n:7}{rate:19.1f}{rate / rates[0]:11.1f}{gap:24.0f}")
    print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
