"""The scripts of chapter 23, run in Node, say what NumPy says; and the pages that hold them."""
import base64
import json
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

import figures
import live_data
from simple_llm import live
from simple_llm.cli.inspect import facts_of
from simple_llm.errors import UserError
from simple_llm.generate import next_token_probabilities, roll
from simple_llm.inside import logit_lens, look_inside, without_head
from simple_llm.layers import CrossEntropy, Parameter
from simple_llm.model import SimpleLLM
from simple_llm.optimizer import SGD, AdamW
from simple_llm.today.layers import rotary_angles, rotate
from simple_llm.today.model import TodayConfig, TodayLLM
from simple_llm.tokenizer import Tokenizer, byte_ids, cut_into_chunks, learn_merges
from simple_llm.world import StoryCorpus, World

ROOT = Path(__file__).resolve().parent.parent
TRAINED = ROOT / "tests/trained"
SCRIPTS = [ROOT / "build/simple_llm/live/model.js", ROOT / "tools/play.js"]
NODE = shutil.which("node")
RUN = """
const fs = require("fs"), vm = require("vm");
for (const name of process.argv.slice(1))
  vm.runInThisContext(fs.readFileSync(name, "utf8"), name);
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const made = new Function(...Object.keys(given), CODE)(...Object.values(given));
console.log(JSON.stringify(made, (_, value) => ArrayBuffer.isView(value) ? [...value] : value));
"""


def node(code, **given):
    """What a function body returns in Node, after the chapter's script and what moves beside it."""
    if NODE is None:
        pytest.skip("there is no Node")
    script = RUN.replace("CODE", json.dumps(code))
    done = subprocess.run([NODE, "-e", script, "--", *map(str, SCRIPTS)], input=json.dumps(given),
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def model():
    return SimpleLLM.from_pretrained(TRAINED)


@pytest.fixture(scope="module")
def stories():
    """Some held-out stories as ids, the longest among them."""
    corpus = StoryCorpus(World(), held_out=100)
    held_out = sorted(corpus.held_out, key=lambda story: len(story.words))
    return [[corpus.tokenizer.bos, *map(corpus.tokenizer.ids.get, story.words[:-1])]
            for story in [*held_out[:5], held_out[-1]]]


def halves(model):
    return live.in_halves({name: (p.data.shape, p.data.ravel()) for name, p in model.named_parameters()})


RUN_ALL = """
return jobs.map(([weights, stories, gone]) => {
  const model = { arrays: readArrays(files[weights]), layers: 2, heads: 4 };
  return stories.map(ids => {
    const past = [], count = length => Array.from({ length }, (_, n) => n);
    for (const id of ids) readToken(model, past, id, new Set(gone));
    const streams = count(3).map(depth => past.map(({ streams }) => streams[depth]));
    return {
      streams, logits: past.map(({ logits }) => logits),
      looks: count(2).map(n => count(4).map(h => past.map(({ looks }) => looks[n][h]))),
      lens: streams.map(rows => rows.map(row => softmax(head(model.arrays, row)))) };
  });
});
"""


@pytest.fixture(scope="module")
def ran(model, stories):
    """What Node makes of the stories: with all weights, with halves, and with something gone."""
    files = {"F32": live.in_base64((TRAINED / "model.safetensors").read_bytes()),
             "F16": live.in_base64(halves(model))}
    jobs = [("F32", stories, []), ("F16", stories, []),
            *(("F32", stories[:1], [gone]) for gone in ("head 0 0", "head 1 2", "block 1"))]
    found = node(RUN_ALL, files=files, jobs=jobs)
    return {(gone or [weights])[0]: each for (weights, _, gone), each in zip(jobs, found)}


def test_with_the_same_weights_no_logit_differs_by_more_than_1e_5(model, stories, ran):
    exact = SimpleLLM.from_pretrained(TRAINED, dtype=np.float64)
    for ids, found in zip(stories, ran["F32"]):
        np.testing.assert_allclose(found["logits"], model.forward(np.array([ids]))[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["logits"], exact.forward(np.array([ids]))[0], rtol=0, atol=1e-10)


def test_looks_streams_and_lens_are_those_of_chapter_12(model, stories, ran):
    for ids, found in zip(stories, ran["F32"]):
        view = look_inside(model, ids)
        for layer, head, t in np.ndindex(2, 4, len(ids)):
            row = found["looks"][layer][head][t]
            np.testing.assert_allclose(row, view.attention[layer, head, t, : t + 1], atol=1e-5)
        np.testing.assert_allclose(found["streams"], view.streams, atol=1e-4)
        np.testing.assert_allclose(found["lens"], logit_lens(model, view.streams), atol=1e-5)


def test_halves_move_the_logits_by_less_than_the_book_says_and_no_likeliest_word(model, stories, ran):
    text = (ROOT / "simple_llm.md").read_text(encoding="utf-8")
    assert "move them by less than 0.01" in " ".join(text.split())
    for ids, found in zip(stories, ran["F16"]):
        exact = model.forward(np.array([ids]))[0]
        assert np.abs(np.array(found["logits"]) - exact).max() < 0.01
        assert (np.argmax(found["logits"], axis=-1) == exact.argmax(axis=-1)).mean() > 0.98


def test_halves_are_numpys_down_to_the_smallest(model):
    numbers = np.array([0.0, -0.1, 65504, 6e-8, -6.1e-5, 5.96e-8, 1 / 3, *np.geomspace(1e-8, 6e4, 99)])
    weights = live.in_halves({"transformer.a": ((106,), numbers)})
    read = node("return readArrays(weights).a", weights=live.in_base64(weights))
    np.testing.assert_array_equal(read, numbers.astype(np.float16).astype(np.float64))


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2)])
def test_a_head_that_is_taken_away_is_the_one_of_chapter_12(model, stories, ran, layer, head):
    with without_head(model, layer, head):
        wanted = model.forward(np.array(stories[:1]))[0]
    np.testing.assert_allclose(ran[f"head {layer} {head}"][0]["logits"], wanted, rtol=0, atol=1e-5)


def test_a_block_that_is_taken_away_leaves_the_stream_as_it_was(model, stories, ran):
    streams, found = look_inside(model, stories[0]).streams, ran["block 1"][0]
    np.testing.assert_allclose(found["streams"][2], streams[1], atol=1e-4)
    np.testing.assert_allclose(found["streams"][1], streams[1], atol=1e-4)


def test_the_die_is_loaded_and_rolled_as_in_chapter_10():
    rng, points = np.random.default_rng(0), [0, 0.2, 0.5, 0.9, 0.999]
    ways = [(1, 9, 1), (0.5, 3, 1), (2, 9, 0.7), (0, 9, 1), (1.5, 4, 0.6), (1, 1, 0)]
    logits = rng.normal(scale=3, size=9)
    wanted = [next_token_probabilities(logits, t, top_k=k, top_p=p) for t, k, p in ways]
    found = node("""return ways.map(way => {
        const p = chances(z, ...way);
        return [p, points.map(point => roll(p, point))];
      });""", z=logits.tolist(), ways=ways, points=points)
    for p, (chances, rolled) in zip(wanted, found):
        np.testing.assert_allclose(chances, p, atol=1e-12)
        assert rolled == [roll(p, point) for point in points]


def test_the_price_and_its_gradient_are_those_of_chapter_6():
    z, loss = np.array([[2.0, -1.0, 0.5, 4.0]]), CrossEntropy()
    found = node("return Object.values(crossEntropy(z, 2))", z=z[0].tolist())
    assert found[1] == pytest.approx(loss.forward(z, np.array([2])))
    np.testing.assert_allclose(found[2], loss.backward()[0], atol=1e-12)


@pytest.mark.parametrize(("name", "make"), [
    ("SGD", SGD), ("SGD, momentum 0.9", lambda p: SGD(p, momentum=0.9)), ("AdamW", AdamW)])
def test_the_optimizers_take_the_steps_of_chapter_9(name, make):
    p = Parameter(np.array([-8.0]))
    optimizer, way = make([p]), []
    for _ in range(20):
        p.grad[...] = 3 * p.data
        optimizer.step(0.05)
        way.append(float(p.data[0]))
    found = node("""let x = -8; const memory = {}, way = [];
        for (let n = 0; n < 20; n++) way.push(x = STEPS[name](x, 3 * x, 0.05, memory));
        return way;""", name=name)
    np.testing.assert_allclose(found, way, rtol=1e-9)


def test_the_hands_turn_as_in_chapter_16():
    cos, sin = rotary_angles(108, 4, 100.0)
    x = np.array([1.0, 0.5, 0.0, 2.0])
    found = node("return [3, 107].map(t => turn(x, t, 100))", x=x.tolist())
    np.testing.assert_allclose(found, [rotate(x, cos[t], sin[t]) for t in (3, 107)], atol=1e-9)


def test_byte_pairs_are_counted_and_merged_as_in_chapter_14():
    song = "sing singing ringing ring ring"
    chunks = [*cut_into_chunks(song)]
    given = [{"ids": byte_ids(chunk), "times": chunks.count(chunk)} for chunk in dict.fromkeys(chunks)]
    found = node("""const pairs = [];
        for (let made = 256; ; made++) {
          const [a, b, count] = countPairs(chunks)[0];
          if (count < 2) return pairs;
          pairs.push([a, b]);
          for (const chunk of chunks) chunk.ids = merge(chunk.ids, [a, b], made);
        }""", chunks=given)
    wanted = learn_merges({chunk: chunks.count(chunk) for chunk in chunks}, 50)
    assert found == [list(pair) for pair in wanted]
    assert node("return merge([1, 1, 1, 2, 1, 1], [1, 1], 9)") == [9, 1, 2, 9]


# Pages for any model


def facts_in(html):
    return json.loads(re.search(r'<script type="application/json" id="facts">(.*?)</script>', html)[1])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TRAINED)


IDS = [1, 7, 24, 22, 15, 4]


def test_a_page_carries_a_small_model_and_a_text_and_asks_the_network_for_nothing(model, tokenizer):
    html = live.page(facts_of(model, IDS, tokenizer))
    facts = facts_in(html)
    assert facts["names"] == tokenizer.tokens and facts["ids"] == IDS and facts["cut"] == "word"
    read = node("const a = readArrays(weights); return [a['wte.weight'][4], a['ln_f.bias']]",
                weights=facts["model"])
    for found, p in zip(read, (model.tokens.weight.data[4], model.norm.bias.data)):
        np.testing.assert_array_equal(found, p.astype(np.float16).astype(np.float32))
    assert np.array(facts["answered"]).shape == np.array(facts["induction"]).shape == (2, 4)
    assert html.count("<script") == 2 and not re.search(r"<link rel=.stylesheet|src=|fetch\(|import\(", html)
    assert not {"STYLE<", "SCRIPTS<"} & set(html.split())


def test_of_a_model_of_another_form_a_page_has_what_was_computed(tokenizer):
    model = TodayLLM(TodayConfig(27, 16, 16, 2, 2, n_kv_heads=1), seed=1)
    facts = facts_of(model, IDS, tokenizer)
    assert "model" not in facts and facts["parameters"] == model.config.n_parameters
    view = look_inside(model, IDS)
    looks = np.frombuffer(base64.b64decode(facts["looks"]), np.uint8).reshape(2, 2, 6, 6)
    np.testing.assert_allclose(looks / 255, view.attention, atol=0.5 / 255 + 1e-6)
    p = logit_lens(model, view.streams)                                    # (3, T, V)
    for depth, t in np.ndindex(3, 6):
        tokens, shares = zip(*facts["lens"][depth][t])
        np.testing.assert_allclose(shares, np.sort(p[depth, t])[:-5:-1], atol=1e-4)
        np.testing.assert_allclose(p[depth, t][list(tokens)], shares, atol=1e-4)


def test_a_text_that_is_too_long_for_a_page_is_refused_with_what_it_holds(model, tokenizer, monkeypatch):
    monkeypatch.setattr("simple_llm.cli.inspect.MOST_SHARES", 8 * 5 * 5)
    monkeypatch.setattr("simple_llm.cli.inspect.ablate", lambda *_: np.zeros((2, 4)))
    with pytest.raises(UserError, match="6 tokens are too many: a page holds 5"):
        facts_of(model, IDS, tokenizer)
    facts_of(model, IDS[:5], tokenizer)


def test_no_name_of_a_token_ends_the_script():
    names = ["</script>", "<!--<script"]
    html = live.scripts({"names": names})
    assert facts_in(html)["names"] == names and html.index("</script>") > html.index("]}")
    assert html[html.index("{"):html.index("</script>")].count("<") == 0


def test_without_what_draws_the_page_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr(live, "HERE", tmp_path / "a/b/c")
    with pytest.raises(UserError, match="live.html is missing: `make tangle` copies it into"):
        live.page({})


def test_the_questions_of_the_page_are_held_out_and_the_jump_is_one():
    data = json.loads((ROOT / "tools/live.json").read_text(encoding="utf-8"))
    assert [tuple(each) for each in data["questions"]] == live_data.questions()
    points = data["jump"]["points"]
    assert 18 <= len(points) <= 30 and [point["epoch"] for point in points][-1] == 100
    unusual = [point["unusual"] for point in points]
    assert max(b - a for a, b in zip(unusual, unusual[1:])) > 0.3 and unusual[-1] > 0.99
    assert data["jump"]["story"] == figures.EXAMPLE and points[-1]["said"][0][0] == data["jump"]["answer"]


def test_what_a_page_is_made_of_is_installed_with_the_package():
    tomllib = pytest.importorskip("tomllib")
    tools = tomllib.loads((ROOT / "build/pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "simple_llm.live" in tools["packages"]
    for name in ("model.js", "play.js", "live.js", "live.css", "live.html"):
        assert live.part(name)
        assert any(fnmatch(name, pattern) for pattern in tools["package-data"]["simple_llm.live"]), name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "DRAWS := tools/play.js tools/live.js tools/live.css tools/live.html" in makefile


def test_a_number_that_half_precision_cannot_hold_is_named():
    with pytest.raises(UserError, match="wte has a number above float16's 65,504"):
        live.in_halves({"wte": ((2,), (1.0, 1e5))})
