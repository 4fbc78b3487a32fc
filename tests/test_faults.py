"""Full disks, directories that vanish, signals, closed pipes: one sentence, nothing lost."""
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import torture
from simple_llm import checkpoint
from simple_llm.checkpoint import UserError
from simple_llm.corpus import read_text
from simple_llm.layers import CrossEntropy, softmax
from simple_llm.model import Config, SimpleLLM
from simple_llm.resume import CHECKPOINT, read_checkpoint
from simple_llm.tokenizer import Tokenizer
from test_resume import assert_refused, run
from torture import ENV, finish, make_home, reference, result, start

LONG = (*torture.TEXTS, "--workers", "2", "--epochs", "300")
SHORT = (*torture.TEXTS, "--workers", "1", "--epochs", "4")
QUICK = (*torture.TEXTS, "--workers", "2", "--epochs", "15")


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


# Signals


def test_ctrl_c_twice_ends_at_once_and_the_checkpoint_is_whole(tmp_path):
    process = training(make_home(tmp_path / "home"))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)     # the third may come very late
    # Python itself reports an exception that hits while it clears away an object.
    assert "Traceback" not in said or "Exception ignored in" in said, said
    assert read_checkpoint(tmp_path / "home" / "model" / CHECKPOINT)
    torture.check_directory(tmp_path / "home")


def test_sigterm_saves_and_the_run_can_be_resumed(tmp_path, quick):
    process = training(make_home(tmp_path / "home"), QUICK)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped at step" in said
    assert "resumed at step" in finish(start(tmp_path / "home", ()))
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
from simple_llm import __main__ as program
from simple_llm.parallel import DataParallel
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
def test_a_second_ctrl_c_does_not_wait_for_the_step_and_a_third_changes_nothing(
        tmp_path, how, last):
    home = make_home(tmp_path / "home")
    process = subprocess.Popen([sys.executable, "-c", SLOW, "train", *LONG, how], cwd=home,
                               env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    while not process.stdout.readline().startswith(last):
        pass
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in said
    assert "\nsimple_llm: stopped" in said
    assert read_checkpoint(home / "model" / CHECKPOINT)


HELPER = """
import os, signal
import numpy as np
from simple_llm.model import Config, SimpleLLM
from simple_llm.parallel import DataParallel
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, signal.default_int_handler)
ids = np.ones((2, 4), int)
with DataParallel(SimpleLLM(Config(9, 8, 8, 1, 2)), 2) as team:
    loss, process = team.loss_and_gradient(ids, ids), team.helpers[0].process
    assert os.getpgid(process.pid) == process.pid          # Ctrl-C reaches a group
    os.kill(process.pid, signal.SIGINT)
    assert team.loss_and_gradient(ids, ids) == loss
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == -signal.SIGTERM
"""


def test_ctrl_c_is_no_affair_of_a_helper_but_sigterm_is():
    done = subprocess.run([sys.executable, "-c", HELPER], env=ENV, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr


STOPPED = """
import os, signal
from simple_llm.model import Config, SimpleLLM
from simple_llm.parallel import DataParallel
with DataParallel(SimpleLLM(Config(9, 8, 8, 1, 2)), 2) as team:
    helper = team.helpers[0].process.pid
    os.kill(helper, signal.SIGSTOP)
    os.waitpid(helper, os.WUNTRACED)
"""


def test_a_helper_that_does_not_listen_is_ended_too():
    """SIGTERM would wait, for it may meet the handler of the parent."""
    assert not subprocess.run([sys.executable, "-c", STOPPED], env=ENV, timeout=20).returncode


def test_a_helper_that_is_killed_costs_nothing_but_a_sentence(tmp_path, quick):
    process = training(make_home(tmp_path / "home"), QUICK)
    children = helpers_of(process)
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert sentences(said) == [
        "simple_llm: a helper process died: is there enough memory?"]
    finish(start(tmp_path / "home", ()))
    assert result(tmp_path / "home") == quick


# Disks and directories


FULL = """
import errno, os, sys
from simple_llm import checkpoint
from simple_llm.__main__ import main
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


@pytest.mark.parametrize("writes", [0, 3, 31])
def test_a_disk_that_fills_up_is_said_and_the_run_goes_on_when_there_is_room(
        tmp_path, writes, quick):
    home = make_home(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", FULL, str(writes), "train", *QUICK],
                          cwd=home, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(sentences(done.stderr)) == 1, done.stderr
    assert "model/" in done.stderr and "No space left on device" in done.stderr
    assert not torture.temporaries(home)
    torture.check_directory(home)
    finish(start(home, QUICK))
    assert result(home) == quick


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 16 KB, where that can be made."""
    home = make_home(tmp_path / "home")
    (home / "model").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(home / "model")]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = run("train", *SHORT, cwd=home)
        assert done.returncode == 1
        assert len(sentences(done.stderr)) == 1
        assert "model/" in done.stderr and "No space left" in done.stderr
    finally:
        subprocess.run(["umount", str(home / "model")], check=True)


def test_a_directory_that_cannot_be_written(tmp_path):
    home = make_home(tmp_path / "home")
    (home / "model").mkdir()
    (home / "model").chmod(0o500)
    immutable = False
    if os.access(home / "model", os.W_OK):     # as root; try the attribute
        immutable = not subprocess.run(["chattr", "+i", str(home / "model")],
                                       capture_output=True).returncode
        if not immutable:
            pytest.skip("nothing is read-only for this user")
    try:
        done = run("train", *SHORT, cwd=home)
        assert done.returncode == 1 and len(sentences(done.stderr)) == 1
        assert "model" in done.stderr and "ermi" in done.stderr
    finally:
        if immutable:
            subprocess.run(["chattr", "-i", str(home / "model")], check=True)
        (home / "model").chmod(0o700)


def test_a_directory_that_vanishes_is_made_again(tmp_path):
    process = training(make_home(tmp_path / "home"))
    shutil.rmtree(tmp_path / "home" / "model", ignore_errors=True)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    torture.check_directory(tmp_path / "home")
    assert process.returncode == 130, said
    assert read_checkpoint(tmp_path / "home" / "model" / CHECKPOINT)


def test_a_file_in_the_place_of_the_checkpoint_is_refused(tmp_path):
    home = make_home(tmp_path / "home")
    (home / "model" / CHECKPOINT).mkdir(parents=True)
    assert_refused(run("train", "--resume", *SHORT, cwd=home), "cannot read")


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
        assert_refused(done, "another training is at work in model")
        assert not done.stdout and stale.exists()
        assert not list(model.glob(f"old-*-{CHECKPOINT}"))
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0 and result(model.parent) == quick
    finish(start(model.parent, ()))
    assert not stale.exists()


def test_a_directory_that_the_training_makes_is_locked_too(tmp_path):
    process = training(make_home(tmp_path / "home"))
    done = run("train", *SHORT, cwd=tmp_path / "home")
    process.kill()
    process.communicate(timeout=20)
    assert_refused(done, "another training is at work in model")


def test_a_process_may_train_twice_into_one_directory(tmp_path):
    twice = "import sys; from simple_llm.__main__ import main; sys.exit(main() or main())"
    done = subprocess.run([sys.executable, "-c", twice, "train", *SHORT], env=ENV, timeout=60,
                          cwd=make_home(tmp_path / "home"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FORKING = """
import os, pathlib, time
from simple_llm.resume import CHECKPOINT, Run
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
                             stdout=subprocess.PIPE, text=True)
    helper = int(owner.stdout.readline())
    try:
        assert_refused(run("train", *SHORT, cwd=home), "another training is at work")
        owner.kill()
        owner.wait()
        assert run("train", *SHORT, cwd=home).returncode == 0
    finally:
        os.kill(helper, signal.SIGKILL)


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
                              env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == status and "cannot read nowhere" in done.stderr


INTERRUPTED = """
import os, signal, sys
from simple_llm.__main__ import main
from simple_llm.parallel import AcrossMachines
real = AcrossMachines.loss_and_gradient
def loss_and_gradient(self, *batch):
    if self.steps == 3:
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
                              cwd=home, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stderr
    assert read_checkpoint(home / "model" / CHECKPOINT).step == 4


# Sizes


SMALL = {"vocab_size": 9, "context_length": 8, "d_model": 8, "n_layers": 1, "n_heads": 2}


@pytest.mark.parametrize("sizes", [
    {"d_model": 10**9}, {"n_layers": 10**9}, {"context_length": 10**7},
    {"vocab_size": 10**15}], ids=str)
def test_sizes_beyond_the_memory_are_refused_by_arithmetic(sizes):
    SimpleLLM.check_memory(Config(**SMALL), 12, 2)
    with pytest.raises(UserError, match=" GB of memory"):
        SimpleLLM.check_memory(Config(**{**SMALL, **sizes}), 12, 2)
    with pytest.raises(UserError, match="and 100000 workers need"):
        SimpleLLM.check_memory(Config(**SMALL), 12, 10**5)


@pytest.mark.parametrize("options", [
    ("--width", 10**9), ("--batch-size", 10**12), ("--workers", 10**9)])
def test_sizes_beyond_the_memory_are_refused_on_the_command_line(tmp_path, options):
    done = run("train", *SHORT, *options, cwd=make_home(tmp_path / "home"))
    assert_refused(done, " GB of memory")
    assert not (tmp_path / "home" / "model").exists()


MEMORY = """
import sys
from simple_llm import __main__ as program
def fail(*args):
    raise MemoryError
program.make_model = fail
sys.exit(program.main())
"""


def test_memory_that_runs_out_all_the_same_is_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEMORY, "train", *SHORT], env=ENV, text=True,
                          cwd=make_home(tmp_path / "home"), capture_output=True, timeout=60)
    assert_refused(done, "this needs more memory than there is")


# Terminals and pipes


def test_closed_descriptors_are_no_error(tmp_path):
    home = make_home(tmp_path / "home")
    for closed, command in ((">&-", ("train", *SHORT)), ("2>&-", ("train", *SHORT)),
                            ("<&-", ("chat",)), ("<&-", ("tokenize",))):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "simple_llm",
             *command], cwd=home, env=ENV, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (closed, done.stderr)
        assert "Traceback" not in done.stderr
    torture.check_directory(home)


def test_ctrl_c_while_modules_are_imported_is_quiet(tmp_path):
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")
    env = {**ENV, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ENV['PYTHONPATH']}"}
    for module in ("simple_llm", "simple_llm.train"):
        done = subprocess.run([sys.executable, "-m", module, "--help"], env=env,
                              capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_leaves_costs_nothing_of_the_run(tmp_path, quick):
    process = training(make_home(tmp_path / "home"), QUICK)
    process.stdout.close()
    said = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in said and "roken" not in said
    finish(start(tmp_path / "home", ()))
    assert result(tmp_path / "home") == quick


def on_a_terminal(home, **env):
    """What a short training writes to a terminal."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "simple_llm", "train", *SHORT], cwd=home,
        env={**ENV, **env}, stdout=subprocess.DEVNULL, stderr=theirs)
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
    assert "\x1b[K" in on_a_terminal(make_home(tmp_path / "a"), TERM="xterm", CI="")
    assert "\x1b" not in on_a_terminal(make_home(tmp_path / "b"), TERM="dumb", CI="")
    assert "\x1b" not in on_a_terminal(make_home(tmp_path / "c"), TERM="xterm", CI="1")


# Text


@pytest.mark.parametrize(("data", "says"), [
    (b"", "empty"), (b"\xef\xbb\xbf", "empty"), (b"a", "too few"), (b"\r\n\r\n", "empty"),
    (b"abc\0def" * 90, "byte 3 is NUL"), (b"ab\xffc" * 90, "0xff at 2"),
    (b"good " * 99 + b"\xc3", "0xc3 at 495"), (bytes(range(1, 256)), "0x80 at 127"),
    (b"\xff\xfea\0b\0" * 50, "NUL"), (b"\xed\xa0\x80" * 50, "0xed at 0"),
])
def test_bad_text_is_refused_with_the_place(tmp_path, data, says):
    (tmp_path / "text.txt").write_bytes(data)
    assert_refused(run("train", *SHORT, cwd=tmp_path), says)
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
    for prompt in ("", "\U0001f600", "the cat sat on the mat. " * 5):
        done = run("generate", "--prompt", prompt, "--max-new-tokens", 4, cwd=tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_long_text_is_encoded_in_parts_that_give_the_same_ids():
    from simple_llm.tokenizer import parts
    assert len([*parts("a line\n" * 10**6)]) == 2           # 7 MB
    text = "one two,\n\n  three\nfour 'tis\n" * 40 + "no end"
    for size in (1, 7, 50, 10_000):
        assert "".join(parts(text, size)) == text
        for kind in ("word", "char"):
            tokenizer = Tokenizer.from_text(text, kind)
            assert [id for part in parts(text, size) for id in tokenizer.encode(part)] == (
                tokenizer.encode(text))


def test_who_waits_for_a_long_text_is_told_how_far_it_is(monkeypatch, capsys):
    from simple_llm import corpus, tokenizer
    whole = tokenizer.parts
    monkeypatch.setattr(tokenizer, "parts", lambda text: whole(text, 999))
    text = "a line of a long text\n" * 200
    ids = corpus.encode_long(text, Tokenizer.from_text(text, "bpe", 300))
    said = capsys.readouterr().err
    for word in ("counted", "encoded"):
        assert f" 23% of the text is {word}\n" in said
        assert f"100% of the text is {word}\n" in said
    monkeypatch.undo()
    assert ids.tolist() == Tokenizer.from_text(text, "bpe", 300).encode(text)
    assert not capsys.readouterr().err                     # a short one is not worth a word


def test_the_text_is_read_in_memory_of_its_own_size(tmp_path):
    import tracemalloc
    (tmp_path / "a").write_text("the cat sat on the mat\n" * 200_000)     # 4.6 MB
    tracemalloc.start()
    text = read_text(str(tmp_path / "a"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(text)


# Numbers


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_softmax_and_loss_are_right_for_huge_logits(scale):
    z = np.float32([[scale, 0, -scale], [scale, scale, 0]])
    p = softmax(z.copy())
    wanted = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p, wanted, atol=1e-7)
    loss = CrossEntropy()
    targets = np.array([2, 0])
    each = z.max(axis=1) - z[[0, 1], targets] + np.log(
        np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True)).sum(axis=1))
    assert loss.forward(z.copy(), targets) == pytest.approx(each.mean(), rel=1e-6)
    assert np.isfinite(loss.backward()).all()


def test_one_blas_thread_and_two_end_in_nearly_the_same_weights(tmp_path):
    """The same bytes are not promised (chapter 17)."""
    models, wide = [], ("--width", 128, "--heads", 4, "--max-steps", 6)    # worth two threads
    for threads in ("1", "2"):
        home = make_home(tmp_path / threads)
        env = {name: threads for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "simple_llm", "train", "--no-ladder", *map(str, wide)]
        done = subprocess.run(command, cwd=home,
                              env={**ENV, **env, "PYTHONHASHSEED": threads},
                              capture_output=True, timeout=60)
        assert done.returncode == 0
        models.append(SimpleLLM.from_pretrained(home / "model"))
    np.testing.assert_allclose(models[0].data, models[1].data, atol=1e-4)


def test_a_broken_down_training_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    home = make_home(tmp_path / "home")
    process = training(home, (*LONG,))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    before = read_checkpoint(home / "model" / CHECKPOINT)
    poison = ("from simple_llm.model import SimpleLLM\nreal = SimpleLLM.backward\n"
              "def backward(self):\n    real(self)\n    self.norm.weight.grad[0] = "
              "float('nan')\nSimpleLLM.backward = backward\nimport sys\n"
              "from simple_llm.__main__ import main\nsys.exit(main())")
    done = subprocess.run([sys.executable, "-c", poison, "train", "--resume"], cwd=home,
                          env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    after = read_checkpoint(home / "model" / CHECKPOINT)
    assert f"step {after.step + 1}" in done.stderr and "ln_f.weight" in done.stderr
    assert after.step == before.step
    for name, array in before.arrays.items():
        assert after.arrays[name].tobytes() == array.tobytes()


def test_an_error_of_the_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomically(path, b"old")

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(OSError):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    assert issubclass(UserError, ValueError)
