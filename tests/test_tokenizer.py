"""Text to ids and back, and the files of a tokenizer."""
import json
import warnings

import pytest

from simple_llm.errors import UserError
from simple_llm.tokenizer import Tokenizer

ODD = (
    "A b\n\nc\td\r\ne\rf  g \u00a0é e\u0301 <eos> \x00\x1c."
    "\U0001f600\U0001f468\u200d\U0001f469"
)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def tokenizers():
    return [Tokenizer.from_text(ODD, "char"), Tokenizer.from_text(ODD, "word")]


def test_characters_make_the_round_trip_and_words_come_back_with_one_space_between():
    tokenizer = Tokenizer.from_text(ODD, "char")
    ids = tokenizer.encode(ODD)
    assert tokenizer.decode(iter(ids)) == ODD and len(ids) == len(ODD)
    assert {type(token) for token in ids} == {int}
    tokenizer = Tokenizer.from_text("where is anna ?")
    assert tokenizer.decode(tokenizer.encode("where  is\nanna?")) == "where is anna ?"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_words_are_runs_of_letters_or_runs_of_signs():
    pieces = Tokenizer.from_text("x").cut("don't go... to_2 the-end!\n(née)")
    assert [*pieces] == ["don", "'", "t", "go", "...", "to_2", "the", "-", "end", "!", "(",
                           "née", ")"]


@pytest.mark.parametrize("kind", ["word", "char"])
def test_special_tokens_come_first_and_all_others_are_sorted(kind):
    tokens = Tokenizer.from_text("b a c b", kind).tokens
    assert tokens[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert tokens[4:] == sorted(set("abc" + " " * (kind == "char")))


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["char", "word"])
def test_text_never_gives_a_special_token_and_special_tokens_give_no_text(tokenizer):
    known = Tokenizer(tokenizer.kind, [*tokenizer.tokens, *"<>", "pad", "bos", "unk"])
    for text in ("<pad>", "<bos> <eos>", "<eos>", "< eos >"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert not {0, 1, 2} & set(known.encode(text))
    ids = tokenizer.encode("A b")
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == tokenizer.decode(ids)


def test_an_unknown_word_becomes_unk_with_a_warning_that_names_five_at_the_most():
    tokenizer = Tokenizer.from_text("anna went")
    with pytest.warns(UserWarning, match="'mars', 'zoe'$"):
        assert tokenizer.encode("zoe went mars zoe") == [3, 5, 3, 3]
    assert tokenizer.decode([3, 5]) == "<unk> went"
    with pytest.warns(UserWarning) as caught:
        Tokenizer.from_text("x", "char").encode("abcdefg")
    assert str(caught[0].message).endswith("'a', 'b', 'c', 'd', 'e', ...")


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_outside_the_vocabulary_says_nothing(wrong):
    assert Tokenizer.from_text("a").decode([4, wrong, 4]) == "a a"


@pytest.mark.parametrize(("text", "kind", "says"), [
    ("", "char", "empty"), ("", "word", "empty"), (" \n", "word", "empty"),
    ("a", "syllable", "'syllable'")])
def test_a_vocabulary_of_nothing_and_an_unknown_kind_are_refused(text, kind, says):
    with pytest.raises(UserError, match=says):
        Tokenizer.from_text(text, kind)


# Files


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["char", "word"])
def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new")
    loaded = Tokenizer.load(tmp_path / "new")
    assert (loaded.kind, loaded.tokens) == (tokenizer.kind, tokenizer.tokens)
    assert loaded.encode(ODD) == tokenizer.encode(ODD)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["char", "word"])
def test_tokenizer_json_has_the_form_that_hugging_face_reads(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert whole["model"]["type"] == "WordLevel"
    assert whole["model"]["unk_token"] == "<unk>"
    assert whole["model"]["vocab"] == {t: i for i, t in enumerate(tokenizer.tokens)}
    added = [(t["id"], t["content"], t["special"]) for t in whole["added_tokens"]]
    assert added == [(i, t, True) for i, t in enumerate(tokenizer.specials)]
    assert whole["pre_tokenizer"]["type"] == "Split"
    pattern = whole["pre_tokenizer"].get("pattern", {}).get("Regex", "")
    assert "(?s" not in pattern     # Oniguruma has no such option, and refuses the file
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert [config[f"{name}_token"] for name in ("pad", "bos", "eos", "unk")] == [
        "<pad>", "<bos>", "<eos>", "<unk>"]


@pytest.mark.parametrize("change", [
    lambda whole: whole.pop("model"),
    lambda whole: whole.update(model=None),
    lambda whole: whole.update(pre_tokenizer=None),
    lambda whole: whole["model"].update(vocab=["a", "b"]),
    lambda whole: whole["model"].update(vocab={"a": 0}),
    lambda whole: whole["model"]["vocab"].update(extra=99),
    lambda whole: whole["model"]["vocab"].update(extra="four"),
    lambda whole: whole["model"]["vocab"].update({"<pad>": 1, "<bos>": 0}),
    lambda whole: whole["model"].update(type="WordPiece"),
], ids=["no model", "null model", "null split", "list", "short", "gap", "words",
        "swapped", "other kind"])
def test_another_programs_tokenizer_is_refused_in_one_sentence(change, tmp_path):
    Tokenizer.from_text("a b").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text("utf-8"))
    change(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_damaged_tokenizer_file_is_refused_in_one_sentence(data, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UserError, match="tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_file_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path)
