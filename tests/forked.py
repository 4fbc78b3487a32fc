"""Commands of the package in a copy of this process, where NumPy is imported already.

`python -m simple_llm` takes 0.2 s to begin, and a copy 0.02. In what a command is given and
what it leaves (directory, environment, standard streams, exit status) the two are the same.
What is about the beginning itself (encodings, closed streams, the module) starts Python.
"""
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings

from simple_llm.cli.main import main


def run(*arguments, cwd, env, timeout=60):
    """What subprocess.run gives of a command, with what it printed as text."""
    command = [sys.executable, "-m", "simple_llm", *map(str, arguments)]
    if not sys.platform.startswith("linux"):               # elsewhere a copy may be unsafe
        return subprocess.run(command, cwd=cwd, env=env, timeout=timeout,
                              capture_output=True, encoding="utf-8")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            become(command[2:], cwd, env, out, err)
        status = wait(child, time.monotonic() + timeout)
        out.seek(0)
        err.seek(0)
        said = (file.read().decode() for file in (out, err))
        return subprocess.CompletedProcess(command, status, *said)


def wait(child, end):
    """The exit status; who takes too long is killed."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError
        time.sleep(0.003)


def become(arguments, cwd, env, out, err):
    """Be the command, and end."""
    status = 1
    try:
        for descriptor, file in enumerate((open(os.devnull), out, err)):
            os.dup2(file.fileno(), descriptor)
        sys.stdin, sys.stdout, sys.stderr = (
            open(descriptor, mode, encoding="utf-8", errors=errors, closefd=False)
            for descriptor, mode, errors in ((0, "r", "strict"), (1, "w", "strict"),
                                             (2, "w", "backslashreplace")))
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = arguments
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        status = main()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
