"""Make tests/today.npz: what transformers' Llama and PyTorch's Muon compute.

    .venv-torch/bin/python tools/make_today.py tests/today.npz

Run once, with Python 3.11.7, torch 2.13.0, transformers 4.57.6 and numpy 2.4.6. The Llama is tiny,
with noise on every parameter, in float64. PyTorch's Muon orthogonalizes in bfloat16; `muon/after`
is what it gives when these numbers stay in float64, and `muon/after16` what it gives as it is.
"""
import sys

import numpy as np
import torch
import transformers
from torch.nn import functional as F

SHAPE = dict(vocab_size=29, max_position_embeddings=12, hidden_size=24, num_hidden_layers=2,
             num_attention_heads=6, num_key_value_heads=2, intermediate_size=40)
SHAPES = [(8, 8), (8, 24), (24, 8)]  # (out, in), as PyTorch has them


def llama():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **SHAPE, rms_norm_eps=1e-5, rope_theta=100.0, tie_word_embeddings=True,
        pad_token_id=None, attn_implementation="eager")).double()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    ids = torch.randint(29, (3, 12))
    targets = ids.roll(-1, dims=1)
    targets[0, [0, 4, 11]] = targets[2, 5:] = -1
    logits = model(ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    out = {"llama/ids": ids, "llama/targets": targets, "llama/logits": logits, "llama/loss": loss}
    for name, p in model.named_parameters():
        out |= {f"llama/parameters/{name}": p, f"llama/gradients/{name}": p.grad}
    return out


def muon(before, gradients):
    """Ten steps of PyTorch's Muon on some matrices."""
    parameters = [torch.nn.Parameter(w.clone()) for w in before]
    optimizer = torch.optim.Muon(parameters, lr=0.02, weight_decay=0.1)
    for step in range(10):
        for p, g in zip(parameters, gradients):
            p.grad = g[step].clone()
        optimizer.step()
    return parameters


def main(path):
    torch.set_num_threads(1)
    torch.manual_seed(81)
    out = SHAPE | llama()
    before = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    gradients = [torch.randn(10, *shape, dtype=torch.float64) for shape in SHAPES]
    as_it_is = muon(before, gradients)
    round_off = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = lambda tensor: tensor.clone()
    exact = muon(before, gradients)
    torch.Tensor.bfloat16 = round_off
    for k, arrays in enumerate(zip(before, gradients, exact, as_it_is)):
        out |= {f"muon/{name}/{k}": a for name, a in
                zip(("before", "gradients", "after", "after16"), arrays)}
    np.savez_compressed(path, **{k: v.detach().numpy() if isinstance(v, torch.Tensor) else np.array(v)
                                 for k, v in out.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
