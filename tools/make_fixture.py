"""Make tests/fixture.npz: what PyTorch and transformers compute, for test_parity.py to compare with.

The tests only read the file, and need no PyTorch. This was run once, on a CPU, with Python 3.11.7,
torch 2.13.0, transformers 4.57.6 and numpy 2.4.6 (the file records them, under `versions`):

    make parity                         sets up .venv-torch
    .venv-torch/bin/python tools/make_fixture.py

The model is a tiny GPT-2, with noise on every parameter, so that each bias, gain and position counts.
What has 64 in its name was computed in float64, from the same float32 weights.
"""

import copy
import functools
import pathlib
import platform

import numpy as np
import torch
import transformers
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPE = dict(vocab_size=29, n_positions=12, n_embd=24, n_layer=2, n_head=3)

# Extreme inputs, reached by scaling some parameters: (part of the parameters' names, factor).
STRESS = {
    "large_logits": ("ln_f.weight", 1000.0),  # exp() overflows unless the maximum is subtracted first
    "large_scores": ("attn.c_attn.weight", 100.0),  # and so it does in the attention's softmax
    "large_gelu": ("mlp.c_fc.weight", 300.0),  # tanh is -1 or 1
    "small_variance": ("transformer.w", 0.001),  # wte and wpe: epsilon outweighs the variance
}


def make_model():
    """A GPT-2 with noise on every parameter."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        **SHAPE, activation_function="gelu_new", tie_word_embeddings=True, attn_implementation="eager",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None))
    for parameter in model.parameters():  # a tied parameter comes once
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def run(model, ids, targets):
    """Logits and loss; the gradient of every parameter is left in .grad."""
    model.zero_grad()
    logits = model(ids, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    return logits, loss


def train(model, ids, targets):
    """Ten clipped AdamW steps on one batch; matrices and embeddings decay, vectors do not."""
    groups = [dict(params=[p], weight_decay=0.1 if p.ndim >= 2 else 0.0) for p in model.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for _ in range(10):
        losses.append(run(model, ids, targets)[1].item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())  # norm before clipping
        optimizer.step()
    return losses, norms


def layers():
    """GELU, LayerNorm and cross-entropy alone, forward and backward, in float64."""
    leaf = functools.partial(torch.tensor, dtype=torch.float64, requires_grad=True)
    x = leaf([-1000.0, -50, -10, -5, -3, -1, -0.75, -1e-8, 0, 1e-8, 0.5, 1, 2, 3, 5, 10, 50, 1000])
    (y := F.gelu(x, approximate="tanh")).sum().backward()
    out = {"gelu/x": x, "gelu/y": y, "gelu/dx": x.grad}
    x = leaf([[1.0, 2, 3, 4], [-1000, 0, 0.5, 1000], [0.001, 0.002, -0.001, 0], [1001, 1002, 1003, 1005]])
    weight, bias, dy = leaf([1.0, -0.5, 2, 0.3]), leaf([0.1, 0.2, -0.3, 0]), x.detach().cos()
    (y := F.layer_norm(x, (4,), weight, bias, eps=1e-5)).backward(dy)
    values = dict(x=x, weight=weight, bias=bias, dy=dy, y=y, dx=x.grad, dweight=weight.grad, dbias=bias.grad)
    out |= {f"layernorm/{key}": value for key, value in values.items()}
    x = leaf([[0.0, 0, 0], [1, 2, 3], [1000, -1000, 999], [-10000, -10000, -9999], [5, 6, 7]])
    targets = torch.tensor([0, 2, 2, 0, -1])
    (loss := F.cross_entropy(x, targets, ignore_index=-1)).backward()
    values = dict(x=x, targets=targets, loss=loss, dx=x.grad)
    return out | {f"crossentropy/{key}": value for key, value in values.items()}


def main():
    torch.set_num_threads(1)  # so that another run gives the same bytes
    torch.manual_seed(81)  # one whose greedy continuation is varied
    ids = torch.tensor([[5, 3, 5, 5, 17, 2, 9, 3, 28, 0, 5, 11],  # repeated within a row and across rows;
                        [7, 7, 7, 7, 1, 12, 1, 12, 3, 20, 21, 7],  # some of the 29 never appear
                        [0, 5, 14, 26, 14, 9, 9, 2, 2, 17, 28, 3]])
    targets = ids.roll(-1, dims=1)
    targets[0, [0, 4, 11]] = targets[2, 5:] = -1  # rows differ in how many count
    model = make_model()
    names = [name for name, _ in model.named_parameters()]  # without lm_head.weight, which is wte's
    versions = ["python " + platform.python_version(), "torch " + torch.__version__,
                "transformers " + transformers.__version__, "numpy " + np.__version__]
    out = SHAPE | {"ids": ids, "targets": targets, "names": names, "versions": versions}
    out |= {f"parameters/{name}": p for name, p in zip(names, model.parameters())}
    for suffix, m in ("", copy.deepcopy(model)), ("64", copy.deepcopy(model).double()):
        out["logits" + suffix], out["loss" + suffix] = run(m, ids, targets)
        gradients = {f"gradients64/{name}": p.grad.clone() for name, p in zip(names, m.parameters())}
        out["losses" + suffix], out["norms" + suffix] = train(m, ids, targets)
    out |= gradients | {f"trained64/{name}": p for name, p in zip(names, m.parameters())}
    for case, (part, factor) in STRESS.items():
        m = copy.deepcopy(model).double()
        for name, parameter in m.named_parameters():
            parameter.data.mul_(factor if part in name else 1.0)
        logits, loss = run(m, ids, targets)
        norm = torch.nn.utils.get_total_norm([p.grad for p in m.parameters()])
        values = dict(part=part, factor=factor, logits64=logits, loss64=loss, norm64=norm)
        out |= {f"stress/{case}/{key}": value for key, value in values.items()}
    made = model.eval().generate(ids[:1, :4], max_new_tokens=8, do_sample=False, use_cache=True,
                                 pad_token_id=0, output_scores=True, return_dict_in_generate=True)
    best, second = torch.cat(made.scores).topk(2).values.T
    out |= {"generated": made.sequences[0], "generated_margin": (best - second).min()} | layers()
    arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else np.array(v) for k, v in out.items()}
    np.savez_compressed(ROOT / "tests/fixture.npz", **arrays)


if __name__ == "__main__":
    main()
