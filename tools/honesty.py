"""Chapter 18's "Honesty": python tools/honesty.py NAME [DIRECTORY].

    table [FIRST]             the model's odds against the true ones, in nats, by kind of word
    calibration DIRECTORY [FIRST]  the same as a picture, calibration.svg
    strangers [FIRST]         what is said of somebody who is not in the story; some seeds
    refusals [BASE]           the same after some conversations with "nobody knows"

FIRST and BASE are directories with models that are else trained, the one of `make first` and
the one that only continues: each takes a minute. Needs build/ (make tangle), and NumPy alone.
"""
from __future__ import annotations

import copy
import os
import random
import sys
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
TRAINED = Path(__file__).resolve().parent.parent / "tests" / "trained"

import numpy as np  # noqa: E402

import assistant  # noqa: E402
from chart import BLUE, CARD, DASHED, GREY, INK, OCHRE, RED, Axes, Drawing  # noqa: E402
from odds import odds  # noqa: E402
from simple_llm.batches import Array, pad_rows  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.parallel import make_team  # noqa: E402
from simple_llm.first import descend  # noqa: E402
from simple_llm.layers import softmax  # noqa: E402
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.optimizer import AdamW  # noqa: E402
from simple_llm.today.assistant import (  # noqa: E402
    TaleCorpus, Verdict, hold_talk, judge,
)
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.train import Alone, Options, evaluate, train  # noqa: E402
from simple_llm.world import Story, StoryCorpus, World  # noqa: E402

WORLD = World()
BOTH = WORLD.places + WORLD.things
KINDS = {"name": "who acts, if anybody", "habit": "the place or thing",
         "asked": "who is asked about", "answer": "the answer",
         "either": "one of two ways", "forced": "no choice"}


def first_model(directory: str = "") -> SimpleLLM:
    """That of `make first`: 300 batches, and it answers by habit. Trained, if not given."""
    if directory:
        return FastLLM.from_pretrained(directory)
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
            yield "either"
        elif before == "about":
            yield "asked"
        elif word in ("went", "took"):
            yield "either"
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


def bins(each: Odds, chosen: Array) -> Array:
    """(b, 3): of each tenth, the mean odds that the model said, the share that came, how many."""
    q = each.model[chosen]                                                 # (n, V)
    came = each.came[chosen][:, None] == np.arange(q.shape[1])             # (n, V)
    tenth = np.minimum((10 * q).astype(int), 9)                            # (n, V)
    return np.array([(q[at].mean(), came[at].mean(), at.sum()) for k in range(10)
                     if (at := (tenth == k) & (q > 0.01)).sum() >= 50])


MARKS = {"name": (OCHRE, "names", "l4,-4", (-2, 2)), "habit": (BLUE, "habits", "v5", (0, -2)),
         "answer": (RED, "answers", "l4,4", (-2, -2))}


def draw_panel(drawing: Drawing, left: int, title: str, each: Odds) -> None:
    """A point for every word that could have come; a ring for each tenth."""
    axes = Axes(drawing, (left, 150, left + 280, 430), (0, 1), (0, 1))
    drawing.text(left, 112, title, INK, 14, bold=True)
    axes.x_axis("probability that the model gives", [0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.y_axis("true odds, or share", [0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.curve([0, 1], [0, 1], GREY, 1, DASHED)
    kinds = np.where(each.kinds == "asked", "name", each.kinds)            # (N,)
    for kind, (color, _, stroke, (dx, dy)) in MARKS.items():
        p, q = each.true[kinds == kind], each.model[kinds == kind]         # (n, V) each
        at = (p > 0) | (q > 0.01)
        points = {(round(axes.x(x)), round(axes.y(y))) for x, y in zip(q[at], p[at])}
        drawing.path("".join(f"M{x + dx},{y + dy}{stroke}" for x, y in sorted(points)),
                     color, 1.2)
    for said, came, _ in bins(each, np.isin(kinds, list(MARKS))):
        drawing.dot(*axes.point(said, came), INK, 5.5, CARD)


def draw_calibration(directory: str, first: str = "") -> None:
    """The picture, with the model of `make first`, trained or from a directory."""
    corpus = StoryCorpus(WORLD)
    models = {"after 300 batches (chapter 9)":
              first_model(first),
              "after make train": SimpleLLM.from_pretrained(TRAINED)}
    each = [compare(model, corpus, corpus.held_out) for model in models.values()]
    said, came, count = next(row for row in bins(each[0], each[0].kinds == "answer")
                             if 0.5 <= row[0] < 0.6)
    drawing = Drawing(
        "Frequencies hardly tell the two apart; the true odds do",
        "Two charts of the probability that a model gives against the true odds. In both, the "
        "rings, which are frequencies, lie near the diagonal. Of the model after 300 batches "
        "the points of the answers lie far from it, at 0 and at 1; of the trained one nearly "
        "all lie near it, and the answers at 0 or at 1 on both axes. Of "
        f"{count:.0f} words to which the first gives 0.5 to 0.6 as an answer, {said:.2f} on "
        f"average, {came:.0%} came.",
        484, ["Marks: words that could have come, by their true odds. Rings: what can be had "
              "without these,", "the share of words that came, of all that were given such a "
              "probability."])
    x = 24
    for color, name, stroke, (dx, dy) in MARKS.values():
        drawing.path(f"M{x + 4 + dx},{88 + dy}{stroke}", color, 2)
        drawing.text(x + 14, 92, name, color, 13)
        x += 90
    for left, title, odds_of_it in zip((60, 412), models, each):
        draw_panel(drawing, left, title, odds_of_it)
    drawing.text(684, 140, "here are all answers", RED, 13, "end")
    drawing.save(Path(directory) / "calibration.svg")


def print_table(first: str = "") -> None:
    corpus = StoryCorpus(WORLD)
    models = {"300 batches": first_model(first), "make train": SimpleLLM.from_pretrained(TRAINED)}
    both = [compare(model, corpus, corpus.held_out) for model in models.values()]
    print(f"{'':20}{'words':>6}{'entropy':>9}" + "".join(f"{name:>13}" for name in models))
    for kind, name in [*KINDS.items(), ("", "all words")]:
        chosen = (both[0].kinds == kind) | (kind == "")                    # (N,)
        p = both[0].true[chosen]                                           # (n, V)
        entropy = abs(np.log(np.where(p > 0, p, 1) ** p).sum(axis=1).mean())
        gaps = (divergence(p, each.model[chosen]).mean() for each in both)
        print(f"{name:20}{len(p):6}{entropy:9.3f}" + "".join(f"{gap:13.4f}" for gap in gaps))


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


def print_strangers(first: str = "") -> None:
    corpus = StoryCorpus(WORLD)
    asked, tokens = strangers(corpus.held_out), corpus.tokenizer.tokens
    print(f"{len(asked)} questions  of another  of nobody  by habit  probability  others right")

    def row(name: str, model: SimpleLLM) -> None:
        p = ask(model, corpus.tokenizer, asked)                            # (N, V)
        said = [tokens[token] for token in p.argmax(axis=1)]
        told = np.mean([word in words for word, (words, _) in zip(said, asked)])
        habit = np.mean([word in (WORLD.likes(who, True), WORLD.likes(who, False))
                         for word, (_, who) in zip(said, asked)])
        print(f"{name:13}{told:12.0%}{1 - told:11.0%}{habit:10.0%}{p.max(axis=1).mean():13.2f}"
              f"{evaluate(Alone(model), corpus).answers:14.1%}", flush=True)

    row("300 batches", first_model(first))
    row("make train", SimpleLLM.from_pretrained(TRAINED))
    for seed in range(3):
        row(f"half, seed {seed}", trained_model(seed))


# Nobody knows

def pretrained_model(corpus: TaleCorpus) -> SimpleLLM:
    """The one that only continues, as the chapter makes it."""
    model = FastLLM(corpus.config)
    options = Options(max_steps=600, matrix_rate=0.02, min_lr=0.0, workers=2, evaluations=1)
    with make_team(model, options) as team:
        train(team, corpus, options, lambda moment: None)
    return model


def instructed(
    base: SimpleLLM, corpus: TaleCorpus, count: int, absent: float, seed: int
) -> Verdict:
    """How a copy of the base does after 100 batches of so many conversations."""
    model, rng = copy.deepcopy(base), random.Random("held-out talks")
    assistant.instructed(seed, count, absent, model)
    held_out = [hold_talk(corpus.world, rng, 0.5) for _ in range(1000)]
    return judge(model, corpus.tokenizer, corpus.world, held_out)


def print_refusals(base: str = "") -> None:
    corpus, counts = TaleCorpus(), (50, 1000)
    model = FastLLM.from_pretrained(base) if base else pretrained_model(corpus)
    print(f"{'':8}" + "".join(f"{f'{count:,} conversations':>28}" for count in counts))
    print(" absent " + 2 * "   invented refused answered")
    for absent in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2):
        print(f"{absent:7.0%} ", end="")
        for count in counts:
            each = [instructed(model, corpus, count, absent, seed) for seed in range(3)]
            answered, _, refused, invented = np.mean(each, axis=0)
            print(f"{invented:11.0%}{refused:8.1%}{answered:9.1%}", end="", flush=True)
        print()


if __name__ == "__main__":
    names = {"table": print_table, "calibration": draw_calibration, "strangers": print_strangers,
             "refusals": print_refusals}
    if sys.argv[1:2] == [] or sys.argv[1] not in names:
        sys.exit(__doc__)
    names[sys.argv[1]](*sys.argv[2:])
