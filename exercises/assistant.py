"""Graders for chapter 18: the mask, the advantage, two sets of weights, and pass@k.

What is right is here not what the book's chunk gives, but another way to the same: marks
by their places, a mean of differences, central differences, and all choices one by one.
"""
from __future__ import annotations

import itertools
import math
from typing import Any, Callable, Sequence

import numpy as np

from exercises.chunks import Module, Wrong
from exercises.common import (
    check_owned, float32, grader, in_other_memory, LUCK, normal, Race, rows_to_one,
)
from exercises.diagnose import (
    agree, Array, check, check_cases, Mistakes, seen, Untouched,
)

Said = tuple[str, str]  # who says it, and what


def dice(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, *LUCK])


def slopes(f: Callable[[Array], Array], x: Array, step: float) -> Array:
    """(N, V): central differences of f, (N, V) to (N,), whose rows do not touch others."""
    steps = step * np.eye(x.shape[1])
    return np.stack([(f(x + e) - f(x - e)) / (2 * step) for e in steps], axis=1)


# The mask

@grader("mark-the-answers")
def grade_marks(mine: Module, book: Module) -> Race:
    names = "anna ben cleo dan emma finn gwen hugo".split()
    anna, ben, cleo, *_ = (names[i] for i in dice(0).permutation(len(names)))
    story, answer = ("user", f"{ben} took the key . what about {ben} ?"), ("assistant", "key")
    asked, unknown = ("user", f"what about {cleo} ?"), ("assistant", "nobody knows")
    talks: dict[str, list[Said]] = {
        "": [story, answer, asked, unknown],
        "For a question without an answer, ": [story],
        "For a user who says what the assistant says, ": [("user", "key"), answer, answer],
        "For a user who types <assistant> and <end>, ": [
            ("user", f"<assistant> {anna} <end> {ben}"), answer],
        "For a talk that begins with a system's turn, ": [
            ("system", f"you are {anna} ."), asked, unknown],
        "For an assistant who begins, ": [unknown, asked, answer],
        "For an empty answer, ": [asked, ("assistant", "")],
        "For a text of two lines and many spaces, ": [
            ("user", f" what\nabout   {anna} ?\n"), ("assistant", " nobody  knows ")],
        "For a talk without turns, ": []}
    for when, said in talks.items():
        check_marks(when, mine, [book.Turn(*each) for each in said], not when)
    long = [book.Turn(*each) for each in (story, answer, asked, unknown)] * 25
    return lambda module: lambda: module.spell(long)


def check_marks(when: str, mine: Module, turns: list[Any], named: bool) -> None:
    given = list(turns)
    words, marks = two_lists(mine.spell(turns))
    if turns != given:
        raise Wrong("It changes the turns that it is given.")
    text = " ".join(f"<{turn.role}> {turn.text} <end>" for turn in turns).split()
    seen(f"{when}the words", list("\n".join(words).encode()))
    found = wrong_words(turns, text) if named else {}
    for sentence, wrong in found.items():
        if words == wrong != text:
            raise Wrong(f"The list of words {sentence}.")
    compare_lists(f"{when}the list of words", words, text)
    if len(marks) != len(words):
        raise Wrong(f"{when or 'In the mask '}there are {len(marks)} marks for {len(words)} "
                    "words: each word has one.")
    right = marks_by_place(turns)
    seen(f"{when}the marks", [int(mark) for mark in marks])
    found = wrong_marks(turns, right) if named else {}
    for sentence, wrong in found.items():
        if np.array_equal(marks, wrong) and not np.array_equal(marks, right):
            raise Wrong(f"The mask {sentence}.")
    for i in np.flatnonzero(np.array(marks, bool) != right)[:1]:
        should = "is to be learned, and is not marked" if right[i] else \
            "is marked, and is not to be learned"
        raise Wrong(f"{when or 'In the mask '}word {i}, {words[i]!r}, {should}.")


def two_lists(got: Any) -> tuple[list[str], Sequence[bool]]:
    """What `spell` returns, if its types are right."""
    if got is None:
        raise Wrong("`spell` returns None: is a `return` missing?")
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("`spell` does not return two lists: the words, and what is marked.")
    words, marks = got
    if not isinstance(words, (list, tuple)) or not isinstance(marks, (list, tuple, np.ndarray)):
        raise Wrong(f"`spell` returns a {type(words).__name__} and a "
                    f"{type(marks).__name__}, not two lists.")
    if not all(isinstance(word, str) for word in words):
        raise Wrong("The first of the two lists is not of words: are the two exchanged, or "
                    "lists within it?")
    if not all(isinstance(mark, (bool, np.bool_)) for mark in marks):
        raise Wrong("The marks are not all True or False: the batch is made with their "
                    "opposites, and ~1 is -2.")
    return list(words), marks


def compare_lists(what: str, got: list[str], right: list[str]) -> None:
    for i, (a, b) in enumerate(itertools.zip_longest(got, right)):
        if a != b:
            here = f"has {a!r} as word {i}" if a is not None else f"ends before word {i}"
            there = f"{b!r} belongs there" if b is not None else "the talk has ended there"
            raise Wrong(f"{what[0].upper()}{what[1:]} {here}: {there}.")


def wrong_words(turns: list[Any], text: list[str]) -> dict[str, list[str]]:
    """What the usual mistakes make of the words."""
    def put(form: str) -> list[str]:
        return " ".join(form.format(*turn) for turn in turns).split()

    unsplit = [[f"<{turn.role}>", turn.text, "<end>"] for turn in turns]
    return {
        "lacks <end>, which closes each turn": put("<{0}> {1}"),
        "has <end> behind the last turn only; it closes each": [*put("<{0}> {1}"), "<end>"],
        "has <end> behind the assistant's turns only; it closes each":
            " ".join(f"<{turn.role}> {turn.text}{' <end>' * (turn.role == 'assistant')}"
                     for turn in turns).split(),
        "lacks the mark, such as <user>, that opens each turn": put("{1} <end>"),
        "has the roles without < and >": put("{0} {1} <end>"),
        "has whole texts in it: split them into words": sum(unsplit, []),
        "has one <assistant> too many at its end: these turns are answered already":
            [*text, "<assistant>"],
        "begins with <bos>, which comes in when the rows are padded": ["<bos>", *text],
        "ends with <eos>, which ends stories: here it is <end>": [*text, "<eos>"]}


def marks_by_place(turns: list[Any]) -> Array:
    """Of each turn all places but its first, if it is the assistant's."""
    ends = np.cumsum([0, *(len(turn.text.split()) + 2 for turn in turns)])
    marks = np.zeros(ends[-1], bool)
    for turn, start, end in zip(turns, ends, ends[1:]):
        marks[start + 1 : end] = turn.role == "assistant"
    return marks


def wrong_marks(turns: list[Any], right: Array) -> dict[str, Array]:
    """What the usual mistakes make of the mask."""
    sizes = [len(turn.text.split()) + 2 for turn in turns]
    ours = np.repeat([turn.role == "assistant" for turn in turns], sizes)
    number = np.repeat(np.arange(len(turns)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    opens, ends = place == 0, np.r_[place[1:], 0] == 0
    return {
        "is True for <assistant>, too: that word is given, and not learned": ours,
        "leaves out the <end> of an answer: so the assistant never learns to stop":
            right & ~ends,
        "is True for the <end> of the user, too: the assistant is not to learn it":
            right | ends,
        "is one place early, True for <assistant> and not for <end>: it is said of each "
        "word, and not of the place before, from which it is predicted": np.r_[right[1:], False],
        "is one place late: it begins with the first word of an answer":
            np.r_[False, right[:-1]],
        "is True for the words of the user, too: only what the assistant says is learned":
            ~opens,
        "is True for the words of the user, too, if not for their <end>":
            ~opens & (ours | ~ends),
        "is True for the user's words, and not for the assistant's": ~opens & ~ours,
        "is the opposite of what it should be": ~right,
        "is True for all words: only what the assistant says is learned": right | True,
        "is never True": right & False,
        "is True in the last answer only": right & (number == number.max()),
        "is True in the first answer only": right & (number == 1),
        "is True for the first word of each answer only": right & (place == 1),
        "is True from the first answer on, for all that the user says then, too":
            np.cumsum(right) > 0,
        "is True from the first answer on, for the user's words, too":
            (np.cumsum(right) > 0) & ~opens,
        "is True for <end> only": right & ends}


# The advantage

@grader("subtract-the-mean-of-the-group")
def grade_advantages(mine: Module, book: Module) -> Race:
    rewards = normal(4, 4)
    check_advantages("The result", mine, rewards, wrong_advantages(rewards))
    for kind, [other] in in_other_memory(rewards):
        check_advantages(f"For rewards {kind}, the result", mine, other)
    for N, G in ((5, 3), (3, 7), (1, 6), (3, 2), (4, 1)):
        check_advantages(f"For {N} questions and groups of {G}, the result", mine,
                         normal(N, G, seed=N))
    check_advantages("For float32, the result", mine, *float32(normal(3, 5)))
    whole = np.concatenate([np.eye(4, dtype=int), dice(1).integers(0, 2, (3, 4))])
    check_advantages("For rewards that are whole numbers, the result", mine, whole)
    same = np.array([[1.0] * 4, [0.0] * 4, [1.0, 0.0, 0.0, 1.0]])
    check_advantages("Where all answers of a group earn the same, the result", mine, same)
    big = normal(256, 16)
    return lambda module: lambda: module.advantages(big)


def check_advantages(what: str, mine: Module, rewards: Array,
                     mistakes: Mistakes = {}) -> None:
    with Untouched(rewards=rewards):
        got = mine.advantages(rewards)
    differences = rewards[:, :, None] - rewards[:, None, :]  # of each pair in a group
    check(what, got, differences.mean(axis=2), mistakes)
    check_owned(what, got, rewards=rewards)


def wrong_advantages(r: Array) -> Mistakes:
    """What the usual mistakes make of the rewards; there are as many groups as answers."""
    G = r.shape[1]
    mean, spread = r.mean(axis=1, keepdims=True), r.std(axis=1, keepdims=True)
    right, unbiased = r - mean, r.std(axis=1, ddof=1, keepdims=True)
    return {
        "has the mean of everything subtracted; each group has its own": r - r.mean(),
        "has the mean over the questions subtracted; it goes along each group, axis 1":
            r - r.mean(axis=0),
        "has the mean of another group subtracted: keep the axis, with keepdims=True":
            r - r.mean(axis=1),
        **{f"is divided by the deviation of each group{how}{f' plus {small:g}' * (small > 0)}; "
           "here the mean is subtracted, and that is all": right / (by + small)
           for how, by in (("", spread), (" (taken with G - 1)", unbiased))
           for small in (0, 1e-8, 1e-6, 1e-5, 1e-4)},
        "is divided by the deviation of everything; here the mean is subtracted, and that is all":
            right / r.std(),
        "has the mean of the other answers subtracted; it is that of the whole group":
            r - (G * mean - r) / (G - 1),
        "has the sum of its group subtracted, and not the mean": r - G * mean,
        "has the median of its group subtracted, and not the mean":
            r - np.median(r, axis=1, keepdims=True),
        "has the largest of its group subtracted, and not the mean":
            r - r.max(axis=1, keepdims=True),
        "has the smallest of its group subtracted, and not the mean":
            r - r.min(axis=1, keepdims=True),
        "has the first of its group subtracted, and not the mean": r - r[:, :1],
        "is cut off at 0: an answer that is worse than the others counts, too":
            np.maximum(right, 0),
        "is without its sign: an answer that is worse than the others counts against itself":
            np.abs(right),
        "has the mean added": r + mean,
        "is divided by the mean, which is subtracted": r / mean,
        "is the mean itself": mean + 0 * r}


# The policy gradient

@grader("weigh-what-was-drawn")
def grade_weights(mine: Module, book: Module) -> Race:
    chosen = np.array([[2, 0, 2, 2], [1, 3, 3, 1], [4, 4, 4, 4]])
    chosen = (chosen + dice(2).integers(0, 5)) % 6
    a = normal(3, 4)
    check_weights("The result", mine, chosen, a, 7, wrong_weights(chosen, a, 7),
                  {"the number of answers G": 4, "the number of questions N": 3,
                   "the number of words V": 7, "G squared": 16, "N times G": 12})
    for kind, [ids, other] in in_other_memory(chosen, a):
        check_weights(f"For arrays {kind}, the result", mine, ids, other, 7)
    for N, G, V in ((4, 4, 4), (1, 5, 3), (6, 1, 4), (2, 40, 3), (3, 3, 1)):
        check_weights(f"For N = {N}, G = {G} and V = {V}, the result", mine,
                      dice(N).integers(0, V, (N, G)), normal(N, G, seed=G), V)
    ids, big = dice(3).integers(0, 27, (256, 16)), normal(256, 16)
    return lambda module: lambda: module.weigh_samples(ids, big, 27)


def check_weights(what: str, mine: Module, chosen: Array, a: Array, words: int,
                  mistakes: Mistakes = {}, factors: dict[str, float] = {}) -> None:
    def gain(logs: Array) -> Array:
        """What REINFORCE makes large, of ln p: a straight line, so that steps of 1 are exact."""
        return (a * np.take_along_axis(logs, chosen, axis=1)).mean(axis=1)

    with Untouched(chosen=chosen, advantages=a):
        got = mine.weigh_samples(chosen, a, words)
    right = slopes(gain, np.zeros((len(a), words)), 1.0)
    check(what, got, right, mistakes, factors)
    check_owned(what, got, advantages=a)


def wrong_weights(chosen: Array, a: Array, words: int) -> Mistakes:
    """What the usual mistakes make of the answers drawn."""
    drawn = np.eye(words)[chosen]                          # (N, G, V)
    G, count = a.shape[1], drawn.sum(axis=1)
    right = (drawn * a[:, :, None]).mean(axis=1)
    last = np.zeros_like(right)
    for g in range(G):
        np.put_along_axis(last, chosen[:, [g]], a[:, [g]] / G, axis=1)
    return {
        "has of an answer that was drawn several times the last only: indexing with = or += "
        "overwrites, and np.add.at adds": last,
        "has of an answer that was drawn several times the last only, and is not divided by "
        "G": last * G,
        "is not divided by G, the number of answers drawn": right * G,
        "is divided by the number of questions; by G, that of the answers drawn, is meant":
            right * G / len(a),
        "is divided by the number of words; by G, that of the answers drawn, is meant":
            right * G / words,
        "has the mean over the times that an answer was drawn; they are added, and divided "
        "by G": right * G / np.maximum(count, 1),
        "has the mean over the times that an answer was drawn; they are added":
            right / np.maximum(count, 1),
        "has the wrong sign: the loss has its minus already": -right,
        "does not have the advantages in it, only how often each word was drawn": count / G,
        "does not have the advantages in it, and is not divided by G": count,
        "has only the advantages above 0: a worse answer is made less likely":
            (drawn * np.maximum(a, 0)[:, :, None]).mean(axis=1),
        "has advantages without their signs": (drawn * np.abs(a)[:, :, None]).mean(axis=1),
        "has the same for all words of a row: only what was drawn has a weight":
            a.mean(axis=1, keepdims=True) + 0 * right,
        "has for each word that was drawn the mean of all advantages; each has its own":
            count * a.mean(axis=1, keepdims=True) / G,
        "has the mean of each row subtracted: words that were not drawn have 0":
            right - right.mean(axis=1, keepdims=True),
        "has the answers of all rows added to each": right.sum(axis=0) + 0 * right}


# Preferences

@grader("weigh-the-pairs")
def grade_pairs(mine: Module, book: Module) -> Race:
    p, before = rows_to_one(2 * normal(4, 6)), rows_to_one(2 * normal(4, 6, seed=1))
    better, worse = pairs(4, 6)
    for beta in (0.5, 0.1, 3.0):
        check_pairs(f"With beta = {beta}, the result", mine, (p, before, better, worse, beta),
                    named=True)
    for kind, arrays in in_other_memory(p, before, better, worse):
        check_pairs(f"For arrays {kind}, the result", mine, (*arrays, 0.5))
    same = worse.copy()
    same[1:3] = better[1:3]
    check_pairs("Where better and worse are the same word, the result", mine,
                (p, before, better, same, 0.5))
    check_pairs("Where the model has not changed, the result", mine,
                (p, p.copy(), better, worse, 0.5))
    for N, V in ((1, 4), (5, 2), (5, 5)):
        check_pairs(f"For {N} pair{'s' * (N > 1)} of {V} words, the result", mine, (
            rows_to_one(normal(N, V)), rows_to_one(normal(N, V, seed=1)), *pairs(N, V), 0.5))
    far = np.array([[1e-250, 1 - 1e-250], [1 - 1e-250, 1e-250]])
    check_pairs("Where margins are so large that exp overflows, the result", mine,
                (far, far[::-1].copy(), np.array([0, 0]), np.array([1, 1]), 2.0), step=1.0)
    big, old = rows_to_one(normal(256, 27)), rows_to_one(normal(256, 27, seed=1))
    couples = pairs(256, 27)
    return lambda module: lambda: module.weigh_pairs(big, old, *couples, 0.1)


def pairs(N: int, V: int) -> tuple[Array, Array]:
    """Two arrays (N,) of words that differ in each place."""
    better = dice(4).integers(0, V, N)
    return better, (better + dice(5).integers(1, V, N)) % V


def check_pairs(what: str, mine: Module, given: tuple[Any, ...], named: bool = False,
                step: float = 1e-5) -> None:
    p, before, better, worse, beta = given
    rows = np.arange(len(p))

    def gain(logs: Array) -> Array:
        """ln σ of the margin, of ln p: what DPO makes large."""
        change = logs - np.log(before)
        return -np.logaddexp(0, -beta * (change[rows, better] - change[rows, worse]))

    with Untouched(p=p, before=before, better=better, worse=worse):
        got = mine.weigh_pairs(*given)
    right = slopes(gain, np.log(p), step)
    mistakes = {**(wrong_pairs(given) if named else {}), **wrong_where_same(given, right)}
    check(what, got, right, mistakes, {"the number of pairs N": len(p)})
    check_owned(what, got, p=p, before=before)


def wrong_where_same(given: tuple[Any, ...], right: Array) -> Mistakes:
    """What `=` does where a word is both better and worse."""
    _, _, better, worse, beta = given
    found: dict[str, Array] = {}
    at = np.flatnonzero(better == worse)
    for sign, weight in ("-", -beta / 2), ("", beta / 2):
        wrong = found[f"has {sign}beta/2 there: the two weights cancel, so the second is added, "
                      "and does not overwrite"] = right.copy()
        wrong[at, better[at]] = weight
    return found


def wrong_pairs(given: tuple[Any, ...]) -> Mistakes:
    """What the usual mistakes make of pairs whose words differ."""
    p, before, better, worse, beta = given
    rows = np.arange(len(p))

    def put(good: Any, bad: Any = None) -> Array:
        w = np.zeros_like(p)
        w[rows, better], w[rows, worse] = good, -good if bad is None else bad
        return w

    def margin(gain: Array) -> Array:
        return gain[rows, better] - gain[rows, worse]

    def bend(x: Array) -> Array:
        return 1 / (1 + np.exp(-x))

    m = beta * margin(np.log(p / before))
    right = put(beta * bend(-m))
    return {
        "has σ(m) where σ(-m) belongs, or a margin of the wrong sign: a pair counts more, "
        "the worse it is told apart": put(beta * bend(m)),
        "has its signs exchanged: the better word's weight is above 0": -right,
        "has σ(m) where σ(-m) belongs, and its signs exchanged": -put(beta * bend(m)),
        "lacks the factor beta before σ: it comes out of the margin": put(bend(-m)),
        "lacks beta in the margin": put(beta * bend(-m / beta)),
        "lacks beta, in the margin and before σ": put(bend(-m / beta)),
        "has beta squared before σ": beta * right,
        "forgets the model before: the margin is of ln(p / before)":
            put(beta * bend(-beta * margin(np.log(p)))),
        "has p and before multiplied in the margin, where they are divided":
            put(beta * bend(-beta * margin(np.log(p * before)))),
        "has only the model before in its margin, which is of ln(p / before)":
            put(beta * bend(beta * margin(np.log(before)))),
        "has p / before in the margin; its logarithm belongs there":
            put(beta * bend(-beta * margin(p / before))),
        "has p - before in the margin; ln p - ln before belongs there":
            put(beta * bend(-beta * margin(p - before))),
        "has sums in the margin where the worse word is subtracted": put(beta * bend(
            -beta * (np.log(p / before)[rows, better] + np.log(p / before)[rows, worse]))),
        "has no weight for the worse word": put(beta * bend(-m), 0),
        "has no weight for the better word": put(0 * m, -beta * bend(-m)),
        "has the same sign for both words: the worse one's is below 0":
            put(beta * bend(-m), beta * bend(-m)),
        "has σ(m) for the worse word; both have σ(-m)": put(beta * bend(-m), -beta * bend(m)),
        "has beta for every pair: σ(-m) is missing": put(beta + 0 * m),
        "has the loss where its slope belongs": put(beta * np.logaddexp(0, -m)),
        "has the slope of σ; that of ln σ is σ(-m)": put(beta * bend(m) * bend(-m)),
        "is divided by p: the slope is by ln p, not by p": right / p,
        "is multiplied by p: the slope is by ln p, and the loss goes on through softmax":
            right * p}


# pass@k

@grader("count-the-tries")
def grade_tries(mine: Module, book: Module) -> Race:
    got = mine.pass_at_k(8, 3, 2)
    if got is None:
        raise Wrong("pass_at_k(8, 3, 2) is None: is a `return` missing?")
    if not hasattr(got, "__float__"):
        raise Wrong(f"pass_at_k(8, 3, 2) is a {type(got).__name__}, not a number.")
    for sentence, wrong in wrong_tries(8, 3, 2).items():
        if agree(float(got), wrong):
            raise Wrong(f"pass_at_k(8, 3, 2) {sentence}.")

    def pass_at_k(samples: int, right: int, k: int) -> float:
        return float(mine.pass_at_k(samples, right, k))

    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            reason = ("if none is right, none of k is" if c == 0 else
                      "with fewer wrong ones than k, one of k must be right" if n - c < k else
                      "count all choices of k of them, and those that hold a right one")
            check_cases(pass_at_k, share_of_choices, {reason: (n, c, k)})
    n, k = (int(each) for each in dice(6).integers([300, 90], [400, 120]))
    check_cases(pass_at_k, share_of_places, {
        "with many answers the numbers are large, and only their ratios are not": (n, 5, k)})
    return lambda module: lambda: module.pass_at_k(200, 20, 50)


def share_of_choices(samples: int, right: int, k: int) -> float:
    """The definition: of all choices of k, those that hold one of the right ones."""
    choices = list(itertools.combinations(range(samples), k))
    return sum(min(choice) < right for choice in choices) / len(choices)


def share_of_places(samples: int, right: int, k: int) -> float:
    """The same where choices are too many: each right one in turn misses the k places."""
    return 1 - math.prod((samples - k - i) / (samples - i) for i in range(right))


def wrong_tries(n: int, c: int, k: int) -> Mistakes:
    """What the usual mistakes make of numbers none of which is too small."""
    every, none = math.comb(n, k), math.comb(n - c, k)
    return {
        "is 1 - (1 - c/n)^k, as if an answer could be taken twice: the k are different ones":
            1 - (1 - c / n) ** k,
        "is c/n, as if k were 1": c / n,
        "is k c/n, how many right ones are to be expected": k * c / n,
        "is the share of choices without a right one: 1 minus that is wanted": none / every,
        "is the share of choices of which all are right; one is enough":
            math.comb(c, k) / every,
        "is the share of choices with exactly one right one; there may be more":
            c * math.comb(n - c, k - 1) / every,
        "has its division upside down": 1 - every / none,
        "is 1: are the arguments of comb exchanged? The larger is the first": 1.0,
        "takes the right ones for the wrong ones: none of k is right if all k come from the "
        "n - c others": 1 - math.comb(c, k) / every,
        "is (1 - c/n)^k, and an answer could be taken twice": (1 - c / n) ** k}
