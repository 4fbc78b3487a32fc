"""What an answer may not do while it is graded.

Python tells a hook of everything that reaches beyond it: files, processes, signals. A hook
cannot be taken away again, so it is only for processes that grade one answer and then end.
It is a fence against accidents and short cuts, and no prison: the verdict does not rest on
it (see proof.py).
"""
from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = {
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
    "subprocess.Popen", "pty.spawn"}
SIGNALS = {"os.kill", "os.killpg", "signal.pthread_kill"}
BEHIND = {"gc.get_objects", "gc.get_referrers", "gc.get_referents", "ctypes.dlopen",
          "ctypes.dlsym", "ctypes.string_at", "ctypes.cdata"}
CHANGES = {"os.link", "os.symlink", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
           "os.truncate", "os.chmod", "os.utime", "shutil.rmtree"}
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(Exception):
    """An answer does what no answer needs; says what."""


class Shelf(NamedTuple):
    """Where files lie that an answer may open."""
    temporary: Path  # to read and to write
    installed: Path  # to read, if it is within the book's directory

    def refuses(self, path: Any, writing: bool) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real = Path(os.path.realpath(os.fsdecode(path)))
        of_the_book = real.is_relative_to(ROOT)
        if real.is_relative_to(self.temporary) and (
                not of_the_book or ROOT in self.temporary.parents):
            return False
        if writing:
            return not real.is_relative_to("/dev")
        return real.is_relative_to("/proc") or of_the_book and not (
            ROOT in self.installed.parents and real.is_relative_to(self.installed))


def stand_guard() -> list[str]:
    """Refuse from now on, in this process; the list gathers what was refused."""
    refused: list[str] = []
    shelf = Shelf(*(Path(os.path.realpath(each)) for each in (
        tempfile.gettempdir(), sys.prefix)))  # now, for to find out opens files, too

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        what = ""
        if event in PROCESSES:
            what = "starts another process"
        elif event in SIGNALS:
            what = "sends a signal"
        elif event in BEHIND:
            what = "looks behind Python"
        elif event == "open" and shelf.refuses(arguments[0], bool(arguments[2] & TO_WRITE)):
            what = "opens a file that is not its own"
        elif event in CHANGES and any(shelf.refuses(each, True) for each in arguments):
            what = "changes a file that is not its own"
        if what:
            refused.append(what)
            raise Refused(what)

    sys.addaudithook(watch)
    return refused
