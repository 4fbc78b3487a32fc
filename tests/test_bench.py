"""The measurements of the chapter on speed: that they measure what they say."""
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import bench
from simple_llm.layers import GELU, Layer
from simple_llm.model import Config, SimpleLLM
from simple_llm.optimizer import AdamW
from simple_llm.parallel import DataParallel

SMALL = Config(vocab_size=11, context_length=7, d_model=8, n_layers=2, n_heads=2)


def make_model():
    model = SimpleLLM(SMALL, seed=2, dtype=np.float64)
    model.data += np.random.default_rng(3).normal(0, 0.1, model.data.shape)
    return model


def loss_gradient_and_step():
    model = make_model()
    ids, targets = bench.make_batch(SMALL, 3)
    loss = model.loss(ids, targets)
    model.backward()
    grad = model.grad.copy()
    optimizer = AdamW(model)
    optimizer.step(0.01)
    optimizer.step(0.01)
    return loss, grad, model.data


@pytest.mark.parametrize("skip", range(len(bench.FIRST) + 1))
def test_the_first_versions_compute_what_ours_compute(skip):
    loss, grad, data = loss_gradient_and_step()
    with bench.first_versions(skip):
        their_loss, their_grad, their_data = loss_gradient_and_step()
    assert their_loss == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(their_grad, grad, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(their_data, data, rtol=1e-9, atol=1e-12)


def test_each_rung_of_the_ladder_changes_a_method_and_the_end_restores_all():
    before = {(cls, name): getattr(cls, name)
              for _, changes in bench.FIRST for cls, name, _ in changes}
    with bench.first_versions():
        assert all(getattr(cls, name) is not ours for (cls, name), ours in before.items())
        assert GELU.forward is bench.gelu_with_power
    with bench.first_versions(1):
        assert GELU.forward is bench.gelu_at_once
    with bench.first_versions(2):
        assert GELU.forward is before[GELU, "forward"]
        assert Layer.workspace is bench.fresh_array
    assert all(getattr(cls, name) is ours for (cls, name), ours in before.items())


def test_layouts_compares_weights_by_rows_with_weights_by_columns(capsys):
    rows, columns = bench.by_rows(make_model()), make_model()
    assert all(p.data.flags.c_contiguous for p in rows.flat)
    assert not all(p.data.flags.c_contiguous for p in columns.flat)
    ids = np.array([[1, 2, 3]])
    np.testing.assert_allclose(rows.forward(ids), columns.forward(ids), rtol=1e-12)
    bench.print_layouts(SMALL, rounds=1)
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [
        "rows", "columns"]


def test_operations_are_those_of_every_matrix_product():
    B, T, C, V, D, H = 3, 7, 8, 11, 4, 2
    products = SMALL.n_layers * (
        [(B * T, C, 3 * C), (B * T, C, C), (B * T, C, 4 * C), (B * T, 4 * C, C)]
        + 2 * B * H * [(T, D, T)]
    ) + [(B * T, C, V)]
    forward = sum(2 * rows * inner * columns for rows, inner, columns in products)
    assert bench.operations(SMALL, B, T) == 3 * forward


def test_two_threads_give_the_gradient_of_two_processes():
    ids, targets = bench.make_batch(SMALL, 4)
    one, two = SimpleLLM(SMALL), SimpleLLM(SMALL)
    with DataParallel(one, 2) as processes, bench.TwoThreads(two) as threads:
        loss = processes.loss_and_gradient(ids, targets)
        assert threads.loss_and_gradient(ids, targets) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(two.grad, one.grad, rtol=1e-4, atol=1e-7)


@pytest.fixture
def small_sizes(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", dict.fromkeys(bench.SIZES, (SMALL, 2)))
    monkeypatch.setattr(bench, "measure_apart", bench.measure)


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
    assert "GB/s" in lines[0] and len(lines) == 7
    assert [line[:11].strip() for line in lines[3:]] == list(bench.SIZES)


def test_the_figures_are_pictures(small_sizes, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.smooth_token_times, "__defaults__", (64, 16))
    bench.main(["figures", str(tmp_path)])
    for name in ("roofline", "growth", "tokens"):
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        points = [part.get("d") for part in root.iter() if part.get("d")]
        assert points and not any("nan" in part or "inf" in part for part in points)


def test_an_unknown_measurement_is_refused():
    with pytest.raises(SystemExit, match="python tools/bench.py"):
        bench.main(["fast"])


def test_the_memory_of_a_batch_does_not_depend_on_what_ran_before():
    """Layers of other models may have left scratch arrays that are large enough."""
    bench.Layer.shared.__dict__.clear()
    first, large, again = (bench.workspace_bytes(SMALL, batch) for batch in (4, 40, 4))
    assert large > 2 * first and again == pytest.approx(first, rel=0.1)
