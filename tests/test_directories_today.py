"""Llamas and Qwens that transformers wrote; tools/make_directories_today.py made them, once."""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simple_llm import checkpoint
from simple_llm.cli.models import kind_of
from simple_llm.engine import fast_today
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.errors import UserError
from simple_llm.model import SimpleLLM
from simple_llm.today import model as today_model
from simple_llm.today.model import TodayConfig, TodayLLM, turn_matrices
from test_fuzz import mutate

FORMS = {"llama": "llama", "llama_wide_heads": "llama", "llama3": "llama",
         "qwen2": "qwen2", "qwen3": "qwen3", "qwen2_bfloat16": "qwen2", "llama_float16": "llama",
         "qwen3_shards": "qwen3"}
WITH_GRADIENTS = ["llama", "llama_wide_heads", "llama3", "qwen2", "qwen3"]
each_directory = pytest.mark.parametrize("name", FORMS)
each_model = pytest.mark.parametrize("name", WITH_GRADIENTS)
both_kinds = pytest.mark.parametrize("kind", [TodayLLM, FastTodayLLM])


@pytest.fixture(scope="module")
def home(unpack):
    return unpack("directories_today.zip")


@pytest.fixture(scope="module")
def expected(home):
    return dict(np.load(home / "expected.npz"))


@pytest.fixture
def change(home, tmp_path):
    """Copy a directory, and let a function change its config.json."""
    def change(name, edit):
        for path in (home / name).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((tmp_path / "config.json").read_text("utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(edit(config) or config))
        return tmp_path
    return change


@each_directory
@both_kinds
def test_the_logits_are_those_of_transformers(name, kind, home, expected):
    model = kind.from_pretrained(home / name)
    assert model.config.form == FORMS[name]
    found = model.forward(expected[f"{name}/ids"].astype(int))
    assert np.abs(found - expected[f"{name}/logits"]).max() < 1e-5
    loss = model.loss(*(expected[f"{name}/{key}"].astype(int) for key in ("ids", "targets")))
    assert abs(loss - expected[f"{name}/loss"]) < 1e-5


@each_model
@both_kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_gradient_is_that_of_transformers(name, kind, dtype, home, expected):
    model = kind.from_pretrained(home / name, dtype)
    model.loss(*(expected[f"{name}/{key}"].astype(int) for key in ("ids", "targets")))
    model.backward()
    start = f"{name}/gradients/"
    theirs = turn_matrices({key.removeprefix(start): value for key, value in expected.items()
                            if key.startswith(start)})
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for key, p in ours.items():
        assert np.abs(p.grad - theirs[key]).max() < 1e-5 * np.abs(theirs[key]).max(), key


@each_directory
def test_the_general_class_and_the_command_line_open_every_form(name, home):
    assert type(SimpleLLM.from_pretrained(home / name)) is TodayLLM
    assert kind_of(checkpoint.form_of(home / name)) is FastTodayLLM


@each_model
@both_kinds
@pytest.mark.parametrize("first", [1, 7, 23])
def test_cached_reading_is_uncached_in_pieces_and_at_every_length(name, kind, first, home, monkeypatch):
    monkeypatch.setattr(fast_today, "PIECE", 5)
    monkeypatch.setattr(today_model, "PIECE", 5)
    model = kind.from_pretrained(home / name, np.float64)
    ids = np.random.default_rng(1).integers(19, size=(1, model.config.context_length))
    whole, caches = TodayLLM.from_pretrained(home / name, np.float64).forward(ids), model.make_caches()
    found = [model.next_logits(ids[:, :first], caches)]
    found += [model.next_logits(ids[:, t : t + 1], caches) for t in range(first, ids.shape[1])]
    np.testing.assert_allclose(np.stack(found, 1), whole[:, first - 1 :], atol=1e-10)


def weights(model):
    return {name: p.data.tolist() for name, p in model.named_parameters()}


@each_directory
def test_what_is_saved_comes_back_and_is_spelled_for_both_generations(name, home, tmp_path):
    model = FastTodayLLM.from_pretrained(home / name)
    model.save_pretrained(tmp_path)
    again = TodayLLM.from_pretrained(tmp_path)
    assert weights(again) == weights(model) and again.config.form == FORMS[name]
    assert (again.config.rms_epsilon, again.config.rope_scaling, again.config.head_width) == (
        model.config.rms_epsilon, model.config.rope_scaling, model.config.head_width)
    theirs, ours = (json.loads((at / "config.json").read_text()) for at in (home / name, tmp_path))
    for key in ("architectures", "hidden_size", "num_key_value_heads", "rope_theta", "rms_norm_eps",
                "tie_word_embeddings", "intermediate_size", "max_position_embeddings"):
        assert ours[key] == theirs[key], key
    scaling = theirs.get("rope_scaling") or {"rope_type": "default"}
    assert ours["rope_parameters"].items() >= {"rope_theta": 100.0, **scaling}.items()
    assert (ours["rope_scaling"] or scaling).items() <= ours["rope_parameters"].items()


def newer(config):
    """As transformers 5 writes it."""
    scaling = config.pop("rope_scaling") or {}
    config["rope_parameters"] = {"rope_type": scaling.get("type", "default"), **scaling,
                                 "rope_theta": config.pop("rope_theta")}


def older(config):
    """As transformers wrote it when there were no other types."""
    config["torch_dtype"] = config.pop("dtype")
    if scaling := config["rope_scaling"]:
        scaling["type"] = scaling.pop("rope_type")


@pytest.mark.parametrize("edit", [newer, older])
@pytest.mark.parametrize("name", ["llama", "llama3", "qwen3"])
def test_both_spellings_mean_the_same(name, edit, change, home):
    assert TodayLLM.read_config(change(name, edit)) == TodayLLM.read_config(home / name)


@pytest.mark.parametrize("name, absent, then", [
    ("llama", "rms_norm_eps", {"rms_epsilon": 1e-6}), ("qwen2", "rope_theta", {"rope_base": 10_000.0}),
    ("llama", "head_dim", {"head_dim": 0}), ("qwen3", "head_dim", {"head_dim": 128}),
    ("llama", "num_key_value_heads", {"n_kv_heads": 4}), ("qwen2", "tie_word_embeddings", {"tied": False})])
def test_what_a_config_does_not_say_is_what_transformers_takes_it_for(name, absent, then, change):
    said = TodayLLM.read_config(change(name, lambda config: config.pop(absent) and None))
    assert said.items() >= then.items()


@pytest.mark.parametrize("name, edit, word", [
    ("qwen2", {"num_key_value_heads": None}, "num_key_value_heads"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen3", {"head_dim": 7}, "pairs"), ("qwen2", {"head_dim": 4.0}, "head_dim"),
    ("llama3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    ("llama3", {"rope_scaling": {"rope_type": ["llama3"]}}, "rotary"),
    ("llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    ("llama_linear", {}, "'linear'"),
    ("llama", {"model_type": "qwen2"}, "lacks the tensor model.layers.0.self_attn.q_proj.bias"),
    ("qwen2", {"model_type": "llama"}, "a tensor that this model does not"),
    ("qwen3", {"model_type": "qwen3_moe"}, "qwen3_moe"), ("llama", {"model_type": ["llama"]}, "model_type")],
    ids=str)
def test_what_we_cannot_do_is_refused_by_name(name, edit, word, change):
    with pytest.raises(UserError, match=word) as caught:
        SimpleLLM.from_pretrained(change(name, lambda config: {**config, **edit}))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_200_spoilt_configs_give_a_sentence_or_a_model(change):
    home = change("llama3", lambda config: None)
    data, dice, refused = (home / "config.json").read_bytes(), random.Random("spoil"), 0
    for n in range(200):
        (home / "config.json").write_bytes(mutate(data, dice, len(data)))
        try:
            model = SimpleLLM.from_pretrained(home)
            model.forward(np.zeros((1, 1), int))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 50


def test_tensors_from_elsewhere_make_a_model(home, expected):
    """As from a file of another format: the values of TodayConfig, and Hugging Face's names."""
    tensors, _ = checkpoint.load_weights(home / "qwen2")
    said = TodayLLM.read_config(home / "qwen2")
    model = FastTodayLLM.from_tensors(said, tensors, Path("a.gguf"))
    assert not tensors and isinstance(model.config, TodayConfig)
    found = model.forward(expected["qwen2/ids"].astype(int))
    assert np.abs(found - expected["qwen2/logits"]).max() < 1e-5
    with pytest.raises(UserError, match="a.gguf lacks the tensor"):
        FastTodayLLM.from_tensors(said, {}, Path("a.gguf"))


MEASURE = """
import sys
from pathlib import Path
from simple_llm.engine.fast_today import FastTodayLLM
most = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = most()
model = FastTodayLLM.from_pretrained(sys.argv[1])
print((most() - before) / (4 * model.config.n_parameters))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("form", ["F32", "BF16"])
def test_opening_a_directory_takes_little_more_memory_than_its_weights(form, tmp_path):
    model = FastTodayLLM(TodayConfig(10_000, 64, 512, 6, 8, d_ff=1024), seed=None)
    for p in model.parameters():
        p.data[...] = 0.5
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if form == "BF16":
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header, at = json.loads(data[8:start]), 0
        for name, entry in header.items():
            if name != "__metadata__":
                size = int(np.prod(entry["shape"])) * 2
                entry |= {"dtype": "BF16", "data_offsets": [at, at + size]}
                at += size
        text = json.dumps(header).encode()
        numbers = np.frombuffer(data[start:], "<u2")[1::2].tobytes()
        path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], env=environment,
                          capture_output=True, text=True, check=True)
    assert float(said.stdout) < 1.3
