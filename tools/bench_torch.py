"""Our training step and generation beside PyTorch's, in one run: make bench-torch.

The PyTorch model is the same architecture as its users would write it: nn.Linear,
scaled_dot_product_attention, fused AdamW, gradients clipped. Both sides get the same
ids, as many cores, and float32: our two workers meet PyTorch's two threads, and two
processes of its DistributedDataParallel (DDP); our one process meets its one thread, and
the same compiled. Blocks of steps alternate between the two sides, with a pause before
each, since PyTorch's threads go on spinning for a moment; the ratios are medians over the
blocks. Below 1, we are faster. `make bench-torch TEXT=path` trains both on the characters
of a text instead.
"""
from __future__ import annotations

import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from bench import SIZES, in_parallel, make_batch  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.parallel import real_cores  # noqa: E402
from simple_llm.model import Config  # noqa: E402
from simple_llm.optimizer import clip_gradients  # noqa: E402

CORES = 2


def processor() -> str:
    """The processor's name, if the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def hardware_threads() -> int:
    """How many of its threads this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:                             # not on Linux
        return os.cpu_count() or 1


def print_machine() -> None:
    """Where this was measured, and with what."""
    import torch

    threads, cores = hardware_threads(), real_cores()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(textwrap.fill(
        f"{processor()}, {threads} threads on {cores} core{'s' * (cores > 1)} by its own "
        f"account; PyTorch {torch.__version__}, NumPy {np.__version__}, "
        f"{blas['name']} {blas['version']}", 76) + "\n", flush=True)


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


def their_step(
    config: Config, batch: int, threads: int = CORES,
    wrap: Callable[[Any], Any] = lambda model: model, part: slice = slice(None),
) -> Callable[[], None]:
    """A step of PyTorch's on a part of the batch; wrap makes more of the plain model."""
    import torch

    model = wrap(torch_model(config))
    torch.set_num_threads(threads)
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    ids, targets = (torch.from_numpy(rows[part]) for rows in make_batch(config, batch))

    def step() -> None:
        loss = model(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def ddp_step(rank: int, name: str, meeting: str) -> Callable[[], None]:
    """A step of one of two DDP processes, which meet in a file, on half the batch."""
    from torch import distributed, nn

    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    return their_step(*SIZES[name], threads=1, wrap=nn.parallel.DistributedDataParallel,
                      part=slice(rank, None, 2))


def second_process(name: str, meeting: str) -> None:
    """The other DDP process: it makes a step for each line that it reads."""
    step = ddp_step(1, name, meeting)
    for _ in sys.stdin:
        step()


@contextmanager
def two_processes(name: str) -> Iterator[Callable[[], None]]:
    """A step of both DDP processes, of which this is the first."""
    from torch import distributed

    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "second", name, f"{place}/meeting"]
        second = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
        try:
            step = ddp_step(0, name, f"{place}/meeting")

            def both() -> None:
                second.stdin.write(b"\n")
                step()

            yield both
        finally:
            second.kill()                      # it has nothing to put in order
            second.wait()
            distributed.destroy_process_group()


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


def print_head(cores: int, theirs: str = "PyTorch", more: str = "") -> None:
    title = f"training step, {cores} core{'s' * (cores > 1)}"
    print(f"{title:28} {'ours':>10} {theirs:>10} {'ratio':>7}{more}", flush=True)


def row(name: str, cores: int, theirs: Callable[[], None]) -> str:
    """A model's steps: so many processes of ours against theirs."""
    config, batch = SIZES[name]
    times = max(2, round(2e9 / config.d_model**2 / config.n_layers
                         / (batch * config.context_length) / 20))
    a, b, ratio = duel(our_step(config, batch, cores), theirs, min(20, times))
    return f"{name:28} {a * 1e3:7.2f} ms {b * 1e3:7.2f} ms {ratio:7.2f}"


def compare_threads(cores: int) -> None:
    """Our processes against PyTorch's threads."""
    print_head(cores)
    for name, size in SIZES.items():
        print(row(name, cores, their_step(*size, threads=cores)), flush=True)


def compare_processes() -> None:
    """Our two workers against PyTorch's two processes."""
    print_head(CORES, "DDP")
    for name in SIZES:
        with two_processes(name) as theirs:
            print(row(name, CORES, theirs), flush=True)


def compare_compiled() -> None:
    """Our process against one thread of torch.compile; the time to compile is apart."""
    import torch

    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty         # so that it does compile
        try:
            torch.compile(torch.neg)(torch.ones(9))
            print_head(1, "compiled", "  compiling")
            for name in SIZES:
                theirs, wait = compiled_step(name)
                print(f"{row(name, 1, theirs)} {wait:8.0f} s", flush=True)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(":.")
            print(textwrap.fill("torch.compile, which needs a C++ compiler, fails here: "
                                f"{reason}.", 76), flush=True)


def compiled_step(name: str) -> tuple[Callable[[], None], float]:
    """A compiled step, and the seconds that the first one took."""
    import torch

    torch.compiler.reset()              # or else it allows for shapes that change
    step = their_step(*SIZES[name], threads=1, wrap=torch.compile)
    start = time.perf_counter()
    step()
    return step, time.perf_counter() - start


def compare_products(name: str = "big") -> None:
    """The products of a model's linear layers alone, one thread each: how much is theirs?"""
    import torch

    torch.set_num_threads(1)
    config, batch = SIZES[name]
    rng, C, N = np.random.default_rng(0), config.d_model, batch * config.context_length
    sums, ratios = np.zeros(2), []
    for inputs, outputs in [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]:
        x, w, d = (rng.normal(size=shape).astype(np.float32)
                   for shape in [(N, inputs), (outputs, inputs), (N, outputs)])
        tx, tw, td = map(torch.from_numpy, (x, w, d))
        for ours, theirs in [(lambda: x @ w.T, lambda: tx @ tw.T),
                             (lambda: d.T @ x, lambda: td.T @ tx),
                             (lambda: d @ w, lambda: td @ tw)]:
            *both, ratio = duel(ours, theirs, 5)
            sums += both
            ratios.append(ratio)
    print(f"{name}, products of a block: NumPy {sums[0] * 1e3:.1f} ms, PyTorch "
          f"{sums[1] * 1e3:.1f} ms; ratio {sums[0] / sums[1]:.2f}, of each "
          f"{min(ratios):.2f} to {max(ratios):.2f}")


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


def main(arguments: list[str]) -> None:
    match arguments:
        case ["ours" | "theirs" as side]:
            first_step(side)
        case ["second", name, meeting]:
            second_process(name, meeting)
        case ["products"]:
            compare_products()
        case ["generation"]:
            compare_generation()
        case ["our-text" | "their-text" as side, path]:
            train_on_text(side, path)
        case ["text", path]:
            print_machine()
            compare_text(path)
        case _:
            compare_all()


def compare_all() -> None:
    print_machine()
    compare_threads(CORES)
    print()
    compare_threads(1)
    print()
    compare_processes()
    print()
    compare_compiled()
    compare_starts()
    # To generate with a large model is to read its weights: here two cores help.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": str(CORES)}
    subprocess.run([sys.executable, __file__, "generation"], env=env, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
