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

from conftest import ROOT
from simple_llm.batches import Batch
from simple_llm.engine import fast, parallel
from simple_llm.engine.fast import FastLLM, Flat
from simple_llm.engine.parallel import DataParallel, Failure
from simple_llm.errors import UserError
from simple_llm.first import descend
from simple_llm.layers import CrossEntropy, Parameter
from simple_llm.model import Config, SimpleLLM
from simple_llm.optimizer import SGD, AdamW, clip_gradients, learning_rate
from simple_llm.text import TextCorpus
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Alone, Options, Score, evaluate, evaluate_stories, mark, train
from simple_llm.world import StoryCorpus, World
from test_model import each_kind


def make_model(dtype=np.float64, dropout=0.0, V=9, L=6, kind=FastLLM, **sizes):
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, **sizes}
    return kind(Config(V, L, **sizes, dropout=dropout), 0, dtype)


def make_batch(B, V=9, L=6, seed=0):
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(V, size=(2, B, L))
    targets[rng.random((B, L)) < 0.3] = -1     # the shares count different numbers
    targets[:, 0] = 1
    return Batch(ids, targets)


def make_team(workers, seed=0, settings={}, **model):
    model = make_model(**model)
    return DataParallel(model, fast.AdamW(Flat(model), **settings), workers, seed)


# Optimizers, against scalar loops


GRADS = [[0.3, -2.0, 0.0, 1e-5], [-0.1, 1.0, 0.5, 1e3], [0.0, 0.0, 0.0, 0.0]]
START = [1.0, -2.0, 3.0, 0.5]


def toy():
    """Four numbers, of which the first two are a matrix."""
    return [Parameter(np.array(START[:2])[None]), Parameter(np.array(START[2:]))]


def assert_steps(optimizer, parameters, wanted_steps):
    """The parameters after each step are these; the gradient is left alone."""
    for grad, rate, wanted in zip(GRADS, [0.1, 0.05, 0.2], wanted_steps):
        for p, piece in zip(parameters, np.split(np.array(grad), len(parameters))):
            p.grad[...] = piece
        optimizer.step(rate)
        now = np.concatenate([p.data.ravel() for p in parameters])
        np.testing.assert_allclose(now, wanted, rtol=1e-13)
        assert np.concatenate([p.grad.ravel() for p in parameters]).tolist() == grad


@each_kind
def test_adamw_takes_the_steps_of_the_paper(kind):
    """Which decay matrices, and neither biases nor norms."""
    m, v, now, steps = [0.0] * 4, [0.0] * 4, list(START), []
    for t, (grad, rate) in enumerate(zip(GRADS, [0.1, 0.05, 0.2]), 1):
        for i, g in enumerate(grad):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.95 * v[i] + 0.05 * g * g
            decay = 0.2 if i < 2 else 0.0
            step = m[i] / (1 - 0.8**t) / (math.sqrt(v[i] / (1 - 0.95**t)) + 1e-4)
            now[i] -= rate * (step + decay * now[i])
        steps.append(list(now))
    rule, parameters = AdamW, toy()
    if kind is FastLLM:
        named = [("toy", p) for p in toy()]
        rule, parameters = fast.AdamW, Flat(SimpleNamespace(named_parameters=lambda: named))
    optimizer = rule(parameters, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.2)
    assert_steps(optimizer, [parameters] if kind is FastLLM else parameters, steps)
    assert optimizer.step_count == 3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_momentum(momentum):
    v, now, steps, parameters = [0.0] * 4, list(START), [], toy()
    for grad, rate in zip(GRADS, [0.1, 0.05, 0.2]):
        v = [momentum * v[i] + g for i, g in enumerate(grad)]
        now = [now[i] - rate * v[i] for i in range(4)]
        steps.append(now)
    assert_steps(SGD(parameters, momentum), parameters, steps)


@each_kind
def test_adamw_decays_matrices_and_tables_but_neither_biases_nor_norms(kind):
    model = make_model(kind=kind)
    for p in model.parameters():
        p.data[...] = 1.0                                      # the gradient is 0
    optimizer = AdamW(model.parameters(), weight_decay=0.5) if kind is SimpleLLM else \
        fast.AdamW(Flat(model), weight_decay=0.5)
    optimizer.step(0.1)
    for name, p in model.named_parameters():
        wanted = 1.0 if name.endswith("bias") or "ln_" in name else 0.95
        np.testing.assert_allclose(p.data, wanted, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(("limit", "wanted"), [
    (1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (4.999, [2.9994, 3.9992]), (10.0, [3.0, 4.0])])
def test_clipping_shortens_only_what_is_too_long(limit, wanted):
    parameters = [Parameter(np.zeros(1)), Parameter(np.zeros(1))]
    for p, grad in zip(parameters, [3.0, 4.0]):
        p.grad[...] = grad
    assert clip_gradients(parameters, limit) == pytest.approx(5.0)
    np.testing.assert_allclose([p.grad[0] for p in parameters], wanted, rtol=1e-12)


def test_the_learning_rate_warms_up_and_then_falls_to_a_twentieth_or_as_told():
    rates = [learning_rate(step, 110, 2.0, 10) for step in range(110)]
    np.testing.assert_allclose(rates[:10], [0.2 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx((2.0 + 0.1) / 2)         # half way down
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
    for step in (110, 500):
        assert learning_rate(step, 110, 2.0, 10) == pytest.approx(0.1)
        assert learning_rate(step, 110, 2.0, 10, low=0.5) == pytest.approx(0.5)
    assert learning_rate(0, 10, 1.0, 0) == 1.0                 # without warm-up
    assert learning_rate(4, 5, 1.0, 100) == pytest.approx(0.05)        # and with too much


# Workers


def alone(batch, **model):
    team = Alone(make_model(**model))
    loss = team.loss_and_gradient(batch)
    return loss, {name: p.grad.copy() for name, p in team.model.named_parameters()}


def assert_gradient(model, wanted, tolerance=1e-9):
    for name, p in model.named_parameters():
        off = np.abs(p.grad - wanted[name]).max()
        assert off <= tolerance * np.abs(wanted[name]).max() + 1e-13, name


@each_kind
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_give_the_loss_and_the_gradient_of_one(workers, kind, monkeypatch):
    """Also of fewer rows than workers, without any target in a share, and in micro-batches."""
    monkeypatch.setattr(parallel, "MICRO", 12)                 # two rows
    batches = [make_batch(rows) for rows in (1, 3, 8)]
    batches[2].targets[4:] = -1                                # padding, and whole rows of it
    batches[2].targets[0, 3:] = -1
    with make_team(workers, kind=kind) as team:
        for batch in [*batches, batches[0]]:                   # each replaces, and does not add
            loss, grad = alone(batch, kind=kind)
            assert team.loss_and_gradient(batch) == pytest.approx(loss, rel=1e-12)
            assert_gradient(team.model, grad)
        for p in team.model.parameters():
            p.data *= 1.1                                      # as the optimizer does
        one = team.model.loss(*batch)
        assert team.loss_and_gradient(batch) == pytest.approx(one, rel=1e-12)


def test_workers_that_are_spawned_do_the_same_and_take_part_in_the_step(monkeypatch):
    """As on a system where a process cannot be copied."""
    monkeypatch.setattr(parallel, "METHOD", multiprocessing.get_context("spawn"))
    batch, sizes, settings = make_batch(4), {"V": 1600, "d_model": 96}, {"betas": (0.5, 0.6)}
    loss, grad = alone(batch, **sizes)
    other = make_model(**sizes)
    flat = Flat(other)
    with make_team(2, settings=settings, **sizes) as team:
        assert team.loss_and_gradient(batch) == pytest.approx(loss, rel=1e-12)
        assert_gradient(team.model, grad)
        flat.grad[...] = team.flat.grad
        team.step(0.1)
    fast.AdamW(flat, **settings).step(0.1)
    assert np.array_equal(team.flat.data, flat.data)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_a_team_makes_the_step_of_one_optimizer_to_the_last_bit(workers):
    """In parts that are longer than a tile, and end within matrices; also on a resumed run."""
    flats = [Flat(make_model(np.float32, V=700, L=9, d_model=96)) for _ in range(2)]
    assert flats[0].data.size > 4 * fast.TILE
    ours, one = (fast.AdamW(flat, weight_decay=0.3) for flat in flats)
    ours.step_count = one.step_count = 7
    ours.v[...] = one.v[...] = np.linspace(0, 1, ours.v.size)
    model = make_model(np.float32, V=700, L=9, d_model=96)
    with DataParallel(model, ours, workers) as team:
        for n in range(3):
            for flat in flats:
                flat.grad[...] = np.sin(np.arange(flat.grad.size) + n)
            team.step(0.01 / (n + 1))
            one.step(0.01 / (n + 1))
    assert ours.step_count == 10
    for left, right in [(flats[0].data, flats[1].data), (ours.m, one.m), (ours.v, one.v)]:
        assert np.array_equal(left, right)


@pytest.mark.parametrize("size, asked", [(0, 0), (1.9, 0), (2, 1), (2.9, 1), (3, 2), (9, 2)])
def test_no_helper_is_asked_for_less_than_a_tile(size, asked, monkeypatch):
    with make_team(3) as team:
        tile = int(team.flat.data.size / size) if size else 10**6
        monkeypatch.setattr(team.optimizer, "worth", tile)
        calls = []
        for helper in team.helpers:
            monkeypatch.setattr(helper, "ask", lambda *work: calls.append(work))
            monkeypatch.setattr(helper, "answer", lambda: None)
        team.step(0.1)
    assert len(calls) == asked


def test_dropout_depends_on_run_step_and_worker_and_on_nothing_else():
    batch, losses = make_batch(2), {}
    for again in range(2):
        for seed in (0, 1):
            with make_team(2, seed, dropout=0.5) as team:
                for step in (0, 1):
                    team.optimizer.step_count = step
                    loss = team.loss_and_gradient(batch)
                    assert losses.setdefault((seed, step), loss) == loss
    assert len(set(losses.values())) == 4
    same = Batch(*(np.array([[1, 2, 3, 4]] * 2) for _ in range(2)))        # the same row for both
    with make_team(2, dropout=0.5) as team:
        team.loss_and_gradient(same)
        assert not np.allclose(team.flat.grad, 2 * team.helpers[0].grad)


def test_an_error_in_a_helper_is_raised_with_its_type_and_its_traceback():
    batch = make_batch(4)
    batch.ids[3] = 99                          # in the second share only
    with make_team(2) as team, pytest.raises(UserError, match="token id") as caught:
        team.loss_and_gradient(batch)
    assert isinstance(caught.value.__cause__, Failure)
    trace = str(caught.value.__cause__)
    assert "in a helper process" in trace and "Traceback" in trace and "check_ids" in trace


def test_a_helper_that_dies_is_reported_in_a_sentence_and_none_outlives_the_team():
    works = [lambda team: team.loss_and_gradient(make_batch(4)), lambda team: team.step(0.1),
             lambda team: team.each(mark, [make_batch(2)] * 2)]
    for work in works:
        with make_team(4, V=20_000) as team:
            processes = [helper.process for helper in team.helpers]
            assert all(process.is_alive() for process in processes)
            processes[0].kill()
            processes[0].join()
            with pytest.raises(UserError, match="helper process died"):
                work(team)
        assert not any(process.is_alive() for process in processes)    # none outlives the team


ORPHAN = """
import os, signal
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.parallel import make_team
from simple_llm.model import Config
from simple_llm.train import Options
team = make_team(FastLLM(Config(9, 6, 8, 1, 2)), Options(workers=3))
print(*[helper.process.pid for helper in team.helpers], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "build")}


def test_helpers_end_when_their_parent_is_killed():
    done = subprocess.run([sys.executable, "-c", ORPHAN], env=ENV, capture_output=True,
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
    batch = make_batch(5)
    loss, grad = alone(batch)
    meeting, table, teams = threading.Barrier(size), {}, []
    mpi = SimpleNamespace(IN_PLACE="in place")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))
    for rank in range(size):
        mpi.COMM_WORLD = Communicator(rank, size, meeting, table)
        model = make_model()
        teams.append(parallel.AcrossMachines(model, fast.AdamW(Flat(model))))
    with ThreadPoolExecutor(size) as pool:
        losses = list(pool.map(lambda team: team.loss_and_gradient(batch), teams))
    assert losses == pytest.approx([loss] * size, rel=1e-12)
    for team in teams:
        assert_gradient(team.model, grad)
        assert np.array_equal(team.flat.grad, teams[0].flat.grad)


@pytest.mark.parametrize("names", [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
                                   ("PMI_RANK", "PMI_SIZE")])
def test_mpiexec_without_mpi4py_is_one_sentence(names, monkeypatch):
    monkeypatch.setenv(names[0], "1")
    monkeypatch.setenv(names[1], "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert parallel.mpi_rank() == (1, 2)
    with pytest.raises(UserError, match="mpi4py"):
        parallel.make_team(make_model(), Options())


def test_without_mpiexec_the_workers_are_processes_of_this_machine(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert parallel.mpi_rank() == (0, 1)
    options = Options(workers=2, seed=3, betas=(0.5, 0.6), weight_decay=0.7)
    with parallel.make_team(make_model(), options) as team:
        assert type(team) is DataParallel and len(team.helpers) == 1 and team.seed == 3
        assert (team.optimizer.betas, team.optimizer.weight_decay) == ((0.5, 0.6), 0.7)


# A small run


def text_corpus(text="abcd efgh ijkl. " * 40, context=6, batch_size=4, seed=0):
    tokenizer = Tokenizer.from_text(text, "char")
    return TextCorpus(text, tokenizer, context, batch_size, seed)


def run(corpus, epochs=3, workers=1, **sizes):
    context = corpus.longest if corpus.kind == "stories" else corpus.context
    model = make_model(np.float32, V=corpus.tokenizer.vocab_size, L=context, **sizes)
    moments = []
    options = Options(epochs=epochs, learning_rate=1e-2, warmup=10, workers=workers,
                      evaluations=3)
    with parallel.make_team(model, options) as team:
        score = train(team, corpus, options, moments.append)
    assert moments[0].step == 0                # the score before the first
    return team, moments[1:], score


@each_kind
def test_a_repeating_text_is_learned_in_seconds(kind):
    _, moments, score = run(text_corpus(), epochs=12, d_model=16, kind=kind)
    assert moments[0].loss > 2.0
    assert score.loss < 0.7                    # the first letter of six is in doubt


def test_a_loop_with_the_plain_parts_in_one_process_gives_the_same_losses():
    corpus, found = text_corpus(), []
    options = Options(epochs=2, learning_rate=1e-2, warmup=3)
    for kind in (SimpleLLM, FastLLM):
        moments, model = [], make_model(V=corpus.tokenizer.vocab_size, kind=kind)
        team = Alone(model, AdamW(model.parameters())) if kind is SimpleLLM else \
            DataParallel(model, fast.AdamW(Flat(model)))
        train(team, corpus, options, moments.append)
        found.append([moment.loss for moment in moments[1:]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-7)


def test_the_first_loop_of_the_book_goes_down(capsys):
    for rule, peak in ((SGD, 0.3), (AdamW, 4e-3)):
        corpus = StoryCorpus(World(), 8, steps_per_epoch=100, held_out=10)
        model = SimpleLLM(Config(corpus.tokenizer.vocab_size, corpus.longest, 16, 1, 2))
        descend(model, rule(model.parameters()), corpus, peak)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [["step", "50"], ["step", "100"]]
        assert 2.7 > float(lines[0].split()[3]) > float(lines[1].split()[3])


def test_a_short_run_on_the_small_world_beats_counting_pairs():
    corpus = StoryCorpus(World(sentences=(2, 3), questions=2), 32, 24, held_out=50)
    _, moments, score = run(corpus, epochs=5, d_model=32, n_layers=1, workers=2)
    assert moments[0].loss > 3.0
    assert score.loss < 1.05


def test_each_step_is_reported_and_first_and_last_are_evaluated():
    corpus = text_corpus()
    untrained = make_model(np.float32, V=corpus.tokenizer.vocab_size)
    first, moments = evaluate(Alone(untrained), corpus), []
    options = Options(epochs=2, workers=1, evaluations=3)
    total, n = options.total_steps(corpus), corpus.steps_per_epoch
    score = train(parallel.make_team(untrained, options), corpus, options, moments.append)
    assert total == 2 * n and Options(max_steps=5).total_steps(corpus) == 5
    assert (moments[0].step, moments[0].epoch, moments[0].score) == (0, 0, first)
    assert [m.step for m in moments[1:]] == list(range(1, total + 1))
    assert [m.epoch for m in moments[1:]] == [1] * n + [2] * n
    assert {m.total_steps for m in moments} == {total}
    assert {m.tokens for m in moments[1:]} == {24}
    assert moments[-1].score == score and 3 <= sum(m.score is not None for m in moments[1:]) <= 5


@each_kind
def test_two_runs_with_the_same_seed_end_in_the_same_bytes(kind):
    """With one worker and with two, whose losses agree if there is no dropout."""
    for workers in (1, 2):
        ends = [run(text_corpus(), 1, workers, dropout=0.2, kind=kind)[0].flat.data
                for _ in range(2)]
        assert ends[0].tobytes() == ends[1].tobytes()
    one, two = ([m.loss for m in run(text_corpus(), 1, n, kind=kind)[1]] for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("make", [Alone, lambda model: DataParallel(model, fast.AdamW(Flat(model)))])
def test_dropout_is_on_while_a_gradient_is_computed_and_off_afterwards(make, monkeypatch):
    on, real = [], SimpleLLM.loss

    def spy(model, ids, targets, n_targets=None):
        on.append({d.training for d in model.dropouts})
        return real(model, ids, targets, n_targets)

    monkeypatch.setattr(SimpleLLM, "loss", spy)
    team = make(make_model(dropout=0.5))
    team.loss_and_gradient(make_batch(2))
    assert on == [{True}] and {d.training for d in team.model.dropouts} == {False}


SCRIPT = """
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.parallel import make_team
from simple_llm.model import Config
from simple_llm.train import Options, train
from simple_llm.world import StoryCorpus, World
corpus = StoryCorpus(World(), 4, 5, 10)
model = FastLLM(Config(corpus.tokenizer.vocab_size, corpus.longest, 16, 1, 2, dropout=0.1))
options = Options(epochs=1, workers=2, evaluations=1)
with make_team(model, options) as team:
    train(team, corpus, options, lambda moment: None)
corpus.tokenizer.save("model")
model.save_pretrained("model")
"""


def test_two_processes_with_the_same_seed_write_the_same_bytes(tmp_path):
    files = []
    for hash_seed in ("1", "2"):
        home = tmp_path / hash_seed
        home.mkdir()
        subprocess.run([sys.executable, "-c", SCRIPT], cwd=home, check=True,
                       env={**ENV, "PYTHONHASHSEED": hash_seed})
        files.append({p.name: p.read_bytes() for p in (home / "model").iterdir()})
    assert "model.safetensors" in files[0]
    assert files[0] == files[1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("poison", ["weights", "gradient", "loss"])
def test_training_that_breaks_down_stops_with_the_model_intact(poison, monkeypatch):
    corpus, real = text_corpus(), SimpleLLM.backward
    team = make_team(1, dtype=np.float32, V=corpus.tokenizer.vocab_size)

    def backward(model):
        real(model)
        model.norm.weight.grad[0] = np.nan

    if poison == "weights":
        team.model.tokens.weight.data[...] = 1e38
    elif poison == "gradient":
        monkeypatch.setattr(SimpleLLM, "backward", backward)
    else:
        monkeypatch.setattr(team, "loss_and_gradient", lambda batch: math.inf)
    before = team.flat.data.copy()
    with pytest.raises(UserError, match="at step 1: .* --learning-rate") as caught:
        train(team, corpus, Options(epochs=1), lambda moment: None)
    assert poison != "gradient" or "transformer.ln_f.weight" in str(caught.value)
    assert np.array_equal(team.flat.data, before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_training_stops_before_it_reports_a_score_that_is_no_number(monkeypatch):
    """Else the caller would save it over the last good model."""
    corpus, moments = text_corpus(), []
    team = make_team(1, dtype=np.float32, V=corpus.tokenizer.vocab_size)
    for bad in (math.inf, math.nan):
        scores = iter([1.0, 2.0, bad])
        with monkeypatch.context() as patch:
            patch.setattr("simple_llm.train.evaluate",
                          lambda *_, **__: Score(next(scores), None, None))
            with pytest.raises(UserError, match=f"the held-out loss is {bad}"):
                train(team, corpus, Options(epochs=30), moments.append)
        assert [m.score.loss for m in moments if m.score] == [1.0, 2.0]
        moments.clear()
        team.optimizer.step_count = 0
    options = Options(epochs=3, learning_rate=1e20, warmup=0, evaluations=1000)
    with pytest.raises(UserError, match="--learning-rate"):
        train(team, corpus, options, moments.append)
    assert all(math.isfinite(m.score.loss) for m in moments if m.score)


# The score


def test_the_validation_loss_of_a_text_is_the_mean_over_its_tokens():
    corpus = text_corpus()
    model = make_model(V=corpus.tokenizer.vocab_size)
    terms, ids = [], corpus.validation.tolist()
    for start in range(0, len(ids) - 1, 6):
        view = ids[start:start + 7]
        logits = model.forward(np.array([[1, *view[1:-1]]]))[0]        # 1 is <bos>
        for z, right in zip(logits.tolist(), view[1:]):
            terms.append(math.log(sum(map(math.exp, z))) - z[right])
    wanted = sum(terms) / len(terms)
    assert evaluate(Alone(model), corpus).loss == pytest.approx(wanted, rel=1e-9)


@pytest.fixture(scope="module")
def held_out():
    return StoryCorpus(World(), held_out=230)


def score_of_one_who_says(corpus, say):
    """The score of a model that says what it is told to say at each position of a story."""
    V, ids, read = corpus.tokenizer.vocab_size, corpus.tokenizer.ids, 0
    by_length = sorted(corpus.held_out, key=lambda story: len(story.words))

    def forward(inputs):
        nonlocal read
        said = np.zeros(inputs.shape, int)
        for row, story in zip(said, by_length[read:read + len(inputs)]):
            row[:len(story.words)] = [ids[say(story, t)] for t in range(len(story.words))]
        read += len(inputs)
        return 10.0 * np.eye(V)[said]

    team = Alone(SimpleNamespace(forward=forward, parameters=list))
    return evaluate_stories(team, corpus, corpus.held_out)


def test_who_is_always_right_answers_all_and_who_goes_by_habit_nothing_unusual(held_out):
    score = score_of_one_who_says(held_out, lambda story, t: story.words[t])
    assert (score.answers, score.unusual) == (1.0, 1.0)
    score = score_of_one_who_says(held_out, lambda story, t: "." if any(
        a.position == t and not a.habitual for a in story.answers) else story.words[t])
    habitual = [answer.habitual for story in held_out.held_out for answer in story.answers]
    assert score.unusual == 0.0 and score.answers == pytest.approx(np.mean(habitual))


def test_the_loss_on_stories_is_the_mean_over_all_their_tokens(held_out):
    model = make_model(V=held_out.tokenizer.vocab_size, L=held_out.longest)
    total = count = 0
    for story in held_out.held_out:
        batch = held_out.batch([story])
        total += CrossEntropy().forward(model.forward(batch.ids), batch.targets, 1)
        count += batch.targets.size
    score = evaluate_stories(Alone(model), held_out, held_out.held_out)
    assert score.loss == pytest.approx(total / count, rel=1e-9)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_team_gives_the_score_of_one_to_the_last_bit(workers, held_out):
    """And with the weights of now, not of when its helpers began."""
    for corpus in held_out, text_corpus():
        length = getattr(corpus, "longest", 8)
        with make_team(workers, dtype=np.float32, V=corpus.tokenizer.vocab_size, L=length) as team:
            team.flat.data *= 1.5
            assert evaluate(team, corpus, True) == evaluate(Alone(team.model), corpus, True)


def test_batches_come_back_in_the_order_in_which_they_were_dealt_out():
    batches = [Batch(np.full((1, 2), n % 9), np.full((1, 2), 1)) for n in range(7)]
    one = [loss for loss, _ in Alone(make_model()).each(mark, batches)]
    assert len(set(one)) == len(one)
    with make_team(3) as team:
        for few in range(8):                   # also none, and fewer than workers
            assert [loss for loss, _ in team.each(mark, batches[:few])] == one[:few]


def test_train_returns_the_score_on_all_of_the_held_out_text():
    """The moments tell of a sample, if the text is long."""
    corpus = text_corpus("abcd efgh ijkl. mnop " * 20_000, context=6)
    options, moments = Options(max_steps=20, workers=2), []
    with parallel.make_team(make_model(np.float32, V=corpus.tokenizer.vocab_size), options) as team:
        score = train(team, corpus, options, moments.append)
        assert len(corpus.validation) > 2 * 2**14
        assert score == evaluate(team, corpus) != moments[-1].score
