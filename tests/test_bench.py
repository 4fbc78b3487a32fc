"""The measurements of the chapter on speed: that they measure what they say."""
import json
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

import bench
import ladder
from simple_llm import layers as plain
from simple_llm.engine.fast import FastLLM
from simple_llm.model import Config, SimpleLLM

SMALL = Config(vocab_size=11, context_length=7, d_model=8, n_layers=2, n_heads=2)


def first_step(model, make_team):
    """The loss of a batch, and its gradient, by parameter."""
    with make_team(model) as team:
        loss = team.loss_and_gradient(bench.make_batch(SMALL, 3))
        grads = [p.grad.copy() for p in model.parameters()]
        team.step(0.01)                            # as it is timed
    return loss, np.concatenate([grad.ravel() for grad in grads])


@pytest.mark.parametrize("rungs", range(1, len(ladder.RUNGS) + 1))
def test_each_rung_of_the_ladder_computes_what_the_plain_layers_compute(rungs):
    kit = dict(vars(plain))
    for _, change in ladder.RUNGS[:rungs]:
        kit |= change
    mixed = SimpleLLM(SMALL, dtype=np.float64, layers=SimpleNamespace(**kit))
    loss, grad = first_step(mixed, ladder.alone)
    right, wanted = first_step(SimpleLLM(SMALL, dtype=np.float64), ladder.alone)
    assert loss == pytest.approx(right, rel=1e-12)
    np.testing.assert_allclose(grad, wanted, rtol=1e-9, atol=1e-13)


def test_the_ladder_swaps_every_layer_that_is_fast():
    swapped = {name for _, change in ladder.RUNGS for name in change}
    fast = {name for name in vars(plain)
            if getattr(ladder.fast, name, None) is not getattr(plain, name)
            and isinstance(getattr(ladder.fast, name, None), type)}
    assert swapped == fast | {"Embedding", "CrossEntropy"}, "these two bring nothing"


@pytest.mark.parametrize("make_team", [
    lambda model: ladder.alone(model, ladder.InMicroBatches), bench.in_parallel,
    ladder.two_threads, lambda model: bench.in_parallel(model, 2)])
def test_the_last_rungs_compute_the_same(make_team):
    loss, grad = first_step(FastLLM(SMALL), make_team)
    right, wanted = first_step(SimpleLLM(SMALL), ladder.alone)
    assert loss == pytest.approx(right, rel=1e-5)
    np.testing.assert_allclose(grad, wanted, rtol=1e-3, atol=1e-6)


def test_each_layer_is_timed_plain_and_fast(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", {"small": (SMALL, 2)})
    ladder.print_layers("small")
    head, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == list(ladder.cases("small"))
    assert all(float(row.split()[-1][:-1]) > 0 for row in rows)


def test_operations_are_those_of_every_matrix_product():
    B, T, C, V, D, H = 3, 7, 8, 11, 4, 2
    products = SMALL.n_layers * (
        [(B * T, C, 3 * C), (B * T, C, C), (B * T, C, 4 * C), (B * T, 4 * C, C)]
        + 2 * B * H * [(T, D, T)]
    ) + [(B * T, C, V)]
    forward = sum(2 * rows * inner * columns for rows, inner, columns in products)
    assert bench.operations(SMALL, B, T) == 3 * forward


@pytest.fixture
def small_sizes(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", dict.fromkeys(bench.SIZES, (SMALL, 2)))
    monkeypatch.setattr(bench, "measure_apart", bench.measure)
    monkeypatch.setattr(bench.product_rate, "__defaults__", (64,))
    monkeypatch.setattr(bench.memory_rate, "__defaults__", (2**12,))
    monkeypatch.setattr(bench.generation_rate, "__defaults__", (20,))
    monkeypatch.setattr(bench.step_time, "__defaults__", (bench.in_parallel, 3))


def test_the_bench_prints_json_for_machines(small_sizes, capsys):
    bench.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found["models"]) == {"small world", "tiny", "nano", "big"}
    for model in found["models"].values():
        assert all(number > 0 for number in model.values())
        assert model["tokens_per_s"] == pytest.approx(2 * 7 / (model["step_ms"] / 1e3))


def test_the_bench_prints_a_table_for_people(small_sizes, capsys):
    bench.main([])
    lines = capsys.readouterr().out.splitlines()
    assert "GB/s" in lines[0]
    assert [line[:11].strip() for line in lines[3:7]] == list(bench.SIZES)


@pytest.mark.parametrize(("share", "says"), [(0.55, "that helps"), (0.95, "train with --workers 1")])
def test_the_bench_says_whether_a_second_worker_helps(small_sizes, monkeypatch, capsys, share, says):
    monkeypatch.setattr(bench, "real_cores", lambda: 2)
    measured = bench.measure("nano", 1)
    monkeypatch.setattr(bench, "measure_apart", lambda name, workers: measured | {
        "step_ms": share if workers == 2 else 1.0})
    bench.main([])
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"2 workers need {share:.2f} of the time of one for a step of nano: " + {
            "that helps": says}.get(says, "no help here: " + says))


def test_the_figure_is_a_picture(monkeypatch, tmp_path):
    best_time = bench.best_time
    monkeypatch.setattr(bench, "best_time", lambda job, times: best_time(job, 1))
    bench.main(["figures", str(tmp_path)])
    root = ElementTree.parse(tmp_path / "roofline.svg").getroot()
    assert root.tag.endswith("svg")
    points = [part.get("d") for part in root.iter() if part.get("d")]
    assert points and not any("nan" in part or "inf" in part for part in points)


def test_an_unknown_measurement_is_refused():
    with pytest.raises(SystemExit, match="python tools/bench.py"):
        bench.main(["fast"])
