"""The odds of every word that could have come, and what is made of them."""
import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

import honesty
from odds import odds
from simple_llm.errors import UserError
from simple_llm.model import SimpleLLM
from simple_llm.world import StoryCorpus, World
from test_pictures import problems
from test_world import TINY, enumerate_stories, told


@pytest.fixture(scope="module")
def stories():
    return told(60, seed=17)


def test_at_each_word_of_a_story_the_odds_sum_to_1(stories):
    for story in stories:
        for at in odds(World(), story.words):
            assert sum(at.values()) == pytest.approx(1, abs=1e-12)


def test_the_odds_of_the_word_that_came_are_those_that_the_teller_kept(stories):
    for story in stories:
        found = odds(World(), story.words)
        assert len(found) == len(story.words)
        for at, word, p in zip(found, story.words, story.probabilities):
            assert at[word] == pytest.approx(p, abs=1e-12)


def test_the_odds_are_those_of_all_stories_with_the_same_beginning():
    """Found in another way: from every story that there is, by its whole probability."""
    _, whole = enumerate_stories(TINY)
    after = {}
    for words, p in whole.items():
        for n, word in enumerate(words):
            after.setdefault(words[:n], Counter())[word] += p
    for words in whole:
        for n, at in enumerate(odds(TINY, words)):
            total = sum(after[words[:n]].values())
            assert at.keys() == after[words[:n]].keys()
            for word, p in at.items():
                assert p == pytest.approx(after[words[:n]][word] / total, abs=1e-12)


def test_first_sentences_told_by_their_odds_are_all_there_are_and_sum_to_1():
    world, chances = World(), []
    for who, goes in itertools.product(world.people, (True, False)):
        for what in world.places if goes else world.things:
            words = f"{who} {'went to' if goes else 'took'} the {what} .".split()
            chances.append(math.prod(at[word] for at, word in zip(odds(world, words), words)))
    assert len(chances) == 50 and sum(chances) == pytest.approx(1, abs=1e-12)


def test_many_stories_go_on_as_often_as_the_odds_say():
    """What follows each of the commonest beginnings, by the chi-square of its counts."""
    beginnings, chi, freedom = Counter(), 0.0, 0
    followers = {}
    for story in told(8000, seed=4):
        for n in range(min(9, len(story.words))):
            key = tuple(story.words[:n])
            beginnings[key] += 1
            followers.setdefault(key, Counter())[story.words[n]] += 1
    for key, n in beginnings.items():
        if n < 400:
            continue
        word = next(iter(followers[key]))
        at = odds(World(), (*key, word))[-1]
        assert followers[key].keys() <= at.keys()
        chi += sum((followers[key][w] - n * p) ** 2 / (n * p) for w, p in at.items())
        freedom += len(at) - 1
    assert freedom > 60 and abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


def test_of_a_beginning_the_odds_are_those_of_the_story(stories):
    words = stories[0].words
    assert odds(World(), words[:9]) == odds(World(), words)[:9]


@pytest.mark.parametrize("words, message", [
    ("anna went to the key", "no story has 'key' here, but .*attic"),
    ("anna took took the key", "no story has 'took' here, but the$"),
])
def test_of_words_that_are_no_story_the_first_wrong_one_is_named(words, message):
    with pytest.raises(UserError, match=message):
        odds(World(), words.split())


# What is measured with them


def test_the_loss_of_a_model_that_knows_the_odds_is_the_floor_and_its_divergence_is_none(stories):
    corpus = StoryCorpus(World(), held_out=50)
    p = honesty.true_odds(corpus, stories)
    came = [corpus.tokenizer.ids[word] for story in stories for word in story.words]
    kept = [q for story in stories for q in story.probabilities]
    np.testing.assert_allclose(p[np.arange(len(p)), came], kept, atol=1e-12)
    assert abs(honesty.divergence(p, np.maximum(p, 1e-300))).max() < 1e-12


def test_the_divergence_by_hand():
    p, q = np.array([[0.5, 0.5, 0], [1, 0, 0]]), np.array([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(honesty.divergence(p, q), [math.log(2) / 2, math.log(2)])


def test_the_trained_model_is_near_the_true_odds_and_sure_of_its_answers(stories):
    model = SimpleLLM.from_pretrained(honesty.TRAINED)
    each = honesty.compare(model, StoryCorpus(World(), held_out=50), stories)
    assert abs(each.true - each.model).max() < 0.3
    assert abs(each.true - each.model)[each.kinds == "answer"].max() < 0.01
    assert 0 < honesty.divergence(each.true, each.model).mean() < 0.003


def test_bins_hold_the_mean_of_what_was_said_and_the_share_that_came():
    said = np.tile([0.62, 0.30, 0.08, 0.0], (100, 1))
    came = np.array([0] * 70 + [1] * 20 + [2] * 10)
    each = honesty.Odds(np.array(["name"] * 100), said, said, came)
    np.testing.assert_allclose(honesty.bins(each, each.kinds == "name"), [
        [0.08, 0.1, 100], [0.30, 0.2, 100], [0.62, 0.7, 100]])


def test_strangers_are_those_of_whom_the_story_does_not_tell(stories):
    asked = honesty.strangers(stories)
    assert len(asked) == sum(5 - story.words[: story.words.index("what")].count(".")
                             for story in stories)
    assert not any(who in words or "?" in words for words, who in asked)


def test_a_question_asked_among_others_is_answered_as_alone(stories):
    model = SimpleLLM.from_pretrained(honesty.TRAINED)
    tokenizer, asked = StoryCorpus(World(), held_out=50).tokenizer, honesty.strangers(stories)[:9]
    together = honesty.ask(model, tokenizer, asked)
    for (words, who), p in zip(asked, together):
        text = " ".join(["<bos>", *words, "what about", who, "? the"])
        alone = model.forward(np.array([[tokenizer.ids[word] for word in text.split()]]))[0, -1]
        alone = np.exp(alone - alone.max())
        np.testing.assert_allclose(p, alone / alone.sum(), atol=1e-5)


def test_the_picture_can_be_read():
    assert not list(problems(honesty.TRAINED.parent.parent / "figures" / "calibration.svg"))


def test_each_word_has_its_kind(stories):
    story = World().tell(random.Random(3))
    kinds = list(honesty.kinds_of(story))
    assert kinds[:13] == ["name", "either", "forced", "habit", "forced", *kinds[:5], *kinds[:3]]
    assert [(k, kinds[k]) for k, word in enumerate(story.words) if word == "what"][:2] == [
        (16, "name"), (23, "either")]                       # nobody acts; another question
    for each in stories:
        kinds = list(honesty.kinds_of(each))
        assert [k for k, kind in enumerate(kinds) if kind == "answer"] == [
            answer.position for answer in each.answers]
        for kind, p in zip(kinds, each.probabilities):
            assert (p == 1) >= (kind in ("answer", "forced"))
