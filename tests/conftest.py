"""Let the tests import what the book's tangle produced, and nothing staler."""
import importlib
import os
import shutil
import signal
import sys
import traceback
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:         # begun in the background, as by `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A training waits for the disk each time it saves. Memory is a disk that nobody waits for.
MEMORY = "/dev/shm"
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "build")]
sys.path.append(str(ROOT))                 # last: a random.py there is not Python's

import pytest  # noqa: E402

import tangle  # noqa: E402

BOOK = tangle.read_document()
FILES = tangle.tangle(BOOK, build=tangle.BUILD)
tangle.write(tangle.texts(FILES))
importlib.invalidate_caches()              # build/ may be new

# Many tests read the book, each in a twentieth of a second; other texts are read anew.
(blocks, problems), read_blocks = tangle.read_blocks(BOOK), tangle.read_blocks
tangle.read_blocks = lambda text: (
    ([*blocks], [*problems]) if text == BOOK else read_blocks(text))


@pytest.fixture(scope="session")
def unpack(tmp_path_factory):
    """Unpacks an archive that stands beside the tests; where it then is."""
    def unpack(name):
        home = tmp_path_factory.mktemp(name.partition(".")[0])
        with zipfile.ZipFile(Path(__file__).with_name(name)) as archive:
            archive.extractall(home)
        return home
    return unpack


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure in the package names the places in the book."""
    report = (yield).get_result()
    if report.failed and call.excinfo is not None:
        places = []
        for frame, number in traceback.walk_tb(call.excinfo.tb):
            with suppress(tangle.TangleError):         # no line of the book
                line = tangle.locate(FILES, frame.f_code.co_filename, number)
                places.append(f"simple_llm.md:{line.number} {line.block.label()}")
        if places:
            report.sections.append(("in the book", "\n".join(places)))


def pytest_terminal_summary(terminalreporter):
    """In one line, what was skipped, and why."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ")
                      for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped {sum(reasons.values())}: {why}")
