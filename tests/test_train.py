"""Optimizers, schedule, clipping, workers, and training itself."""
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import simple_llm
from simple_llm import parallel
from simple_llm.checkpoint import UserError
from simple_llm.corpus import Batch, StoryCorpus, TextCorpus, World
from simple_llm.layers import CrossEntropy
from simple_llm.model import Config, SimpleLLM
from simple_llm.optimizer import SGD, AdamW, clip_gradients, learning_rate
from simple_llm.parallel import DataParallel
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import (
    Options, Score, attention_to_self, evaluate, evaluate_stories, mark, train,
)

BUILD = Path(simple_llm.__file__).parent.parent


def make_model(dtype=np.float64, dropout=0.0, V=9, L=6, **sizes):
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, **sizes}
    return SimpleLLM(Config(V, L, **sizes, dropout=dropout), 0, dtype)


def make_batch(B, V=9, L=6, seed=0):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(V, size=(2, B, L))
    targets[rng.random((B, L)) < 0.3] = -1     # the shares count different numbers
    targets[:, 0] = 1
    return ids, targets


# Optimizers, against scalar loops


def toy(data, matrices):
    data = np.array(data)
    grad = np.zeros_like(data)
    return SimpleNamespace(data=data, grad=grad, matrices=slice(matrices))


GRADS = [[0.3, -2.0, 0.0, 1e-5], [-0.1, 1.0, 0.5, 1e3], [0.0, 0.0, 0.0, 0.0]]


def test_adamw_takes_the_steps_of_the_paper():
    model, start = toy([1.0, -2.0, 3.0, 0.5], 2), [1.0, -2.0, 3.0, 0.5]
    optimizer = AdamW(model, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.2)
    m, v, wanted = [0.0] * 4, [0.0] * 4, list(start)
    for t, (grad, rate) in enumerate(zip(GRADS, [0.1, 0.05, 0.2]), 1):
        model.grad[...] = grad
        optimizer.step(rate)
        for i, g in enumerate(grad):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.95 * v[i] + 0.05 * g * g
            decay = 0.2 if i < 2 else 0.0
            step = m[i] / (1 - 0.8**t) / (math.sqrt(v[i] / (1 - 0.95**t)) + 1e-4)
            wanted[i] -= rate * (step + decay * wanted[i])
        np.testing.assert_allclose(model.data, wanted, rtol=1e-13)


def test_the_first_step_of_adamw_is_the_learning_rate_long():
    model = toy([0.0, 0.0], 0)
    model.grad[...] = [1e-3, -50.0]
    AdamW(model).step(0.01)
    np.testing.assert_allclose(model.data, [-0.01, 0.01], rtol=1e-4)


def test_adamw_decays_matrices_but_neither_biases_nor_norms():
    model = make_model()
    model.data[...] = 1.0
    AdamW(model, weight_decay=0.5).step(0.1)               # the gradient is 0
    for name, p in model.named_parameters():
        wanted = 0.95 if p.data.ndim == 2 else 1.0
        np.testing.assert_allclose(p.data, wanted, rtol=1e-12, err_msg=name)


def test_adamw_reaches_beyond_the_first_piece():
    size = AdamW.piece + 3
    model = toy(np.zeros(size), 0)
    model.grad[...] = 1.0
    AdamW(model).step(0.1)
    np.testing.assert_allclose(model.data, -0.1, rtol=1e-6)


def test_an_optimizer_leaves_the_gradient_alone():
    for kind in (AdamW, SGD):
        model = toy([1.0, 2.0], 1)
        model.grad[...] = [0.3, 0.4]
        kind(model).step(0.1)
        assert model.grad.tolist() == [0.3, 0.4]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_momentum(momentum):
    model = toy([1.0, -2.0, 3.0, 0.5], 2)
    optimizer, wanted, v = SGD(model, momentum), [1.0, -2.0, 3.0, 0.5], [0.0] * 4
    for grad, rate in zip(GRADS, [0.1, 0.05, 0.2]):
        model.grad[...] = grad
        optimizer.step(rate)
        for i, g in enumerate(grad):
            v[i] = momentum * v[i] + g
            wanted[i] -= rate * v[i]
    np.testing.assert_allclose(model.data, wanted, rtol=1e-13)


@pytest.mark.parametrize(("limit", "wanted"), [
    (1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (4.999, [2.9994, 3.9992]), (10.0, [3.0, 4.0]),
])
def test_clipping_shortens_only_what_is_too_long(limit, wanted):
    model = toy([0.0, 0.0], 0)
    model.grad[...] = [3.0, 4.0]
    assert clip_gradients(model, limit) == pytest.approx(5.0)
    np.testing.assert_allclose(model.grad, wanted, rtol=1e-12)


def test_the_learning_rate_warms_up_and_then_falls_to_a_twentieth():
    rates = [learning_rate(step, 110, 2.0, 10) for step in range(110)]
    np.testing.assert_allclose(rates[:10], [0.2 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx((2.0 + 0.1) / 2)     # half way down
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert learning_rate(110, 110, 2.0, 10) == pytest.approx(0.1)
    assert learning_rate(500, 110, 2.0, 10) == pytest.approx(0.1)


def test_the_learning_rate_without_warmup_and_with_too_much_of_it():
    assert learning_rate(0, 10, 1.0, 0) == 1.0
    assert learning_rate(4, 5, 1.0, 100) == pytest.approx(0.05)


# Threads


def one_worker(model, ids, targets):
    model.zero_grad()
    loss = model.loss(ids, targets)
    model.backward()
    return loss, model.grad.copy()


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_give_the_loss_and_the_gradient_of_one(rows, workers):
    """Also of a batch with fewer rows than there are workers."""
    ids, targets = make_batch(rows)
    loss, grad = one_worker(make_model(), ids, targets)
    model = make_model()
    with DataParallel(model, workers) as team:
        for _ in range(2):                     # the second replaces, and does not add
            assert team.loss_and_gradient(ids, targets) == pytest.approx(loss, rel=1e-12)
            np.testing.assert_allclose(model.grad, grad, rtol=1e-9, atol=1e-13)


def test_helpers_see_what_the_optimizer_did():
    ids, targets = make_batch(4)
    model = make_model()
    with DataParallel(model, 3) as team:
        team.loss_and_gradient(ids, targets)
        model.data *= 1.1
        loss = team.loss_and_gradient(ids, targets)
    alone, grad = one_worker(model, ids, targets)
    assert loss == pytest.approx(alone, rel=1e-12)


def test_workers_that_are_spawned_do_the_same(monkeypatch):
    """As on a system where a process cannot be copied."""
    ids, targets = make_batch(4)
    loss, grad = one_worker(make_model(), ids, targets)
    monkeypatch.setattr(parallel, "METHOD", multiprocessing.get_context("spawn"))
    model = make_model()
    with DataParallel(model, 2) as team:
        assert team.loss_and_gradient(ids, targets) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(model.grad, grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_team_makes_the_step_of_one_optimizer_to_the_last_bit(workers):
    """In parts that are longer than a piece, and end within matrices; also on a resumed run."""
    models = [make_model(np.float32, V=700, L=9, d_model=96) for _ in range(2)]
    ours, alone = (AdamW(model, weight_decay=0.3) for model in models)
    ours.steps = alone.steps = 7
    ours.v[...] = alone.v[...] = np.linspace(0, 1, ours.v.size)
    with DataParallel(models[0], workers, optimizer=ours) as team:
        for n in range(3):
            gradient = np.sin(np.arange(ours.m.size) + n)
            for model in models:
                model.grad[...] = gradient
            team.step(0.01 / (n + 1))
            alone.step(0.01 / (n + 1))
    assert ours.steps == 10
    for one, other in zip((models[0].data, ours.m, ours.v),
                          (models[1].data, alone.m, alone.v)):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("size, asked", [(0, 0), (1.9, 0), (2, 1), (2.9, 1), (3, 2), (9, 2)])
def test_no_helper_is_asked_for_less_than_a_piece(size, asked, monkeypatch):
    model = make_model(np.float32)
    monkeypatch.setattr(AdamW, "piece", int(model.data.size / size) if size else 10**6)
    with DataParallel(model, 3, optimizer=AdamW(model)) as team:
        calls = []
        for helper in team.helpers:
            monkeypatch.setattr(helper, "ask", lambda *work: calls.append(work))
            monkeypatch.setattr(helper, "answer", lambda: None)
        team.step(0.1)
    assert len(calls) == asked


def test_helpers_that_are_spawned_take_part_in_the_step(monkeypatch):
    monkeypatch.setattr(parallel, "METHOD", multiprocessing.get_context("spawn"))
    model, other = (make_model(V=1600, d_model=96) for _ in range(2))
    with DataParallel(model, 2, optimizer=AdamW(model, betas=(0.5, 0.6))) as team:
        model.grad[...] = other.grad[...] = 1.0
        team.step(0.1)
    AdamW(other, betas=(0.5, 0.6)).step(0.1)
    assert np.array_equal(model.data, other.data)


def test_a_share_without_any_target_gives_nothing():
    ids, targets = make_batch(4)
    targets[2:] = -1
    loss, grad = one_worker(make_model(), ids, targets)
    model = make_model()
    with DataParallel(model, 2) as team:
        assert team.loss_and_gradient(ids, targets) == pytest.approx(loss)
    np.testing.assert_allclose(model.grad, grad, rtol=1e-9, atol=1e-13)


def test_two_workers_agree_with_one_in_float32():
    ids, targets = make_batch(8)
    loss, grad = one_worker(make_model(np.float32), ids, targets)
    model = make_model(np.float32)
    with DataParallel(model, 2) as team:
        assert abs(team.loss_and_gradient(ids, targets) - loss) < 1e-5
    assert np.abs(model.grad - grad).max() < 1e-5 * np.abs(grad).max() + 1e-6


def loss_with_dropout(dice):
    model = SimpleLLM(Config(9, 6, 8, 1, 2, dropout=0.5), seed=1)
    ids = np.arange(6)[None]
    return parallel.gradient_of_share(model, ids, ids, 6, dice)


def test_dropout_depends_on_run_step_and_worker_and_on_nothing_else():
    dice = [(seed, step, worker) for seed in (0, 1) for step in (1, 2) for worker in (0, 1)]
    losses = [loss_with_dropout(numbers) for numbers in dice]
    assert len(set(losses)) == len(dice)
    assert losses == [loss_with_dropout(numbers) for numbers in dice]


def test_each_worker_drops_something_else():
    ids = np.array([[1, 2, 3, 4]] * 2)                     # the same row for both
    with DataParallel(make_model(dropout=0.5), 2) as team:
        team.loss_and_gradient(ids, ids)
        both, theirs = team.model.grad, team.helpers[0].grad
        assert not np.allclose(both, 2 * theirs)


def test_an_error_in_a_helper_is_raised():
    ids, targets = np.zeros((4, 6), int), np.zeros((4, 6), int)
    ids[3] = 99                                # in the second share only
    with DataParallel(make_model(), 2) as team:
        with pytest.raises(UserError, match="token id"):
            team.loss_and_gradient(ids, targets)


def test_a_helper_that_dies_is_reported_in_a_sentence():
    with DataParallel(make_model(), 2) as team:
        team.helpers[0].process.kill()
        team.helpers[0].process.join()
        with pytest.raises(UserError, match="helper process died"):
            team.loss_and_gradient(*make_batch(4))


def test_no_helper_outlives_the_team():
    with DataParallel(make_model(), 4) as team:
        processes = [helper.process for helper in team.helpers]
        assert all(process.is_alive() for process in processes)
    assert not any(process.is_alive() for process in processes)


class Communicator:
    """What AcrossMachines uses of MPI, among threads."""

    def __init__(self, rank, size, meeting, table):
        self.rank, self.size, self.meeting, self.table = rank, size, meeting, table

    def exchange(self, value):
        self.table[self.rank] = value
        self.meeting.wait()
        values = [self.table[rank] for rank in range(self.size)]
        self.meeting.wait()
        return values

    def Allreduce(self, place, vector):
        assert place == "in place"
        vector[...] = sum(self.exchange(vector.copy()))

    def allreduce(self, number):
        return sum(self.exchange(number))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_of_mpi_each_get_the_gradient_of_the_whole_batch(size, monkeypatch):
    ids, targets = make_batch(5)
    loss, grad = one_worker(make_model(), ids, targets)
    meeting, table = threading.Barrier(size), {}
    mpi = SimpleNamespace(IN_PLACE="in place")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))
    models = [make_model() for _ in range(size)]
    teams = []
    for rank, model in enumerate(models):
        mpi.COMM_WORLD = Communicator(rank, size, meeting, table)
        teams.append(parallel.AcrossMachines(model))
    with ThreadPoolExecutor(size) as pool:
        losses = list(pool.map(lambda team: team.loss_and_gradient(ids, targets), teams))
    assert losses == pytest.approx([loss] * size, rel=1e-12)
    for model in models:
        np.testing.assert_allclose(model.grad, grad, rtol=1e-9, atol=1e-13)
        assert np.array_equal(model.grad, models[0].grad)


@pytest.mark.parametrize("names", [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
                                   ("PMI_RANK", "PMI_SIZE")])
def test_mpiexec_without_mpi4py_is_one_sentence(names, monkeypatch):
    monkeypatch.setenv(names[0], "1")
    monkeypatch.setenv(names[1], "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert parallel.mpi_rank() == (1, 2)
    with pytest.raises(UserError, match="mpi4py"):
        parallel.make_team(make_model(), 1, 0)


def test_without_mpiexec_the_workers_are_processes_of_this_machine(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert parallel.mpi_rank() == (0, 1)
    with parallel.make_team(make_model(), 2, 0) as team:
        assert isinstance(team, DataParallel) and len(team.helpers) == 1


ORPHAN = """
import os, signal
from simple_llm.model import Config, SimpleLLM
from simple_llm.parallel import DataParallel
team = DataParallel(SimpleLLM(Config(9, 6, 8, 1, 2)), 3)
print(*[helper.process.pid for helper in team.helpers], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_helpers_end_when_their_parent_is_killed():
    env = {**os.environ, "PYTHONPATH": str(BUILD)}
    done = subprocess.run([sys.executable, "-c", ORPHAN], env=env, capture_output=True,
                          text=True, timeout=60)       # returns when the pipe is closed
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and done.returncode == -9
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except ProcessLookupError:
        return False


# A small run


def text_corpus(text="abcd efgh ijkl. " * 40, context=6, batch_size=4, seed=0):
    tokenizer = Tokenizer.from_text(text, "char")
    return TextCorpus(text, tokenizer, context, batch_size, seed)


def run(corpus, epochs=3, workers=1, dtype=np.float32, **sizes):
    context = corpus.longest if corpus.kind == "stories" else corpus.context
    model = make_model(dtype, V=corpus.tokenizer.vocab_size, L=context, **sizes)
    moments = []
    options = Options(epochs=epochs, learning_rate=1e-2, warmup=10, workers=workers,
                      evaluations=3)
    train(model, corpus, options, moments.append)
    return model, [moment for moment in moments if moment.step]    # 0: before the first


def test_a_repeating_text_is_learned_in_seconds():
    model, moments = run(text_corpus(), epochs=12, d_model=16)
    assert moments[0].loss > 2.0
    assert moments[-1].score.loss < 0.7        # the first letter of six is in doubt


def test_a_short_run_on_the_small_world_beats_counting_pairs():
    world = World(sentences=(2, 3), questions=2)
    corpus = StoryCorpus(world, 32, steps=24, held_out=50)
    model, moments = run(corpus, epochs=5, d_model=32, n_layers=1, workers=2)
    assert moments[0].loss > 3.0
    assert moments[-1].score.loss < 1.05


def test_each_step_is_reported_and_the_last_is_evaluated():
    corpus = text_corpus()
    model, moments = run(corpus, epochs=2)
    steps = 2 * corpus.steps
    assert [m.step for m in moments] == list(range(1, steps + 1))
    assert [m.epoch for m in moments] == [1] * corpus.steps + [2] * corpus.steps
    assert {m.steps for m in moments} == {steps}
    assert moments[-1].score is not None
    assert 3 <= sum(m.score is not None for m in moments) <= 5


def test_a_run_begins_with_the_score_of_the_untrained_model():
    corpus = text_corpus()
    model = make_model(np.float32, V=corpus.tokenizer.vocab_size)
    untrained, moments = evaluate(model, corpus), []
    train(model, corpus, Options(epochs=1, workers=1), moments.append)
    assert (moments[0].step, moments[0].score) == (0, untrained)


def test_training_with_one_worker_and_with_two_agree():
    _, one = run(text_corpus(), epochs=1)
    _, two = run(text_corpus(), epochs=1, workers=2)
    np.testing.assert_allclose([m.loss for m in one], [m.loss for m in two], atol=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_two_runs_with_the_same_seed_end_in_the_same_bytes(workers, dropout):
    ends = [run(text_corpus(), epochs=1, workers=workers, dropout=dropout)[0].data
            for _ in range(2)]
    assert ends[0].tobytes() == ends[1].tobytes()


def test_dropout_is_on_while_a_share_is_computed_and_off_afterwards(monkeypatch):
    on, real = [], SimpleLLM.loss

    def spy(model, ids, targets, count=None):
        on.append(all(d.training for d in model.dropouts))
        return real(model, ids, targets, count)

    monkeypatch.setattr(SimpleLLM, "loss", spy)
    model = SimpleLLM(Config(9, 6, 8, 1, 2, dropout=0.5))
    parallel.gradient_of_share(model, *make_batch(2), 12, (0, 1, 0))
    assert on == [True]
    assert not any(d.training for d in model.dropouts)


def test_dropout_is_off_when_the_model_is_evaluated_and_returned():
    model, moments = run(text_corpus(), epochs=1, dropout=0.5)
    assert not any(d.training for d in model.dropouts)
    assert moments[-1].score == evaluate(model, text_corpus())


SCRIPT = """
import numpy as np
from simple_llm.corpus import StoryCorpus, World
from simple_llm.model import Config, SimpleLLM
from simple_llm.train import Options, train
corpus = StoryCorpus(World(), 4, 5, 10)
config = Config(corpus.tokenizer.vocab_size, corpus.longest, 16, 1, 2, dropout=0.1)
model = SimpleLLM(config)
train(model, corpus, Options(epochs=1, workers=2, evaluations=1), lambda moment: None)
corpus.tokenizer.save("model")
model.save_pretrained("model")
"""


def test_two_processes_with_the_same_seed_write_the_same_bytes(tmp_path):
    files = []
    for hash_seed in ("1", "2"):
        home = tmp_path / hash_seed
        home.mkdir()
        env = {**os.environ, "PYTHONPATH": str(BUILD), "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", SCRIPT], cwd=home, env=env, check=True)
        files.append({p.name: p.read_bytes() for p in (home / "model").iterdir()})
    assert "model.safetensors" in files[0]
    assert files[0] == files[1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("poison", ["weights", "gradient"])
def test_training_that_breaks_down_stops_with_the_model_intact(poison, monkeypatch):
    corpus = text_corpus()
    model = make_model(np.float32, V=corpus.tokenizer.vocab_size)
    if poison == "weights":
        model.tokens.weight.data[...] = 1e38
    else:
        real = SimpleLLM.backward

        def backward(model):
            real(model)
            model.norm.weight.grad[0] = np.nan

        monkeypatch.setattr(SimpleLLM, "backward", backward)
    before = model.data.copy()
    with pytest.raises(UserError, match="--learning-rate"):
        train(model, corpus, Options(epochs=1, workers=1), lambda moment: None)
    assert np.array_equal(model.data, before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_stops_before_it_reports_a_score_that_is_no_number():
    """Else the caller would save it over the last good model."""
    corpus = text_corpus()
    model = make_model(np.float32, V=corpus.tokenizer.vocab_size)
    moments = []
    options = Options(epochs=3, learning_rate=1e20, warmup=0, workers=1,
                      evaluations=1000)
    with pytest.raises(UserError, match="--learning-rate"):
        train(model, corpus, options, moments.append)
    assert all(math.isfinite(m.score.loss) for m in moments if m.score)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_score_or_a_loss_that_is_no_number_stops_the_training(bad, monkeypatch):
    corpus, moments = text_corpus(), []
    model = make_model(np.float32, V=corpus.tokenizer.vocab_size)
    options = Options(epochs=30, workers=1)
    scores = iter([1.0, 2.0, bad])
    with monkeypatch.context() as patch:
        patch.setattr("simple_llm.train.evaluate", lambda *_, **__: Score(next(scores), None, None))
        with pytest.raises(UserError, match=f"the held-out loss is {bad}"):
            train(model, corpus, options, moments.append)
    assert [m.score.loss for m in moments if m.score] == [1.0, 2.0]
    monkeypatch.setattr(DataParallel, "loss_and_gradient", lambda *_: bad)
    with pytest.raises(UserError, match=f"at step 1: the loss is {bad}"):
        train(model, corpus, options, moments.append)


# The score


def test_the_validation_loss_of_a_text_is_the_mean_over_its_tokens():
    corpus = text_corpus()
    model = make_model(V=corpus.tokenizer.vocab_size)
    terms, ids = [], corpus.validation.tolist()
    for start in range(0, len(ids) - 1, 6):
        view = ids[start:start + 7]
        logits = model.forward(np.array([[1, *view[1:-1]]]))[0]    # 1 is <bos>
        for z, right in zip(logits.tolist(), view[1:]):
            terms.append(math.log(sum(map(math.exp, z))) - z[right])
    wanted = sum(terms) / len(terms)
    assert evaluate(model, corpus).loss == pytest.approx(wanted, rel=1e-9)


class Scripted:
    """Stands for a model: says what it is told to say."""

    def __init__(self, corpus, say):
        self.corpus, self.say = corpus, say
        self.config = SimpleNamespace(vocab_size=corpus.tokenizer.vocab_size)

    def forward(self, ids):
        rows, start = [], self.corpus.at
        self.corpus.at += len(ids)
        by_length = sorted(self.corpus.held_out, key=lambda story: len(story.words))
        for story in by_length[start:start + len(ids)]:
            row = [self.say(story, place) for place in range(len(story.words))]
            rows.append(row + ["<pad>"] * (ids.shape[1] - len(row)))
        said = [[self.corpus.tokenizer.ids[word] for word in row] for row in rows]
        return 10.0 * np.eye(self.config.vocab_size)[said]


@pytest.fixture
def held_out():
    corpus = StoryCorpus(World(), held_out=230)
    corpus.at = 0
    return corpus


def test_a_model_that_is_always_right_answers_everything(held_out):
    model = Scripted(held_out, lambda story, place: story.words[place])
    score = evaluate_stories(DataParallel(model), held_out, held_out.held_out)
    assert (score.answers, score.unusual) == (1.0, 1.0)


def test_a_model_that_goes_by_habit_answers_no_unusual_question(held_out):
    def by_habit(story, place):
        for answer in story.answers:
            if answer.place == place and not answer.habitual:
                return "."
        return story.words[place]

    team = DataParallel(Scripted(held_out, by_habit))
    score = evaluate_stories(team, held_out, held_out.held_out)
    answers = [answer for story in held_out.held_out for answer in story.answers]
    share = sum(answer.habitual for answer in answers) / len(answers)
    assert score.unusual == 0.0
    assert score.answers == pytest.approx(share)


def test_the_loss_on_stories_is_the_mean_over_all_their_tokens(held_out):
    V = held_out.tokenizer.vocab_size
    model = make_model(np.float64, V=V, L=held_out.longest)
    total = count = 0
    for story in held_out.held_out:
        batch = held_out.batch([story])
        n = batch.targets.size
        total += CrossEntropy().forward(model.forward(batch.ids), batch.targets) * n
        count += n
    score = evaluate_stories(DataParallel(model), held_out, held_out.held_out)
    assert score.loss == pytest.approx(total / count, rel=1e-9)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_team_gives_the_score_of_one_to_the_last_bit(workers, held_out):
    """And with the weights of now, not of when its helpers began."""
    for corpus in held_out, text_corpus():
        length = getattr(corpus, "longest", 8)
        model = make_model(np.float32, V=corpus.tokenizer.vocab_size, L=length)
        with DataParallel(model, workers) as team:
            model.data *= 1.5
            assert evaluate(model, corpus, True, team) == evaluate(model, corpus, True)


def test_batches_come_back_in_the_order_in_which_they_were_dealt_out():
    batches = [(np.full((1, 2), n % 9), np.full((1, 2), 1)) for n in range(7)]
    model = make_model()
    alone = [parallel.do_all(model, mark, [batch])[0][0] for batch in batches]
    assert len(set(alone)) == len(alone)
    with DataParallel(model, 3) as team:
        for few in range(8):                   # also none, and fewer than workers
            assert [loss for loss, _ in team.each(mark, batches[:few])] == alone[:few]


def test_attention_to_self_lets_no_position_see_another_and_is_undone():
    model, ids = make_model(), make_batch(1)[0]
    before = model.forward(ids)
    with attention_to_self(model):
        alone = model.forward(ids)
        for t in range(6):
            changed = ids.copy()
            changed[0, t] = (changed[0, t] + 1) % 9
            moved = np.abs(model.forward(changed) - alone).max(axis=2)[0] > 1e-9
            assert moved.tolist() == [u == t for u in range(6)]
    assert np.array_equal(model.forward(ids), before)


def test_attention_to_self_is_undone_after_an_error():
    model = make_model()
    before = model.mask.copy()
    with pytest.raises(KeyboardInterrupt), attention_to_self(model):
        raise KeyboardInterrupt
    assert np.array_equal(model.mask, before)


def test_a_batch_is_ids_and_targets():
    assert Batch._fields == ("ids", "targets")


def test_train_returns_the_score_on_all_of_the_held_out_text():
    """The moments tell of a sample, if the text is long."""
    corpus = text_corpus("abcd efgh ijkl. mnop " * 20_000, context=6)
    model = make_model(np.float32, V=corpus.tokenizer.vocab_size, L=6)
    moments = []
    score = train(model, corpus, Options(max_steps=20, workers=2), moments.append)
    assert len(corpus.validation) > 2 * 2**14
    assert score == evaluate(model, corpus) != moments[-1].score
