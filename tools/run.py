"""Run a module: python tools/run.py DIRECTORY MODULE [ARGUMENTS]

The same as PYTHONPATH=DIRECTORY python -m MODULE, except that a random.py or numpy.py in
the current directory does not take the place of the one that is meant. (Python has an
option for that, -P, but not before 3.11.) What only the root has is found there, last.
"""
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path[0] = str(Path(sys.argv[1]).resolve())
sys.path.append(str(ROOT))
del sys.argv[:2]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
