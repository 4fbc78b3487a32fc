"""Directories that Hugging Face's programs wrote; tools/make_hf.py made them, once."""
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from simple_llm.engine.fast import FastLLM
from simple_llm.errors import UserError
from simple_llm.model import SimpleLLM
from simple_llm.tokenizer import ALPHABET, Tokenizer, chunk_pattern, learn_merges


@pytest.fixture(scope="module")
def hf(unpack):
    return unpack("hf.zip")


@pytest.fixture(scope="module")
def expected(hf):
    return json.loads((hf / "expected.json").read_text("utf-8"))


EVERY = {c for c in map(chr, range(0x110000)) if unicodedata.category(c) != "Cn"}


def known(text):
    """Does this Python know all characters of the text?"""
    return EVERY.issuperset(text)


# Tokenizers


def test_their_tokenizer_gives_the_same_ids_and_texts_here(hf, expected):
    """And its only special token plays every part."""
    tokenizer = Tokenizer.load(hf / "one_file")
    for text, ids in zip(expected["texts"], expected["ids"]):
        if known(text):
            assert tokenizer.encode(text) == ids, text
            assert tokenizer.decode(ids) == text
    for ids, text in zip(expected["drawn"], expected["drawn_texts"]):
        assert tokenizer.decode(ids) == text               # of ids that make no text, too
    end = tokenizer.vocab_size - 1
    assert tokenizer.tokens[end] == "<|endoftext|>"
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (end,) * 4
    assert end not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.decode([end, *tokenizer.encode("ring")]) == "ring"


def test_we_learn_the_merges_that_their_trainer_learns(expected):
    chunks = Counter(chunk_pattern().findall(expected["training_text"]))
    pieces, merges = list(ALPHABET.values()), []
    for a, b in learn_merges(chunks, len(expected["merges"])):
        merges.append([pieces[a], pieces[b]])
        pieces.append(pieces[a] + pieces[b])
    assert merges == expected["merges"]


@pytest.mark.parametrize(("name", "beside"), [
    ("letters", "a"), ("numbers", "1"), ("space", "\n"),
])
def test_every_character_that_python_knows_has_the_class_that_it_has_there(
    name, beside, expected
):
    """Two characters of the same class stand in one chunk."""
    theirs = EVERY & {c for first, last in expected["classes"][name]
                      for c in map(chr, range(first, last + 1))}
    ours = {c for c in EVERY if len(chunk_pattern().findall(beside + c)) == 1}
    assert ours == theirs, sorted(hex(ord(c)) for c in ours ^ theirs)[:10]


def test_a_saved_copy_of_their_tokenizer_is_the_same_tokenizer(hf, expected, tmp_path):
    theirs = Tokenizer.load(hf / "one_file")
    theirs.save(tmp_path)
    copy = Tokenizer.load(tmp_path)
    assert (copy.tokens, copy.merges, copy.bos) == (theirs.tokens, theirs.merges, theirs.bos)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config["bos_token"] == config["eos_token"] == "<|endoftext|>"


def test_the_older_form_of_two_files_is_refused_by_name(hf):
    with pytest.raises(UserError, match="has vocab.json and no tokenizer.json"):
        Tokenizer.load(hf / "two_files")


# Models


@pytest.mark.parametrize("kind", [SimpleLLM, FastLLM])
@pytest.mark.parametrize("layout", ["float32", "sharded_float16", "bfloat16", "bare"])
def test_their_model_gives_the_same_logits_and_greedy_text_here(layout, kind, hf, expected):
    model = kind.from_pretrained(hf / layout)
    logits = model.forward(np.array(expected["model_ids"]))
    assert np.abs(logits[0, ::5] - expected["logits"][layout]).max() < 2e-6 * 5
    begin = expected["model_ids"][0][:4]
    new = model.generate(begin, max_new_tokens=10, temperature=0)
    assert [*begin, *new] == expected["greedy"][layout]


def test_a_model_that_was_read_is_written_with_its_own_special_ids(hf, tmp_path):
    SimpleLLM.from_pretrained(hf / "float32").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    theirs = json.loads((hf / "float32/config.json").read_text("utf-8"))
    assert config["eos_token_id"] == theirs["eos_token_id"] == config["vocab_size"] - 1
    assert config["bos_token_id"] == theirs["bos_token_id"]
    assert config["pad_token_id"] is None


@pytest.fixture
def change(hf, tmp_path):
    """Copy a directory, and change what one of its JSON files says."""
    def change(name, new, layout="float32"):
        for path in (hf / layout).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((tmp_path / name).read_text("utf-8"))
        (tmp_path / name).write_text(json.dumps(config | new))
        return tmp_path
    return change


def test_a_missing_shard_is_named(change):
    home = change("config.json", {}, "sharded_float16")
    (home / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="cannot read .*model-00002"):
        SimpleLLM.from_pretrained(home)


@pytest.mark.parametrize("map", [
    None, [], {}, {"a": 3}, {"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": ""},
], ids=str)
def test_an_index_that_is_none_or_leads_elsewhere_is_refused(map, change):
    home = change("model.safetensors.index.json", {"weight_map": map}, "sharded_float16")
    with pytest.raises(UserError, match="model.safetensors.index.json"):
        SimpleLLM.from_pretrained(home)


@pytest.mark.parametrize(("new", "says"), [
    ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "no proper number"),
    ({"architectures": ["GPT2ForSequenceClassification"]}, "SequenceClassification"),
    ({"architectures": None, "model_type": "opt"}, "'opt'"),
    ({"architectures": "GPTJForCausalLM", "model_type": "gptj"}, "'gptj', not gpt2, llama, qwen2, qwen3"),
    ({"n_inner": 100}, "n_inner 100"), ({"activation_function": "relu"}, "'relu'"),
    ({"activation_function": ["relu"]}, "relu"), ({"tie_word_embeddings": False}, "lm_head.weight"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer"),
])
def test_another_architecture_is_refused_by_its_name(new, says, change):
    home = change("config.json", new)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        SimpleLLM.from_pretrained(home)
    assert str(home) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [
    {"n_inner": 48, "activation_function": "gelu_pytorch_tanh"},
    {"dtype": None, "torch_dtype": "float32"}, {"architectures": ["GPT2Model"]}], ids=str)
def test_what_means_the_same_may_be_said_otherwise(new, change):
    SimpleLLM.from_pretrained(change("config.json", new))
