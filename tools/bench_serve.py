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


def processor(pid: int) -> float:
    """Seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(url: str, clients: int, tokens: int, pid: int) -> tuple[float, float, float]:
    """Tokens a second of all clients; the milliseconds from one token of a client to its next, and those that the
    server's processors spend on a token, which do not depend on who else uses the machine."""
    times: list[list[float]] = [[] for _ in range(clients)]
    busy = processor(pid)
    threads = [threading.Thread(target=ask, args=(url, n, tokens, mine)) for n, mine in enumerate(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin = max(mine[0] for mine in times)                   # when all of them speak ...
    end = min(mine[-2] for mine in times)                    # ... and none has ended
    said = sum(begin < at <= end for mine in times for at in mine)
    gaps = [after - before for mine in times for before, after in zip(mine, mine[1:])]
    busy = 1e3 * (processor(pid) - busy) / sum(len(mine) for mine in times)
    return said / (end - begin), 1e3 * statistics.median(gaps), busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    server, url = start(args.model, args.threads)
    try:
        measure(url, 1, 8, server.pid)                       # the first is not counted
        found = [[measure(url, n, args.tokens, server.pid) for n in CLIENTS] for _ in range(args.rounds)]
    finally:
        server.kill()
    rates, gaps, busy = ([statistics.median(one[n][what] for one in found) for n in range(len(CLIENTS))]
                         for what in range(3))
    print("         tokens/s  times  ms from token  ms of processor\nclients  together    one       to token          a token")
    for n, rate, gap, spent in zip(CLIENTS, rates, gaps, busy):
        print(f"{n:7}{rate:10.1f}{rate / rates[0]:7.1f}{gap:15.0f}{spent:17.0f}")
    print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
