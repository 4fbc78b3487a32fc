"""The tables of chapters 9, 11, 12 and 13: python tools/experiments.py NAME [DIRECTORY].

NAME is one of those at the end of this file; `overfitting DIRECTORY` draws its picture.

Needs build/ (make tangle), and NumPy alone; it takes some minutes.
"""
from __future__ import annotations

import argparse
import copy
import inspect
import itertools
import math
import os
import random
import sys
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
TRAINED = Path(__file__).resolve().parent.parent / "tests" / "trained"

import numpy as np  # noqa: E402

from chart import BLUE, RED, Axes, Drawing, apart  # noqa: E402
from simple_llm.batches import Array, Batch  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.parallel import DataParallel, make_team  # noqa: E402
from simple_llm.inside import look_inside, without_head  # noqa: E402
from simple_llm.layers import softmax  # noqa: E402
from simple_llm.model import Config, SimpleLLM  # noqa: E402
from simple_llm.optimizer import SGD, AdamW, clip_gradients  # noqa: E402
from simple_llm.text import TextCorpus, gather_text, hold_out  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.train import Alone, Moment, Options, Score, evaluate, train  # noqa: E402
from simple_llm.world import (  # noqa: E402
    Answer, Story, StoryCorpus, Teller, World, floor,
)


USUAL = {"matrix_rate": 0.02, "min_lr": 0.0}           # as make train has it


def experiment(
    seed: int = 1, epochs: int = 50, world: World = World(), batch: int = 64,
    layers: int = 2, spoil: Callable[[SimpleLLM], None] = lambda model: None,
    adamw: bool = False,
) -> tuple[float, list[tuple[int, Score]]]:
    """Train; how far above the floor it ended, and all scores with their epochs.

    With AdamW alone an epoch has twice as many batches.
    """
    corpus = StoryCorpus(world, batch, 20 if adamw else 10, seed=seed)
    sizes = Config(corpus.tokenizer.vocab_size, corpus.longest, n_layers=layers)
    model, moments = FastLLM(sizes, seed), []
    options = Options(epochs) if adamw else Options(epochs, **USUAL)
    spoil(model)
    with make_team(model, options) as team:
        train(team, corpus, options, moments.append)
    scores = [(moment.epoch, moment.score) for moment in moments if moment.score]
    return scores[-1][1].loss - floor(corpus.held_out), scores


def forget_the_clocks(model: SimpleLLM) -> None:
    """Let the positions start at random, with the length that they had."""
    positions = model.positions.weight.data
    positions[...] = model.normal(positions.shape, 0.3 * 0.5**0.5)


def start_small(model: SimpleLLM) -> None:
    """Let all matrices, and the positions, start with a deviation of 0.02."""
    for p in model.parameters():
        if p.data.ndim == 2:
            p.data *= 0.02 / p.data.std()


INGREDIENTS = {
    "as it is": {},
    "positions start at random": {"spoil": forget_the_clocks},
    "all weights start at 0.02": {"spoil": start_small},
    "people without habits": {"world": World(habit=0.0)},
    "batches of 16 stories": {"batch": 16},
    "one layer": {"layers": 1},
}


def compare_ingredients(optimizer: str = "") -> None:
    """Train with and without what matters, with Muon or with "adamw"."""
    print(f"{'':34} {'above the floor':>15} {'against habit':>14}")
    for name, change in INGREDIENTS.items():
        above, scores = experiment(**change, adamw=optimizer == "adamw")
        print(f"{name:34} {above:15.3f} {scores[-1][1].unusual:14.0%}", flush=True)


def compare_seeds() -> None:
    """The whole training, with ten seeds; the scores on the way tell when the jump was over."""
    print(f"{'seed':>4} {'above the floor':>16} {'answered':>9} {'against habit':>14} "
          f"{'80% of these by':>17}")
    for seed in range(10):
        above, scores = experiment(seed, epochs=100)
        jump = next((epoch for epoch, s in scores if s.unusual > 0.8), "never")
        score = scores[-1][1]
        print(f"{seed:4} {above:16.3f} {score.answers:9.1%} {score.unusual:14.1%} "
              f"{f'epoch {jump}':>17}", flush=True)


def compare_optimizers() -> None:
    """Two hundred batches, the same for each, at the best of four rates."""
    corpus = StoryCorpus(World(), steps_per_epoch=200, seed=1)
    batches = list(corpus.batches(1))
    print(f"{'':20} {'best rate':>9} {'held-out loss':>14}")
    for name, make, rates in (
        ("SGD", SGD, [0.3, 1.0, 3.0, 10.0]),
        ("SGD, momentum 0.9", lambda p: SGD(p, 0.9), [0.03, 0.1, 0.3, 1.0]),
        ("AdamW", AdamW, [0.002, 0.004, 0.008, 0.016]),
    ):
        loss, best = min((race(corpus, batches, make, rate), rate) for rate in rates)
        print(f"{name:20} {best:9} {loss:14.3f}", flush=True)


def race(
    corpus: StoryCorpus, batches: list[Batch], make: Callable[..., Any],
    rate: float,
) -> float:
    """The held-out loss after training on the batches at one learning rate."""
    model = FastLLM(Config(corpus.tokenizer.vocab_size, corpus.longest), seed=1)
    optimizer = make(model.parameters())
    team = Alone(model, optimizer)
    for step, batch in enumerate(batches):
        if not team.loss_and_gradient(batch) < 100:    # too fast, and it blew up
            return float("inf")
        clip_gradients(model.parameters(), 1.0)
        optimizer.step(rate * min(1.0, (step + 1) / 20))
    return evaluate(team, corpus).loss


Curve = list[tuple[int, float, float]]      # step, loss on what was read, held-out loss


def of_characters(text: str, dropout: float = 0.0) -> tuple[TextCorpus, Config]:
    """A text by characters, and the shape of nanoGPT's small model for it."""
    tokenizer = Tokenizer.from_text(hold_out(text)[0], "char")
    config = Config(tokenizer.vocab_size, 64, d_model=128, n_layers=4, n_heads=4,
                    dropout=dropout)
    return TextCorpus(text, tokenizer, config.context_length), config


def loss_on_what_was_read(team: DataParallel, corpus: TextCorpus) -> float:
    seen = copy.copy(corpus)
    seen.validation = corpus.training
    return evaluate(team, seen).loss


def learn_by_heart(dropout: float) -> Curve:
    """Train on 20 KB, some forty times over."""
    corpus, config = of_characters(gather_text(["pydoc"])[:20_000], dropout)
    options, curve = Options(max_steps=1000, learning_rate=1e-3), []

    def report(moment: Moment) -> None:
        if moment.score and moment.step % 100 == 0:
            read = loss_on_what_was_read(team, corpus)
            curve.append((moment.step, read, moment.score.loss))

    with make_team(FastLLM(config), options) as team:
        train(team, corpus, options, report)
    return curve


def show_overfitting(directory: str = "") -> None:
    """Two runs over a short text: as a picture, or as a table."""
    runs = {dropout: learn_by_heart(dropout) for dropout in (0.0, 0.2)}
    if directory:
        return draw_overfitting(Path(directory) / "overfitting.svg", runs)
    print(f"{'':8}{'no dropout':^18}    {'dropout 0.2':^18}\n"
          f"{'step':8}" + "    ".join(["read   held out  "] * 2).rstrip())
    for (step, *first), (_, *second) in zip(*(curve[::2] for curve in runs.values())):
        print(f"{step:4}" + "".join(f"{a:10.3f}{b:10.3f}  " for a, b in (first, second)).rstrip())


def draw_overfitting(path: Path, runs: dict[float, Curve]) -> None:
    """The loss on the text that was read, and on the held-out tenth, over the steps."""
    finding = []
    for dropout, curve in runs.items():
        steps, read, held = zip(*curve)
        best = min(held)
        finding.append(f"{f'With dropout {dropout}' if dropout else 'Without dropout'} the "
                       f"held-out loss is lowest, {best:.2f}, at step "
                       f"{steps[held.index(best)]}, and {held[-1]:.2f} at the end; on what "
                       f"was read it ends at {read[-1]:.2f}.")
    drawing = Drawing("Learning by heart: what was read falls, the rest turns",
                      " ".join(finding), 420, ["20 KB of text, read some forty times"])
    axes = Axes(drawing, (76, 104, 520, 360), (0, 1000), (0, 4.8))
    axes.x_axis("step", range(0, 1001, 200))
    axes.y_axis("loss, nats per character", range(5))
    ends = []
    for (dropout, curve), color in zip(runs.items(), (RED, BLUE)):
        steps, read, held = zip(*curve)
        name = f"dropout {dropout}" if dropout else "no dropout"
        axes.curve(steps, read, color, 2, "6 4")
        axes.curve(steps, held, color, 2.6)
        drawing.dot(*axes.point(steps[held.index(min(held))], min(held)), color)
        ends += [(read[-1], f"read, {name}", color), (held[-1], f"held out, {name}", color)]
    ends.sort(reverse=True)
    heights = apart([axes.y(loss) for loss, *_ in ends], 18)
    for height, (_, words, color) in zip(heights, ends):
        drawing.text(axes.x(1000) + 10, height + 4, words, color)
    drawing.save(path)


def show_fine_tuning() -> None:
    """English first, then a Python program: a hundred steps of it, from here and from there."""
    english, config = of_characters(gather_text(["pydoc"]))
    program = TextCorpus(inspect.getsource(argparse)[:40_000], english.tokenizer, 64)
    both = copy.copy(program)
    both.batches = lambda epoch: itertools.chain.from_iterable(
        zip(program.batches(epoch), english.batches(epoch)))
    both.steps_per_epoch = 2 * program.steps_per_epoch
    print(f"{'':42}new text   old text")

    def run(name: str, corpus: TextCorpus, steps: int, rate: float,
            start: FastLLM | None = None) -> FastLLM:
        model = FastLLM(config)
        for mine, theirs in zip(model.parameters(), start.parameters() if start else ()):
            mine.data[...] = theirs.data
        options = Options(max_steps=steps, learning_rate=rate)
        with make_team(model, options) as team:
            if steps:
                train(team, corpus, options, lambda moment: None)
            new, before = (evaluate(team, each).loss for each in (program, english))
        print(f"{name:40}{new:10.3f}{before:11.3f}", flush=True)
        return model

    old = run("the old model", english, 1000, 1e-3)
    for rate in (1e-3, 3e-3):
        run(f"from random weights, rate {rate}", program, 100, rate)
    for rate in (1e-4, 3e-4, 1e-3, 3e-3):
        run(f"fine-tuned, rate {rate}", program, 100, rate, old)
    run("fine-tuned, rate 0.001, old text mixed in", both, 200, 1e-3, old)


WORLD = World()


def teach(
    corpus: StoryCorpus, seed: int = 0, layers: int = 2, evaluations: int = 20,
    report: Callable[[Moment], None] = lambda moment: None,
) -> SimpleLLM:
    """The usual training on a corpus."""
    sizes = Config(corpus.tokenizer.vocab_size, corpus.longest, n_layers=layers)
    model, options = FastLLM(sizes, seed), Options(seed=seed, evaluations=evaluations, **USUAL)
    with make_team(model, options) as team:
        train(team, corpus, options, report)
    return model


# Chapter 11 -------------------------------------------------------------------------------

class Question(NamedTuple):
    """A question of a story, and what there is to guess from."""

    words: list[str]            # the story, as far as to its facts
    person: str
    answer: str
    habitual: bool
    before: str                 # the person of the question before, or ""
    said: str                   # and its answer, or ""

    @property
    def people(self) -> list[str]:
        return [word for word in self.words if word in WORLD.people]

    @property
    def facts(self) -> list[str]:
        return [word for word in self.words if word in WORLD.places + WORLD.things]


def questions(story: Story) -> Iterator[Question]:
    words, before, said = story.words, "", ""
    for position, habitual in story.answers:
        person, answer = words[position - 3], words[position]
        yield Question(words[: words.index("what")], person, answer, habitual, before, said)
        before, said = person, answer


Odds = dict[str, float]


def by_habit(question: Question) -> Odds:
    return {WORLD.likes(question.person, goes): 1.0 for goes in (True, False)}


def mentioned(question: Question) -> Odds:
    return {fact: 1.0 for fact in question.facts}


def not_just_said(question: Question) -> Odds:
    """Nobody is asked about twice in a row; but two people may be in one place."""
    rest = question.facts
    if question.said:
        rest.remove(question.said)
    return {fact: 1.0 for fact in rest}


def weigh_habits(question: Question) -> Odds:
    """All ways to give the facts to the people, each as likely as habits make it."""
    people = [person for person in question.people if person != question.before]
    rest = question.facts
    if question.said:
        rest.remove(question.said)
    odds: Odds = dict.fromkeys(rest, 0.0)
    for facts in itertools.permutations(rest):
        liked = sum(fact in (WORLD.likes(person, True), WORLD.likes(person, False))
                    for person, fact in zip(people, facts))
        odds[facts[people.index(question.person)]] += 6.0**liked        # 0.6 against 0.1
    return odds


def guess(guesser: Callable[[Question], Odds], question: Question) -> float:
    """The chance that the likeliest guess is right."""
    odds = guesser(question)
    best = [fact for fact in odds if odds[fact] > max(odds.values()) - 1e-9]
    return (question.answer in best) / len(best)


def answers_of(model: SimpleLLM, corpus: StoryCorpus) -> list[float]:
    """Whether the model answers each of the held-out questions."""
    ids, right = corpus.tokenizer.ids, []
    for story in corpus.held_out:
        inputs = [Tokenizer.bos, *map(ids.get, story.words[:-1])]
        said = model.forward(np.array([inputs]))[0].argmax(axis=-1)    # (T,)
        right += [float(said[position] == ids[story.words[position]])
                  for position, _ in story.answers]
    return right


def show_one_layer() -> None:
    """One layer, with two seeds, beside those who know what was said, but not in what order."""
    corpus = StoryCorpus(WORLD)
    asked = [question for story in corpus.held_out for question in questions(story)]
    print(f"{'':32}answered  against habit   with 2 people     3     4     5")

    def row(name: str, right: Sequence[float]) -> None:
        shares = [np.mean([hit for hit, question in zip(right, asked)
                           if len(question.people) == n]) for n in (2, 3, 4, 5)]
        against = np.mean([hit for hit, question in zip(right, asked)
                           if not question.habitual])
        print(f"{name:32}{np.mean(right):8.0%}{against:15.0%}{shares[0]:16.0%}"
              + "".join(f"{share:6.0%}" for share in shares[1:]), flush=True)

    for name, guesser in (
        ("guess by habit", by_habit), ("what was mentioned", mentioned),
        ("but not what was just said", not_just_said),
        ("and by the odds of the habits", weigh_habits),
    ):
        row(name, [guess(guesser, question) for question in asked])
    for seed in (0, 1):
        model = teach(StoryCorpus(WORLD, seed=seed), seed, layers=1)
        row(f"one layer, seed {seed}", answers_of(model, corpus))


class Movers(World):
    """People may move twice (but the second sentence brings a second person)."""

    def tell(self, rng: random.Random) -> Story:
        teller, moved = Teller(rng), []
        fact: dict[str, str] = {}               # the latest of each person
        least, most = self.sentences
        for n in range(most):
            if n >= least and not teller.flip(0.6):
                break
            often = 1 if n < 2 else 2
            person = teller.choose([p for p in self.people if moved.count(p) < often])
            moved.append(person)
            teller.say(person)
            goes = teller.flip(0.5)
            teller.say("went to the" if goes else "took the")
            gone = [fact.get(person)] if goes else list(fact.values())
            options = [x for x in (self.places if goes else self.things) if x not in gone]
            fact[person] = teller.choose(options, self.likes(person, goes), self.habit)
            teller.say(f"{fact[person]} .")
        answers: list[Answer] = []
        last = ""
        while not answers or (len(answers) < self.questions and teller.flip(0.9)):
            teller.say("what about")
            last = teller.choose([p for p in fact if p != last])
            teller.say(f"{last} ? the")
            habitual = fact[last] in (self.likes(last, True), self.likes(last, False))
            answers.append(Answer(len(teller.words), habitual))
            teller.say(f"{fact[last]} .")
        teller.say("<eos>")
        return Story(teller.words, teller.probabilities, answers)


def older_facts(model: SimpleLLM, corpus: StoryCorpus, blind: bool) -> float:
    """How often the older of a person's two facts is answered; perhaps with a blind "the".

    A blind one, in a person's second sentence, cannot see that person's first fact in layer 1.
    """
    attention, older = model.blocks[0].attention, []
    mask, tokens = attention.mask, corpus.tokenizer.tokens
    for story in corpus.held_out:
        words, ids = story.words, corpus.batch([story]).ids            # (1, T)
        for question, (position, _) in zip(questions(story), story.answers):
            names = [t for t, word in enumerate(question.words) if word == question.person]
            if len(names) == 2:
                first, second = (words.index("the", t) + 1 for t in names)     # the facts
                attention.mask = mask.copy()
                if blind:
                    attention.mask[second, first + 1] = -np.inf
                said = model.forward(ids)[0, position].argmax()
                older.append(tokens[said] == words[first])
    attention.mask = mask
    return float(np.mean(older))


def show_movers() -> None:
    """The two-layer model in the world of movers; those asked about moved once, or twice."""
    for name, world in ("", WORLD), (" of movers", Movers()):
        rng = random.Random("a long book")
        print(f"floor of 20,000 stories{name}: "
              f"{floor(world.tell(rng) for _ in range(20_000)):.3f}")
    print(f"{'':42}older fact\nseed  above the floor  moved once  moved twice"
          "   as it is   blind")
    for seed in (0, 1):
        corpus, moments = StoryCorpus(Movers(), seed=seed), []
        model = teach(corpus, seed, report=moments.append)
        right = answers_of(model, corpus)
        often = [question.people.count(question.person)
                 for story in corpus.held_out for question in questions(story)]
        once, twice = (np.mean([hit for hit, n in zip(right, often) if n == m]) for m in (1, 2))
        above = [m.score for m in moments if m.score][-1].loss - floor(corpus.held_out)
        print(f"{seed:4}{above:17.3f}{once:12.1%}{twice:13.1%}"
              f"{older_facts(model, corpus, False):11.0%}{older_facts(model, corpus, True):8.0%}",
              flush=True)


class FixedCorpus(StoryCorpus):
    """The same stories in every epoch."""

    @cached_property
    def stories(self) -> list[Story]:
        """Those of the usual first epoch."""
        rng = random.Random(f"seed {self.seed}, epoch 1")
        stories = (self.world.tell(rng) for _ in itertools.count())
        new = (s for s in stories if tuple(s.words) not in self.secret)
        return list(itertools.islice(new, self.steps_per_epoch * self.batch_size))

    def batches(self, epoch: int) -> Iterator[Batch]:
        for start in range(0, len(self.stories), self.batch_size):
            yield self.batch(self.stories[start : start + self.batch_size])


def show_fixed() -> None:
    """The usual training, but on 1,280 stories a hundred times over."""
    corpus, losses, rows = FixedCorpus(WORLD), {}, {}

    def report(moment: Moment) -> None:
        if moment.step:
            losses.setdefault(moment.epoch, []).append(moment.loss)
        if moment.score:
            rows[moment.epoch] = moment.score

    model = teach(corpus, evaluations=40, report=report)
    print(f"floor of the {len(corpus.stories):,} stories that are read "
          f"{floor(corpus.stories):.3f}, of the held-out ones {floor(corpus.held_out):.3f}\n\n"
          "epoch   read  held out  answered  against habit")
    for epoch, score in rows.items():
        if epoch in (5, 10, 15, 20, 30, 40, 60, 80, 100):
            print(f"{epoch:5}{np.mean(losses[epoch]):7.3f}{score.loss:10.3f}"
                  f"{score.answers:10.0%}{score.unusual:15.0%}")
    below = 1 + max(epoch for epoch in losses
                    if np.mean(losses[epoch]) >= floor(corpus.stories))
    print(f"\nfrom epoch {below} on the loss on what is read is below its floor")
    print("above the floor at the end, in nats per held-out token: choices {:.3f}, "
          "answers {:.3f}, the rest {:.3f}".format(*excess(model, corpus)))


def excess(model: SimpleLLM, corpus: StoryCorpus) -> tuple[float, float, float]:
    """How much more than the true odds the model pays, and for which words."""
    paid = {"choice": 0.0, "answer": 0.0, "rest": 0.0}
    for story in corpus.held_out:
        p = softmax(model.forward(corpus.batch([story]).ids)[0])       # (T, V)
        answers = {position for position, _ in story.answers}
        for t, (word, odds) in enumerate(zip(story.words, story.probabilities)):
            kind = "answer" if t in answers else "choice" if odds < 1 else "rest"
            paid[kind] += np.log(odds / max(p[t, corpus.tokenizer.ids[word]], 1e-12))
    n = sum(len(story.words) for story in corpus.held_out)
    return paid["choice"] / n, paid["answer"] / n, paid["rest"] / n


# Chapter 12 -------------------------------------------------------------------------------

def show_pairs() -> None:
    """The share of questions answered without two heads; on the diagonal, without one."""
    model, corpus = SimpleLLM.from_pretrained(TRAINED), StoryCorpus(WORLD)
    heads = list(itertools.product(range(2), range(4)))
    names = [f"{layer + 1}.{head + 1}" for layer, head in heads]
    print("     " + "".join(f"{name:>6}" for name in names))
    table = np.zeros((len(heads), len(heads)))
    for i, j in itertools.combinations_with_replacement(range(len(heads)), 2):
        with ExitStack() as gone:
            for layer, head in {heads[i], heads[j]}:
                gone.enter_context(without_head(model, layer, head))
            table[i, j] = table[j, i] = evaluate(Alone(model), corpus).answers
    for name, row in zip(names, table):
        print(f"{name:5}" + "".join(f"{share:6.0%}" for share in row))


def is_place(word: str) -> bool:
    return word in WORLD.places


def show_kinds() -> None:
    """For each head: how much it looks for went or took, and what goes wrong without it."""
    model, corpus = SimpleLLM.from_pretrained(TRAINED), StoryCorpus(WORLD)
    stories = corpus.held_out
    looks: dict[str, list[Array]] = {"the to went or took": [], "answer to that the": []}
    for story in stories:
        words, ids = story.words, corpus.batch([story]).ids            # (1, T)
        attention = look_inside(model, ids[0]).attention               # (n, H, T, T)
        for position, _ in story.answers:
            person = words.index(words[position - 3])
            the = words.index("the", person)
            looks["the to went or took"].append(attention[:, :, the + 1, person + 2])
            looks["answer to that the"].append(attention[:, :, position, the + 1])
    rows = {name: np.mean(look, axis=0).ravel() for name, look in looks.items()}
    heads = list(itertools.product(range(2), range(4)))
    for name in ("answered without it", "wrong, but right in kind", "wrong in kind"):
        rows[name] = np.zeros(len(heads))
    for i, head in enumerate(heads):
        with without_head(model, *head):
            rows["answered without it"][i], rows["wrong in kind"][i] = of_kind(model, corpus)
    rows["wrong, but right in kind"] = 1 - rows["answered without it"] - rows["wrong in kind"]
    print(f"{'':24}" + "".join(f"{f'{layer + 1}.{head + 1}':>6}" for layer, head in heads))
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{share:6.0%}" for share in row))
    with without_head(model, 1, 1), without_head(model, 1, 2):
        print("without 2.2 and 2.3: answered {:.0%}, wrong in kind {:.0%}".format(
            *of_kind(model, corpus)))
    print(f"1.2, from the answer to question marks: {looks_at_question_marks(model, corpus):.0%}")


def of_kind(model: SimpleLLM, corpus: StoryCorpus) -> tuple[float, float]:
    """The shares of right answers, and of things for places, or places for things."""
    right, wrong = [], []
    for story in corpus.held_out:
        said = model.forward(corpus.batch([story]).ids)[0].argmax(axis=-1)     # (T,)
        for position, _ in story.answers:
            word, due = corpus.tokenizer.tokens[said[position]], story.words[position]
            right.append(word == due)
            wrong.append(word != due and is_place(word) != is_place(due))
    return float(np.mean(right)), float(np.mean(wrong))


def looks_at_question_marks(model: SimpleLLM, corpus: StoryCorpus) -> float:
    """The mean attention that head 2 of layer 1 pays, where an answer is due, to all the "?"."""
    looks = []
    for story in corpus.held_out:
        ids = corpus.batch([story]).ids[0]                                        # (T,)
        attention = look_inside(model, ids).attention[0, 1]                       # (T, T)
        marks = ids == corpus.tokenizer.ids["?"]                                  # (T,)
        looks += [attention[position, marks].sum() for position, _ in story.answers]
    return float(np.mean(looks))


def say(model: SimpleLLM, tokenizer: Tokenizer, text: str) -> tuple[str, float]:
    """The likeliest next word, and its probability."""
    ids = np.array([[Tokenizer.bos, *tokenizer.encode(text)]])         # (1, T)
    p = softmax(model.forward(ids)[0, -1])                             # (V,)
    return tokenizer.tokens[int(p.argmax())], float(p.max())


def show_strangers() -> None:
    """Two people with the same thing, which the world forbids; and a person who is not there."""
    model, tokenizer = SimpleLLM.from_pretrained(TRAINED), StoryCorpus(WORLD).tokenizer
    print(f"{'':32}questions  said in the story  right  probability")

    def row(name: str, prompts: Sequence[tuple[str, str]]) -> None:
        said = [say(model, tokenizer, prompt) for prompt, _ in prompts]
        inside = [word in prompt.split() for (word, _), (prompt, _) in zip(said, prompts)]
        right = [word == answer for (word, _), (_, answer) in zip(said, prompts)]
        share = f"{np.mean(right):.0%}" if prompts[0][1] else "-"
        print(f"{name:32}{len(prompts):9}{np.mean(inside):19.0%}{share:>7}"
              f"{np.mean([p for _, p in said]):13.2f}")

    pairs, things = list(itertools.permutations(WORLD.people, 2)), WORLD.things
    two = list(itertools.permutations(things, 2))
    for n, name in enumerate(["first", "second"]):
        row(f"different things, the {name}", [
            (f"{p[0]} took the {x[0]} . {p[1]} took the {x[1]} . what about {p[n]} ? the", x[n])
            for p, x in itertools.product(pairs, two)])
    same = [[(f"{p[0]} took the {x} . {p[1]} took the {x} . what about {p[n]} ? the", x)
             for p, x in itertools.product(pairs, things)] for n in (0, 1)]
    row("the same thing, the first", same[0])
    row("the same thing, the second", same[1])
    row("a person who is not there", [
        (f"{p[0]} took the {x[0]} . {p[1]} took the {x[1]} . what about {p[2]} ? the", "")
        for p, x in itertools.product(itertools.permutations(WORLD.people, 3), two)])


def run_patched(
    model: SimpleLLM, ids: Sequence[int], donor: Sequence[Array] = (), depth: int = -1
) -> tuple[list[Array], Array]:
    """The streams of T runs at each depth, (T, T, C), and the odds of what follows, (T, V).

    In run number t, the stream at one depth and at position t is that of the donor.
    """
    streams: list[Array] = []
    t = np.arange(len(ids))                                            # (T,)

    def observe(stream: Array, attention: Array | None) -> None:
        if len(streams) == depth:
            stream[t, t] = donor[depth][t, t]                          # (T, C)
        streams.append(stream.copy())                                  # (T, T, C)

    h = model.run(np.array([ids] * len(ids)), observe=observe)         # (T, T, C)
    return streams, softmax(model.head.forward(h)[:, -1])


def show_patching(stories: int = 25) -> None:
    """What is added to the probability of the other story's answer, if more than a tenth."""
    model, tokenizer = SimpleLLM.from_pretrained(TRAINED), StoryCorpus(WORLD).tokenizer
    rng = random.Random("patching")
    changes = {"the place": [], "the person asked about": [], "who took the thing": []}
    for _ in range(stories):
        (a, b, c, d), (x, y, z) = rng.sample(WORLD.people, 4), rng.sample(WORLD.things, 3)
        here, there = rng.sample(WORLD.places, 2)
        story = f"{a} took the {x} . {b} went to the %s . {c} took the {y} . what about %s ? the"
        changes["the place"].append((story % (here, b), story % (there, b), here))
        changes["the person asked about"].append((story % (here, b), story % (here, c), here))
        took = f"{a} took the {x} . %s took the {z} . {c} took the {y} . what about {b} ? the"
        changes["who took the thing"].append((took % b, took % d, z))
    print(f"{'what differs':24}{'put in at':20}at first  after block 1  after block 2")
    for name, texts in changes.items():
        added = []
        for text, other, answer in texts:
            ids, others = ([Tokenizer.bos, *tokenizer.encode(t)] for t in (text, other))
            donor, token = run_patched(model, ids)[0], tokenizer.ids[answer]
            before = run_patched(model, others)[1][:, token]           # (T,)
            added.append([run_patched(model, others, donor, depth)[1][:, token] - before
                          for depth in range(3)])                      # (3, T)
        for t, row in enumerate(np.mean(added, axis=0).T):             # (T, 3)
            if row.max() > 0.1:
                label = f"{t}, as {texts[0][0].split()[t - 1]}"
                print(f"{name:24}{label:20}" + "".join(
                    f"{abs(share):{width}.0%}" for share, width in zip(row, (8, 15, 15))))
                name = ""


if __name__ == "__main__":
    tables = {"optimizers": compare_optimizers, "ingredients": compare_ingredients,
              "seeds": compare_seeds, "overfitting": show_overfitting,
              "fine-tuning": show_fine_tuning,
              "one-layer": show_one_layer, "movers": show_movers, "fixed": show_fixed,
              "pairs": show_pairs, "kinds": show_kinds,
              "strangers": show_strangers, "patching": show_patching}
    if sys.argv[1:2] == [] or sys.argv[1] not in tables:
        sys.exit(__doc__)
    tables[sys.argv[1]](*sys.argv[2:])
