"""Make tests/gguf.zip: what the format's own library and transformers make of GGUF files.

The tests only read the file, and need none of these. It was made once, with gguf 0.19.0,
torch 2.13.0 and transformers 4.57.6 (see make_fixture.py for their set-up; `gguf` beside them):

    .venv-torch/bin/python tools/make_gguf.py

It holds random blocks of every type with the floats that the library reads in them; the names of all
types; and four tiny models, written as llama.cpp's converters write them, with the logits that
transformers computes from the same weights. A converter sorts the rows of a Llama's queries and
keys into neighbouring pairs, and for Llama 3 writes a tensor of what the speeds are divided by.
Their tokenizers are those of make_tokenizers_today.py.
"""
from __future__ import annotations

import io
import json
import math
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

import make_tokenizers_today as tokenizers_today

ROOT = Path(__file__).resolve().parent.parent
TYPES = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q6_K".split()
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=64, max_position_embeddings=96, attn_implementation="eager")
T, EVERY = 64, 21                                   # tokens that are read; logits that are kept
WHOLE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
PARTS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
         "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm",
         "k_norm": "attn_k_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def blocks(name: str, n: int, rng: np.random.Generator, spread: float = 1.0) -> np.ndarray:
    """Random bytes, (n, bytes of a block), with finite scales."""
    size = gguf.GGML_QUANT_SIZES[Type[name]][1]
    found = rng.integers(0, 256, (n, size), np.uint8)
    for at in SCALES[name]:
        d = (spread * rng.normal(size=(n, 1))).astype("<f2")
        d[:3] = [[0], [6e-8], [-65504 * (spread == 1)]][:n]        # none, the least, the largest
        found[:, at : at + 2] = d.view(np.uint8)
    return found


def numbers(name: str, rng: np.random.Generator) -> np.ndarray:
    """Bytes of 64 plain numbers, some at the edge."""
    if name == "BF16":
        return (rng.normal(size=64).astype("<f4").view("<u4") >> 16).astype("<u2").view(np.uint8)
    dtype = {"F32": "<f4", "F16": "<f2"}[name]
    w = rng.normal(size=64).astype(dtype)
    w[:4] = np.finfo(dtype).max, np.finfo(dtype).smallest_subnormal, -0.0, np.finfo(dtype).min
    return w.view(np.uint8)


def make_types() -> dict[str, np.ndarray]:
    """For each type, bytes and what the library reads in them."""
    rng, out = np.random.default_rng(16), {}
    for name in TYPES:
        data = blocks(name, 6 if "K" in name else 24, rng) if name in SCALES else numbers(name, rng)
        with np.errstate(all="ignore"):
            w = gguf.quants.dequantize(data, Type[name]).astype("<f4")
        out |= {f"{name}/bytes": data.ravel(), f"{name}/weights": w.ravel()}
    return out


# Models


def interleave(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows i and i + D/2 of each head to rows 2i and 2i + 1."""
    heads = np.split(w, n_heads)
    sort = np.arange(len(heads[0])).reshape(2, -1).T.ravel()
    return np.concatenate([head[sort] for head in heads])


def back(w: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of interleave()."""
    sort = np.arange(len(w) // n_heads).reshape(-1, 2).T.ravel()
    return np.concatenate([head[sort] for head in np.split(w, n_heads)])


def divisors(D: int, base: float) -> np.ndarray:
    """What a converter writes as rope_freqs.weight for SCALING, (D/2,)."""
    speeds = 1 / base ** (torch.arange(0, D, 2, dtype=torch.float32) / D)
    few, many = SCALING["low_freq_factor"], SCALING["high_freq_factor"]
    length, out = SCALING["original_max_position_embeddings"], []
    for speed in speeds.tolist():
        wave = 2 * math.pi / speed
        smooth = (length / wave - few) / (many - few)
        out.append(1 if wave < length / many else SCALING["factor"] if wave > length / few else
                   1 / ((1 - smooth) / SCALING["factor"] + smooth))
    return np.float32(out)


def translate(name: str) -> str:
    """model.layers.1.mlp.up_proj.weight to blk.1.ffn_up.weight."""
    *_, layer, end = parts = name.split(".")
    return f"blk.{parts[2]}.{PARTS[layer]}.{end}" if parts[1] == "layers" else f"{WHOLE[layer]}.{end}"


def make_model(kind: str, path: Path, tokenizer: str, types: dict[str, str], more: dict[str, Any]) -> np.ndarray:
    """Write a model with random weights; returns the (1, T, V) logits of transformers."""
    known = json.loads(tokenizers_today.FIXTURE.read_text("utf-8"))
    merges = [pair.split(" ") for pair in known["kinds"][tokenizer]["merges"]][:MERGES]
    files = tokenizers_today.files(tokenizer, list(known["alphabet"]), merges)
    whole, said = files["tokenizer.json"], files["tokenizer_config.json"]
    added = {entry["id"]: entry for entry in whole["added_tokens"]}
    ids = whole["model"]["vocab"] | {entry["content"]: number for number, entry in added.items()}
    tokens = sorted(ids, key=ids.get)

    form = {"llama3": "Llama", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    config = getattr(transformers, f"{form}Config")(**SHAPE | more, vocab_size=len(tokens), pad_token_id=None)
    model = getattr(transformers, f"{form}ForCausalLM")(config).eval()
    writer = gguf.GGUFWriter(path, form.lower())
    write_sizes(writer, config, len(tokens))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if form == "Llama" else {}
    if config.rope_scaling:
        writer.add_tensor("rope_freqs.weight", divisors(config.head_dim, config.rope_theta))
    rng = np.random.default_rng(len(kind))
    for name, p in model.named_parameters():
        w = (p.data + 0.2 * torch.randn_like(p)).numpy()
        w, layer = w if w.ndim > 1 or "bias" in name else np.float32(w + 0.5), name.split(".")[-2]
        chosen = (types.get(layer, "Q8_0") if w.ndim > 1 else "F32").split()
        type_ = chosen[int(name.split(".")[2]) % len(chosen)] if "layers" in name else chosen[0]
        w = interleave(w, heads[layer]) if layer in heads else w
        if type_.endswith("_K"):                    # the library cannot write these
            data = blocks(type_, w.size // 256, rng, 0.01 if type_ == "Q4_K" else 1e-4).reshape(len(w), -1)
        else:
            data = gguf.quants.quantize(w, Type[type_])
        if type_ in ("F32", "F16"):
            writer.add_tensor(translate(name), data)
        else:
            writer.add_tensor(translate(name), data.view(np.uint8), raw_dtype=Type[type_])
        w = gguf.quants.dequantize(data.view(np.uint8), Type[type_]).astype(np.float32).reshape(w.shape)
        p.data = torch.from_numpy(back(w, heads[layer]) if layer in heads else w)
    write_tokenizer(writer, tokenizer, tokens, ids, added, whole, said)
    for step in "header", "kv_data", "tensors":
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with torch.no_grad():
        return model.double()(read_ids(len(tokens))).logits.numpy()


MERGES = 60


def read_ids(V: int) -> torch.Tensor:
    """(1, T)"""
    return torch.from_numpy(np.random.default_rng(1).integers(0, V, (1, T)))


def write_sizes(writer: gguf.GGUFWriter, config: Any, V: int) -> None:
    """As the converters say them."""
    D = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if D != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(D)
        writer.add_value_length(D)
    if config.model_type == "llama":
        writer.add_vocab_size(V)
        writer.add_rope_dimension_count(D)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)


def write_tokenizer(
    writer: gguf.GGUFWriter, kind: str, tokens: list[str], ids: dict[str, int], added: dict[int, Any],
    whole: dict[str, Any], said: dict[str, Any],
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([
        gguf.TokenType.NORMAL if number not in added else gguf.TokenType.CONTROL if added[number]["special"]
        else gguf.TokenType.USER_DEFINED for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in whole["model"]["merges"]])
    for role in ("bos", "eos", "unk", "pad"):
        token = said.get(f"{role}_token") or ("<|endoftext|>" if kind == "gpt-2" and role == "eos" else None)
        if token:
            getattr(writer, f"add_{role}_token_id")(ids[token])
    if "add_bos_token" in said:
        writer.add_add_bos_token(said["add_bos_token"])
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


MODELS = {
    "llama": ("smollm", {"q_proj": "Q4_1 Q5_1", "k_proj": "Q4_0 F16", "v_proj": "Q5_0 BF16",
                         "o_proj": "F32 Q4_1", "gate_proj": "Q4_1", "up_proj": "Q4_1", "down_proj": "Q4_K Q6_K"},
              dict(tie_word_embeddings=True, intermediate_size=256, rope_theta=100_000.0, rms_norm_eps=1e-5)),
    "llama3": ("llama-bpe", {"k_proj": "BF16"},
               dict(tie_word_embeddings=False, head_dim=16, rope_theta=10_000.0, rms_norm_eps=1e-5, rope_scaling=SCALING,
                    num_hidden_layers=1)),
    "qwen2": ("qwen2", {"lm_head": "Q5_0"}, dict(tie_word_embeddings=False, num_hidden_layers=1)),
    "qwen3": ("gpt-2", {},
              dict(tie_word_embeddings=True, head_dim=16, num_hidden_layers=1)),
}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(16)
    arrays = make_types()
    with tempfile.TemporaryDirectory() as home:
        for kind, (tokenizer, types, more) in MODELS.items():
            logits = make_model(kind, Path(home, f"{kind}.gguf"), tokenizer, types, more)
            arrays |= {f"{kind}/logits": np.float32(logits[0, ::EVERY]),
                       f"{kind}/ids": read_ids(logits.shape[2]).numpy().astype(np.int16)}
        found = io.BytesIO()
        np.savez(found, **arrays)
        Path(home, "arrays.npz").write_bytes(found.getvalue())
        Path(home, "types.json").write_text(json.dumps({t.name: int(t) for t in Type}))
        with zipfile.ZipFile(ROOT / "tests/gguf.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path(home).iterdir()):
                info = zipfile.ZipInfo(path.name)          # with no date: the same bytes again
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, path.read_bytes())
                print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
