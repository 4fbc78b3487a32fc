"""Muon and Llama's form among workers, and after a break."""
import numpy as np
import pytest

from simple_llm.engine.fast import FastLLM, Muon
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.engine.parallel import make_optimizer, make_team
from simple_llm.engine.resume import Run, read_checkpoint
from simple_llm.model import Config
from simple_llm.today.model import TodayConfig
from simple_llm.train import Options, train
from simple_llm.world import StoryCorpus, World

each_form = pytest.mark.parametrize("form", [(FastLLM, Config), (FastTodayLLM, TodayConfig)],
                                    ids=["gpt2", "llama"])


CORPUS = StoryCorpus(World(), batch_size=8, steps_per_epoch=4, held_out=10)


def begin(form, path, workers=1, steps=12, dropout=0.1, dtype=np.float32):
    (kind, config), corpus = form, CORPUS
    model = kind(config(corpus.tokenizer.vocab_size, corpus.longest, 64, 2, 4, dropout), dtype=dtype)
    options = Options(max_steps=steps, matrix_rate=0.02, workers=workers)
    return Run(model, corpus, options, path / "training.safetensors", {})


def go(run, stop=None):
    def report(moment):
        run.history.extend([moment] * bool(moment.score))
        if moment.step == stop:
            run.save()
            raise KeyboardInterrupt
    with make_team(run.model, run.options, run.optimizer) as team:
        train(team, run.corpus, run.options, report)
    return run.optimizer.flat.data.copy(), run.optimizer.m.copy()


def test_make_optimizer_gives_the_one_that_was_chosen():
    model = FastLLM(Config(7, 5, 8, 1, 2))
    assert type(make_optimizer(model, Options(matrix_rate=0.02))) is Muon
    assert type(make_optimizer(model, Options(matrix_rate=0.0))).__name__ == "AdamW"


@each_form
def test_two_workers_make_the_steps_of_one(form, tmp_path):
    one, two = (go(begin(form, tmp_path, workers, 6, 0.0, np.float64))[0] for workers in (1, 2))
    np.testing.assert_allclose(two, one, atol=1e-9)


@each_form
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(form, workers, tmp_path):
    whole = go(begin(form, tmp_path, workers))
    broken = begin(form, tmp_path, workers)
    with pytest.raises(KeyboardInterrupt):
        go(broken, stop=7)
    again = begin(form, tmp_path, workers)
    again.restore(read_checkpoint(again.path))
    found = go(again)
    assert found[0].tobytes() == whole[0].tobytes() and found[1].tobytes() == whole[1].tobytes()
