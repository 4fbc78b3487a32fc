"""What the chapter on looking inside shows, asserted on a trained model.

tests/trained is the model of `make train` with its defaults; `make refresh-all` renews it.
"""
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from figures import EXAMPLE, draw_all, kind_of
from simple_llm import inside
from simple_llm.corpus import StoryCorpus, World
from simple_llm.inside import (
    ablate, attention_map, induction_scores, logit_lens,
    look_inside, page, principal_components, similarity_by_distance, three_looks,
    without_head,
)
from simple_llm.model import Config, SimpleLLM
from simple_llm.tokenizer import Tokenizer
from simple_llm.train import evaluate

TRAINED = Path(__file__).parent / "trained"


@pytest.fixture(scope="module")
def model():
    return SimpleLLM.from_pretrained(TRAINED)


@pytest.fixture(scope="module")
def corpus():
    return StoryCorpus(World(), held_out=60)


@pytest.fixture(scope="module")
def ids(corpus):
    return [Tokenizer.bos, *corpus.tokenizer.encode(EXAMPLE)]


@pytest.fixture(scope="module")
def looks(model, corpus):
    return three_looks(model, corpus, corpus.held_out)


def test_the_view_agrees_with_the_model(model, ids):
    view = look_inside(model, ids)
    T, c = len(ids), model.config
    assert view.weights.shape == (c.n_layers, c.n_heads, T, T)
    assert view.streams.shape == (c.n_layers + 1, T, c.d_model)
    logits = model.forward(np.array([ids]))[0]
    p = logit_lens(model, view.streams)[-1]
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(p, e / e.sum(axis=-1, keepdims=True), atol=1e-6)


def test_attention_sums_to_one_and_never_looks_ahead(model, ids):
    weights = look_inside(model, ids).weights
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(weights, k=1).any()


def test_the_arcs_second_layer_goes_from_the_answer_to_the_fact(model, ids, looks):
    words = ["<bos>", *EXAMPLE.split()]
    reader = looks["answer to fact"][1].argmax()
    weights = look_inside(model, ids).weights[1, reader, -1]
    assert words[weights.argmax()] == "kitchen" and weights.max() > 0.5


def test_the_arcs_first_layer_goes_from_the_fact_to_the_person(model, ids, looks):
    words = ["<bos>", *EXAMPLE.split()]
    subject = looks["fact to person"][0].argmax()
    weights = look_inside(model, ids).weights[0, subject]
    assert words[weights[words.index("kitchen")].argmax()] == "ben"


def test_the_looks_are_divided_between_the_layers(looks):
    assert looks["fact to person"][0].max() > 0.4 > looks["fact to person"][1].max()
    assert looks["answer to fact"][1].max() > 0.4 > looks["answer to fact"][0].max()
    assert looks["answer to person asked for"][0].max() > 0.8


def test_the_lens_knows_the_answer_after_the_second_block_only(model, corpus, ids):
    kitchen = corpus.tokenizer.ids["kitchen"]
    lens = logit_lens(model, look_inside(model, ids).streams)[:, -1, kitchen]
    assert lens[0] < 0.1 and lens[1] < 0.5 and lens[2] > 0.9


def test_one_head_in_each_layer_cannot_be_done_without(model, corpus, looks):
    answered = ablate(model, corpus)
    assert evaluate(model, corpus).answers > 0.99
    for layer, look in ((0, "fact to person"), (1, "answer to fact")):
        needed = looks[look][layer].argmax()
        assert answered[layer, needed] < 0.6
        assert answered[layer].argmin() == needed
    assert (answered > 0.9).sum() >= 4


def test_a_head_comes_back_when_the_experiment_is_over(model):
    before = model.data.copy()
    with pytest.raises(KeyError):
        with without_head(model, 0, 1):
            assert not np.array_equal(model.data, before)
            raise KeyError
    assert np.array_equal(model.data, before)


def test_people_places_and_things_lie_in_groups_of_their_own(model, corpus):
    tokens = corpus.tokenizer.tokens[4:]
    points = principal_components(model.tokens.weight.data[4:])
    kinds = np.array([kind_of(token, World()) for token in tokens])
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
        weights = np.zeros((1, 2, T, T))
        weights[0, 1, np.arange(n + 1, T), np.arange(n + 1, T) - n + 1] = 1.0
        assert ids[1 : n + 1] == ids[n + 1 :]
        return inside.View(weights, np.zeros((2, T, 8)))

    monkeypatch.setattr(inside, "look_inside", perfect)
    assert induction_scores(model).tolist() == [[0.0, 1.0]]


def test_the_figures_are_drawn(model, corpus, tmp_path):
    draw_all(model, corpus, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name}.svg" for name in
                     ("attention", "lens", "heads", "embeddings", "positions")}
    for path in tmp_path.iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_page_needs_nothing_but_itself(model, corpus, ids):
    html = page(model, ids, corpus.tokenizer.tokens, corpus)
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert html.count("<svg") == 8 and "of questions answered" in html
    assert "kitchen" in html and "looks at" in html


def test_words_on_the_page_are_escaped():
    svg = attention_map(np.ones((1, 1)), ["<b>&"], "a < b")
    assert "<b>" not in svg and "&lt;b&gt;&amp;" in svg and "a &lt; b" in svg


def test_the_page_works_for_a_model_of_something_else():
    model = SimpleLLM(Config(9, 12, 8, 1, 2))
    html = page(model, [1, 5, 6], [f"t{i}" for i in range(9)])
    assert "t5" in html and "questions answered" not in html


def test_backward_after_a_look_inside_is_refused():
    """It would mix the text that was looked at with the one whose loss was computed."""
    model = SimpleLLM(Config(11, 8, 8, 2, 2))
    ids = np.array([[1, 2, 3]])
    model.loss(ids, ids)
    inside.look_inside(model, [4, 5])
    with pytest.raises(RuntimeError, match="needs a loss"):
        model.backward()
