"""Chapter 18's "Honesty": python tools/honesty.py NAME [DIRECTORY].

    table                     the model's odds against the true ones, in nats, by kind of word
    calibration DIRECTORY     the same as a picture, calibration.svg
    strangers                 what is said of somebody who is not in the story; some seeds

Needs build/ (make tangle), and NumPy alone. Each model is trained in a minute or two.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
TRAINED = Path(__file__).resolve().parent.parent / "tests" / "trained"

import numpy as np  # noqa: E402

from chart import BLUE, GREY, INK, OCHRE, RED, Axes, Drawing  # noqa: E402
from simple_llm.batches import Array, pad_rows  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.parallel import make_team  # noqa: E402
from simple_llm.first import descend  # noqa: E402
from simple_llm.layers import softmax  # noqa: E402
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.optimizer import AdamW  # noqa: E402
from simple_llm.today.odds import odds  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.train import Options, train  # noqa: E402
from simple_llm.world import Story, StoryCorpus, World  # noqa: E402

WORLD = World()
BOTH = WORLD.places + WORLD.things
KINDS = {"name": "who comes next, or that nobody does", "verb": "goes or takes",
         "habit": "the place or thing", "asked": "who is asked about",
         "on": "whether a question follows", "answer": "the answer",
         "forced": "words that have to come"}


def first_model() -> SimpleLLM:
    """That of `make first`: 300 batches, and it answers by habit."""
    corpus = StoryCorpus(WORLD, steps_per_epoch=300, held_out=100)
    model = FastLLM(Config(corpus.tokenizer.vocab_size, corpus.longest))
    stdout, sys.stdout = sys.stdout, sys.stderr        # its scores are not ours
    descend(model, AdamW(model.parameters()), corpus, peak=4e-3)
    sys.stdout = stdout
    return model


def trained_model(seed: int, epochs: int = 50) -> SimpleLLM:
    """As make train does it, for half as long."""
    corpus = StoryCorpus(WORLD, seed=seed)
    model = FastLLM(Config(corpus.tokenizer.vocab_size, corpus.longest), seed)
    options = Options(epochs, matrix_rate=0.02, min_lr=0.0, workers=1, evaluations=1)
    with make_team(model, options) as team:
        train(team, corpus, options, lambda moment: None)
    return model


# The true odds

class Odds(NamedTuple):
    """N words of stories: their kinds, the true odds and the model's, and which came."""

    kinds: Array  # (N,)
    true: Array   # (N, V)
    model: Array  # (N, V)
    came: Array   # (N,)


def kinds_of(story: Story) -> Iterator[str]:
    """Of which kind the choice is that each word tells of."""
    answers, questions = {answer.position for answer in story.answers}, False
    for k, word in enumerate(story.words):
        before = story.words[k - 1] if k else "."
        questions = questions or word == "what"
        if k in answers:
            yield "answer"
        elif before == "." and story.words.index("what") >= k:
            yield "name"
        elif before == ".":
            yield "on"
        elif before == "about":
            yield "asked"
        elif word in ("went", "took"):
            yield "verb"
        else:
            yield "habit" if word in BOTH else "forced"


def true_odds(corpus: StoryCorpus, stories: Sequence[Story]) -> Array:
    """(N, V): of each word of the stories, the odds of every one that could have come."""
    rows = [at for story in stories for at in odds(corpus.world, story.words)]
    table = np.zeros((len(rows), corpus.tokenizer.vocab_size))             # (N, V)
    for row, at in zip(table, rows):
        for word, p in at.items():
            row[corpus.tokenizer.ids[word]] = p
    return table


def compare(model: SimpleLLM, corpus: StoryCorpus, stories: Sequence[Story]) -> Odds:
    """The odds of all words of some stories, fifty stories at a time."""
    said, came = [], []
    model.eval()
    for start in range(0, len(stories), 50):
        batch = corpus.batch(stories[start : start + 50])
        counts = batch.targets >= 0                                        # (B, T)
        said.append(softmax(model.forward(batch.ids)[counts].astype(float)))   # (n, V)
        came.append(batch.targets[counts])                                 # (n,)
    kinds = [kind for story in stories for kind in kinds_of(story)]
    return Odds(np.array(kinds), true_odds(corpus, stories), np.concatenate(said),
                np.concatenate(came))


def divergence(p: Array, q: Array) -> Array:
    """(N, V), (N, V) to (N,): KL(p || q), in nats."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(axis=1)


def print_table() -> None:
    corpus = StoryCorpus(WORLD)
    names = {"300 batches": first_model(), "make train": SimpleLLM.from_pretrained(TRAINED)}
    both = [compare(model, corpus, corpus.held_out) for model in names.values()]
    print(f"{'':36}{'words':>6}{'entropy':>9}" + "".join(f"{name:>13}" for name in names))
    for kind, name in [*KINDS.items(), ("", "all words")]:
        chosen = (both[0].kinds == kind) | (kind == "")                    # (N,)
        p = both[0].true[chosen]                                           # (n, V)
        entropy = -np.log(np.where(p > 0, p, 1) ** p).sum(axis=1).mean()
        print(f"{name:36}{len(p):6}{entropy:9.3f}" + "".join(
            f"{divergence(p, each.model[chosen]).mean():13.4f}" for each in both))


# Of people who are not there

def strangers(stories: Sequence[Story]) -> list[tuple[list[str], str]]:
    """What is told in each story, with each person who is not in it."""
    told = [story.words[: story.words.index("what")] for story in stories]
    return [(words, who) for words in told for who in WORLD.people if who not in words]


def ask(
    model: SimpleLLM, tokenizer: Tokenizer, asked: Sequence[tuple[list[str], str]]
) -> Array:
    """(N, V): the odds of the answer to each question."""
    rows = [[tokenizer.ids[w] for w in (*words, "what", "about", who, "?", "the")]
            for words, who in asked]
    batch = pad_rows([[*row, tokenizer.eos] for row in rows])
    model.eval()
    logits = model.forward(batch.ids)                                      # (N, T, V)
    return softmax(logits[np.arange(len(rows)), [len(row) for row in rows]])


def print_strangers(seeds: str = "5") -> None:
    corpus = StoryCorpus(WORLD)
    asked, tokens = strangers(corpus.held_out), corpus.tokenizer.tokens
    print(f"{len(asked)} questions about people who are not in the story\n")
    print(f"{'':24}{'of another':>12}{'of nobody':>11}{'by habit':>10}{'probability':>13}")

    def row(name: str, model: SimpleLLM) -> None:
        p = ask(model, corpus.tokenizer, asked)                            # (N, V)
        said = [tokens[token] for token in p.argmax(axis=1)]
        told = np.mean([word in words for word, (words, _) in zip(said, asked)])
        habit = np.mean([word in (WORLD.likes(who, True), WORLD.likes(who, False))
                         for word, (_, who) in zip(said, asked)])
        print(f"{name:24}{told:12.0%}{1 - told:11.0%}{habit:10.0%}"
              f"{p.max(axis=1).mean():13.2f}", flush=True)

    row("300 batches", first_model())
    row("make train", SimpleLLM.from_pretrained(TRAINED))
    for seed in range(int(seeds)):
        row(f"half as long, seed {seed}", trained_model(seed))


if __name__ == "__main__":
    names = {"table": print_table, "strangers": print_strangers}
    if sys.argv[1:2] == [] or sys.argv[1] not in names:
        sys.exit(__doc__)
    names[sys.argv[1]](*sys.argv[2:])
