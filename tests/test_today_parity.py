"""Llama's form and Muon against what transformers and PyTorch computed; no PyTorch is needed."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simple_llm.engine.fast import Flat, Muon as FastMuon
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.layers import Parameter
from simple_llm.today.model import TodayConfig, TodayLLM, turn_matrices
from simple_llm.today.muon import Muon

EXPECTED = dict(np.load(Path(__file__).with_name("today.npz")))


def llama(part):
    start = f"llama/{part}/"
    return turn_matrices({name.removeprefix(start): array for name, array in EXPECTED.items()
                          if name.startswith(start)})


@pytest.mark.parametrize("kind", [TodayLLM, FastTodayLLM])
def test_logits_loss_and_gradients_are_those_of_transformers(kind):
    sizes = (int(EXPECTED[name]) for name in (
        "vocab_size", "max_position_embeddings", "hidden_size", "num_hidden_layers",
        "num_attention_heads"))
    model = kind(TodayConfig(*sizes, n_kv_heads=2, d_ff=40), dtype=np.float64)
    for name, p in model.named_parameters():
        p.data[...] = llama("parameters")[name]
    loss = model.loss(EXPECTED["llama/ids"], EXPECTED["llama/targets"])
    model.backward()
    assert abs(loss - EXPECTED["llama/loss"]) < 1e-6
    found = model.forward(EXPECTED["llama/ids"])
    np.testing.assert_allclose(found, EXPECTED["llama/logits"], atol=2e-6)
    theirs = llama("gradients")
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad, theirs[name], atol=1e-6, err_msg=name)


def after_ten_steps(fast):
    """The weights of matrices under the names of a block's, with the fixture's gradients."""
    named = [(f".h.0.{k}", Parameter(EXPECTED[f"muon/before/{k}"].T.copy())) for k in range(3)]
    model = SimpleNamespace(named_parameters=lambda: named)
    optimizer = FastMuon(Flat(model), ratio=5.0) if fast else Muon(model, ratio=5.0)
    for step in range(10):
        for k, (_, p) in enumerate(named):
            p.grad[...] = EXPECTED[f"muon/gradients/{k}"][step].T
        optimizer.step(0.004)
    return [p.data.T for _, p in named]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("precision, tolerance", [("", 1e-9), ("16", 2e-2)])
def test_ten_steps_of_muon_are_pytorchs(fast, precision, tolerance):
    for k, ours in enumerate(after_ten_steps(fast)):
        theirs = EXPECTED[f"muon/after{precision}/{k}"]
        gone = np.abs(theirs - EXPECTED[f"muon/before/{k}"]).max()
        assert np.abs(ours - theirs).max() < tolerance * gone
