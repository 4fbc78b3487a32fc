"""Make tests/reward.npz: the losses of chapter 18 and their gradients, as PyTorch has them.

    .venv-torch/bin/python tools/make_reward.py tests/reward.npz

Run once, with Python 3.11.7, torch 2.13.0 and numpy 2.4.6. REINFORCE in groups and DPO are written
here as their papers have them, on log-probabilities, and autograd finds the gradients of the logits.
"""
import sys

import numpy as np
import torch
from torch.nn.functional import logsigmoid

N, V, G, BETA, LEASH = 6, 11, 5, 0.3, 0.2


def main(path):
    torch.manual_seed(18)
    before = 2 * torch.randn(N, V, dtype=torch.float64)
    logits = (before + torch.randn(N, V, dtype=torch.float64)).requires_grad_()
    chosen, rewards = torch.randint(V, (N, G)), torch.rand(N, G, dtype=torch.float64)
    better, worse = torch.randint(V, (N,)), torch.randint(V, (N,))
    worse = torch.where(worse == better, (worse + 1) % V, worse)
    rows = torch.arange(N)

    log_p, log_q = logits.log_softmax(-1), before.log_softmax(-1)
    value = (rewards - LEASH * (log_p - log_q).gather(1, chosen)).detach()
    group = -((value - value.mean(1, keepdim=True)) * log_p.gather(1, chosen)).mean()
    margin = BETA * ((log_p - log_q)[rows, better] - (log_p - log_q)[rows, worse])
    pairs = -logsigmoid(margin).mean()
    worth = torch.rand(N, V, dtype=torch.float64)
    expected = -(log_p.exp() * worth).sum(1).mean()
    out = {"before": before, "logits": logits, "chosen": chosen, "rewards": rewards,
           "better": better, "worse": worse, "worth": worth}
    for name, loss in (("group", group), ("pairs", pairs), ("expected", expected)):
        out[f"{name} gradient"], = torch.autograd.grad(loss, logits, retain_graph=True)
        out[f"{name} loss"] = loss
    np.savez_compressed(path, beta=BETA, leash=LEASH, **{
        name: array.detach().numpy() for name, array in out.items()})


if __name__ == "__main__":
    main(sys.argv[1])
