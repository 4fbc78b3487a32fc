"""Directories whose files disagree, as transformers reads them: tools/make_voices.py asked it, once."""
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

import make_voices
from make_voices import ADDED, CONFIG, DONE, END, GENERAL, GENERATION, MAP, MODEL, TOKENIZER, TWO_MORE, VARIANTS
from simple_llm.checkpoint import load_safetensors, save_safetensors
from simple_llm.cli.generate import ends_of, wishes
from simple_llm.cli.models import check_corpus, ids_of, load
from simple_llm.cli.main import main
from simple_llm.cli.train import agreed_ids
from simple_llm.errors import UserError
from simple_llm.model import SimpleLLM
from simple_llm.text import TextCorpus
from simple_llm.tokenizer import Tokenizer
from simple_llm.voices import read_voices

REFUSED = {                                     # what transformers does, and this program does not
    "ends with a special token": "tokenizer.json has post_processor", "small letters": "tokenizer.json has normalizer",
    "another decoder": "tokenizer.json has decoder Fuse", "another way of cutting": "pre_tokenizer .*Whitespace",
    "a role for a new token": "tokens that are not in the vocabulary.*<|new|>",
    "the map has the last word": "declares bos_token in special_tokens_map.json and, otherwise",
    "the map is not heard beside added_tokens_decoder": "declares bos_token in special_tokens_map.json",
    "the map takes a role away": "declares bos_token in special_tokens_map.json",
    "more special tokens": "declares the added token '%'", "added, and special": "declares the added token '<|done|>'",
    "added by the decoder": "declares the added token '<|done|>'",
    "added in added_tokens.json, and a word": "declares the added token 'ferry'",
    "bytes left out, with an unknown token": "tokenizer.json has model.unk_token",
    "the pattern written out": "tokenizer.json has pre_tokenizer",
    **{name: "tokenizer.json has add_prefix_space" for name in VARIANTS if name.startswith("prefix space")},
}
VARIANTS = {name: edits for name, edits in VARIANTS.items() if name != "a class of its own"}    # nobody asks
EXPECTED = json.loads((make_voices.ROOT / "tests/voices.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_voices.unpack(tmp_path_factory.mktemp("hf"))


@pytest.fixture
def directory(sound, tmp_path):
    """Build a directory with some differences."""
    return lambda edits: make_voices.build(edits, sound, tmp_path / "model", load_safetensors,
                                           lambda tensors, path: save_safetensors(path, tensors))


def look(home):
    """What voices.json says of a directory, by this program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tokenizer = load(home)
        return model, tokenizer, {
            "ids": [tokenizer.encode(text) for text in make_voices.TEXTS],
            "bos": tokenizer.bos, "eos": tokenizer.eos, "ends": sorted(ends_of(model, tokenizer)),
            "logits": model.forward(np.array([make_voices.IDS]))[0, -1, :40:8].tolist()}


def spoken_by_transformers(name):
    usual = EXPECTED["as it was"]["spoken"]
    return {**dict(enumerate(usual)),
            **{int(n): text for n, text in EXPECTED[name].get("spoken otherwise", {}).items()}}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in REFUSED])
def test_files_that_disagree_are_heard_as_transformers_hears_them(name, directory):
    model, tokenizer, found = look(directory(VARIANTS[name]))
    expected = {key: EXPECTED[name][key] for key in found}
    if expected["bos"] is None:                            # here a text must begin with something
        expected["bos"] = expected["eos"]
    assert found.pop("logits") == pytest.approx(expected.pop("logits"), abs=1e-5)
    if name == "added, and a word":    # transformers 4.57 looks for it, 5.24 forgets it with GPT-2's class
        assert 557 in found.pop("ids")[0] and expected.pop("ids") == EXPECTED["as it was"]["ids"]
    assert found == expected
    for token, text in spoken_by_transformers(name).items():
        assert tokenizer.decode([token]) == text, token


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in REFUSED])
def test_what_is_saved_from_such_a_directory_agrees_with_itself(name, directory, tmp_path):
    model, tokenizer, found = look(directory(VARIANTS[name]))
    model.config = replace(model.config, special_ids=agreed_ids(model, tokenizer))
    out = tmp_path / "saved"
    for old in ("special_tokens_map.json", "added_tokens.json", "generation_config.json"):
        out.mkdir(exist_ok=True)
        (out / old).write_text('{"eos_token": "!", "!": 5000, "eos_token_id": 77}')
    tokenizer.save(out)
    model.save_pretrained(out)
    again, copy, heard = look(out)
    assert heard["ends"] == sorted({*found["ends"], found["eos"]})
    assert {**heard, "ends": 0} == {**found, "ends": 0}
    assert again.config.special_ids == model.config.special_ids and copy.roles == tokenizer.roles
    config = json.loads((out / MODEL).read_text("utf-8"))
    says = json.loads((out / CONFIG).read_text("utf-8"))
    assert config["bos_token_id"] == copy.ids[says.get("bos_token", says["eos_token"])]
    ends = config["eos_token_id"]
    assert copy.ids[says["eos_token"]] in (ends if isinstance(ends, list) else [ends])
    assert config["tie_word_embeddings"] == ("lm_head.weight" not in load_safetensors(out / "model.safetensors"))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_obeyed_is_refused_by_file_and_key(name, directory):
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        look(directory(VARIANTS[name]))
    assert "\n" not in str(caught.value)


# Roles


def test_a_role_that_nobody_declares_is_taken_from_the_models_ids(directory):
    gone = {"bos_token": "-", "eos_token": "-", "unk_token": "-"}
    home = directory({**TWO_MORE, CONFIG: {**GENERAL, **gone}, GENERATION: {"bos_token_id": 557, "eos_token_id": [558, 3]}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tokenizer.load(home).roles == {"bos": "<|story|>", "eos": DONE}


def test_without_any_end_there_is_no_tokenizer(directory):
    gone = {"bos_token": "-", "eos_token": "-", "unk_token": "-", "added_tokens_decoder": "-"}
    home = directory({CONFIG: {**GENERAL, **gone}, MODEL: {"bos_token_id": "-", "eos_token_id": "-"},
                      TOKENIZER: {"added_tokens": [make_voices.special("[END]", 556)]}})
    whole = json.loads((home / TOKENIZER).read_text("utf-8"))
    whole["model"]["vocab"].pop(END, None)
    (home / TOKENIZER).write_text(json.dumps(whole))
    with pytest.raises(UserError, match="declares no eos_token"):
        Tokenizer.load(home)


def test_two_beginnings_are_named_and_the_tokenizers_is_taken(directory):
    home = directory({MODEL: {"bos_token_id": 17}})
    with pytest.warns(UserWarning, match="begin with 17 .* and with 556"):
        assert load(home)[1].bos == 556


def test_words_and_characters_keep_the_special_tokens_of_the_book(tmp_path):
    Tokenizer.from_text("a b .", "word").save(tmp_path)
    path = tmp_path / CONFIG
    path.write_text(path.read_text("utf-8").replace('"eos_token": "<eos>"', '"eos_token": "."'))
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer that"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("junk", ["x", 1.5, [5, "x"], {"a": 1}, True])
def test_an_id_that_is_no_number_is_refused_by_file_and_key(junk, directory):
    with pytest.raises(UserError, match="generation_config.json has ids that are none"):
        load(directory({GENERATION: {"eos_token_id": junk}}))


@pytest.mark.parametrize("junk", [
    {"added_tokens_decoder": "x"}, {"added_tokens_decoder": {"5": 3}}, {"added_tokens_decoder": {"5": {}}},
    {"extra_special_tokens": 5}, {"eos_token": {"text": "x"}}, {"eos_token": [1]}], ids=str)
def test_a_value_of_another_kind_costs_one_sentence(junk, directory):
    home = directory({CONFIG: {**GENERAL, **junk}})
    for read in (read_voices, SimpleLLM.from_pretrained, Tokenizer.load):
        with pytest.raises(UserError) as caught:
            read(home)
        assert str(home) in str(caught.value) and "\n" not in str(caught.value)


# How to draw


@pytest.mark.parametrize(("said", "wish"), [
    ({}, {}), ({"temperature": 0.7}, {}), ({"do_sample": False}, {"temperature": 0}),
    ({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0},
     {"temperature": 0.7, "top_p": 0.9}),
])
def test_a_directory_may_wish_for_a_temperature(said, wish, directory):
    assert wishes(directory({GENERATION: said})) == wish


@pytest.mark.parametrize("said", [
    {"repetition_penalty": "x"}, {"num_beams": 4}, {"suppress_tokens": [3]}, {"forced_bos_token_id": 0},
    {"temperature": "hot", "do_sample": True}, {"top_k": 2.5}, {"min_new_tokens": 1}, {"a_key_of_2030": "x"},
])
def test_a_wish_that_cannot_be_granted_is_refused_when_text_is_generated(said, directory, capsys):
    home = directory({GENERATION: {"eos_token_id": 556, **said}})
    load(home)                                              # opening is no generating
    assert main(["generate", "--model", str(home), "--temperature", "0"]) == 1
    says = capsys.readouterr().err
    assert says.count("\n") == 1 and "generation_config.json has " + [*said][0] in says


def test_what_is_typed_comes_before_what_the_directory_wishes(directory, capsys):
    home = directory({GENERATION: {"do_sample": True, "temperature": 5.0, "eos_token_id": None}})
    command = ["generate", "--model", str(home), "--prompt", "ring", "--max-new-tokens", "9", "--seed", "1"]
    outputs = []
    for more in ([], ["--temperature", "5"], ["--temperature", "0.8"]):
        assert main([*command, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


# Rows and tokens


def test_an_id_without_a_token_prints_nothing_and_the_text_goes_on(directory):
    home = directory(VARIANTS["rows to spare"])
    tokenizer = load(home)[1]
    assert tokenizer.decode([*tokenizer.encode("ri"), 600, 639, -1, *tokenizer.encode("ng")]) == "ring"
    assert "".join(tokenizer.stream([81, 600, 72])) == "ri"


def test_a_token_without_a_row_is_named_by_the_text_that_uses_it(directory, capsys):
    home = directory({"rows": 0, TOKENIZER: {"model.merges": "strings"}})
    whole = json.loads((home / TOKENIZER).read_text("utf-8"))
    whole["model"]["vocab"]["ferry"], whole["model"]["vocab"]["fe"] = 557, 558
    whole["model"]["merges"] += ["f e", "fe rry"] if "rry" in whole["model"]["vocab"] else ["f e"]
    (home / TOKENIZER).write_text(json.dumps(whole))
    model, tokenizer = load(home)
    assert ids_of(model, tokenizer, "ring")
    with pytest.raises(UserError, match="the token 'fe' has the id 558, and the model's table 557 rows"):
        ids_of(model, tokenizer, "feather")
    corpus = TextCorpus("ring the bell " * 40 + "feather " * 10, tokenizer, 8)
    with pytest.raises(UserError, match="'fe'"):
        check_corpus(corpus, model)
    assert main(["generate", "--model", str(home), "--prompt", "feather"]) == 1
    assert "'fe'" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "says"), [
    ({"a": 0, "b": 0}, "ids 0 to 1, some twice"), ({"a": 0, "b": 10**9}, "0 to 1000000000, some .* far apart"),
    ({"a": -1}, "ids -1 to"),
])
def test_ids_that_cannot_be_are_refused(change, says, directory):
    edits = {TOKENIZER: {"model.vocab": {END: 1, **change}, "model.merges": 0}}
    with pytest.raises(UserError, match=says):
        Tokenizer.load(directory(edits))


# Bytes that are missing


def test_bytes_that_cannot_be_written_are_named_and_left_out(directory):
    tokenizer = Tokenizer.load(directory(VARIANTS["bytes left out"]))
    with pytest.warns(UserWarning, match="not in the vocabulary, left out: b'8'"):
        assert tokenizer.decode(tokenizer.encode("az8z") + tokenizer.encode("a,z8;b")) == "aa,;b"


# Weights


def test_a_head_that_is_declared_and_missing_is_refused(directory):
    with pytest.raises(UserError, match="lm_head.weight.*tie_word_embeddings False"):
        load(directory({MODEL: {"tie_word_embeddings": False}}))


def test_a_table_that_is_listed_only_as_the_head_is_the_table(directory):
    home = directory({"lm_head": 1})
    path = home / "model.safetensors"
    tensors = load_safetensors(path)
    del tensors["transformer.wte.weight"]
    save_safetensors(path, tensors)
    model, _ = load(home)
    assert model.config.tied
    assert model.forward(np.array([make_voices.IDS]))[0, -1, :40:8].tolist() == pytest.approx(
        EXPECTED["as it was"]["logits"], abs=1e-5)


def test_a_pointer_of_git_lfs_in_place_of_the_weights_is_guessed_at(directory):
    home = directory({})
    (home / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(UserError, match="model.safetensors is cut short.*Git LFS"):
        load(home)
