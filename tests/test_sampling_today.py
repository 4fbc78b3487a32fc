"""The repetition penalty and min-p: what transformers' own processors do, in its order, here and on the command line.

The numbers to compare with are in sampling.npz; tools/make_sampling.py made them, once.
"""
import io
import json
from pathlib import Path

import numpy as np
import pytest

from simple_llm import model as module
from simple_llm.cli.generate import wishes
from simple_llm.cli.main import main
from simple_llm.errors import UserError
from simple_llm.generate import keep_likely, penalize
from simple_llm.model import Config, SimpleLLM
from simple_llm.tokenizer import Tokenizer

EXPECTED = dict(np.load(Path(__file__).with_name("sampling.npz")))
OPTIONS = "temperature", "top_k", "top_p", "min_p", "repetition_penalty"
WAYS = sorted({key.split("/")[0] for key in EXPECTED if "/" in key})
PROMPT = EXPECTED["prompt"].tolist()


class Replay(SimpleLLM):
    """A model that gives the recorded logits, one row after the other."""

    def __init__(self, rows):
        super().__init__(Config(rows.shape[1], 64, 2, 1, 1))
        self.rows, self.step = rows, 0

    def next_logits(self, ids, caches):
        self.step += 1
        return self.rows[None, self.step - 1]


def recorded(way):
    """The logits, the scores of transformers, the new tokens, and the options."""
    how = {name: EXPECTED[f"{way}/{name}"].item() for name in OPTIONS if f"{way}/{name}" in EXPECTED}
    how = how | {"temperature": 0} if "greedy" in way else how
    return *(EXPECTED[f"{way}/{name}"] for name in ("logits", "scores")), EXPECTED[f"{way}/text"][9:].tolist(), how


def exact(scores):
    """(T, V) scores to probabilities, in float64."""
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("way", [way for way in WAYS if "greedy" not in way])
def test_a_text_is_drawn_with_the_probabilities_of_transformers_in_its_order(way, monkeypatch):
    logits, scores, tokens, how = recorded(way)
    seen, rest = [], iter(tokens)
    monkeypatch.setattr(module, "roll", lambda p, point: seen.append(p) or next(rest))
    assert list(Replay(logits).generate(PROMPT, len(tokens), seed=0, **how)) == tokens
    np.testing.assert_array_equal(np.array(seen) > 0, np.isfinite(scores))
    np.testing.assert_allclose(seen, exact(scores), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("way", [way for way in WAYS if "greedy" in way])
def test_greedy_with_a_penalty_takes_the_tokens_that_transformers_takes(way):
    logits, _, tokens, how = recorded(way)
    assert list(Replay(logits).generate(PROMPT, len(tokens), **how)) == tokens
    if "penalty" in way:                                        # and it takes a penalty to take them
        assert list(Replay(logits).generate(PROMPT, len(tokens), temperature=0)) != tokens


def test_the_penalty_counts_each_token_once_and_leaves_the_given_logits_alone():
    logits = np.array([3.0, -2.0, 0.0, 2.5, -1.0], np.float32)
    before = logits.copy()
    z = penalize(logits, [0, 1, 0, 0, 2], 2.0)
    assert z.tolist() == [1.5, -4.0, 0.0, 2.5, -1.0] and z.dtype == np.float32
    assert logits.tolist() == before.tolist()


def test_the_penalty_remembers_what_has_left_the_window():
    model = SimpleLLM(Config(vocab_size=5, context_length=2), seed=1)
    model.next_logits = lambda ids, caches: np.array([[3.0, 2.9, 2.8, 2.7, 2.6]])
    assert list(model.generate([0], 5, temperature=0, repetition_penalty=9.0)) == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("min_p", [0.0, 0.5, 1.0])
def test_min_p_keeps_the_likeliest_and_its_equals(min_p):
    p = keep_likely(np.array([0.375, 0.375, 0.1875, 0.0625]), min_p)
    assert p.tolist() == {0.0: [0.375, 0.375, 0.1875, 0.0625], 0.5: [0.4, 0.4, 0.2, 0], 1.0: [0.5, 0.5, 0, 0]}[min_p]


@pytest.mark.parametrize("how", [{"repetition_penalty": bad} for bad in (0, -1.5, np.nan, np.inf)]
                         + [{"min_p": bad} for bad in (-0.1, 1.5, np.nan)], ids=str)
def test_what_is_out_of_bounds_is_named_in_one_sentence(how):
    min_p, penalty = how.get("min_p", 0.0), how.get("repetition_penalty", 1.0)
    with pytest.raises(UserError, match=f"^min_p .* repetition_penalty .*, not {min_p} and {penalty}$"):
        next(SimpleLLM(Config(vocab_size=5, context_length=8)).generate([1], seed=0, **how))


# The command line, and what a directory wishes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model that says one word for ever, if it is not told otherwise, and never ends."""
    home = tmp_path_factory.mktemp("loop")
    tokenizer = Tokenizer.from_text("ring the bell and run so we go on .")
    model = SimpleLLM(Config(tokenizer.vocab_size, 32, 8, 1, 1), seed=0)
    for parameter in model.parameters():
        parameter.data[...] = 0
    tables = dict(model.named_parameters())
    tables["transformer.ln_f.bias"].data[0] = 1
    tables["transformer.wte.weight"].data[:, 0] = np.linspace(4.0, 3.0, tokenizer.vocab_size)
    for token in (*range(4), *tokenizer.encode(".")):
        tables["transformer.wte.weight"].data[token, 0] = -99
    model.save_pretrained(home)
    tokenizer.save(home)
    return home


@pytest.fixture
def says(home, capsys):
    """The words of a command, with a generation_config.json."""
    def run(command, *options, wish=None):
        (home / "generation_config.json").write_text(json.dumps(wish or {}))
        status = main([command, "--model", str(home), "--max-new-tokens", "4", *options])
        out = capsys.readouterr()
        return out.out.split() if status == 0 else (status, out.err)
    return run


def test_a_penalty_ends_a_loop_of_greedy_text_when_typed_or_wished(says):
    loop = says("generate", "--temperature", "0")
    assert len(loop) == 4 and len(set(loop)) == 1
    typed = says("generate", "--temperature", "0", "--repetition-penalty", "2")
    assert len(set(typed)) == 4 and typed[0] == loop[0]
    for wish in ({"do_sample": False}, {"do_sample": True, "temperature": 5.0}, {}):
        wish = {**wish, "repetition_penalty": 2}
        assert says("generate", "--temperature", "0", wish=wish) == typed
    assert says("generate", wish={"do_sample": False, "repetition_penalty": 2.0}) == typed
    assert says("generate", "--temperature", "0", "--repetition-penalty", "1",
                wish={"repetition_penalty": 2.0}) == loop


def test_min_p_of_one_is_greedy_when_typed_or_wished(says):
    greedy = says("generate", "--temperature", "0")
    hot = "--temperature", "5", "--seed", "3"
    assert says("generate", *hot) != greedy == says("generate", *hot, "--min-p", "1")
    assert says("generate", "--seed", "3",
                wish={"do_sample": True, "temperature": 5.0, "min_p": 1.0}) == greedy


def test_chat_takes_both(says, monkeypatch):
    def ask(*options):
        monkeypatch.setattr("sys.stdin", io.StringIO("ring the bell\n"))
        return says("chat", *options)
    loop = ask()
    assert len(set(loop)) == 1 and len(set(ask("--repetition-penalty", "2"))) == 4
    assert ask("--temperature", "5", "--seed", "3", "--min-p", "1") == loop


@pytest.mark.parametrize(("options", "part"), [
    (["--temperature", "0", "--min-p", "0.1"], "--min-p and --seed need --temperature above 0"),
    (["--min-p", "1.5"], "--min-p: 1.5 is not from 0 to 1"),
    (["--repetition-penalty", "0"], "--repetition-penalty: 0 is not from 0.01"),
    (["--repetition-penalty", "nan"], "--repetition-penalty: nan is not from 0.01"),
], ids=str)
def test_a_wrong_option_is_refused_with_status_two(options, part, home, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--model", str(home), *options])
    assert caught.value.code == 2 and part in capsys.readouterr().err


@pytest.mark.parametrize(("said", "wish"), [
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ({"repetition_penalty": 1, "min_p": 0}, {}),
    ({"do_sample": True, "min_p": 0.05, "top_k": 0, "repetition_penalty": 1.0}, {"min_p": 0.05}),
    ({"do_sample": True, "min_p": None, "repetition_penalty": None}, {}),
    ({"do_sample": False, "min_p": 0.05, "repetition_penalty": 1.2}, {"temperature": 0, "repetition_penalty": 1.2}),
], ids=str)
def test_a_directory_may_wish_for_them(said, wish, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert wishes(tmp_path) == wish


@pytest.mark.parametrize("said", [{"min_p": "x"}, {"repetition_penalty": 0},
                                  {"do_sample": True, "min_p": 1.5}], ids=str)
def test_a_wish_that_makes_no_sense_is_refused_by_its_name(said, says):
    status, err = says("generate", wish=said)
    assert status == 1 and err.count("\n") == 1 and [*said][-1] in err
