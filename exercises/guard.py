"""What an answer may not do while it is graded.

Python tells a hook of everything that reaches beyond it: files, processes, signals. A hook
cannot be taken away again, so it is only for processes that grade one answer and then end.
"""
from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = {
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system",
    "subprocess.Popen", "pty.spawn"}
SIGNALS = {"os.kill", "os.killpg", "signal.pthread_kill"}
BEHIND = {"gc.get_objects", "gc.get_referrers", "gc.get_referents", "ctypes.dlopen",
          "ctypes.dlsym", "ctypes.string_at", "ctypes.cdata"}
FILES = {"open", "os.link", "os.symlink", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
         "os.truncate", "shutil.rmtree"}


class Refused(Exception):
    """An answer does what no answer needs; says what."""


def stand_guard() -> list[str]:
    """Refuse from now on, in this process; the list gathers what was refused."""
    refused: list[str] = []
    within = [path for each in (sys.prefix, tempfile.gettempdir())
              if ROOT in (path := Path(os.path.realpath(each))).parents]

    def of_the_book(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real = Path(os.path.realpath(os.fsdecode(path)))
        return real.is_relative_to("/proc") or (
            real.is_relative_to(ROOT) and not any(map(real.is_relative_to, within)))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        what = ""
        if event in PROCESSES:
            what = "starts another process"
        elif event in SIGNALS:
            what = "sends a signal"
        elif event in BEHIND:
            what = "looks behind Python"
        elif event in FILES and any(map(of_the_book, arguments)):
            what = "opens or changes a file that is not its own"
        if what:
            refused.append(what)
            raise Refused(what)

    sys.addaudithook(watch)
    return refused
