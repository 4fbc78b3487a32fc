"""The tables of "Thinking", chapter 18: python tools/thinking.py NAME [DIRECTORY SEED | SEED TRIALS].

NAME is riddles, hops (which draws its picture into DIRECTORY, if one is given), order, corrupted, votes or
reward.
Needs build/ (make tangle), and NumPy alone; no training takes longer than about two minutes of one
core. SEED and TRIALS, such as 16:0.001 for 16 examples and a rate, are for reward.
"""
from __future__ import annotations

import copy
import os
import random
import sys
import textwrap
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from chart import INK, Drawing  # noqa: E402
from simple_llm.batches import Array, Batch  # noqa: E402
from simple_llm.engine import fast  # noqa: E402
from simple_llm.engine.fast import FastLLM  # noqa: E402
from simple_llm.engine.parallel import Worker, make_optimizer  # noqa: E402
from simple_llm.model import Config  # noqa: E402
from simple_llm.optimizer import clip_gradients, learning_rate  # noqa: E402
from simple_llm.today.assistant import lay_out  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.train import Options  # noqa: E402

PEOPLE = "anna ben cleo dan eva finn gina hugo ida jan kim leo".split()
PLACES = "abroad outside upstairs".split()
WORDS = "<pad> <bos> . follows is ? think".split() + PEOPLE + PLACES                  # as in chapter 3
IDS = {word: n for n, word in enumerate(WORDS)}
HOPS = (1, 2, 3, 4)
STEPS, BATCH, THINK_FIRST = 750, 40, 300               # of a training; the first steps are for `think` alone
STOPPED, VOTERS, MOST = 230, 100, 16                   # of the vote: steps, questions of each kind, samples
EPOCHS, UPDATES, GROUP = 20, 150, 8                    # of the reward: on examples, after them, samples
LIMIT = 6                                              # tokens that an answer may take
CONTEXT = 96                                           # the longest row of a batch has 91
PLACE_IDS = [IDS[place] for place in PLACES]
FULL_STOP = IDS["."]


class Riddle(NamedTuple):
    """A story's words, and the path from each of its people to a place."""

    story: list[str]
    paths: list[list[str]]


def tell(rng: random.Random, chains: int = 3, length: int = 4) -> Riddle:
    """Chains of people, each with a place at its end."""
    people, places = rng.sample(PEOPLE, chains * length), rng.sample(PLACES, chains)
    lines = [[*people[k::chains], place] for k, place in enumerate(places)]
    facts = [f"{a} {'is' if b in PLACES else 'follows'} {b} ." for line in lines for a, b in zip(line, line[1:])]
    paths = [line[start:] for line in lines for start in range(length)]
    rng.shuffle(facts)
    rng.shuffle(paths)
    return Riddle(" ".join(facts).split(), paths)


def ask(path: Sequence[str], think: bool) -> tuple[list[str], list[str]]:
    """A question, and its answer with the steps or without."""
    question = ["think" if think else "?", path[0]]
    return question, [*path[1 if think else -1:], "."]


def batch(riddles: Sequence[Riddle], thinks: Sequence[bool]) -> Batch:
    """Stories, with up to six questions of one kind; only the answers count."""
    spelled = []
    for riddle, think in zip(riddles, thinks):
        row, mask = [*riddle.story], [False] * len(riddle.story)
        for question, answer in (ask(path, think) for path in riddle.paths[:6]):
            row += question + answer
            mask += [False] * len(question) + [True] * len(answer)
        spelled.append((row, mask))
    return lay_out(IDS, spelled)


def riddles() -> None:
    """One story, asked both ways."""
    story, paths = tell(random.Random(1))
    print(textwrap.fill(" ".join(story), 76))
    for think in (False, True):
        question, answer = ask(max(paths, key=len), think)
        print(*question, "->", *answer)


def make_model(layers: int, seed: int) -> FastLLM:
    return FastLLM(Config(len(WORDS), CONTEXT, n_layers=layers), seed)


def stories(rng: random.Random, count: int) -> list[Riddle]:
    """Stories of two or three chains of one to four people: short ones are learned first."""
    return [tell(rng, rng.randint(2, 3), rng.randint(1, 4)) for _ in range(count)]


def both_ways(rng: random.Random, step: int) -> Batch:
    """At first all stories are asked for the steps, then every other one for the answer at once."""
    return batch(stories(rng, BATCH), [True] * BATCH if step < THINK_FIRST else [True, False] * (BATCH // 2))


def fit(model: FastLLM, draw: Callable[[random.Random, int], Batch], steps: int, seed: int,
        stop: int = 0) -> None:
    """Train with Muon, as `make train` does; or only the first `stop` steps of it."""
    rate, rng = 0.004, random.Random(f"stories {seed}")
    optimizer = make_optimizer(model, Options(learning_rate=rate, matrix_rate=0.02))
    worker = Worker(model, optimizer, optimizer.flat.grad)
    for step in range(stop or steps):
        data = draw(rng, step)
        worker.gradient(data, int((data.targets >= 0).sum()), [seed, step])
        clip_gradients(worker.parameters, 1.0)
        worker.step(learning_rate(step, steps, rate, min(100, steps // 10), 0.0),
                    range(optimizer.flat.data.size))


def trained(layers: int, seed: int, steps: int = STEPS, stop: int = 0) -> FastLLM:
    model = make_model(layers, seed)
    fit(model, both_ways, steps, seed, stop)
    return model


def questions(hops: int, think: bool, count: int) -> tuple[Array, list[list[int]]]:
    """Held-out stories with one question each, (B, T) ids, and the paths asked for."""
    rng = random.Random(f"held out, {hops} hops")
    prompts, paths = [], []
    for _ in range(count):
        riddle = tell(rng)
        path = next(path for path in riddle.paths if len(path) == hops + 1)
        prompts.append([Tokenizer.bos, *(IDS[word] for word in riddle.story + ask(path, think)[0])])
        paths.append([IDS[word] for word in path])
    return np.array(prompts), paths


def is_over(tokens: Array) -> Array:
    """(B, N) tokens of answers to (B,): has it come to a place, or to a full stop?"""
    return np.isin(tokens, [*PLACE_IDS, FULL_STOP]).any(axis=1)


def write(model: FastLLM, ids: Array, dice: np.random.Generator | None = None) -> Array:
    """(B, T) prompts to (B, N) tokens, the likeliest or drawn with dice; padded with 0."""
    start = ids.shape[1]
    while ids.shape[1] < start + LIMIT and not is_over(ids[:, start:]).all():
        z = np.concatenate([model.forward(some)[:, -1].copy()
                            for some in np.split(ids, range(10, len(ids), 10))])     # (B, V)
        if dice is not None:
            z += dice.gumbel(size=z.shape)             # the greatest is now a sample
        over = is_over(ids[:, start:])
        ids = np.c_[ids, np.where(over, Tokenizer.pad, z.argmax(axis=1))]            # (B, T + 1)
    return ids[:, start:]


def answers(written: Array) -> list[int]:
    """The place at which each answer arrives, or 0."""
    return [next((token for token in row if token in PLACE_IDS), 0) for row in written.tolist()]


def accuracy(model: FastLLM, hops: int, think: bool, count: int = 300,
             dice: np.random.Generator | None = None) -> float:
    prompts, paths = questions(hops, think, count)
    got = answers(write(model, prompts, dice))
    return float(np.mean([answer == path[-1] for answer, path in zip(got, paths)]))


def compare_hops(directory: str = "", seed: str = "0") -> None:
    """Accuracy by hops and layers, at once and with the steps written; table and picture."""
    print(f"{'':10} {'at once, hops':^27}   {'steps written, hops':^27}")
    print(f"{'layers':10}" + f"{'':3}".join("".join(f"{hops:7}" for hops in HOPS) for _ in "ab"))
    table = []
    for layers in (1, 2, 3, 4):
        model = trained(layers, int(seed))
        row = [[accuracy(model, hops, think) for hops in HOPS] for think in (False, True)]
        table.append(row)
        print(f"{layers:<10}" + f"{'':3}".join("".join(f"{share:7.0%}" for share in half)
                                              for half in row), flush=True)
    if directory:
        draw_hops(Path(directory) / "thinking.svg", np.array(table))


def draw_hops(path: Path, table: Array) -> None:
    """Two heat maps of (layers, ways, hops) shares."""
    drawing = Drawing(
        "At once a hop or two; with steps, two layers answer all",
        "Two heat maps of the share of right answers, by the number of layers and of hops: "
        "asked for the answer at once, and with the steps written in between.",
        296, ["The share of right answers of the same model, asked in two ways. Guessing gets a third."])
    for way, name in enumerate(("the answer at once", "the steps written down")):
        left = 104 + way * 300
        drawing.text(left + 128, 92, name, INK, 14, "middle", bold=True)
        for i in range(4):
            if way == 0:
                drawing.text(left - 8, 128 + 38 * i, f"{i + 1} layer" + "s" * (i > 0), INK, 13, "end")
            drawing.text(left + 32 + 64 * i, 270, f"{i + 1} hop" + "s" * (i > 0), INK, 13, "middle")
            for hops in range(4):
                share = float(table[i, way, hops])
                drawing.cell(left + 64 * hops + 1, 105 + 38 * i, 62, 36, share, f"{share:.0%}", 14)
    drawing.save(path)


def by_order() -> None:
    """Three hops at once by three layers, by the order in which the last two facts are told."""
    model = trained(3, 0)
    prompts, paths = questions(3, False, 600)
    right = np.array(answers(write(model, prompts))) == [path[-1] for path in paths]
    told = [prompt[1:-2:4].tolist() for prompt in prompts]                           # whose facts, in order
    before = np.array([facts.index(path[2]) < facts.index(path[1]) for facts, path in zip(told, paths)])
    print(f"the last fact of the path before the one that leads to it {right[before].mean():6.0%}")
    print(f"after it {right[~before].mean():55.0%}")


def corrupt() -> None:
    """One written step replaced by somebody of another chain: where does the answer go?"""
    print(f"{'':18} {'the truth':>10} {'where the wrong name leads':>28} {'elsewhere':>10}")
    model, rng = trained(2, 0), random.Random("wrong names")
    prompts, paths = questions(4, True, 300)
    for step in (1, 2, 3):
        chains = [chase(prompt) for prompt in prompts]
        wrong = [rng.choice([n for n in chain if chain[n] not in PLACE_IDS and end(chain, n) != path[-1]])
                 for chain, path in zip(chains, paths)]
        forced = np.array([[*path[1:step], name] for path, name in zip(paths, wrong)])
        got = answers(write(model, np.c_[prompts, forced]))
        truth = np.mean([answer == path[-1] for answer, path in zip(got, paths)])
        led = np.mean([answer == end(chain, name) for answer, chain, name in zip(got, chains, wrong)])
        print(f"step {step} of 3 wrong {truth:14.0%} {led:28.0%} {1 - truth - led:10.0%}", flush=True)


def chase(prompt: Array) -> dict[int, int]:
    """Who or what comes after each of the people, read from a story's ids."""
    facts = prompt[1:-2].reshape(-1, 4)                # the name, the verb, the object, "."
    return dict(zip(facts[:, 0].tolist(), facts[:, 2].tolist()))


def end(chain: dict[int, int], name: int) -> int:
    while name in chain:
        name = chain[name]
    return name


def vote() -> None:
    """The majority of n samples, of a model that was stopped too early, against tokens spent."""
    model, dice = trained(2, 0, stop=STOPPED), np.random.default_rng(0)
    sets = [questions(hops, True, VOTERS) for hops in HOPS]
    ballots = []
    for prompts, paths in sets:
        drawn = [write(model, prompts, dice) for _ in range(MOST)]
        spent = np.mean([(tokens > 0).sum(axis=1).mean() for tokens in drawn])
        ballots.append((np.array([answers(tokens) for tokens in drawn]), spent))     # (n, B)
    print(f"{'samples':>7} {'tokens spent':>13} {'right':>6}")
    for n in (1, 2, 4, 8, 16):
        rows = []
        for (got, _), (_, paths) in zip(ballots, sets):
            truth = np.array([path[-1] for path in paths])
            rows.append(np.mean([majority(got[k : k + n], truth) for k in range(0, MOST, n)]))
        spent = n * np.mean([spent for _, spent in ballots])
        print(f"{n:7} {spent:13.0f} {np.mean(rows):6.0%}")
    rows = [accuracy(model, hops, True, VOTERS) for hops in HOPS]
    print(f"always the likeliest {np.mean(rows):7.0%}")


def majority(got: Array, truth: Array) -> float:
    """How often the commonest place of n answers, (n, B), is the truth; a tie counts as a share."""
    votes = (got[:, :, None] == np.array(PLACE_IDS)).sum(axis=0)                     # (B, 3)
    best = votes == votes.max(axis=1, keepdims=True)
    return float((best / best.sum(axis=1, keepdims=True))[np.array(PLACE_IDS) == truth[:, None]].mean())


class Weighted(fast.CrossEntropy):
    """Cross-entropy with a weight for each row, which may be negative: its advantage."""

    weights: Array

    def backward(self) -> Array:
        return super().backward() * self.weights[:, None, None]                      # (B, T, V)


def next_only(rng: random.Random, step: int) -> Batch:
    """Stories with questions of which only the first step is the answer."""
    return batch([Riddle(story, [path[:2] for path in paths]) for story, paths in stories(rng, BATCH)],
                 [True] * BATCH)


def show_examples(model: FastLLM, count: int, seed: int) -> None:
    """Some epochs on a few worked examples."""
    rng = random.Random(f"examples {seed}")
    shown = [Riddle(story, paths[:1]) for story, paths in (tell(rng) for _ in range(count))]
    optimizer = make_optimizer(model, Options(learning_rate=0.001, matrix_rate=0.0))
    for _ in range(EPOCHS):
        optimizer.flat.grad[...] = 0.0
        data = batch(shown, [True] * count)
        for some in np.split(np.arange(count), range(8, count, 8)):
            model.loss(data.ids[some], data.targets[some], int((data.targets >= 0).sum()))
            model.backward()
        optimizer.step(0.001)


def reinforce(model: FastLLM, steps: int, seed: int, rate: float) -> list[float]:
    """The plain policy gradient, on the final answer alone, against the group's mean; the rewards."""
    optimizer = make_optimizer(model, Options(learning_rate=rate, matrix_rate=0.0, weight_decay=0.0))
    rng, dice = random.Random(f"reward {seed}"), np.random.default_rng(seed)
    usual, rewards = model.cross_entropy, []
    for step in range(steps):
        prompts, truth = [], []
        for _ in range(GROUP):
            story, paths = tell(rng)
            words = story + ask(paths[0], True)[0]
            prompts += [[Tokenizer.bos, *(IDS[word] for word in words)]] * GROUP
            truth += [IDS[paths[0][-1]]] * GROUP
        ids = np.array(prompts)                                                      # (B, T)
        written = write(model, ids, dice)                                            # (B, N)
        reward = np.array(answers(written)) == truth                                 # (B,)
        rewards.append(float(reward.mean()))
        groups = reward.reshape(-1, GROUP)
        advantage = (groups - groups.mean(axis=1, keepdims=True)).ravel()            # (B,)
        targets = np.c_[np.full((len(ids), ids.shape[1] - 1), -1), np.where(written > 0, written, -1)]
        inputs = np.c_[ids, written][:, :-1]                                         # (B, T + N - 1)
        optimizer.flat.grad[...] = 0.0
        model.cross_entropy = Weighted()
        for some in np.split(np.arange(len(ids)), range(8, len(ids), 8)):
            model.cross_entropy.weights = advantage[some].astype(np.float32)
            model.loss(inputs[some], targets[some], len(ids))
            model.backward()
        model.cross_entropy = usual
        clip_gradients(model.parameters(), 1.0)
        optimizer.step(rate * min(1.0, (step + 1) / 10))
    return rewards


def judge(model: FastLLM) -> tuple[float, float, float]:
    """Right answers, those whose steps are all right, and tokens written; the mean over the hops."""
    rows = []
    for hops in HOPS:
        prompts, paths = questions(hops, True, 50)
        written = write(model, prompts)
        right = np.mean([answer == path[-1] for answer, path in zip(answers(written), paths)])
        steps = np.mean([[token for token in row if token] == path[1:]
                         for row, path in zip(written.tolist(), paths)])
        rows.append((right, steps, (written > 0).sum(axis=1).mean()))
    right, steps, tokens = np.mean(rows, axis=0).tolist()
    return right, steps, tokens


def compare_rewards(seed: str = "0", trials: str = "16:0.001,16:0.0003,64:0.0003") -> None:
    """From a few worked examples on by reward alone: how many of them, at which learning rate."""
    print(f"{'':15} {'before':^18}      after reward alone")
    print("shown    rate   right  all steps    right  all steps  tokens")
    base = make_model(2, 0)
    fit(base, next_only, 400, 0)
    for trial in trials.split(","):
        shown, rate = trial.split(":")
        model = copy.deepcopy(base)
        show_examples(model, int(shown), int(seed))
        right, steps, _ = judge(model)
        print(f"{shown:>5} {rate:>7} {right:7.0%} {steps:10.0%}", end="", flush=True)
        reinforce(model, UPDATES, int(seed), float(rate))
        right, steps, tokens = judge(model)
        print(f" {right:8.0%} {steps:10.0%} {tokens:7.1f}", flush=True)


if __name__ == "__main__":
    COMMANDS = {"riddles": riddles, "hops": compare_hops, "order": by_order, "corrupted": corrupt, "votes": vote,
                "reward": compare_rewards}
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
