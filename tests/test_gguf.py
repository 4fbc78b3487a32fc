"""GGUF files, read by hand; tools/make_gguf.py made what they are compared with, once."""
import functools
import io
from hashlib import sha256
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import make_tokenizers_today as tokenizers_today
import simple_llm
from simple_llm.cli import fetch
from simple_llm.cli.main import main
from simple_llm.cli.models import load, load_tokenizer
from simple_llm.engine.fast_today import FastTodayLLM
from simple_llm.errors import UserError
from simple_llm.today import gguf
from simple_llm.today.gguf import (
    GGUF, TYPES, Entry, dequantize, quantize, read_tensor, tokenizer_of,
)
from simple_llm.today.layers import rotary_angles
from simple_llm.today.model import TodayConfig, TodayLLM
from simple_llm.tokenizer import Tokenizer

HERE = Path(__file__).parent
REAL = Path.home() / ".cache/simple_llm/smollm2.gguf"
real = pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL} (make chat MODEL=smollm2)")
ENV = {**os.environ, "PYTHONPATH": str(Path(simple_llm.__file__).parent.parent),
       "PYTHONIOENCODING": "utf-8"}
MODELS = {"llama": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "qwen3": "gpt-2"}
U4, STRING, LIST, U8 = 4, 8, 9, 10


@pytest.fixture(scope="module")
def home(unpack):
    return unpack("gguf.zip")


@pytest.fixture(scope="module")
def expected(home):
    return dict(np.load(home / "arrays.npz")), json.loads((home / "types.json").read_text())


# The numbers


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q6_K".split())
def test_every_type_has_the_floats_that_the_formats_own_library_reads(name, expected):
    arrays, types = expected
    blocks = arrays[f"{name}/bytes"].view(np.dtype(TYPES[types[name]][1]))
    found = dequantize(types[name], blocks)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.ravel(), arrays[f"{name}/weights"])


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", ["F32", "BF16", "Q4_1", "Q6_K"])
def test_a_tensor_read_in_pieces_is_the_whole_tensor(name, expected, tmp_path, monkeypatch):
    arrays, types = expected
    (tmp_path / "a").write_bytes(b"before " + arrays[f"{name}/bytes"].tobytes() + b"behind")
    weights = arrays[f"{name}/weights"]
    monkeypatch.setattr(gguf, "PIECE", {"F32": 5, "BF16": 7, "Q4_1": 5 * 32, "Q6_K": 2 * 256}[name])
    entry, room = Entry(types[name], (2, len(weights) // 2), 7), np.empty(len(weights), np.float32)
    found = read_tensor(tmp_path / "a", entry, room)
    assert np.shares_memory(found, room)
    np.testing.assert_array_equal(found, weights.reshape(2, -1))


def test_a_block_of_three_bits_is_what_one_computes_by_hand():
    """The smallest is -0.5 and a step is 0.2, as near as float16 has them."""
    w = np.array([-0.5, 0.9, 0.31, -0.12, 0.05])
    found = quantize(w, bits=3, block=5)
    np.testing.assert_allclose(found, [-0.5, 0.9, 0.3, -0.1, 0.1], atol=1e-3)
    assert (quantize(np.full(32, 0.5), 4) == 0.5).all()          # a step of 0


def test_the_dearest_weights_of_quantize_are_those_of_the_type_q4_1(expected):
    """What was rounded once stays where it is."""
    arrays, _ = expected
    w = arrays["Q4_1/weights"].reshape(-1, 32)
    w = w[np.isfinite(w).all(axis=1) & (np.abs(w).max(axis=1) < 100) & (np.ptp(w, axis=1) > 0.1)]
    assert len(w) > 10
    assert np.abs(quantize(w, 4) - w).max() < 0.02 * np.abs(w).max()


# Files, written by a program of our own


class Raw(bytes):
    """A statement's type and value as they are."""


@functools.cache
def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def statement(value):
    """A type and a value of it."""
    match value:
        case Raw():
            return value
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<Iq", 11, value) if value < 0 else struct.pack("<IQ", U8, value)
        case float():
            return struct.pack("<If", 6, value)
        case list():
            kind = STRING if value and isinstance(value[0], (str, bytes)) else 5
            some = map(text, value) if kind == STRING else (struct.pack("<i", x) for x in value)
            return struct.pack("<IIQ", LIST, kind, len(value)) + b"".join(some)
        case _:
            return struct.pack("<I", STRING) + text(value)


def write(said, tensors, alignment=32):
    """The parts of a file: tensors are lists of name, type, shape and bytes."""
    parts = [b"GGUF", struct.pack("<I", 3), struct.pack("<Q", len(tensors)), struct.pack("<Q", len(said))]
    parts += [part for name, value in said.items() for part in (text(name), statement(value))]
    at = 0
    for name, kind, shape, data in tensors:
        parts += [text(name), struct.pack("<I", len(shape)),
                  *(struct.pack("<Q", n) for n in reversed(shape)), struct.pack("<I", kind), struct.pack("<Q", at)]
        at += -(-len(data) // alignment) * alignment
    parts.append(b"\0" * (-sum(map(len, parts)) % alignment))
    return parts + [data + b"\0" * (-len(data) % alignment) for *_, data in tensors]


@functools.cache
def made():
    """What a small file says, and its tensors: a Llama 3 with one block."""
    alphabet = json.loads(tokenizers_today.FIXTURE.read_text("utf-8"))["alphabet"]
    tokens = [*alphabet, "th", "the", "<end>"]
    said = {"general.architecture": "llama", "general.alignment": 32, "llama.context_length": 16,
            "llama.embedding_length": 32, "llama.block_count": 1, "llama.attention.head_count": 2,
            "llama.attention.head_count_kv": 1, "llama.feed_forward_length": 32,
            "llama.rope.freq_base": 10_000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": 16, "llama.attention.key_length": 16, "llama.vocab_size": len(tokens),
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3], "tokenizer.ggml.merges": ["t h", "th e"],
            "tokenizer.ggml.eos_token_id": len(tokens) - 1, "tokenizer.ggml.bos_token_id": len(tokens) - 1,
            "tokenizer.ggml.add_bos_token": False}
    speeds = 1e4 ** -(np.arange(0, 16, 2) / 16)
    kept = np.clip((8192 * speeds / (2 * np.pi) - 1) / 3, 0, 1)
    rng = np.random.default_rng(5)

    def plain(name, *shape):
        return name, 0, shape, (1 + 0.1 * rng.normal(size=shape)).astype("<f4").tobytes()

    def eights(name, *shape):
        blocks = np.zeros(shape[0] * shape[1] // 32, TYPES[8][1])
        blocks["d"], blocks["q"] = 0.002, rng.integers(-127, 128, (len(blocks), 32))
        return name, 8, shape, blocks.tobytes()

    return said, [
        eights("token_embd.weight", len(tokens), 32), plain("blk.0.attn_norm.weight", 32), eights("blk.0.attn_q.weight", 32, 32),
        eights("blk.0.attn_k.weight", 16, 32), eights("blk.0.attn_v.weight", 16, 32), eights("blk.0.attn_output.weight", 32, 32),
        plain("blk.0.ffn_norm.weight", 32), eights("blk.0.ffn_gate.weight", 32, 32), eights("blk.0.ffn_up.weight", 32, 32),
        eights("blk.0.ffn_down.weight", 32, 32), plain("output_norm.weight", 32),
        ("rope_freqs.weight", 0, (8,), np.float32(1 / (kept + (1 - kept) / 32)).tobytes())]


def tiny():
    said, tensors = made()
    return dict(said), list(tensors)


@pytest.fixture
def put(tmp_path):
    """Write the tiny file with other statements (None: without) or other tensors."""
    def put(said={}, tensors={}, alignment=32, **more):
        usual, parts = tiny()
        usual = {key: value for key, value in {**usual, **said}.items() if value is not None}
        new = [(tensors.get(part[0], part)) for part in parts] + more.get("more", [])
        path = tmp_path / "tiny.gguf"
        path.write_bytes(b"".join(write(usual, [part for part in new if part], alignment)))
        return path
    return put


def refused(path, *says):
    """Loading gives one sentence, which names the file."""
    with pytest.raises(UserError) as caught:
        use(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 600, said
    for word in says:
        assert word in said, said


def use(path):
    """A model, its tokenizer and a step of it, as commands use them."""
    model, tokenizer = load(path)
    ids = tokenizer.encode("the 12 thé <end>")
    tokenizer.decode(ids)
    if model.config.n_parameters < 10**6:
        some = np.array([[0, *ids]])[:, -3:] % model.config.vocab_size
        with np.errstate(all="ignore"):
            model.forward(some[:, : model.config.context_length])
    return model, tokenizer


def test_a_file_of_the_smallest_kind_is_read(put):
    model, tokenizer = use(put())
    assert model.config.rope_scaling == (32, 1, 4, 8192) and model.config.special_ids == (None, 258, 258)
    assert tokenizer.encode("the")[0] == 257 and not tokenizer.begins
    blocks = np.frombuffer(dict((part[0], part[3]) for part in tiny()[1])["blk.0.attn_k.weight"], TYPES[8][1])
    rows = 0.002 * blocks["q"][[*range(0, 16, 2), *range(1, 16, 2)]]         # of its only head: evens first
    np.testing.assert_allclose(model.blocks[0].attention.make_k.weight.data.T, rows, rtol=1e-3)
    assert use(put({"general.alignment": 8}, alignment=8))[0].config == model.config
    more = {"llama.rope.freq_base": None, "llama.attention.head_count_kv": 2, "llama.attention.key_length": None}
    wide = {f"blk.0.attn_{x}.weight": (f"blk.0.attn_{x}.weight", 0, (32, 32), bytes(4096)) for x in "kv"}
    assert use(put(more, wide))[0].config.rope_base == 10_000                # what the format says then
    assert use(put({**more, "llama.attention.head_count_kv": None}, wide))[0].config.n_kv_heads == 2


# Models


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers_on_the_same_weights(name, plain, home, expected):
    model, _ = load(home / f"{name}.gguf", plain)
    assert type(model) is (TodayLLM if plain else FastTodayLLM)
    assert model.config.tied == (name in ("llama", "qwen3"))
    theirs = expected[0][f"{name}/logits"]
    found = model.forward(expected[0][f"{name}/ids"].astype(int))[0, ::21]
    assert found.shape == theirs.shape and theirs.std() > 0.3
    assert np.abs(found - theirs).max() < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_what_is_asked_of_the_same_rows_is_one_product_and_cached_reading_is_uncached(name, home):
    model, plain = load(home / f"{name}.gguf")[0], load(home / f"{name}.gguf", plain=True)[0]
    ids, caches = np.arange(9)[None] * 7, model.make_caches()
    for block in model.blocks:
        assert block.attention.all_three.whole is not None and block.feed_forward.both.whole is not None
    whole = plain.forward(ids)[0]
    found = [model.next_logits(ids[:, t : t + 1], caches)[0] for t in range(9)]
    assert np.abs(found - whole).max() < 1e-5


def test_the_hands_of_llama_3_are_slowed_down_and_it_matters(home, expected):
    model = GGUF.open(home / "llama3.gguf").load()
    assert model.config.rope_scaling == (8, 1, 4, 8192)
    model.rope[0][...], model.rope[1][...] = rotary_angles(96, 16, 1e4)
    found = model.forward(expected[0]["llama3/ids"].astype(int))[0, ::21]
    assert np.abs(found - expected[0]["llama3/logits"]).max() > 1e-3


def factors(scale):
    return {"rope_freqs.weight": ("rope_freqs.weight", 0, (8,), np.float32(scale).tobytes())}


@pytest.mark.parametrize("new", [
    factors(np.linspace(1, 7, 8)), factors([1] * 7 + [16]), factors([np.nan] * 8),
    {"rope_freqs.weight": ("rope_freqs.weight", 0, (4,), bytes(16))}], ids=range(4))
def test_another_way_of_slowing_down_is_refused(new, put):
    refused(put(tensors=new), "rope_freqs.weight")


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_in_a_file_gives_the_ids_of_the_directorys(name, home, tmp_path):
    kind, found = MODELS[name], json.loads(tokenizers_today.FIXTURE.read_text("utf-8"))
    merges = [pair.split(" ") for pair in found["kinds"][kind]["merges"]][:60]
    files = tokenizers_today.files(kind, list(found["alphabet"]), merges)
    theirs = Tokenizer.load(tokenizers_today.write(tmp_path, files))
    ours = load_tokenizer(home / f"{name}.gguf")
    for group in tokenizers_today.GROUPS:
        for words in tokenizers_today.texts(group, 7, 25):
            assert ours.encode(words) == theirs.encode(words), words
    assert ours.tokens == theirs.tokens and ours.begins == theirs.begins
    assert (ours.pad, ours.bos, ours.eos, ours.unk) == (theirs.pad, theirs.bos, theirs.eos, theirs.unk)
    assert ours.words == theirs.words and {*ours.specials} == {*theirs.specials}


# What cannot be read


def test_every_other_type_is_refused_by_its_name(put, expected):
    known = {name: number for name, number in expected[1].items() if number not in TYPES}
    assert {"Q5_K", "IQ4_NL", "Q2_K", "MXFP4"} <= {*known}
    for name, number in [*known.items(), ("77", 77), ("4294967295", 2**32 - 1)]:
        new = ("output_norm.weight", number, (256,), bytes(1024))
        name = name if number in gguf.OTHERS or number > 50 else str(number)    # younger than this program
        refused(put(tensors={"output_norm.weight": new}), "output_norm.weight", f"of type {name},")
    assert {gguf.OTHERS[number] for number in known.values() if number < 40} == {
        name for name, number in known.items() if number < 40}


@pytest.mark.parametrize(("said", "says"), [
    ({"general.architecture": "mamba"}, "'mamba'"), ({"general.architecture": None}, "model_type"),
    ({"general.architecture": [1, 2]}, "model_type"), ({"llama.block_count": None}, "num_hidden_layers"),
    ({"llama.rope.freq_base": float("nan")}, "rope_theta"),
    ({"llama.rope.freq_base": "x"}, "rope_theta"), ({"llama.rope.freq_base": [1, 2]}, "rope_theta"),
    ({"llama.rope.freq_base": float("inf")}, "rope_theta"), ({"llama.embedding_length": -32}, "hidden_size"),
    ({"llama.embedding_length": 32.0}, "hidden_size"), ({"llama.attention.key_length": 0.5}, "head_dim"),
    ({"llama.context_length": 2**39}, "numbers"), ({"llama.block_count": 2**39}, "numbers"),
    ({"llama.feed_forward_length": 2**63}, "intermediate_size"), ({"llama.attention.head_count": 0}, "head"),
    ({"llama.attention.head_count": 3}, "3 heads"), ({"llama.attention.head_count_kv": 0}, "heads"),
    ({"llama.rope.scaling.type": "yarn"}, "'rope.scaling.type'"),
    ({"llama.expert_count": 8}, "expert_count"), ({"llama.a\nb" * 200: 1}, "cannot do that"),
    ({"general.alignment": 0}, "alignment"), ({"general.alignment": -1}, "alignment"),
    ({"general.alignment": "x"}, "alignment"), ({"general.alignment": 2**62}, "cut short"),
])
def test_a_statement_that_cannot_be_obeyed_is_named(said, says, put):
    refused(put(said), says)


LETTERS = tiny()[0]["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(("said", "says"), [
    ({"model": "llama"}, "'llama'"), ({"model": [1]}, "kind"), ({"pre": "dbrx"}, "'dbrx'"), ({"pre": [1, 2]}, "kind"),
    ({"pre": None}, "None"), ({"tokens": None}, "tokens"), ({"tokens": 5}, "tokens"), ({"tokens": [1] * 259}, "tokens"),
    ({"tokens": "x" * 259}, "tokens"), ({"tokens": LETTERS[:-1]}, "tokens"), ({"tokens": ["a"] * 259}, "tokens lack"),
    ({"tokens": []}, "tokens"), ({"token_type": None}, "types"), ({"token_type": 3}, "types"),
    ({"merges": None}, "merges"), ({"merges": 1}, "merges"), ({"merges": [1, 2]}, "merges"), ({"merges": ["th"]}, "('th',)"),
    ({"merges": ["t h e"]}, "'t', 'h', 'e'"), ({"merges": ["t q"]}, "lack 'tq'"), ({"merges": ["t \u20ac"]}, "lack"),
    *[({"eos_token_id": wrong}, "eos") for wrong in (None, 259, -1, 2**63, 1.0, True, "x", [1, 2])],
    ({"add_bos_token": [1, 2]}, "ambiguous"),
])
def test_a_tokenizer_that_does_not_fit_together_is_refused(said, says, put):
    refused(put({f"tokenizer.ggml.{key}": value for key, value in said.items()}), says)


def tensor(name, kind=0, shape=(32,), size=128):
    return {"more": [(name, kind, shape, bytes(size))]}


@pytest.mark.parametrize(("more", "says"), [
    (tensor("blk.0.strange.weight"), "strange"), (tensor("noname"), "'noname'"), (tensor(""), "''"),
    (tensor("x\n" * 5000), "no model here"), (tensor("blk.1.attn_norm.weight"), "layers.1"),
    (tensor("blk.00.attn_norm.weight"), "layers.00"), (tensor(f"blk.{'9' * 5000}.attn_norm.weight"), "blk."),
    (tensor("blk.0.attn_q.bias"), "self_attn.q_proj.bias"),
    (tensor("output.weight", 0, (), 4), "shape ()"), (tensor("output.weight", 0, (2, 2, 2)), "shape (2, 2, 2)"),
    (tensor("output.weight", 0, (0, 32)), "shape (0, 32)"), (tensor("output.weight", 8, (2, 31), 68), "shape (2, 31)"),
    (tensor("output.weight", 0, (2**60, 2**60)), "cut short"), (tensor("output.weight", 0, (1,) * 4000, 4), "shape"),
    ({"tensors": {"token_embd.weight": None}}, "no proper number vocab_size"),
    ({"tensors": {"blk.0.ffn_up.weight": None}}, "lacks the tensor model.layers.0.mlp.up_proj"),
    ({"tensors": {"blk.0.attn_q.weight": ("blk.0.attn_q.weight", 0, (33, 32), bytes(4224))}}, "reshape"),
    ({"tensors": {"blk.0.attn_v.weight": ("blk.0.attn_v.weight", 0, (32, 16), bytes(2048))}}, "has the shape"),
    ({"tensors": {"output_norm.weight": ("output_norm.weight", 0, (32,), b"\xff" * 128)}}, "not finite"),
])
def test_a_tensor_that_does_not_fit_is_named(more, says, put):
    refused(put(**more), says)


@pytest.mark.parametrize(("data", "says"), [
    (b"", "empty"), (b"GG", "cut short"), (b"PK\3\4" + bytes(100), "no GGUF file"),
    (b"GGUF" + bytes(100), "no GGUF file"), (b"GGUF\0\0\0\3" + bytes(100), "no GGUF file"),     # the other way round
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(1000), "cut short"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(1000), "cut short"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**64 - 1) + bytes(99), "cut short"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 5) + bytes(99), "unknown type 9"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**64 - 1) + bytes(99), "cut short"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 12, 2**62) + bytes(99), "cut short"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 13) + bytes(99), "unknown type 13"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"\xff\xfe") + bytes(99), "utf-8"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("a") + struct.pack("<I", 2**32 - 1) + bytes(99), "cut short"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
])
def test_a_head_that_is_none_gives_a_sentence(data, says, tmp_path):
    (tmp_path / "a.gguf").write_bytes(data)
    refused(tmp_path / "a.gguf", *([] if "LFS" in says else [says]))


def test_tensors_that_share_bytes_are_refused(tmp_path):
    parts = write(*tiny())
    at = max(n for n, part in enumerate(parts) if part == text("output_norm.weight")) + 4
    parts[at] = bytes(8)                                                     # its offset
    (tmp_path / "a.gguf").write_bytes(b"".join(parts))
    refused(tmp_path / "a.gguf", "shares bytes")


# A hostile file


COUNTS = [0, 1, 2, 3, 31, 255, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
VALUES = [*COUNTS, -1, -2**63, 0.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), "", "x", b"\xff", "gpt2", "qwen2", "qwen3", "llama",
          "llama-bpe", "smollm\n", True, False, [], [1], [1, 2, 3], [-1] * 300, ["a"], ["a", "b"], ["a b c"], ["a  b"], [b"\xc3"] * 3, LETTERS,
          LETTERS[::-1], [3] * len(LETTERS), Raw(struct.pack("<IIQ", LIST, LIST, 1) * 50), Raw(struct.pack("<IIQ", LIST, STRING, 2**50)),
          Raw(struct.pack("<IIQ", LIST, 7, 5) + bytes(range(5))), Raw(struct.pack("<I", 99)), Raw(b"")]


def change_a_statement(said, tensors, dice):
    key = dice.choice(list(said))
    match dice.randrange(5):
        case 0:
            del said[key]
        case 1:
            said[dice.choice([key * 2, "llama.rope.scaling.factor", key[:-1], "\u0301\n", "a" * 5000, b"\xff", ""])] = said[key]
        case 2 if isinstance(said[key], list) and said[key]:
            new, at = list(said[key]), dice.randrange(len(said[key]))
            new[at : at + dice.randrange(2)] = dice.choice([new[:1], new * 2, [], [new[-1]] * 3])
            said[key] = new
        case 3 if type(said[key]) is int:
            said[key] = max(-2**63, min(said[key] + dice.choice([-1, 1, 16, 32, 64]), 2**64 - 1))
        case _:
            said[key] = dice.choice(VALUES)


def change_a_tensor(said, tensors, dice):
    at = dice.randrange(len(tensors))
    name, kind, shape, data = tensors[at]
    match dice.randrange(7):
        case 0:
            name = dice.choice([tensors[0][0], "output.weight", "blk.1.ffn_up.weight", name * 2, "x", "", ".", "..", b"\xff", "blk..weight", "a\n" * 99])
        case 1:
            kind = dice.choice([*range(42), 2**31, 2**32 - 1])
        case 2:
            shape = dice.choice([(), shape[::-1], shape * 2, (*shape, 1), (1,) * dice.randrange(99), (dice.choice(COUNTS), 32),
                                 (32, dice.choice(COUNTS)), (dice.choice(COUNTS),), (2**32, 2**32), (2**63, 2**63), (256, 256)])
        case 3:
            data = dice.choice([b"", data[:-1], data * 2, bytes(len(data)), b"\xff" * len(data), dice.randbytes(len(data))])
        case 4:
            return tensors.pop(at)
        case 5:
            return tensors.append(tensors[at])
        case 6:
            return dice.shuffle(tensors)
    tensors[at] = name, kind, shape, data


def change_a_part(parts, dice):
    """Of the finished head: a count, length, type or offset by another, or some bytes."""
    at = dice.randrange(2, len(parts))
    part = bytearray(parts[at])
    match dice.randrange(4):
        case 0 if len(part) in (4, 8):
            part[:] = struct.pack("<Q", dice.choice(COUNTS))[: len(part)]
        case 1 if len(part) >= 8:
            part[:8] = struct.pack("<Q", dice.choice([dice.choice(COUNTS), int.from_bytes(part[:8], "little") ^ 1 << dice.randrange(64)]))
        case 2:
            del part[dice.randrange(len(part) + 1) :]
        case _ if part:
            part[dice.randrange(len(part))] ^= 1 << dice.randrange(8)
    parts[at] = bytes(part)


def spoil(dice):
    """The bytes of the tiny file, with one to three things changed."""
    said, tensors = tiny()
    ways, times = [change_a_statement, change_a_tensor], dice.choice([1, 1, 1, 2, 3])
    for _ in range(times * dice.randrange(2)):
        if said and tensors:
            dice.choice(ways)(said, tensors, dice)
            times = 0
    parts = write(said, tensors, dice.choice([32, 32, 32, 32, 1, 64]))
    for _ in range(times):
        change_a_part(parts, dice)
    data = bytearray(b"".join(parts))
    match dice.randrange(12):
        case 0:
            del data[dice.randrange(len(data) + 1) :]
        case 1:
            data[dice.randrange(len(data))] = dice.randrange(256)
        case 2:
            at = dice.randrange(len(data))
            data[at:at] = dice.randbytes(dice.randrange(20))
    return bytes(data)


def hostile(n, seed, path):
    """Spoil a file n times; say how many were refused, the slowest and the memory in MB."""
    warnings.simplefilter("ignore")
    dice, refusals, slowest, sentences = random.Random(seed), 0, 0.0, set()
    for k in range(n):
        data = spoil(dice)
        path.unlink(missing_ok=True)                   # to write over one takes longer
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            use(path)
        except UserError as error:
            refusals, said = refusals + 1, str(error)
            assert "\n" not in said and len(said) < 600 and str(path) in said, said
            sentences.add(said.replace(str(path), "")[:20])
        except Exception as error:
            path.with_suffix(".bad").write_bytes(data)
            raise AssertionError(f"mutation {k} of seed {seed}") from error
        slowest = max(slowest, time.perf_counter() - start)
    peak = most_memory() / 2**20
    print(json.dumps([refusals, slowest, peak, len(sentences)]))


def most_memory():
    """Bytes. Linux would count what the process that started this one had, too: its own file does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def child(code, *arguments, **more):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(HERE.parent), str(HERE.parent / 'tools'), str(HERE)]}; {code}",
         *map(str, arguments)], env=ENV, capture_output=True, text=True, encoding="utf-8", timeout=300, **more)


def test_2000_hostile_files_give_a_sentence_or_a_model_in_bounded_memory_and_time(tmp_path):
    memory = Path("/dev/shm")                          # a disk would take most of the time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as room:
        done = child("import test_gguf; from pathlib import Path; test_gguf.hostile(2000, 16, Path(sys.argv[1]))",
                     Path(room, "a.gguf"))
    assert done.returncode == 0, done.stderr[-3000:]
    refusals, slowest, peak, sentences = json.loads(done.stdout)
    assert 1000 < refusals < 1990 and sentences > 30
    assert slowest < 2 and peak < 200, (slowest, peak)


@pytest.mark.parametrize("words", [("info",), ("tokenize", "a", "--model"), ("chat", "--model"), ("generate", "--model")], ids=lambda words: words[0])
def test_a_command_says_one_sentence_of_a_file_that_is_cut_short(words, put, capfd):
    path = put()
    path.write_bytes(path.read_bytes()[:-100])
    assert main([*words, str(path)]) == 1
    out, err = capfd.readouterr()
    assert err == f"simple_llm: {path}: it is cut short\n" and not out


def test_no_head_asks_for_more_memory_than_a_few_times_the_file(tmp_path):
    """Lists and lengths that no file has, and many short texts."""
    many = text("a") + struct.pack("<IIQ", LIST, STRING, 2**40) + (struct.pack("<Q", 1) + b"x") * 20_000
    for said in (many, text("a") + struct.pack("<IIQ", LIST, U8, 2**60) + bytes(10**6), text("a") + struct.pack("<IQ", STRING, 2**62)):
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40) + said
        (tmp_path / "a.gguf").write_bytes(data)
        tracemalloc.start()
        refused(tmp_path / "a.gguf", "cut short")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * len(data) + 10**5


# The real file


@pytest.mark.parametrize(("words", "times"), [
    (["chat", "--model"], 2), (["generate", "--max-new-tokens", "2", "--model"], 1), (["info"], 1)], ids=lambda x: str(x)[:7])
def test_a_kept_file_is_hashed_once_and_its_head_read_for_the_model_and_for_the_template(
        words, times, put, monkeypatch, tmp_path):
    (place := tmp_path / "simple_llm").mkdir()
    kept, done = put().rename(place / "smollm2.gguf"), []
    book = fetch.SHELF["smollm2"]._replace(file_hash=sha256(kept.read_bytes()).hexdigest())
    monkeypatch.setitem(fetch.SHELF, "smollm2", book)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for module, name in ((fetch, "sha256"), (gguf, "read_head")):
        monkeypatch.setattr(module, name, lambda x, name=name, usual=getattr(module, name): done.append(name) or usual(x))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main([*words, "smollm2"]) == 0
    assert done == ["sha256", *times * ["read_head"]]


def test_a_file_whose_sizes_need_more_numbers_than_it_has_is_named_alone(put):
    path = put({"llama.block_count": 100})
    refused(path, "numbers, and its sizes need")


@real
def test_the_real_file_has_the_sizes_that_it_is_known_for():
    found = GGUF.open(REAL)
    c = TodayConfig(**gguf.config_of(found))
    assert (c.n_parameters, c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.d_ff, c.vocab_size, c.context_length, c.rope_base) == (
        134_515_008, 30, 576, 9, 3, 1536, 49_152, 8192, 100_000)
    assert c.tied and c.form == "llama" and c.special_ids == (2, 1, 2)
    assert Counter(entry.kind for entry in found.entries.values()) == {3: 210, 0: 61, 8: 1}
    tokenizer = tokenizer_of(found)
    assert (tokenizer.way, len(tokenizer.merges), tokenizer.begins) == ("smollm", 48_900, False)
    assert (tokenizer.tokens[tokenizer.bos], tokenizer.tokens[tokenizer.eos]) == ("<|im_start|>", "<|im_end|>")


SPEAK = """
import resource, sys, time
start = time.perf_counter()
from simple_llm.cli.models import load
model, tokenizer = load(sys.argv[1])
start_of_turn, end_of_turn = (tokenizer.ids[f'<|im_{name}|>'] for name in ('start', 'end'))
ids = [start_of_turn, *tokenizer.encode('user\\nThe capital of France is'), end_of_turn, *tokenizer.encode('\\n'),
       start_of_turn, *tokenizer.encode('assistant\\n')]
answer, first = [], 0
for token in model.generate(ids, 12, temperature=0, stop=tokenizer.eos):
    first = first or time.perf_counter() - start
    answer.append(token)
from pathlib import Path
status = Path("/proc/self/status")
peak = (int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(first, peak / sum(p.data.nbytes for p in model.parameters()), tokenizer.decode(answer))
"""


@real
def test_from_the_real_file_to_paris_it_takes_little_memory_and_time():
    """At most 1.3 times the float32 weights, Python and NumPy with it."""
    done = child(SPEAK, REAL)
    assert done.returncode == 0, done.stderr
    first, memory, answer = done.stdout.split(" ", 2)
    assert "Paris" in answer
    assert float(memory) <= 1.3, memory
    assert float(first) < 20, first                        # where nobody else works, under 5
