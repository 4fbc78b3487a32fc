"""One process and two of mpiexec, training the same: python tools/bench_mpi.py.

Needs build/ (make tangle), an MPI with its mpiexec, and mpi4py in this Python.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # in each process


def train(processes: int) -> tuple[str, float]:
    """The loss after twenty epochs, and the seconds of training."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build")}
    with tempfile.TemporaryDirectory() as out:
        command = ["mpiexec", "-n", str(processes), sys.executable, "-m", "simple_llm",
                   "train", "--epochs", "20", "--no-ladder", "--out", out]
        command += ["--workers", "1"] if processes == 1 else []
        said = subprocess.run(command, env=environment, check=True, capture_output=True,
                              text=True).stdout
    loss, seconds = re.search(r"^loss (\S+) .* after (\d+) s", said, re.M).groups()
    return loss, float(seconds)


if __name__ == "__main__":
    print(f"{'processes':>9} {'training':>9} {'held-out loss':>14}")
    for processes in (1, 2):
        loss, seconds = train(processes)
        print(f"{processes:9} {seconds:7.0f} s {loss:>14}", flush=True)
