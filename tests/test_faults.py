"""Full disks, directories that vanish, signals, closed pipes: one sentence, nothing lost."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torture
from simple_llm.engine.resume import CHECKPOINT, read_checkpoint
from simple_llm.tokenizer import Tokenizer
from test_cli import assert_one_sentence, run
from torture import ENV, make_home, reference, result

LONG = (*torture.TEXTS, "--workers", "2", "--epochs", "300")
SHORT = (*torture.TEXTS, "--workers", "1", "--epochs", "4")
QUICK = (*torture.TEXTS, "--workers", "2", "--epochs", "10")


def training(home, arguments=LONG, **env):
    """A training that has reached its first evaluations."""
    process = subprocess.Popen(
        [sys.executable, "-m", "simple_llm", "train", *arguments], cwd=home,
        env={**ENV, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8")
    for line in process.stdout:
        if line.startswith("step     0"):
            return process
    raise AssertionError(process.communicate())


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What QUICK leaves if nobody disturbs it."""
    return reference(tmp_path_factory.mktemp("quick") / "alone", QUICK)


def sentences(said):
    return [line for line in said.splitlines() if line and "epoch " not in line]


def run_code(code, *arguments, cwd, **env):
    """A program that does something to the package, and calls main()."""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd,
                          env={**ENV, **env}, capture_output=True, encoding="utf-8", timeout=60)


def finish(home, arguments=()):
    """Go on with a training, to its end; what it printed."""
    done = run("train", "--resume", *arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Signals


def test_sigterm_saves_and_the_run_can_be_resumed(tmp_path, quick):
    process = training(make_home(tmp_path / "home"), QUICK)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped at step" in said
    assert "resumed at step" in finish(tmp_path / "home")
    assert result(tmp_path / "home") == quick


def helpers_of(process):
    """The process numbers of a training's helpers, as soon as there are any."""
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        if found := listing.read_text().split():
            return found
        time.sleep(0.002)
    raise AssertionError("the training has no helper")


def test_no_helper_is_left_when_a_training_is_stopped(tmp_path):
    process = training(make_home(tmp_path / "home"))
    children = helpers_of(process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert children
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


SLOW = """
import sys, time
from simple_llm.cli import main as program
from simple_llm.engine.parallel import DataParallel
if sys.argv.pop() == "slow steps":
    DataParallel.loss_and_gradient = lambda *_: print("-", flush=True) or time.sleep(60)
def slowly(*args, **options):
    time.sleep(0.3 if "stopped" in str(args) else 0)
    print(*args, **options)
program.print = slowly
sys.exit(program.main())
"""


@pytest.mark.parametrize(("how", "last"), [
    ("slow steps", "-"), ("quick steps", "step     0")])
def test_a_second_ctrl_c_does_not_wait_for_the_step(
        tmp_path, how, last):
    home = make_home(tmp_path / "home")
    process = subprocess.Popen([sys.executable, "-c", SLOW, "train", *LONG, how], cwd=home,
                               env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               encoding="utf-8")
    while not process.stdout.readline().startswith(last):
        pass
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in said
    assert "\nsimple_llm: stopped" in said
    assert read_checkpoint(home / "model" / CHECKPOINT)


def test_a_helper_that_is_killed_costs_nothing_but_a_sentence(tmp_path, quick):
    process = training(make_home(tmp_path / "home"), QUICK)
    children = helpers_of(process)
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert sentences(said) == [
        "simple_llm: a helper process died, with the exit status -9"]
    finish(tmp_path / "home")
    assert result(tmp_path / "home") == quick


BUG = """
import sys
from simple_llm import train
def gradient(*args):
    return [][1]
from simple_llm.engine import parallel
parallel.gradient_in_micro_batches = gradient
from simple_llm.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bug_names_the_lines_of_the_book_in_this_process_and_in_a_helper(
        tmp_path, workers):
    home = make_home(tmp_path / "home")
    done = run_code(BUG, "train", *SHORT, "--workers", workers, cwd=home)
    assert done.returncode == 1 and "IndexError" in done.stderr
    places = re.findall(r"(?m)^in the book: simple_llm\.md:(\d+) ⟨[\w./-]+⟩$", done.stderr)
    book = (torture.ROOT / "simple_llm.md").read_text(encoding="utf-8").split("\n")
    assert places and done.stderr.rstrip().endswith("⟩")
    assert all(book[int(place) - 1].strip() in done.stderr for place in places)


# Disks and directories


FULL = """
import errno, os, sys
from simple_llm.cli.main import main
left, real = int(sys.argv.pop(1)), os.fsync
def fsync(file):
    global left
    left -= 1
    if left < 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    real(file)
os.fsync = fsync
sys.exit(main())
"""


@pytest.mark.parametrize("writes", [1, 31])
def test_a_disk_that_fills_up_is_said_and_the_run_goes_on_when_there_is_room(
        tmp_path, writes, quick):
    home = make_home(tmp_path / "home")
    done = run_code(FULL, str(writes), "train", *QUICK, cwd=home)
    assert done.returncode == 1
    assert len(sentences(done.stderr)) == 1, done.stderr
    assert "model/" in done.stderr and "No space left on device" in done.stderr
    assert not torture.temporaries(home)
    torture.check_directory(home)
    finish(home, QUICK)
    assert result(home) == quick


# Two trainings, and one that was killed


def test_a_second_training_in_the_same_directory_is_refused_and_the_first_goes_on(
        tmp_path, quick):
    model = make_home(tmp_path / "home") / "model"
    model.mkdir()
    stale, own = model / ".model.safetensors.99.tmp", model / ".notes.tmp"
    stale.touch()
    own.touch()
    process = training(model.parent, QUICK)
    assert not stale.exists() and own.exists()             # a killed run left it
    process.send_signal(signal.SIGSTOP)
    stale.touch()                                          # now it may be the first's
    for resume in ((), ("--resume",)):
        done = run("train", *QUICK, *resume, cwd=model.parent)
        assert_one_sentence(done, "another training is at work in model")
        assert not done.stdout and stale.exists()
        assert not list(model.glob(f"old-*-{CHECKPOINT}"))
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0 and result(model.parent) == quick
    finish(model.parent)
    assert not stale.exists()


FORKING = """
import os, pathlib, time
from simple_llm.engine.resume import CHECKPOINT, Run
run = Run.__new__(Run)
run.path = pathlib.Path("model", CHECKPOINT)
run.lock()
if not os.fork():
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_the_lock_falls_with_its_owner_even_while_a_helper_still_lives(tmp_path):
    home = make_home(tmp_path / "home")
    (home / "model").mkdir()
    owner = subprocess.Popen([sys.executable, "-c", FORKING], cwd=home, env=ENV,
                             stdout=subprocess.PIPE, encoding="utf-8")
    helper = int(owner.stdout.readline())
    try:
        assert_one_sentence(run("train", *SHORT, cwd=home), "another training is at work")
        owner.kill()
        owner.wait()
        assert run("train", *SHORT, cwd=home).returncode == 0
    finally:
        os.kill(helper, signal.SIGKILL)


# Several processes of mpiexec


FAKE_MPI = """
import os
class COMM_WORLD:
    rank, size = 0, 2
    def Abort(status):
        os._exit(40 + status)
    def Allreduce(place, vector):
        pass
    def allreduce(number):
        return number
    def Barrier():
        pass
class MPI:
    COMM_WORLD, IN_PLACE = COMM_WORLD, None
"""


def test_a_process_of_mpiexec_that_fails_ends_them_all(tmp_path):
    """Or they would wait for its gradient for ever."""
    (tmp_path / "mpi4py.py").write_text(FAKE_MPI)
    for size, status in ((1, 1), (2, 41)):
        env = {**ENV, "PYTHONPATH": f"{ENV['PYTHONPATH']}{os.pathsep}{tmp_path}",
               "PMI_RANK": "0", "PMI_SIZE": str(size)}
        done = subprocess.run([sys.executable, "-m", "simple_llm", "info", "nowhere"],
                              env=env, capture_output=True, encoding="utf-8", timeout=60)
        assert done.returncode == status and "cannot read nowhere" in done.stderr


INTERRUPTED = """
import os, signal, sys
from simple_llm.cli.main import main
from simple_llm.engine.parallel import AcrossMachines
real = AcrossMachines.loss_and_gradient
def loss_and_gradient(self, *batch):
    if self.optimizer.step_count == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return real(self, *batch)
AcrossMachines.loss_and_gradient = loss_and_gradient
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_of_the_processes_of_mpiexec_the_first_decides_when_to_stop(tmp_path):
    """Else one might stop a step before another, which waits for its gradient for ever."""
    (tmp_path / "mpi4py.py").write_text(FAKE_MPI.replace("rank, size = 0, 2",
                                        "rank, size = int(os.environ['PMI_RANK']), 2"))
    home = make_home(tmp_path / "home")
    for rank, status in (("0", 40 + 130), ("1", 0)):
        env = {**ENV, "PYTHONPATH": f"{ENV['PYTHONPATH']}{os.pathsep}{tmp_path}",
               "PMI_RANK": rank, "PMI_SIZE": "2"}
        done = subprocess.run([sys.executable, "-c", INTERRUPTED, "train",
                               *torture.TEXTS, "--epochs", "4"], env=env,
                              cwd=home, capture_output=True, encoding="utf-8", timeout=60)
        assert done.returncode == status, done.stderr
    assert read_checkpoint(home / "model" / CHECKPOINT).step == 4


# Memory


MEMORY = """
import sys
from simple_llm.cli import train
from simple_llm.cli.main import main
def fail(*args):
    raise MemoryError
train.prepare = fail
sys.exit(main())
"""


def test_memory_that_runs_out_all_the_same_is_one_sentence(tmp_path):
    done = run_code(MEMORY, "train", *SHORT, cwd=make_home(tmp_path / "home"))
    assert_one_sentence(done, "this needs more memory than there is")


# Terminals and pipes


def test_closed_descriptors_are_no_error(tmp_path):
    home = make_home(tmp_path / "home")
    for closed, command in ((">&-", ("train", *SHORT)), ("2>&-", ("train", *SHORT))):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "simple_llm",
             *command], cwd=home, env=ENV, capture_output=True, encoding="utf-8", timeout=60)
        assert done.returncode == 0, (closed, done.stderr)
        assert "Traceback" not in done.stderr
    torture.check_directory(home)


def test_a_reader_that_leaves_costs_nothing_of_the_run(tmp_path, quick):
    process = training(make_home(tmp_path / "home"), QUICK)
    process.stdout.close()
    said = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in said and "roken" not in said
    finish(tmp_path / "home")
    assert result(tmp_path / "home") == quick


def on_a_terminal(home):
    """What a short training writes to a terminal."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "simple_llm", "train", *SHORT], cwd=home,
        env=ENV, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:                        # the other end was closed
            break
        if not piece:
            break
        said += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return said.decode()


def test_the_bar_is_redrawn_on_a_terminal_and_only_there(tmp_path):
    home = make_home(tmp_path / "home")
    assert "\x1b[K" in on_a_terminal(home)
    assert "\x1b" not in run("train", *SHORT, cwd=home).stderr


# Text


@pytest.mark.parametrize(("data", "says"), [
    (b"", "empty"), (b"a", "too few"), (b"\r\n\r\n", "empty"), (b"a\0b", "byte 1 is NUL"),
    (b"good " * 99 + b"\xc3", "0xc3 at 495"),
])
def test_bad_text_is_refused_with_the_place(tmp_path, data, says):
    (tmp_path / "text.txt").write_bytes(data)
    assert_one_sentence(run("train", *SHORT, cwd=tmp_path), says)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("text", [
    "the cat sat on the mat.\r\n" * 60, "\ufeffthe cat sat on the mat.\n" * 60,
    "no end of line " * 60, "e\u0301 \U0001f600 \U0001f469\u200d\U0001f52c na\u00efve\n" * 60,
    "x" * 600, "\u202e\u0000".replace("\0", "") + "abc def " * 99, "\n\n\n a\n" * 99,
], ids=["CRLF", "BOM", "no final newline", "emoji", "one character", "rtl", "blank"])
def test_odd_text_is_learned_and_written(tmp_path, text):
    (tmp_path / "text.txt").write_bytes(text.encode())
    done = run("train", *SHORT, "--epochs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\r" not in "".join(Tokenizer.load(tmp_path / "model").tokens)
    for prompt in ("", os.fsdecode("\U0001f600".encode()), "the cat sat on the mat. " * 5):
        done = run("generate", "--prompt", prompt, "--max-new-tokens", 4, cwd=tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_broken_down_training_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    home = make_home(tmp_path / "home")
    process = training(home, (*LONG,))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    before = read_checkpoint(home / "model" / CHECKPOINT)
    poison = ("from simple_llm.model import SimpleLLM\nreal = SimpleLLM.backward\n"
              "def backward(self):\n    real(self)\n    self.norm.weight.grad[0] = "
              "float('nan')\nSimpleLLM.backward = backward\nimport sys\n"
              "from simple_llm.cli.main import main\nsys.exit(main())")
    done = run_code(poison, "train", "--resume", cwd=home)
    assert done.returncode == 1
    after = read_checkpoint(home / "model" / CHECKPOINT)
    assert f"step {after.step + 1}" in done.stderr and "ln_f.weight" in done.stderr
    assert after.step == before.step
    for name, array in before.arrays.items():
        assert after.arrays[name].tobytes() == array.tobytes()
