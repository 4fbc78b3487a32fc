"""Let the tests import what the book's tangle produced, and nothing staler."""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path[:0] = [str(ROOT), str(ROOT / "build")]

import tangle  # noqa: E402

tangle.write(tangle.texts(tangle.tangle(tangle.read_document(), build=tangle.BUILD)))
