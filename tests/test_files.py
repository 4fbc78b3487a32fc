"""Safetensors, config.json, model directories, and what becomes of damaged ones."""
import errno
import json
import os
import stat
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest

from simple_llm import files
from simple_llm.checkpoint import load_safetensors, save_safetensors
from simple_llm.engine.fast import FastLLM
from simple_llm.errors import UserError
from simple_llm.files import write_atomically
from simple_llm.model import Config, SimpleLLM

CONFIG = Config(vocab_size=7, context_length=5, d_model=4, n_layers=1, n_heads=2)
IDS = np.array([[1, 2, 6, 0, 3]])
VALUES = [1.0, -2.5, 0.0, 65504.0, 6.1e-5, -0.15625]       # fit in 16 bits, nearly


def make_file(path, entries, data, pad=b""):
    header = json.dumps(entries).encode() + pad
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# Safetensors


def test_arrays_make_the_round_trip_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32), "b.é": np.float32([np.pi]),
        "none": np.zeros((0, 3), np.float32), "scalar": np.float32(7).reshape(()),
        "cube": rng.normal(size=(2, 3, 4)).astype(np.float32).transpose(2, 0, 1),
        "odd": np.float32([-0.0, 1e-45, 3.4e38]),
    }
    save_safetensors(tmp_path / "a.safetensors", arrays)
    loaded = load_safetensors(tmp_path / "a.safetensors")
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == np.float32
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_a_file_has_the_layout_of_the_format(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"x": np.float32([[1, 2]]), "y": np.float32([3])})
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header == {"x": entry(shape=(1, 2)), "y": entry(shape=(1,), offsets=(8, 12))}
    assert struct.unpack("<3f", data[8 + length:]) == (1, 2, 3)


@pytest.mark.parametrize(("dtype", "code"), [("F32", "f"), ("F16", "e"), ("F64", "d"),
                                             ("BF16", "")])
def test_other_precisions_are_read_as_float32(tmp_path, dtype, code):
    """bfloat16 is the upper half of a float32."""
    if code:
        data = struct.pack(f"<6{code}", *VALUES)
        wanted = struct.unpack(f"<6{code}", data)
    else:
        data = b"".join(struct.pack("<f", value)[2:] for value in VALUES)
        wanted = [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, 12, 2)]
    path = make_file(tmp_path / "a", {"x": entry(dtype, (3, 2), (0, len(data)))}, data)
    array = load_safetensors(path)["x"]
    assert array.dtype == np.float32
    assert np.array_equal(array, np.float32(wanted).reshape(3, 2))


DATA = struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize("entries", [
    {"x": entry(offsets=(0, 100))}, {"x": entry(offsets=(16, 24))},
    {"x": entry(offsets=(-8, 0))}, {"x": entry(offsets=(8, 0))},
    {"x": entry(offsets=(0, 4))}, {"x": entry(shape=(3,))}, {"x": entry(shape=(-2,))},
    {"x": entry(shape=(-1, -2))}, {"x": entry(shape=(2.0,))}, {"x": entry(shape=(-1,))},
    {"x": entry(shape=(4,), offsets=(0.0, 16.0))}, {"x": entry(shape="")},
    {"x": entry(shape=(-1,), offsets=(0, 16))}, {"x": entry(shape=(2,), offsets=(0, 16))},
    {"x": entry(shape=("2",))},
    {"x": entry(shape=(0, 2**70), offsets=(0, 0))}, {"x": entry(shape=(2**62, 4, 2))},
    {"x": entry(shape=[1] * 70 + [2])},
    {"x": entry("F8_E5M2", (16,), (0, 16))}, {"x": entry(dtype="I64", shape=(1,))}, {"x": entry(dtype=None)},
    {"x": entry(dtype=["F32"])}, {"x": entry(offsets=(0, 4, 8))},
    {"x": entry(offsets=())},
    {"x": entry(offsets=(0.0, 8.0))}, {"x": entry(offsets=(None, 8))},
    {"x": {**entry(), "shape": None}}, {"x": {**entry(), "data_offsets": 3}},
    {"x": {**entry(), "shape": {}}}, {"x": {"dtype": "F32"}}, {"x": []}, {"x": None},
    {"x": "F32"}, [], None, 3, "x", [["x", 1]],
    {"x": entry(shape=(3,), offsets=(0, 12)), "y": entry(offsets=(8, 16))},
], ids=lambda entries: json.dumps(entries)[:60])
def test_a_header_that_makes_no_sense_is_refused_in_one_sentence(tmp_path, entries):
    path = make_file(tmp_path / "a", entries, DATA)
    unknown = "F8_E5M2" in str(entries)
    with pytest.raises(UserError, match="type F8_E5M2 are not" if unknown else "damaged") as caught:
        load_safetensors(path)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_in_memory_of_twice_its_size(tmp_path):
    save_safetensors(tmp_path / "a", {f"x{i}": np.ones(9999, np.float32) for i in range(50)})
    tracemalloc.start()
    arrays = load_safetensors(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(arrays) == 50 and peak < 2.5 * (tmp_path / "a").stat().st_size


@pytest.mark.parametrize("data", [
    b"", b"1234567", b"\xff" * 8, b"\xff" * 100, b"\0" * 8, b"\x02" + b"\0" * 7 + b"{",
    b"\x04" + b"\0" * 7 + b"\xff\xfe{}", b"\x01" + b"\0" * 7 + b"{",
    (100_000).to_bytes(8, "little") + b"[" * 100_000, b"PK\x03\x04" + b"x" * 60,
])
def test_a_file_that_is_no_safetensors_is_refused_in_one_sentence(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match="a.safetensors"):
        load_safetensors(path)


def test_a_missing_file_and_a_directory_are_refused_in_one_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "no" / "model.safetensors"):
        with pytest.raises(UserError, match="^cannot read"):
            load_safetensors(path)
    with pytest.raises(UserError, match="^cannot read .*nowhere"):
        SimpleLLM.from_pretrained(tmp_path / "nowhere")


# Model directories


@pytest.fixture
def saved(tmp_path):
    model = SimpleLLM(CONFIG, seed=3)
    for p in model.parameters():
        p.data += np.random.default_rng(0).normal(0, 0.3, p.data.shape)
    model.save_pretrained(tmp_path / "deep" / "model")
    return model, tmp_path / "deep" / "model"


def weights(model):
    return {name: p.data.astype(np.float32).tolist() for name, p in model.named_parameters()}


def rewrite(directory, change):
    """Change the arrays of a model directory."""
    tensors = load_safetensors(directory / "model.safetensors")
    save_safetensors(directory / "model.safetensors", change(tensors) or tensors)


def edit(directory, change):
    """Change its config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize("kind", [SimpleLLM, FastLLM])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_model_loads_as_it_was(saved, kind, dtype):
    model, directory = saved
    loaded = kind.from_pretrained(directory, dtype=dtype)
    assert type(loaded) is kind and loaded.config == model.config
    assert weights(loaded) == weights(model)
    assert loaded.forward(IDS).dtype == dtype
    assert np.allclose(loaded.forward(IDS), model.forward(IDS), rtol=0, atol=1e-5)


def test_config_json_has_the_names_of_hugging_face(tmp_path):
    SimpleLLM(Config(7, 5, 4, 1, 2, dropout=0.25)).save_pretrained(tmp_path)
    assert SimpleLLM.from_pretrained(tmp_path).config.dropout == 0.25
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 7,
        "n_positions": 5, "n_embd": 4, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.25,
        "attn_pdrop": 0.25, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "dtype": "float32", "eos_token_id": 2,
    }
    assert wanted.items() <= config.items()


def test_files_in_the_style_of_openai_are_read(saved):
    """No prefix `transformer.`, buffers with the mask, a copy of the tied weight."""
    model, directory = saved

    def change(tensors):
        bare = {k.removeprefix("transformer."): v for k, v in tensors.items()}
        bare["h.0.attn.bias"] = np.ones((1, 1, 5, 5), np.float32)
        bare["h.0.attn.masked_bias"] = np.float32(-1e4)
        bare["lm_head.weight"] = tensors["transformer.wte.weight"]
        return bare

    rewrite(directory, change)
    assert weights(SimpleLLM.from_pretrained(directory)) == weights(model)


def rename(tensors):
    tensors["transformer.h.0.ln_3.bias"] = tensors.pop("transformer.h.0.ln_2.bias")


@pytest.mark.parametrize(("change", "says"), [
    (lambda t: t.pop("transformer.h.0.attn.c_attn.bias") is None, "c_attn.bias"),
    (lambda t: t.update({"transformer.h.1.ln_1.bias": np.zeros(4)}), "h.1.ln_1.bias"),
    (lambda t: t.update({"transformer.wpe.weight": np.zeros((4, 5))}), "wpe.weight"),
    (lambda t: t.update({"transformer.ln_f.bias": np.zeros(1)}), "ln_f.bias"),
    (lambda t: t.update({"transformer.ln_f.bias": np.full(4, np.nan)}), "not finite"),
    (lambda t: t.update({"transformer.ln_f.bias": np.full(4, np.inf)}), "not finite"),
    (rename, "ln_"), (lambda t: t.clear(), "lacks"),
], ids=["missing", "surplus", "transposed", "would broadcast", "nan", "inf", "renamed",
        "empty"])
def test_arrays_that_do_not_fit_the_model_are_refused_by_name(saved, change, says):
    rewrite(saved[1], lambda tensors: change(tensors) and None)
    with pytest.raises(UserError, match=says) as caught:
        SimpleLLM.from_pretrained(saved[1])
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "says"), [
    ({"n_embd": None}, "n_embd"), ({"n_layer": "2"}, "n_layer"),
    ({"n_head": 3}, "heads"),
    ({"vocab_size": 7.0}, "vocab_size"), ({"n_positions": 0}, "at least 1"),
    ({"n_layer": True}, "n_layer"), ({"model_type": "bert"}, "bert"),
    ({"n_embd": 8}, "shape"), ({"n_layer": 2}, "lacks"),
    ({"resid_pdrop": 2}, "dropout"),
    ({"resid_pdrop": "much"}, "dropout|resid_pdrop"),
    ({"resid_pdrop": None}, "dropout|resid_pdrop"),
    ({"layer_norm_epsilon": 1e-3}, "epsilon"), ({"scale_attn_weights": False}, "scale_attn"),
], ids=str)
def test_a_config_that_makes_no_sense_is_refused_in_one_sentence(saved, change, says):
    edit(saved[1], change)
    with pytest.raises(UserError, match=says) as caught:
        SimpleLLM.from_pretrained(saved[1])
    assert "\n" not in str(caught.value)


def test_special_ids_may_be_absent_or_several(saved):
    edit(saved[1], {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": [2, 5]})
    assert SimpleLLM.from_pretrained(saved[1]).config.special_ids == (None, 1, (2, 5))


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"null", b"[" * 100_000])
def test_a_damaged_config_is_refused_in_one_sentence(saved, data):
    (saved[1] / "config.json").write_bytes(data)
    with pytest.raises(UserError, match="config.json"):
        SimpleLLM.from_pretrained(saved[1])


def test_a_missing_file_of_a_model_is_named(saved):
    for name in ("model.safetensors", "config.json"):
        (saved[1] / name).unlink()
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            SimpleLLM.from_pretrained(saved[1])


def test_a_file_cut_short_at_any_byte_is_refused_in_one_sentence(saved):
    path = saved[1] / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = [*range(header + 1), *range(header + 1, len(data), 101), len(data) - 1]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="model.safetensors"):
            SimpleLLM.from_pretrained(saved[1])


def test_flipped_bits_in_the_header_are_refused_or_harmless(saved):
    """They may spell another valid file, but raise nothing else than a UserError."""
    path, rng = saved[1] / "model.safetensors", np.random.default_rng(0)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(200):
        at, bit = int(rng.integers(header)), int(rng.integers(8))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:])
        with suppress(UserError):
            SimpleLLM.from_pretrained(saved[1])


# Writing


def test_a_file_is_written_with_its_directories_and_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for data in (b"old", b"new"):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert os.listdir(path.parent) == ["file"]


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


class Full:
    """A file on a disk that has room for two bytes more."""

    def __init__(self, *args):
        self.file = open(*args)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:2])
        full()


@pytest.mark.parametrize(("where", "name", "instead"), [
    (files.os, "replace", full), (files.os, "fsync", full), (files, "open", Full)])
def test_the_old_file_is_kept_when_writing_fails(tmp_path, monkeypatch, where, name, instead):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(where, name, instead, raising=False)
        with pytest.raises(OSError) as caught:
            write_atomically(path, b"new content")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_bytes_reach_the_disk_before_the_new_name_does_and_that_does_too(
        tmp_path, monkeypatch):
    """And the old file stands whole until the new one does."""
    path, events = tmp_path / "file", []
    path.write_bytes(b"old")
    fsync, replace = os.fsync, os.replace

    def noted_fsync(file):
        status = os.fstat(file)
        events.append("directory" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(file)

    def noted_replace(source, target):
        events.append((source.name, path.read_bytes(), source.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    monkeypatch.setattr(files.os, "replace", noted_replace)
    write_atomically(path, b"new!")
    assert events == [4, (f".file.{os.getpid()}.tmp", b"old", b"new!"), "directory"]
    assert path.read_bytes() == b"new!"


def test_a_system_that_opens_no_directories_is_no_obstacle(tmp_path, monkeypatch):
    def fail(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.os, "open", fail)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
