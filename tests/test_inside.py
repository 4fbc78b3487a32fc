"""What the chapter on looking inside shows, asserted on a trained model.

tests/trained is the model of `make train` with its defaults; `make refresh-all` renews it.
"""
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from figures import EXAMPLE, draw_all, kind_of
from simple_llm import inside
from simple_llm.engine.fast import FastLLM
from simple_llm.inside import (
    ablate, attention_to_self, induction_scores, logit_lens, look_inside,
    principal_components, similarity_by_distance, three_looks, without_head,
)
from simple_llm.layers import softmax
from simple_llm.model import Config, SimpleLLM
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import Alone, evaluate
from simple_llm.world import StoryCorpus, World

TRAINED = Path(__file__).parent / "trained"
WORDS = ["<bos>", *EXAMPLE.split()]


@pytest.fixture(scope="module")
def model():
    return FastLLM.from_pretrained(TRAINED)


@pytest.fixture(scope="module")
def corpus():
    return StoryCorpus(World(), held_out=60)


@pytest.fixture(scope="module")
def ids(corpus):
    return [Tokenizer.bos, *corpus.tokenizer.encode(EXAMPLE)]


@pytest.fixture(scope="module")
def looks(model, corpus):
    return three_looks(model, corpus, corpus.held_out)


def test_the_view_agrees_with_the_model_and_with_the_plain_one(model, ids):
    view, plain = look_inside(model, ids), look_inside(SimpleLLM.from_pretrained(TRAINED), ids)
    T, c = len(ids), model.config
    assert view.attention.shape == (c.n_layers, c.n_heads, T, T)
    assert view.streams.shape == (c.n_layers + 1, T, c.d_model)
    p = logit_lens(model, view.streams)[-1]
    np.testing.assert_allclose(p, softmax(model.forward(np.array([ids]))[0]), atol=1e-6)
    np.testing.assert_allclose(view.attention.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(view.attention, k=1).any()              # never looks ahead
    for ours, theirs in zip(view, plain):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_arcs_go_from_the_answer_to_the_fact_and_from_the_fact_to_the_person(model, ids, looks):
    attention = look_inside(model, ids).attention
    reader = attention[1, looks["answer to fact"][1].argmax(), -1]
    assert WORDS[reader.argmax()] == "kitchen" and reader.max() > 0.5
    subject = attention[0, looks["fact to person"][0].argmax(), WORDS.index("kitchen")]
    assert WORDS[subject.argmax()] == "ben"


def test_the_looks_are_divided_between_the_layers(looks):
    assert looks["fact to person"][0].max() > 0.4 > looks["fact to person"][1].max()
    assert looks["answer to fact"][1].max() > 0.4 > looks["answer to fact"][0].max()
    assert looks["answer to person asked for"][0].max() > 0.8


def test_the_lens_knows_the_answer_after_the_second_block_only(model, corpus, ids):
    kitchen = corpus.tokenizer.ids["kitchen"]
    lens = logit_lens(model, look_inside(model, ids).streams)[:, -1, kitchen]
    assert lens[0] < 0.1 and lens[1] < 0.5 and lens[2] > 0.9


def test_the_head_for_persons_is_needed_and_of_the_two_for_facts_either(model, corpus, looks):
    answered = ablate(model, corpus)
    assert evaluate(Alone(model), corpus).answers > 0.99
    person = looks["fact to person"][0].argmax()
    assert answered[0].argmin() == person and answered[0, person] < 0.6
    one, other = np.argsort(looks["answer to fact"][1])[-2:]
    assert looks["answer to fact"][1, [one, other]].min() > 0.9
    assert answered[1, [one, other]].min() > 0.95              # each alone suffices
    with without_head(model, 1, one), without_head(model, 1, other):
        assert evaluate(Alone(model), corpus).answers < 0.4


def test_without_attention_the_questions_are_not_answered(model, corpus, ids):
    with attention_to_self(model):
        assert evaluate(Alone(model), corpus).answers < 0.6
        attention = look_inside(model, ids).attention
        assert np.allclose(attention, np.eye(len(ids)), atol=1e-6)
    assert evaluate(Alone(model), corpus).answers > 0.99


def test_a_head_comes_back_when_the_experiment_is_over(model):
    before = [p.data.copy() for p in model.parameters()]
    with pytest.raises(KeyError), without_head(model, 0, 1):
        rows = model.blocks[0].attention.project.weight.data
        assert [not row.any() for row in rows] == [16 <= n < 32 for n in range(64)]
        raise KeyError
    assert all(np.array_equal(p.data, was) for p, was in zip(model.parameters(), before))


def test_people_places_and_things_lie_in_groups_of_their_own(model, corpus):
    points = principal_components(model.tokens.weight.data[4:])
    kinds = np.array([kind_of(token, World()) for token in corpus.tokenizer.tokens[4:]])
    centres = {k: points[kinds == k].mean(axis=0) for k in ("person", "place", "thing")}
    for kind, centre in centres.items():
        spread = np.linalg.norm(points[kinds == kind] - centre, axis=1).max()
        others = [np.linalg.norm(centre - c) for k, c in centres.items() if k != kind]
        assert min(others) > 2 * spread


def test_principal_components_find_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 5)) * [0.1, 3.0, 0.1, 1.0, 0.1] + 7
    found = principal_components(rows)
    assert abs(np.corrcoef(found[:, 0], rows[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(found[:, 1], rows[:, 3])[0, 1]) > 0.99


def test_near_positions_are_more_alike_than_far_ones(model):
    similar = similarity_by_distance(model.positions.weight.data)
    assert similar[0] == pytest.approx(1, abs=1e-5)
    assert similar[1] > 0.7 > similar[5] > similar[10] > similar[30]


def test_the_induction_score_is_that_of_a_head_made_for_it(monkeypatch):
    model = SimpleLLM(Config(30, 41, 8, 1, 2))

    def perfect(model, ids):
        T, n = len(ids), (len(ids) - 1) // 2
        attention = np.zeros((1, 2, T, T))
        attention[0, 1, np.arange(n + 1, T), np.arange(n + 1, T) - n + 1] = 1.0
        assert ids[1 : n + 1] == ids[n + 1 :]
        return inside.View(attention, np.zeros((2, T, 8)))

    monkeypatch.setattr(inside, "look_inside", perfect)
    assert induction_scores(model).tolist() == [[0.0, 1.0]]


def test_the_figures_are_drawn(model, corpus, tmp_path):
    draw_all(model, corpus, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}.svg" for name in
                     ("attention", "lens", "heads", "embeddings", "positions")}
    for path in tmp_path.iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


