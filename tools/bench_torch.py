"""Our training step and generation beside PyTorch's, in one run: make bench-torch.

The PyTorch model is the same architecture as its users would write it: nn.Linear,
scaled_dot_product_attention, fused AdamW, gradients clipped. Both sides get the same
ids, two cores, and float32. Blocks of steps alternate between the two, with a pause
before each, since PyTorch's threads go on spinning for a moment; the ratios are medians
over the blocks. Below 1, we are faster. `make bench-torch TEXT=path` trains both on the
characters of a text instead.
"""
from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from bench import SIZES, in_parallel, make_batch  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.model import Config  # noqa: E402
from simple_llm.optimizer import clip_gradients  # noqa: E402

CORES = 2


def torch_model(config: Config) -> Any:
    """A GPT as nn.Modules, and its training step's optimizer."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    C, H = config.d_model, config.n_heads

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.project = nn.Linear(C, 3 * C), nn.Linear(C, C)

        def forward(self, x):
            B, T, _ = x.shape
            q, k, v = (part.view(B, T, H, C // H).transpose(1, 2)
                       for part in self.qkv(x).split(C, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.project(y.transpose(1, 2).reshape(B, T, C))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.attention = nn.LayerNorm(C), Attention()
            self.norm_2 = nn.LayerNorm(C)
            self.widen, self.narrow = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x):
            x = x + self.attention(self.norm_1(x))
            wide = F.gelu(self.widen(self.norm_2(x)), approximate="tanh")
            return x + self.narrow(wide)

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(config.vocab_size, C)
            self.positions = nn.Embedding(config.context_length, C)
            self.blocks = nn.Sequential(*[Block() for _ in range(config.n_layers)])
            self.norm = nn.LayerNorm(C)

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
            logits = self.norm(self.blocks(x)) @ self.tokens.weight.T
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    return GPT()


def our_step(config: Config, batch: int, workers: int = CORES) -> Callable[[], None]:
    team, rows = in_parallel(FastLLM(config), workers), make_batch(config, batch)

    def step() -> None:
        team.loss_and_gradient(rows)
        clip_gradients(team.parameters, 1.0)
        team.step(1e-4)

    return step


def their_step(config: Config, batch: int) -> Callable[[], None]:
    import torch

    model = torch_model(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    ids, targets = map(torch.from_numpy, make_batch(config, batch))

    def step() -> None:
        loss = model(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def seconds(step: Callable[[], Any], times: int) -> float:
    """The time of one step, from a block of several, after a rest and a warm-up."""
    time.sleep(0.3)
    step()
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times


def duel(ours: Callable, theirs: Callable, times: int, blocks: int = 9) -> tuple:
    """Median time of ours and of theirs, and the median of the blocks' ratios."""
    seconds(ours, 2), seconds(theirs, 2)
    pairs = [(seconds(ours, times), seconds(theirs, times)) for _ in range(blocks)]
    return (*map(median, zip(*pairs)), median(a / b for a, b in pairs))


def compare_steps(cores: int = CORES) -> None:
    """Training steps on so many cores: our processes against their threads."""
    import torch

    title = f"training step, {cores} core{'s' * (cores > 1)}"
    print(f"{title:28} {'ours':>10} {'PyTorch':>10} {'ratio':>7}")
    for name, (config, batch) in SIZES.items():
        times = max(2, round(2e9 / config.d_model**2 / config.n_layers
                             / (batch * config.context_length) / 20))
        theirs = their_step(config, batch)
        torch.set_num_threads(cores)
        a, b, ratio = duel(our_step(config, batch, cores), theirs, min(20, times))
        print(f"{name:28} {a * 1e3:7.2f} ms {b * 1e3:7.2f} ms {ratio:7.2f}", flush=True)


def transformers_model(config: Config) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(CORES)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length,
        n_embd=config.d_model, n_layer=config.n_layers, n_head=config.n_heads,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )).eval()


GENERATORS = {
    "nano": Config(65, 256, 128, 4, 4),
    "big": Config(65, 256, 384, 6, 6),
    "GPT-2 124M, random weights": Config(50257, 1024, 768, 12, 12),
}


def compare_generation(tokens: int = 200) -> None:
    import torch

    title = f"{tokens} greedy tokens, cached"
    print(f"\n{title:28} {'ours':>10} {'transf.':>10} {'speed':>7}")
    for name, config in GENERATORS.items():
        ours, theirs = FastLLM(config), transformers_model(config)
        prompt = torch.ones((1, 1), dtype=torch.int64)

        def us() -> None:
            list(ours.generate([1], max_new_tokens=tokens, temperature=0))

        def them() -> None:
            with torch.inference_mode():
                theirs.generate(prompt, attention_mask=prompt, max_new_tokens=tokens,
                                min_new_tokens=tokens, do_sample=False)

        a, b, ratio = duel(us, them, 1, blocks=5 if config.n_layers > 6 else 7)
        print(f"{name:28} {tokens / a:6,.0f} t/s {tokens / b:6,.0f} t/s "
              f"{1 / ratio:6.1f}x", flush=True)


RECIPE = dict(steps=2000, peak=1e-3, low=1e-4, warmup=100)  # nanoGPT's, for a CPU


def train_on_text(side: str, path: str) -> None:
    """In a process of its own: learn the characters of a text; say the held-out loss.

    Ours is the command line, as people use it; theirs is the plain loop, with as many
    evaluations on the way, 26, of as many tokens each.
    """
    if side == "our-text":
        from simple_llm.cli.main import main
        with tempfile.TemporaryDirectory() as out:
            sys.exit(main(["train", "--corpus", path, "--out", out, "--no-ladder",
                           "--max-steps", str(RECIPE["steps"]),
                           "--min-lr", str(RECIPE["low"])]))
    import torch
    from simple_llm.optimizer import learning_rate
    from simple_llm.text import TextCorpus
    from simple_llm.tokenizer import Tokenizer

    text, (config, _) = Path(path).read_text(encoding="utf-8"), SIZES["nano"]
    corpus = TextCorpus(text, Tokenizer.from_text(text, "char"), config.context_length)
    model = torch_model(replace(config, vocab_size=corpus.tokenizer.vocab_size))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1,
                                  fused=True)

    def tensors(batch: Any) -> Any:
        return (torch.from_numpy(ids).long() for ids in (batch.ids, batch.targets))

    def held_out(sample: bool) -> float:
        with torch.inference_mode():
            losses = [(float(model(*tensors(batch))), batch.targets.size)
                      for batch in corpus.validation_batches(sample)]
        return sum(a * n for a, n in losses) / sum(n for _, n in losses)

    batches = (batch for epoch in itertools.count(1) for batch in corpus.batches(epoch))
    for step, batch in enumerate(itertools.islice(batches, RECIPE["steps"])):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, RECIPE["steps"], RECIPE["peak"],
                                        RECIPE["warmup"], RECIPE["low"])
        loss = model(*tensors(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % (RECIPE["steps"] // 25) == 0 or step + 1 == RECIPE["steps"]:
            held_out(sample=True)
    print(f"loss {held_out(sample=False):.3f} nats")


def compare_text(path: str, rounds: int = 2) -> None:
    """A whole training on a text, from the start of Python to the last evaluation."""
    times, ends = {"our-text": [], "their-text": []}, {}
    for side in [*times] * rounds:
        start = time.perf_counter()
        out = subprocess.run([sys.executable, __file__, side, path], check=True,
                             stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        times[side].append(time.perf_counter() - start)
        ends[side] = re.findall(r"loss ([0-9.]+) nats", out)[-1]
    a, b = map(min, times.values())
    print(f"{RECIPE['steps']} steps on {Path(path).name}: ours {a:.0f} s, held-out "
          f"{ends['our-text']}; PyTorch {b:.0f} s, {ends['their-text']}; ratio {a / b:.2f}")


def first_step(side: str) -> None:
    """In a process of its own: the time to the first step, and the memory after twenty more."""
    start = float(os.environ["STARTED"])
    config, batch = SIZES["nano"]
    step = (our_step if side == "ours" else their_step)(config, batch)
    step()
    first = time.time() - start
    for _ in range(20):
        step()
    print(json.dumps([first, memory()]))


def memory() -> float:
    """Of this process and its helpers, in MB; what they share is divided among them."""
    pids = ["self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text()
             .splitlines() if line.startswith("Pss:")]
    return sum(int(line.split()[1]) for line in lines) / 1024


def compare_starts() -> None:
    results: dict[str, list] = {"ours": [], "theirs": []}
    for _ in range(3):
        for side, found in results.items():
            env = {**os.environ, "STARTED": str(time.time())}
            out = subprocess.run([sys.executable, __file__, side], env=env, check=True,
                                 capture_output=True, text=True).stdout
            found.append(json.loads(out))
    (start, memory), (their_start, their_memory) = (
        tuple(map(median, zip(*found))) for found in results.values())
    print(f"\n{'nano':28} {'ours':>10} {'PyTorch':>10} {'ratio':>7}", flush=True)
    print(f"{'start to first step':28} {start:8.2f} s {their_start:8.2f} s "
          f"{start / their_start:7.2f}")
    print(f"{'memory while training':28} {memory:7.0f} MB {their_memory:7.0f} MB "
          f"{memory / their_memory:7.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("ours", "theirs"):
        first_step(sys.argv[1])
    elif sys.argv[1:] == ["generation"]:
        compare_generation()
    elif sys.argv[1:2] and sys.argv[1] in ("our-text", "their-text"):
        train_on_text(*sys.argv[1:])
    elif sys.argv[1:2] == ["text"]:
        compare_text(sys.argv[2])
    else:
        compare_steps()
        print()
        compare_steps(cores=1)
        compare_starts()
        # To generate with a large model is to read its weights: here two cores help.
        env = {**os.environ, "OPENBLAS_NUM_THREADS": str(CORES)}
        subprocess.run([sys.executable, __file__, "generation"], env=env, check=True)
