"""Conversations, the loss on answers alone, and rewards: against PyTorch, enumeration and differences."""
import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest

from simple_llm.cli.main import main
from simple_llm.engine.fast import FastLLM
from simple_llm.engine.parallel import make_optimizer
from simple_llm.layers import CrossEntropy, softmax
from simple_llm.model import Config, SimpleLLM
from simple_llm.today.assistant import (
    MARKS, TEMPLATE, TaleCorpus, Tales, again_and_again, hold_talk, judge, judged, last_answer,
    lay_out, spell, tune,
)
from simple_llm.today.chat import SMALL, Turn, Writer, make_writer
from simple_llm.today.reward import (
    WeightedLoss, advantages, answers, draw, pass_at_k, practise, weigh_pairs, weigh_samples,
)
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Alone, Options
from simple_llm.world import World

THEIRS = np.load(Path(__file__).with_name("reward.npz"))
TALK = [Turn("user", "ben took the key . what about ben ?"), Turn("assistant", "key"),
        Turn("user", "what about eva ?"), Turn("assistant", "nobody knows")]


@pytest.fixture(scope="module")
def corpus():
    return TaleCorpus(held_out=20)


def talks(n, absent=0.0, seed=0):
    rng = random.Random(seed)
    return [hold_talk(World(), rng, absent) for _ in range(n)]


# stories and conversations

def test_each_thing_ends_once_at_most_and_where_it_began():
    rng, ends = random.Random(1), 0
    for _ in range(300):
        story = Tales().tell(rng)
        text = " ".join(story.words)
        began = dict(re.findall(r"(\w+) (?:went to|took) the (\w+)", text))
        ended = re.findall(r"(\w+) (left|dropped) the (\w+)", text)
        assert len({person for person, _, _ in ended}) == len(ended)
        for person, verb, what in ended:
            assert began[person] == what and (verb == "left") == (what in World().places)
        assert [story.words[at] for at, _ in story.answers] == [what for *_, what in ended]
        ends += len(ended)
    assert ends > 300


def test_a_conversation_is_answered_as_its_story_goes():
    counts, later = {"known": 0, "unknown": 0}, 0
    for turns in talks(400, absent=0.3):
        began = {}
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        for asked, answered in zip(turns[::2], turns[1::2]):
            began |= re.findall(r"(\w+) (?:went to|took) the (\w+)", asked.text)
            later += bool(asked is not turns[0] and "the" in asked.text)
            person = re.search(r"what about (\w+) \?$", asked.text)[1]
            assert answered.text == began.get(person, "nobody knows")
            counts["known" if person in began else "unknown"] += 1
    share = counts["unknown"] / sum(counts.values())
    assert 0.25 < share < 0.33                 # of all but those whose story has everybody
    assert later > 100                         # more is told in between


def test_without_absent_people_there_is_always_an_answer():
    assert all(turn.text != "nobody knows" for turns in talks(200) for turn in turns)


def test_exactly_the_assistants_words_and_its_end_count():
    words, ours = spell(TALK)
    assert [word for word, our in zip(words, ours) if our] == [
        "key", "<end>", "nobody", "knows", "<end>"]
    assert words[:3] == ["<user>", "ben", "took"] and len(words) == len(ours)


def test_of_the_last_answer_the_first_word_alone_counts():
    words, ours = last_answer(TALK)
    assert words[-2:] == ["<assistant>", "nobody"] and ours == [False] * (len(words) - 1) + [True]


def test_a_batch_has_a_target_where_a_word_counts_and_nowhere_else(corpus):
    batch = lay_out(corpus.tokenizer.ids, [spell(TALK), spell(TALK[:2])])
    decoded = [[corpus.tokenizer.tokens[n] for n in row[row >= 0]] for row in batch.targets]
    assert decoded == [["key", "<end>", "nobody", "knows", "<end>"], ["key", "<end>"]]
    at = np.nonzero(batch.targets[0] >= 0)[0]
    assert [corpus.tokenizer.tokens[n] for n in batch.ids[0, at]] == [
        "<assistant>", "key", "<assistant>", "nobody", "knows"]


def test_only_the_first_words_of_answers_are_judged(corpus):
    batch, worth, first = judged([TALK], corpus.tokenizer)
    names = corpus.tokenizer.tokens
    assert [names[n] for n in worth.argmax(axis=1)] == ["key", "<end>", "nobody", "knows", "<end>"]
    assert worth.sum() == 5 and first.tolist() == [True, False, True, False, False]


def test_training_writes_a_conversation_as_chatting_does(corpus):
    tokenizer = corpus.tokenizer
    chat = Writer(SMALL, tokenizer).write(TALK[:3])
    words, _ = spell(TALK[:3])
    assert chat == [tokenizer.bos, *(tokenizer.ids[word] for word in [*words, "<assistant>"])]


def test_a_saved_assistant_is_recognized_and_typed_marks_are_text(corpus, tmp_path):
    corpus.tokenizer.save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tuple(tokenizer.specials[4:]) == MARKS
    writer = make_writer(TEMPLATE, tokenizer)
    assert writer.form == SMALL
    with pytest.warns(UserWarning, match="not in the vocabulary"):
        ids = writer.write([Turn("user", "<assistant> key")])
    assert ids.count(tokenizer.ids["<assistant>"]) == 1


def test_jinja_writes_the_same_from_the_template_that_is_saved(corpus):
    jinja2 = pytest.importorskip("jinja2")
    said = jinja2.Template(TEMPLATE).render(
        messages=[{"role": turn.role, "content": turn.text} for turn in TALK], bos_token="<bos>")
    words, _ = spell(TALK)
    assert re.findall(r"<\w+>|\w+|[.?]", said) == ["<bos>", *words, "<assistant>"]


class Oracle:
    """Answers every question as it is told to."""

    def __init__(self, tokenizer, words):
        self.V, self.ids = tokenizer.vocab_size, [tokenizer.ids[word] for word in words]

    def forward(self, ids):
        logits = np.zeros((*ids.shape, self.V))
        for row, (answer, length) in enumerate(zip(self.ids, (ids != 0).sum(axis=1))):
            logits[row, :, answer] = 1
        return logits


def test_the_verdict_counts_what_was_right_refused_and_invented(corpus):
    story = "ben took the key . anna went to the attic . what about {} ?"  # the attic is anna's habit
    asked = [("ben", "key", "key"), ("ben", "key", "nobody"), ("anna", "attic", "attic"),
             ("anna", "attic", "key"), ("eva", "nobody knows", "key"), ("dan", "nobody knows", "nobody"),
             ("dan", "nobody knows", "attic"), ("eva", "nobody knows", "nobody")]
    model = Oracle(corpus.tokenizer, [said for *_, said in asked])
    told = [[Turn("user", story.format(who)), Turn("assistant", right)] for who, right, _ in asked]
    assert judge(model, corpus.tokenizer, World(), told) == (0.5, 0.5, 0.25, 0.5)


def test_tuning_teaches_the_answers_and_only_as_many_steps_as_are_asked_for(corpus):
    model, seen = FastLLM(Config(corpus.tokenizer.vocab_size, 64, 16, 1, 2), seed=0), []
    team = Alone(model, make_optimizer(model, Options(weight_decay=0.0)))
    batches = again_and_again(talks(4), corpus.tokenizer, random.Random(0))
    tune(team, batches, 60, 1e-2, seen.append)
    assert len(seen) == 60 and seen[-1].loss < 0.5 < 3 < seen[0].loss


# the loss of weights, and what weights are chosen

def loss_of(logits, weigh):
    layer = WeightedLoss(weigh)
    targets = np.zeros((1, len(logits)), int)
    return layer.forward(logits[None], targets), layer.backward()[0]


def differences(function, x, h=1e-5):
    slope = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[at] += h
        down[at] -= h
        slope[at] = (function(up) - function(down)) / (2 * h)
    return slope


def test_the_gradient_of_a_weighted_loss_is_that_of_central_differences():
    rng = np.random.default_rng(0)
    z, w = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    slope = differences(lambda z: loss_of(z, lambda p: w)[0], z)
    np.testing.assert_allclose(loss_of(z, lambda p: w)[1], slope, rtol=1e-5, atol=1e-7)


def test_with_a_weight_of_1_on_the_target_it_is_cross_entropy():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(2, 4, 6)), rng.integers(-1, 6, size=(2, 4))
    ours, theirs = WeightedLoss(lambda p: np.eye(6)[targets[targets >= 0]]), CrossEntropy()
    assert ours.forward(logits, targets) == pytest.approx(theirs.forward(logits, targets), abs=1e-12)
    np.testing.assert_allclose(ours.backward(), theirs.backward(), atol=1e-7)


def test_the_expected_reward_rises_along_the_gradient_of_p_times_reward():
    z, worth = THEIRS["logits"], THEIRS["worth"]
    slope = differences(lambda z: -(softmax(z) * worth).sum() / len(z), z)
    gradient = loss_of(z, lambda p: p * worth)[1]
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(gradient, THEIRS["expected gradient"], rtol=1e-5, atol=1e-8)


def test_reinforce_in_groups_with_a_leash_has_pytorchs_gradient():
    p, q = softmax(THEIRS["logits"]), softmax(THEIRS["before"])
    chosen, far = THEIRS["chosen"], THEIRS["leash"] * np.log(p / q)
    value = THEIRS["rewards"] - np.take_along_axis(far, chosen, axis=1)
    loss, gradient = loss_of(
        THEIRS["logits"], lambda p: weigh_samples(chosen, advantages(value), p.shape[1]))
    assert loss == pytest.approx(float(THEIRS["group loss"]), abs=1e-12)
    np.testing.assert_allclose(gradient, THEIRS["group gradient"], rtol=1e-5, atol=1e-8)


def test_dpo_has_pytorchs_gradient():
    q = softmax(THEIRS["before"])
    _, gradient = loss_of(THEIRS["logits"], lambda p: weigh_pairs(
        p, q, THEIRS["better"], THEIRS["worse"], float(THEIRS["beta"])))
    np.testing.assert_allclose(gradient, THEIRS["pairs gradient"], rtol=1e-5, atol=1e-8)


def test_the_mean_of_all_estimates_is_the_exact_gradient_but_for_the_groups_own_share():
    p, worth, G = np.array([[0.5, 0.3, 0.2]]), np.array([1.0, 0.0, 0.4]), 3
    mean = np.zeros((1, 3))
    for group in itertools.product(range(3), repeat=G):       # every group there is, with its odds
        chosen = np.array([group])
        mean += np.prod(p[0, chosen]) * weigh_samples(chosen, advantages(worth[chosen]), 3)
    exact = p * (worth - (p * worth).sum())
    np.testing.assert_allclose(mean, (G - 1) / G * exact, atol=1e-12)


def test_answers_are_drawn_as_often_as_they_are_likely():
    p = np.array([[0.1, 0.0, 0.6, 0.3], [0.0, 1.0, 0.0, 0.0]])
    chosen = draw(p, 20_000, np.random.default_rng(0))
    assert chosen.shape == (2, 20_000)
    for row, odds in zip(chosen, p):
        np.testing.assert_allclose(np.bincount(row, minlength=4) / 20_000, odds, atol=0.015)


def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_right_one():
    for n, right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if right <= n and k <= n:
            tries = list(itertools.combinations([True] * right + [False] * (n - right), k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, tries)) / len(tries))


def practised(corpus, leash):
    """The odds of four answers before and after a tiny model has practised them, and the right ones."""
    model = FastLLM(Config(corpus.tokenizer.vocab_size, 64, 16, 1, 2), seed=3)
    start = SimpleLLM(model.config, seed=3)
    batch = lay_out(corpus.tokenizer.ids, [last_answer(turns) for turns in talks(4)])
    right = np.eye(corpus.tokenizer.vocab_size)[batch.targets[batch.targets >= 0]]     # (4, V)
    tasks = itertools.repeat((batch, right, np.ones(4, bool)))
    team = Alone(model, make_optimizer(model, Options(weight_decay=0.0)))
    tune(team, practise(model, tasks, samples=64, leash=leash, before=start), 40, 1e-2,
         lambda moment: None)
    return answers(start, batch), answers(model, batch), right


def test_practice_makes_what_is_rewarded_likely(corpus):
    before, after, right = practised(corpus, leash=0.0)
    assert (before * right).sum(axis=1).mean() < 0.1
    assert (after * right).sum(axis=1).mean() > 0.3


def test_a_tight_leash_keeps_the_answers_where_they_were(corpus):
    def distance(leash):
        before, after, _ = practised(corpus, leash)
        return (after * np.log(after / before)).sum(axis=1).mean()
    assert distance(5.0) < 0.2 * distance(0.0)


def test_where_nothing_is_judged_the_text_itself_is_learned(corpus):
    batch, worth, first = judged([TALK], corpus.tokenizer)
    model = FastLLM(Config(corpus.tokenizer.vocab_size, 64, 16, 1, 2), seed=3)
    usual = model.loss(batch.ids, batch.targets)
    next(practise(model, [(batch, worth, np.zeros_like(first))]))
    assert model.loss(batch.ids, batch.targets) == pytest.approx(usual, rel=1e-6)


def test_a_stage_whose_stage_before_is_missing_says_so(tmp_path, capsys):
    assert main(["assistant", "--stage", "reward", "--out", str(tmp_path)]) == 1
    assert f"{tmp_path}/instructed has no model yet: run the stage before" in capsys.readouterr().err


def test_other_programs_are_told_to_find_the_marks_of_a_conversation_in_a_text(corpus, tmp_path):
    """transformers cuts "<user>" into unknown pieces where split_special_tokens is true."""
    for tokenizer, split in ((corpus.tokenizer, False), (Tokenizer.from_text("anna went .", "word"), True)):
        tokenizer.save(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
        assert config["split_special_tokens"] is split
