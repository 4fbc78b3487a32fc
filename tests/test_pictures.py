"""The pictures of the book: the same bytes each time, readable by all, and true."""
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import bench_charts
import engine_pictures
import pictures
from chart import CARD, contrast, ink_on, shade
from simple_llm.model import SimpleLLM
from simple_llm.world import World

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"
BENCH = ["roofline.svg"]
DRAWN = [*pictures.ALONE, *pictures.WITH_MODEL, *engine_pictures.OF_THE_ENGINE]
INSIDE = ["attention.svg", "embeddings.svg", "heads.svg", "lens.svg", "positions.svg"]


def draw(directory):
    """All pictures, and the one of bench.py from made-up measurements."""
    pictures.main(str(directory))
    pictures.main(str(directory), str(ROOT / "tests" / "trained"))
    engine_pictures.main(str(directory))
    bench_charts.draw_roofline(directory / "roofline.svg", 200e9, 50e9, {
        "product": (40.0, 220e9), "sum": (0.125, 7e9), "tanh": (0.125, 6e9), "max": (0.25, 1e9)})
    return directory


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model():
    return SimpleLLM.from_pretrained(ROOT / "tests" / "trained")


def words_in(path):
    return [text.text for text in ElementTree.parse(path).iter(f"{SVG}text")]


def test_each_picture_drawn_twice_is_the_same(drawn, tmp_path):
    again = draw(tmp_path)
    names = [path.name for path in sorted(drawn.iterdir())]
    assert names == sorted([*DRAWN, *BENCH])
    for name in names:
        assert (drawn / name).read_bytes() == (again / name).read_bytes(), name


# Readable by all

def ground_under(shapes, x, y):
    """The colour of the last shape that was filled at a point."""
    found = CARD
    for left, top, right, bottom, fill in shapes:
        if left <= x <= right and top <= y <= bottom:
            found = fill
    return found


def problems(path):
    """What of a picture cannot be read well."""
    root = ElementTree.parse(path).getroot()
    assert root.get("viewBox").startswith("0 0 720 ") and root.get("role") == "img"
    for name in ("title", "desc"):
        if not (root.findtext(f"{SVG}{name}") or "").strip():
            yield f"no {name}"
    shapes = []
    for element in root:
        of, kind = element.get, element.tag.removeprefix(SVG)
        stroke, fill = of("stroke", "none"), of("fill", "none")
        if kind == "text":
            x, y = (map(float, re.findall(r"-?[\d.]+", of("transform"))[:2])
                    if of("transform") else (float(of("x")), float(of("y"))))
            size = float(of("font-size"))
            ground = CARD if stroke != "none" else ground_under(shapes, x, y - size / 3)
            if contrast(fill, ground) < 4.5:
                yield f"words {element.text!r} in {fill} on {ground}"
            if size < 12:
                yield f"words {element.text!r} of {size} px"
            if not -2 <= x <= 722 or not 0 <= y <= float(root.get("viewBox").split()[3]):
                yield f"words {element.text!r} outside"
            continue
        if stroke != "none" and contrast(stroke, CARD) < 3:
            yield f"a line in {stroke}"
        if kind == "polygon" and contrast(fill, CARD) < 3:
            yield f"an arrow in {fill}"
        if kind == "rect" and fill != "none":
            x, y = float(of("x", "0")), float(of("y", "0"))
            shapes.append((x, y, x + float(of("width")), y + float(of("height")), fill))


@pytest.mark.parametrize("name", [*DRAWN, *BENCH])
def test_each_picture_can_be_read(drawn, name):
    assert not list(problems(drawn / name))


@pytest.mark.parametrize("name", [*DRAWN, *INSIDE])
def test_each_picture_in_the_book_can_be_read(name):
    assert not list(problems(ROOT / "figures" / name))


def test_what_cannot_be_read_is_found(tmp_path):
    pale = tmp_path / "pale.svg"
    pale.write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 9" role="img">'
                    '<title>t</title><text x="1" y="5" fill="#999999" font-size="9">w</text>'
                    '<path d="M0,0 1,1" stroke="#cccccc"/></svg>')
    assert [each.split()[0] for each in problems(pale)] == ["no", "words", "words", "a"]


def test_words_on_every_shade_can_be_read():
    shades = [shade(share / 100) for share in range(101)]
    assert min(contrast(ink_on(color), color) for color in shades) >= 4.5
    assert shades[0] == CARD and shades == sorted(shades, reverse=True)    # darker and darker
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# True

def test_the_table_has_learned_what_can_be_counted():
    words, p = pictures.learned_table()
    text = pictures.tiny.TEXT.split()
    for i, here in enumerate(words):
        followers = [b for a, b in zip(text, text[1:]) if a == here]
        counted = [followers.count(word) / len(followers) for word in words]
        np.testing.assert_allclose(p[i], counted, atol=0.03)


def test_the_odds_are_those_of_the_rules(drawn):
    shown = words_in(drawn / "odds.svg")
    # the first sentence: five people; 1/2; the bell by habit, or as one of five things
    assert [shown[shown.index(word) - 1] for word in ("ben", "took", "bell")] == [
        "0.2", "0.5", "0.6"]
    story = World().tell(pictures.random.Random(3))
    assert {story.probabilities[answer.position] for answer in story.answers} == {1.0}
    assert shown.count("answer") == 2


def test_the_ladder_has_its_ends_where_they_belong(drawn):
    shown = " ".join(words_in(drawn / "ladder.svg"))
    assert f"{math.log(27):.3f}  (27.0)" in shown
    losses = pictures.ladder_of_losses()
    corpus = pictures.StoryCorpus(World())
    prices = [-math.log(p) for story in corpus.held_out for p in story.probabilities]
    assert losses["floor"] == pytest.approx(np.mean(prices))
    assert list(losses.values()) == sorted(losses.values(), reverse=True)


def test_secants_and_tangent_have_the_slopes_of_the_cube(drawn):
    shown = " ".join(words_in(drawn / "tangent.svg"))
    for slope in (3, 3 + 0.5**2, (1.5**3 - 1) / 0.5):    # 3x², 3x² + ε², and one-sided
        assert f"= {slope:.2f}" in shown


def test_gelu_dips_where_x_times_the_normal_distribution_does(drawn):
    xs = np.linspace(-4, 4, 161)
    exact = [x * (1 + math.erf(x / 2**0.5)) / 2 for x in xs]
    k = int(np.argmin(exact))
    assert f"{exact[k]:.2f} at {xs[k]:.2f}".replace("-", "−") in words_in(drawn / "gelu.svg")


def test_layer_norm_ends_with_mean_0_and_deviation_1():
    steps = list(pictures.layer_norm_steps().values())
    np.testing.assert_allclose(steps[1], steps[0] - 4)
    np.testing.assert_allclose(steps[2], (steps[0] - 4) / 3, atol=1e-5)


def test_the_shapes_of_the_drawing_are_those_of_a_pass(drawn):
    shapes = pictures.shapes_of_a_pass()
    assert shapes["qkv"] == "(B, T, 3C)" and shapes["weights"] == "(B, H, T, T)"
    assert shapes["positions"] == "(T, C)" and shapes["logits"] == "(B, T, V)"
    assert set(shapes.values()) <= set(words_in(drawn / "model.svg"))
    assert pictures.shapes_of_a_pass(3, 7) == shapes


def test_the_product_of_two_clocks_is_the_cosine_of_what_lies_between():
    table = pictures.sinusoids(73, 64)                                     # (73, 64)
    speeds = [100 ** (-i / 32) for i in range(32)]
    for s, t in ((0, 4), (30, 34), (5, 60)):
        assert table[s] @ table[t] == pytest.approx(sum(math.cos((t - s) * w) for w in speeds))


def test_plain_descent_goes_down_the_valley_by_its_formula():
    rate = 0.015
    way = pictures.descend(pictures.SGD, rate, steps=40)
    k = np.arange(41)
    np.testing.assert_allclose(way[:, 0], -8 * (1 - rate) ** k)
    np.testing.assert_allclose(way[:, 1], (1 - 100 * rate) ** k)
    assert pictures.steps_needed(np.array([[8.0, 0], [1, 0], [0.2, 0], [0.1, 0]])) == 2
    assert pictures.best_descent(pictures.SGD)[2] > pictures.best_descent(pictures.AdamW)[2]


def test_the_schedule_ends_at_a_twentieth_of_its_peak(drawn):
    assert {"peak 0.004", "a twentieth: 0.0002"} <= set(words_in(drawn / "schedule.svg"))


def test_the_shares_of_the_asking_word_are_those_of_the_model(drawn, model):
    _, looks = pictures.read(model, pictures.STORY.split())
    np.testing.assert_allclose([look.sum(axis=-1) for look in looks], 1, atol=1e-5)
    shown = words_in(drawn / "attention-words.svg")
    for look, position in ((looks[0], -3), (looks[1], 5)):    # anna, asked for; and attic
        assert f"{100 * look[:, -1, position].max():.0f}" in shown


def test_temperature_raises_the_odds_to_a_power(drawn, model):
    logits = pictures.read(model, "<bos> anna took the apple . eva took the".split())[0][-1]
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    shown = words_in(drawn / "temperature.svg")
    for temperature in (0.5, 1.0, 2.0):
        powers = p ** (1 / temperature)
        assert f"{(powers / powers.sum()).max():.0%}" in shown


def test_no_job_lies_above_the_limits(tmp_path):
    bench_charts.draw_roofline(tmp_path / "roof.svg", 100e9, 10e9, {
        "quick product": (20.0, 123e9), "sum in the cache": (0.125, 2e9)})
    shown = " ".join(words_in(tmp_path / "roof.svg"))
    assert "roof: 123 billion" in shown and "slope: 16 GB/s" in shown


def test_the_bytes_of_the_picture_are_those_of_the_file(drawn):
    data, n = pictures.tiny_file()
    assert len(data) == 8 + n + 20
    shown = words_in(drawn / "safetensors.svg")
    assert {"W[0,1] = −1", "b[1] = 0.1"} <= set(shown)
    letters = "".join(word for word in shown if word is not None and len(word) == 1)
    assert letters.replace(" ", "") == data[8 : 8 + n].decode().replace(" ", "")


def test_the_bits_of_three_formats_mean_what_stands_below_them():
    for bits, (exponent, fraction), value in pictures.formats(0.1).values():
        assert len(bits) == 1 + exponent + fraction and bits[0] == "0"
        power = int(bits[1 : 1 + exponent], 2) - (2 ** (exponent - 1) - 1)
        assert value == 2.0**power * (1 + int(bits[1 + exponent :], 2) / 2**fraction)


def test_a_file_that_is_replaced_is_old_or_new_after_every_call():
    assert engine_pictures.watch_a_write() == [
        ("before", "old", "none"), ("open", "old", "0 bytes"), ("write", "old", "0 bytes"),
        ("flush", "old", "3 bytes"), ("fsync", "old", "3 bytes"), ("replace", "new", "none")]


def test_each_step_of_serving_reads_one_prompt_at_most_and_gives_each_reader_one_token():
    steps = engine_pictures.serve_readers()
    for step in steps:
        assert sum(size > 1 for size in step.values()) <= 1
    for reader in engine_pictures.READERS:
        sizes = [step[reader.name] for step in steps if reader.name in step]
        prompt = [size for size in sizes if size > 1]
        assert sum(prompt) == reader.prompt and max(prompt) <= 128
        assert sizes == prompt + [1] * (reader.tokens - 1)     # the first comes with the prompt
        assert reader.step <= next(k for k, step in enumerate(steps) if reader.name in step)
