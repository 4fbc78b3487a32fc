"""Make tests/directories_today.zip: tiny Llamas and Qwens as transformers writes them, and what it computes.

    .venv-torch/bin/python tools/make_directories_today.py tests/directories_today.zip

Run once, with Python 3.11.7, torch 2.13.0, transformers 4.57.6 and numpy 2.4.6. There is noise on
every parameter, so that no gain is 1 and no bias 0. Logits and gradients are computed in float64, but
for the norms and angles, which transformers computes in float32.
"""
import io
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn import functional as F

SHAPE = dict(vocab_size=19, max_position_embeddings=24, hidden_size=16, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, rope_theta=100.0,
             tie_word_embeddings=True, attn_implementation="eager")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}       # of 4 hands: kept, between, slow, slow
MODELS = {                                              # its class, how it differs, how it is written
    "llama": ("Llama", {"rms_norm_eps": 1e-5}, {}),
    "llama_wide_heads": ("Llama", {"head_dim": 6, "num_key_value_heads": 1, "tie_word_embeddings": False,
                                   "rms_norm_eps": 1e-3}, {}),
    "llama3": ("Llama", {"rope_scaling": LLAMA3, "max_position_embeddings": 60, "head_dim": 8}, {}),
    "llama_linear": ("Llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, {}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-6}, {}),
    "qwen3": ("Qwen3", {"rms_norm_eps": 1e-6, "head_dim": 8}, {}),
    "qwen2_bfloat16": ("Qwen2", {}, {"dtype": torch.bfloat16}),
    "llama_float16": ("Llama", {}, {"dtype": torch.float16}),
    "qwen3_shards": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": False}, {"max_shard_size": "8KB"}),
}


def make(name, out):
    """Write one directory; its ids, targets, logits, loss and gradients."""
    kind, differs, how = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, "pad_token_id": None, **differs})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model = model.to(how.get("dtype", torch.float32))
    model.save_pretrained(out / name, max_shard_size=how.get("max_shard_size", "1GB"))
    (out / name / "generation_config.json").unlink(missing_ok=True)
    model = type(model).from_pretrained(out / name, dtype=torch.float32, attn_implementation="eager").double()
    ids = torch.randint(19, (2, config.max_position_embeddings))
    targets = ids.roll(-1, dims=1)
    targets[0, [0, 4, 11]] = targets[1, 15:] = -1
    logits = model(ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    found = {"ids": ids, "targets": targets, "logits": logits, "loss": loss}
    if name in ("llama", "llama_wide_heads", "llama3", "llama_linear", "qwen2", "qwen3"):
        found |= {f"gradients/{key}": p.grad for key, p in model.named_parameters()}
    return {f"{name}/{key}": value.detach().numpy() for key, value in found.items()}


def main(path):
    torch.set_num_threads(1)
    torch.manual_seed(16)
    with tempfile.TemporaryDirectory() as directory:
        out, expected = Path(directory), {}
        for name in MODELS:
            expected |= make(name, out)
        small = {key: value.astype(np.float32) if value.dtype == float else value.astype(np.int16)
                 for key, value in expected.items()}
        arrays = io.BytesIO()
        np.savez(arrays, **small)
        (out / "expected.npz").write_bytes(arrays.getvalue())
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for file in sorted(out.rglob("*.*")):
                info = zipfile.ZipInfo(file.relative_to(out).as_posix())     # with no date: the same bytes again
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, file.read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
