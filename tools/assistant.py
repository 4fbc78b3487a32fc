"""The tables of chapter 18: what each stage of the assistant bought, and what it cost.

    python ../tools/assistant.py seeds         ten assistants, from ten seeds
    python ../tools/assistant.py instruct      how many examples, and what is forgotten
    python ../tools/assistant.py estimates     REINFORCE's gradient beside the exact one
    python ../tools/assistant.py reward        before and after, pass@k
    python ../tools/assistant.py faulty        a wrong reward, and the leash
    python ../tools/assistant.py pairs         DPO

Run in build/. The ten pretrained models are kept in build/pretrained/.
"""
from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simple_llm.batches import Array, Batch
from simple_llm.cli.progress import Progress
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.parallel import make_optimizer, make_team
from simple_llm.layers import CrossEntropy
from simple_llm.today.assistant import (
    TaleCorpus, again_and_again, hold_talk, judge, judged, last_answer, lay_out, tune,
)
from simple_llm.today.chat import Turn
from simple_llm.today.reward import (
    WeightedLoss, advantages, answers, draw, practise, weigh_pairs, weigh_samples,
)
from simple_llm.train import Alone, Moment, Options, evaluate, train
from simple_llm.world import floor

KEPT = Path("pretrained")
CORPUS = TaleCorpus()
TOKENIZER, WORLD = CORPUS.tokenizer, CORPUS.world
FLOOR = floor(CORPUS.held_out)


def pretrained(seed: int) -> FastLLM:
    """The model after 600 steps on stories, trained once for each seed."""
    home = KEPT / str(seed)
    if not (home / "config.json").exists():
        corpus = TaleCorpus(seed=seed)
        model = FastLLM(corpus.config, seed)
        options = Options(max_steps=600, matrix_rate=0.02, min_lr=0.0, workers=WORKERS,
                          evaluations=1)
        with make_team(model, options) as team:
            train(team, corpus, options, lambda moment: None)
        model.save_pretrained(home)
    return FastLLM.from_pretrained(home)


WORKERS = 1


def talks(name: str, absent: float = 0.0) -> Iterator[list[Turn]]:
    rng = random.Random(name)
    while True:
        yield hold_talk(WORLD, rng, absent)


def some(n: int, name: str, absent: float = 0.0) -> list[list[Turn]]:
    return list(itertools.islice(talks(name, absent), n))


def fine_tune(model: FastLLM, batches: Iterator[Batch], steps: int, rate: float = 1e-3) -> FastLLM:
    team = Alone(model, make_optimizer(model, Options(learning_rate=rate, weight_decay=0.0)))
    tune(team, batches, steps, rate, lambda moment: None)
    model.cross_entropy = CrossEntropy()
    return model


def instructed(seed: int, examples: int, absent: float = 0.0, model: FastLLM | None = None,
               steps: int = 100) -> FastLLM:
    rng = random.Random(f"examples {seed}")
    shown = [hold_talk(WORLD, rng, absent) for _ in range(examples)]
    return fine_tune(model or pretrained(seed), again_and_again(shown, TOKENIZER, rng), steps)


def tasks(name: str, absent: float = 0.0, size: int = 32):
    source = talks(name, absent)
    while True:
        yield judged(list(itertools.islice(source, size)), TOKENIZER)


def rewarded(model: FastLLM, seed: int, steps: int, absent: float = 0.0, **how) -> FastLLM:
    return fine_tune(model, practise(model, tasks(f"questions {seed}", absent), seed=seed, **how), steps)


def verdict(model: FastLLM, absent: float = 0.0):
    return judge(model, TOKENIZER, WORLD, some(1000, "held-out talks", absent))


def forgotten(model: FastLLM) -> float:
    return evaluate(Alone(model), CORPUS).loss - FLOOR


def mixed(batches: Iterator[Batch], stories: Iterator[Batch]) -> Iterator[Batch]:
    """Conversations, and behind each batch of them one of stories."""
    for two in zip(batches, stories):
        yield from two


def all_batches(corpus: TaleCorpus) -> Iterator[Batch]:
    return (batch for epoch in itertools.count(1) for batch in corpus.batches(epoch))


def unmasked(shown: list[list[Turn]], rng: random.Random) -> Iterator[Batch]:
    for batch in again_and_again(shown, TOKENIZER, rng):
        targets = np.concatenate([batch.ids[:, 1:], np.zeros_like(batch.ids[:, :1])], axis=1)
        yield Batch(batch.ids, np.where(targets > 0, targets, batch.targets))


def instruct(seed: str = "0", steps: int = 200) -> None:
    """How many examples it takes, with pretraining and without, and what is forgotten."""
    print("examples                   answered  against habit  stories")

    def row(name: str, model: FastLLM) -> None:
        found = verdict(model)
        print(f"{name:26} {found.answered:8.1%} {found.unusual:14.1%} {forgotten(model):9.3f}",
              flush=True)

    row("none", pretrained(int(seed)))
    for n in 10, 50, 200, 1000, 5000:
        row(f"{n:,}", instructed(int(seed), n, steps=steps))
    for n in 50, 5000:
        row(f"{n:,}, from scratch", instructed(int(seed), n, model=FastLLM(CORPUS.config, int(seed)), steps=steps))
    row("the same, 2,000 batches", instructed(
        int(seed), 5000, model=FastLLM(CORPUS.config, int(seed)), steps=10 * steps))
    rng = random.Random(f"examples {seed}")
    shown = [hold_talk(WORLD, rng) for _ in range(200)]
    row("200, no mask", fine_tune(pretrained(int(seed)), unmasked(shown, rng), steps))
    both = mixed(again_and_again(shown, TOKENIZER, rng), all_batches(CORPUS))
    row("200, stories in between", fine_tune(pretrained(int(seed)), both, 2 * steps))


def seeds(first: str = "0", last: str = "9") -> None:
    """The whole arc for each of ten seeds."""
    print("seed  recalled |  answered  against habit  invented |  answered  against habit  "
          "invented")
    for seed in range(int(first), int(last) + 1):
        model = pretrained(seed)
        recalled = evaluate(Alone(model), CORPUS).answers
        model = instructed(seed, 50, 0.1)
        a = verdict(model, 0.25)
        b = verdict(rewarded(model, seed, REWARD_STEPS, 0.1), 0.25)
        print(f"{seed:4} {recalled:9.1%} | {a.answered:9.1%} {a.unusual:14.1%} {a.invented:9.1%} | "
              f"{b.answered:9.1%} {b.unusual:14.1%} {b.invented:9.1%}", flush=True)


REWARD_STEPS = 1000


def questions(n: int, name: str) -> tuple[Batch, Array]:
    """Last questions, and 1 for the right answer to each, (n, V)."""
    batch = lay_out(TOKENIZER.ids, [last_answer(turns) for turns in some(n, name)])
    return batch, np.eye(TOKENIZER.vocab_size)[batch.targets[batch.targets >= 0]]


def gradient(model: FastLLM, batch: Batch, weigh) -> Array:
    """(P,): the gradient of one batch with these weights."""
    model.cross_entropy = WeightedLoss(weigh)
    model.zero_grad()
    model.loss(batch.ids, batch.targets)
    model.backward()
    return np.concatenate([p.grad.ravel() for p in model.parameters()])


BASELINES = {"none": lambda r: r, "none, rewards of 1, 2": lambda r: r + 1, "mean of the batch": lambda r: r - r.mean(),
             "mean of the group": advantages}


def estimates(examples: str = "10", tries: int = 50) -> None:
    """Cosine of one estimate with the exact gradient, and its variance in units of that one's square."""
    model = instructed(0, int(examples))
    batch, right = questions(32, "held-out questions")
    exact = gradient(model, batch, lambda p: p * right)
    rng = np.random.default_rng(0)
    print(f"{'baseline':22} {'':8}" + "".join(f"{'G = ' + str(G):>9}" for G in (2, 4, 8, 16, 32)))
    for name, compare in BASELINES.items():
        cosines, variances = [], []
        for G in 2, 4, 8, 16, 32:
            def weigh(p: Array) -> Array:
                chosen = draw(p, G, rng)
                return weigh_samples(chosen, compare(np.take_along_axis(right, chosen, 1)), p.shape[1])
            many = np.array([gradient(model, batch, weigh) for _ in range(tries)])
            if name == "mean of the group":
                many *= G / (G - 1)
            cosines.append(np.mean(many @ exact / np.linalg.norm(many, axis=1) / np.linalg.norm(exact)))
            variances.append(((many - many.mean(axis=0)) ** 2).sum() / (tries - 1) / (exact @ exact))
        print(f"{name:22} {'cosine':8}" + "".join(f"{x:9.2f}" for x in cosines))
        print(f"{'':22} {'variance':8}" + "".join(f"{x:9.2f}" for x in variances), flush=True)


def passes(model: FastLLM) -> list[float]:
    """The odds that of 1, 2, 4, 8, 16 answers one is right, summed exactly."""
    batch, right = questions(1000, "held-out questions")
    p = (answers(model, batch) * right).sum(axis=1)        # (n,)
    return [float(np.mean(1 - (1 - p) ** k)) for k in (1, 2, 4, 8, 16)]


def reward(seed: str = "0") -> None:
    """What practice does to the odds of being right once in k tries."""
    print("                 k = 1       2       4       8      16   stories")
    def row(name: str, model: FastLLM) -> None:
        print(f"{name:14}" + "".join(f"{x:8.1%}" for x in passes(model))
              + f"{forgotten(model):9.3f}", flush=True)

    for n in 0, 10, 50:
        model = instructed(int(seed), n) if n else pretrained(int(seed))
        row(f"{n} examples", model)
        row("  and practice", rewarded(model, int(seed), REWARD_STEPS))


PLACES = np.array([word in WORLD.places for word in TOKENIZER.tokens])


def any_place(name: str, size: int = 32):
    """Tasks that reward every place of the story; in each story there is one."""
    source = (turns for turns in talks(name) if set(turns[0].text.split()) & set(WORLD.places))
    while True:
        told = list(itertools.islice(source, size))
        batch, worth, first = judged(told, TOKENIZER)
        for n in np.nonzero(first)[0]:
            b, t = (axis[n] for axis in np.nonzero(batch.targets >= 0))
            worth[n] = PLACES & np.isin(np.arange(len(PLACES)), batch.ids[b, : t + 1])
        yield batch, worth, first


def faulty(seed: str = "0", steps: int = 200) -> None:
    """What becomes of truth when any place is rewarded, with a leash and without."""
    before = instructed(int(seed), 200, steps=200)
    batch, worth, first = next(any_place("held-out", 500))
    right = np.eye(TOKENIZER.vocab_size)[batch.targets[batch.targets >= 0]][first]     # (n, V)
    q = answers(before, batch)[first]                      # (n, V)
    print("leash     reward    truth    nats from the model before")

    def row(name: str, model: FastLLM) -> None:
        p = answers(model, batch)[first]                   # (n, V)
        far = (p * np.log(p / q)).sum(axis=1).mean()
        print(f"{name:8} {(p * worth[first]).sum(axis=1).mean():8.1%} {(p * right).sum(axis=1).mean():8.1%}"
              f"{far:12.3f}", flush=True)

    row("before", before)
    for leash in 0, 0.03, 0.1, 0.3, 1:
        model = instructed(int(seed), 200, steps=200)
        batches = practise(model, any_place(f"questions {seed}"), seed=int(seed), leash=leash, before=before)
        row(f"{leash:g}", fine_tune(model, batches, steps))


def pairs(seed: str = "0", steps: int = 200) -> None:
    """DPO: the right answer preferred to a wrong one that the model gave itself."""
    for beta in 0.1, 0.3, 1.0:
        model, before = instructed(int(seed), 10), instructed(int(seed), 10)
        rng = np.random.default_rng(int(seed))

        def batches() -> Iterator[Batch]:
            for n in itertools.count():
                batch, right = questions(32, f"pairs {n}")
                q, better = answers(before, batch), right.argmax(axis=1)
                wrong = q * (1 - right)
                worse = draw(wrong / wrong.sum(axis=1, keepdims=True), 1, rng)[:, 0]
                model.cross_entropy = WeightedLoss(
                    lambda p: weigh_pairs(p, q, better, worse, beta))
                yield batch

        start = passes(model)[0]
        fine_tune(model, batches(), steps)
        batch, _ = questions(1000, "held-out questions")
        p, q = answers(model, batch), answers(before, batch)
        print(f"beta {beta:3}: truth {start:.1%} -> {passes(model)[0]:.1%}, "
              f"{(p * np.log(p / q)).sum(axis=1).mean():.2f} nats from before, stories {forgotten(model):.2f}",
              flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
