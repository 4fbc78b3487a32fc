"""The tables of chapter 17: python tools/real.py NAME.

NAME is bits (minutes: it trains a model of characters first), unpack, poem, loops, talk or tokens; all but
the first need the real model, which `make chat MODEL=smollm2` fetches. Needs build/ (make tangle), and NumPy alone.
"""
from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from experiments import of_characters  # noqa: E402
from simple_llm.cli.fetch import find  # noqa: E402
from simple_llm.cli.models import load  # noqa: E402
from simple_llm.cli.words import make_visible  # noqa: E402
from simple_llm.engine.fast import FastLLM, Flat, Muon  # noqa: E402
from simple_llm.engine.parallel import DataParallel  # noqa: E402
from simple_llm.layers import softmax  # noqa: E402
from simple_llm.model import SimpleLLM  # noqa: E402
from simple_llm.text import gather_text  # noqa: E402
from simple_llm.today.chat import Conversation, Turn, make_writer  # noqa: E402
from simple_llm.today.gguf import GGUF, dequantize, quantize  # noqa: E402
from simple_llm.today.muon import is_hidden  # noqa: E402
from simple_llm.train import Alone, Options, evaluate, train  # noqa: E402
from simple_llm.world import StoryCorpus, World, floor  # noqa: E402

BITS = (32, 8, 4, 3, 2)


def train_on_characters() -> tuple[SimpleLLM, Any]:
    """A model of Python's documentation, after 1,000 steps."""
    corpus, config = of_characters(gather_text(["pydoc"]))
    model = FastLLM(config, 0)
    options = Options(max_steps=1000, learning_rate=2e-3, workers=1)
    with DataParallel(model, Muon(Flat(model), 10.0)) as team:
        train(team, corpus, options, lambda moment: None)
    return model, corpus


def coarsen(model: SimpleLLM, bits: int) -> None:
    """Keep each matrix and table with so many bits, in blocks along what is summed over."""
    for name, p in model.named_parameters():
        if p.data.ndim == 2 and bits < 32:
            rows = p.data.T if is_hidden(name, p) else p.data              # (out, in) or (V, C)
            coarse = quantize(np.ascontiguousarray(rows), bits)
            p.data[...] = coarse.T if is_hidden(name, p) else coarse


def show_bits() -> None:
    """What is lost when all matrices and tables are kept with fewer bits."""
    stories = StoryCorpus(World())
    world = FastLLM.from_pretrained(HERE.parent / "tests/trained")
    low, pairs = floor(stories.held_out), [(world, stories), train_on_characters()]
    kept = [[p.data.copy() for p in model.parameters()] for model, _ in pairs]
    print(f"{'bits':>4}{'above the floor':>17}{'questions':>11}{'against habit':>15}{'text':>8}{'lost':>8}")
    for bits in BITS:
        scores = []
        for (model, corpus), exact in zip(pairs, kept):
            for p, old in zip(model.parameters(), exact):
                p.data[...] = old
            coarsen(model, bits)
            scores.append(evaluate(Alone(model), corpus))
        story, text = scores
        first = text.loss if bits == BITS[0] else first
        print(f"{bits:4}{story.loss - low:17.3f}{story.answers:11.1%}{story.unusual:15.1%}"
              f"{text.loss:8.3f}{text.loss - first:8.3f}", flush=True)


def open_real() -> tuple[Any, Any, Any]:
    """The real model, its tokenizer, and what writes its conversations."""
    path = find("smollm2")
    model, tokenizer = load(path)
    template = GGUF.open(Path(path)).said["tokenizer.chat_template"]
    return model, tokenizer, make_writer(template, tokenizer)


def show_unpack() -> None:
    """How long the weights take to be read as float32, and to be unpacked."""
    gguf = GGUF.open(Path(find("smollm2")))
    entry = gguf.entries["blk.0.ffn_up.weight"]
    blocks = np.fromfile(gguf.path, entry.dtype, entry.n_blocks, offset=entry.begin)
    W, x = dequantize(entry.kind, blocks).reshape(entry.shape), np.ones(entry.shape[1], np.float32)

    def best(work: Any) -> float:
        times = []
        for _ in range(50):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    unpack, use = best(lambda: dequantize(entry.kind, blocks)), best(lambda: W @ x)
    print(f"one matrix of {W.size:,} weights: unpacked {unpack * 1e3:.2f} ms, used {use * 1e3:.2f} ms; "
          f"ratio {unpack / use:.0f}")


def looped(ids: list[int], n: int = 8) -> float:
    """The share of the tokens that end a run of n tokens which stood there before."""
    seen: set[tuple[int, ...]] = set()
    again = 0
    for end in range(n, len(ids) + 1):
        run = tuple(ids[end - n : end])
        again += run in seen
        seen.add(run)
    return again / max(1, len(ids))


QUESTIONS = (
    "Write a short poem about the sea.", "What is the capital of France?", "How do plants grow?",
    "Tell me a story about a fox.", "Explain what a computer is.", "Why is the sky blue?",
    "Give me a recipe for bread.", "Who was Isaac Newton?", "What should I pack for a trip?",
    "Describe a day in the life of a bee.", "What is music?", "How does a bicycle work?",
    "Write a letter to a friend.", "List the planets.", "What is the meaning of life?",
    "How do I learn to swim?", "Tell me about the history of Rome.", "What is a prime number?",
    "Why do cats purr?", "Write a dialogue between the sun and the moon.")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy, penalty 1.1": {"temperature": 0, "repetition_penalty": 1.1},
    "greedy, penalty 1.3": {"temperature": 0, "repetition_penalty": 1.3},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 0.7, min-p 0.1": {"temperature": 0.7, "min_p": 0.1},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
}


def show_loops() -> None:
    """How often answers of at most 200 tokens go round in circles."""
    model, tokenizer, writer = open_real()
    ends = {tokenizer.eos}
    print(f"{'':30}{'ended':>7}{'answers that loop':>19}{'tokens said again':>19}{'length':>8}")
    for name, how in WAYS.items():
        answers = []
        for seed, question in enumerate(QUESTIONS):
            talk = Conversation(model, writer, tokenizer, ends)
            seeds = {"seed": seed} if how["temperature"] else {}
            answers.append(list(talk.ask(question, 200, **how, **seeds)))
        shares = [looped(answer) for answer in answers]
        print(f"{name:30}{sum(len(a) < 200 for a in answers):7}{sum(s > 0.2 for s in shares):19}"
              f"{np.mean(shares):19.0%}{np.mean([len(a) for a in answers]):8.0f}", flush=True)


def show_poem() -> None:
    """An answer that goes round: each line with the mean probability of its tokens."""
    model, tokenizer, writer = open_real()
    ids, caches, line = writer.write([Turn("user", QUESTIONS[0])]), model.make_caches(), []
    logits = model.next_logits(np.array([ids]), caches)[0]                 # (V,)
    text = ""
    while text.count("\n") < 12:
        p = softmax(logits.astype(float))
        token = int(p.argmax())
        line.append(p[token])
        text += tokenizer.decode([token])
        if text.endswith("\n"):
            print(f"{np.mean(line):5.2f}  {text.splitlines()[-1]}")
            line = []
        logits = model.next_logits(np.array([[token]]), caches)[0]


TALK = ("What is the capital of France?", "And of Italy?", "Is the moon made of cheese?", "What is 17 times 23?",
        "Name three fruits.", "Which of them is yellow?", "What was my first question?")


def show_talk() -> None:
    """A conversation, greedy."""
    model, tokenizer, writer = open_real()
    talk = Conversation(model, writer, tokenizer, {tokenizer.eos})
    for question in TALK:
        print(f"> {question}")
        print(textwrap.fill(tokenizer.decode(talk.ask(question, 200, temperature=0)).strip(), 92), flush=True)


def show_tokens() -> None:
    """A question as the model sees it, and its answer, each token with its probability."""
    model, tokenizer, writer = open_real()
    ids = writer.write([Turn("user", TALK[0])])
    shown = [make_visible(tokenizer.show(token)) for token in ids]
    print(textwrap.fill(" ".join(shown), 92))
    print(f"({len(ids)} tokens)\n")
    caches, line = model.make_caches(), []
    logits = model.next_logits(np.array([ids]), caches)[0]                 # (V,)
    while True:
        p = softmax(logits.astype(float))
        token = int(p.argmax())
        line.append(f"{make_visible(tokenizer.show(token))} {p[token]:.2f}")
        if token == tokenizer.eos:
            break
        logits = model.next_logits(np.array([[token]]), caches)[0]
    print("   ".join(line))


NAMES = {"bits": show_bits, "unpack": show_unpack, "loops": show_loops, "talk": show_talk, "tokens": show_tokens, "poem": show_poem}

if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in NAMES]:
        sys.exit(__doc__)
    NAMES[sys.argv[1]]()
