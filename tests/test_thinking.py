"""The world of hops: true answers, no shortcut, the mask; and what measures it."""
import random
import re
from collections import Counter

import numpy as np
import pytest

import thinking as tool
from thinking import IDS, PEOPLE, PLACES, WORDS, Riddle, ask, batch, tell
from test_pictures import ROOT, problems


@pytest.fixture(scope="module")
def riddles():
    rng = random.Random(5)
    return [tell(rng) for _ in range(300)]


def read(story):
    """Who follows whom or is where, by a pattern, not by the teller's own lists."""
    return dict(re.findall(r"(\w+) (?:follows|is) (\w+) \.", " ".join(story)))


def test_every_path_is_what_a_chase_through_the_story_finds(riddles):
    for story, paths in riddles:
        after = read(story)
        assert len(after) == 12 and len(story) == 48
        for path in paths:
            here, found = path[0], [path[0]]
            while here in after:
                here = after[here]
                found.append(here)
            assert path == found and here in PLACES


def test_is_tells_of_places_and_follows_of_people(riddles):
    for story, _ in riddles:
        for verb, name in re.findall(r"(follows|is) (\w+)", " ".join(story)):
            assert name in (PLACES if verb == "is" else PEOPLE)


def test_each_story_asks_for_everybody_once_and_for_one_to_four_hops_equally_often(riddles):
    for _, paths in riddles:
        assert sorted(path[0] for path in paths) == sorted(PEOPLE)
        assert Counter(map(len, paths)) == {2: 3, 3: 3, 4: 3, 5: 3}


@pytest.mark.parametrize("guess", [
    lambda places, near: places[0], lambda places, near: places[-1], lambda places, near: near,
    lambda places, near: "outside"], ids=["first", "last", "nearest", "always the same"])
@pytest.mark.parametrize("hops", [2, 3, 4])
def test_no_place_is_likelier_by_where_it_stands(riddles, guess, hops):
    right = []
    for story, paths in riddles:
        at = {word: t for t, word in enumerate(story) if word in PLACES}
        for path in (path for path in paths if len(path) == hops + 1):
            asked = story.index(path[0])               # the first time that the name is told
            near = min(at, key=lambda place: abs(at[place] - asked))
            right.append(guess(sorted(at, key=at.get), near) == path[-1])
    assert abs(np.mean(right) - 1 / 3) < 0.065         # 900 questions, not all independent


def test_a_fact_stands_before_the_one_that_leads_to_it_as_often_as_behind_and_at_any_distance(riddles):
    steps = []
    for story, _ in riddles:
        names = story[::4]
        steps += [names.index(after) - names.index(name)
                  for name, after in read(story).items() if after in PEOPLE]
    assert abs(np.mean(np.array(steps) < 0) - 1 / 2) < 0.04
    assert abs(np.mean(np.abs(steps) == 1) - 1 / 6) < 0.03     # 22 of 132 pairs of places


def test_an_answer_has_all_steps_or_the_last_one_and_its_full_stop():
    path = ["anna", "ben", "dan", "abroad"]
    assert ask(path, True) == (["think", "anna"], ["ben", "dan", "abroad", "."])
    assert ask(path, False) == (["?", "anna"], ["abroad", "."])


def test_what_counts_in_a_row_are_the_answers_alone():
    rng = random.Random(1)
    few = [tell(rng, 2, 1), tell(rng)]
    ids, targets = batch(few, [True, False])
    assert ids.shape == targets.shape == (2, 1 + 48 + 6 * 4 - 1)
    for b, (riddle, think) in enumerate(zip(few, [True, False])):
        row = [WORDS[n] for n in ids[b]]
        text = " ".join([*riddle.story, *(word for path in riddle.paths[:6]
                                          for half in ask(path, think) for word in half)])
        assert row[0] == "<bos>"
        assert " ".join(row[1:]).replace(" <pad>", "") == text.removesuffix(" .")
        counted = " ".join(WORDS[n] for n in targets[b] if n >= 0)
        assert counted == " ".join(" ".join(ask(path, think)[1]) for path in riddle.paths[:6])
        for t in np.flatnonzero(targets[b, :-1] >= 0):  # each is the next token of the row
            assert ids[b, t + 1] in (targets[b, t], 0)


def test_no_row_is_longer_than_the_model_has_positions():
    rng = random.Random(2)
    longest = max(batch([tell(rng)], [True]).ids.shape[1] for _ in range(200))
    assert longest <= tool.CONTEXT and 49 + 2 + tool.LIMIT <= tool.CONTEXT


def test_the_tool_asks_for_the_hops_and_reads_the_same_chains():
    for hops in tool.HOPS:
        for prompt, path in zip(*tool.questions(hops, True, 20)):
            assert len(path) == hops + 1 and prompt[-1] == path[0] and prompt[-2] == IDS["think"]
            after = read([WORDS[n] for n in prompt])
            assert WORDS[tool.end(tool.chase(prompt), path[0])] == WORDS[path[-1]]
            assert [after[WORDS[n]] for n in path[:-1]] == [WORDS[n] for n in path[1:]]


def test_writing_ends_at_a_place_or_a_full_stop():
    class Parrot:                                      # says the words of its row, whatever it reads
        said = [[IDS[word] for word in words.split()] for words in (
            "ben abroad dan dan dan dan", "ben . abroad dan dan dan", "ben ben ben ben ben ben")]

        def forward(self, ids):
            logits = np.zeros((len(ids), ids.shape[1], len(WORDS)))
            for b, row in enumerate(ids):
                logits[b, -1, self.said[row[0]][ids.shape[1] - 2]] = 1.0
            return logits

    written = tool.write(Parrot(), np.array([[0, 9], [1, 9], [2, 9]]))
    assert written.shape == (3, tool.LIMIT)
    assert [[WORDS[n] for n in row if n] for row in written] == [
        ["ben", "abroad"], ["ben", "."], ["ben"] * 6]
    assert tool.answers(written) == [IDS["abroad"], 0, 0]


def test_the_majority_shares_a_tie_and_ignores_answers_without_a_place():
    a, b, c = tool.PLACE_IDS
    truth = np.array([a, a, a])
    got = np.array([[a, a, 0], [a, b, 0], [b, 0, c]])  # (n, B)
    assert tool.majority(got, truth) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_a_rows_weight_multiplies_its_gradient():
    model = tool.make_model(1, 0)
    ids, targets = batch([tell(random.Random(3), 2, 2)] * 2, [True, True])

    def gradient(weights):
        model.zero_grad()
        usual, model.cross_entropy = model.cross_entropy, tool.Weighted()
        model.cross_entropy.weights = np.array(weights, np.float32)
        model.loss(ids, targets, 10)
        model.backward()
        model.cross_entropy = usual
        return np.concatenate([p.grad.ravel() for p in model.parameters()])

    model.zero_grad()
    model.loss(ids[:1], targets[:1], 10)
    model.backward()
    one = np.concatenate([p.grad.ravel() for p in model.parameters()])
    np.testing.assert_allclose(gradient([0.75, -0.25]), 0.5 * one, atol=1e-6)
    np.testing.assert_allclose(gradient([0.5, -0.5]), 0 * one, atol=1e-6)


def test_riddles_with_short_chains_use_only_as_many_people_and_places():
    story, paths = tell(random.Random(4), 2, 3)
    assert isinstance(tell(random.Random(4)), Riddle)
    assert len(paths) == 6 and len({path[-1] for path in paths}) == 2 and len(story) == 24


def test_the_picture_can_be_read_and_shows_each_share_in_its_place(tmp_path):
    table = np.arange(32).reshape(4, 2, 4) / 31        # (layers, ways, hops)
    tool.draw_hops(tmp_path / "hops.svg", table)
    assert not list(problems(tmp_path / "hops.svg"))
    assert not list(problems(ROOT / "figures" / "thinking.svg"))
    found = [(float(x), float(y), int(share)) for x, y, share in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>(\d+)%<', (tmp_path / "hops.svg").read_text())]
    xs, ys = sorted({x for x, _, _ in found}), sorted({y for _, y, _ in found})
    assert len(xs) == 8 and len(ys) == 4
    for x, y, share in found:
        way, hops = divmod(xs.index(x), 4)
        assert share == round(100 * table[ys.index(y), way, hops])
