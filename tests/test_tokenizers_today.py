"""The tokenizers of SmolLM, Llama 3 and Qwen: ids as Hugging Face's `tokenizers` gives them."""
import copy
import json
import unicodedata

import pytest

import make_tokenizers_today as made
from simple_llm.errors import UserError
from simple_llm.tokenizer import PATTERNS, BytePairTokenizer, Tokenizer, chunk_pattern

EXPECTED = json.loads(made.FIXTURE.read_text("utf-8"))
KINDS = [*EXPECTED["kinds"]]
TOOL, CONFIG = "tokenizer.json", "tokenizer_config.json"


def contents(kind):
    """The files of a directory of this kind, by name."""
    merges = [pair.split(" ") for pair in EXPECTED["kinds"][kind]["merges"]]
    return copy.deepcopy(made.files(kind, [*EXPECTED["alphabet"]], merges))


@pytest.fixture
def opened(tmp_path):
    """Open the tokenizer of a directory whose files were changed."""
    def load(kind, change=lambda files: None):
        files = contents(kind)
        change(files)
        return Tokenizer.load(made.write(tmp_path / kind, files))
    return load


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    home = tmp_path_factory.mktemp("today")
    return {kind: Tokenizer.load(made.write(home / kind, contents(kind))) for kind in KINDS}


@pytest.mark.parametrize("group", made.GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tokenizers(kind, group, known):
    expected, texts = EXPECTED["kinds"][kind], made.texts(group)
    ids = [known[kind].encode(text) for text in texts]
    assert dict(zip(texts, ids[: made.SHOWN])) == dict(zip(texts, expected["shown"][group]))
    assert made.digest(ids) == expected["hashes"][group]


def test_the_texts_are_9_000_and_of_every_kind():
    every = [text for group in made.GROUPS for text in made.texts(group)]
    assert len(every) == 9000
    kinds = {unicodedata.category(c) for text in every for c in text}
    assert {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Zs", "Zl", "Zp", "Cc", "Cf", "So", "Sk"} <= kinds


@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back_composed_or_as_they_were(kind, known):
    for group in made.GROUPS:
        for text in made.texts(group)[:100]:
            again = known[kind].decode(known[kind].encode(text))
            if kind == "qwen2":                        # between two added words each part is composed by itself
                again, text = (unicodedata.normalize("NFC", t) for t in (again, text))
            assert again == text


@pytest.mark.parametrize("kind", KINDS)
def test_who_begins_a_text_is_what_transformers_says(kind, known):
    expected, found = EXPECTED["kinds"][kind], known[kind]
    assert found.begins == expected["begins"]
    assert found.eos == expected["eos"] and expected["bos"] in (found.bos, None)


def test_a_tokenizer_of_ours_begins_its_texts_and_says_so(tmp_path):
    ours = Tokenizer.from_text("the cat sat on the mat, the cat", "bpe", vocab_size=270)
    ours.save(tmp_path)
    template = json.loads((tmp_path / TOOL).read_text("utf-8"))["post_processor"]
    assert [*template["single"][0]["SpecialToken"].values()][0] == "<bos>"
    assert ours.begins and Tokenizer.load(tmp_path).begins and Tokenizer("word", Tokenizer.specials).begins
    whole = json.loads((tmp_path / TOOL).read_text("utf-8"))
    (tmp_path / TOOL).write_text(json.dumps({**whole, "post_processor": None}))    # as it was saved formerly
    assert Tokenizer.load(tmp_path).begins


@pytest.mark.parametrize("add", [True, False, None])
def test_the_template_alone_decides_who_begins(add, opened):
    def change(files):
        files[CONFIG]["add_bos_token"] = add
    assert opened("llama-bpe", change).begins and not opened("smollm", change).begins


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_says_what_was_read(kind, known, tmp_path):
    known[kind].save(tmp_path)
    before, after = contents(kind)[TOOL], json.loads((tmp_path / TOOL).read_text("utf-8"))
    for whole in (before, after):
        for step in whole["pre_tokenizer"].get("pretokenizers", [whole["pre_tokenizer"]]):
            step.pop("trim_offsets", None)             # moves offsets, and no id
    for key in ("pre_tokenizer", "normalizer", "added_tokens"):
        assert after[key] == before[key]
    assert after["model"]["merges"] == before["model"]["merges"]
    assert after["model"]["vocab"].items() >= before["model"]["vocab"].items()
    assert after["model"]["ignore_merges"] == before["model"].get("ignore_merges", False)
    again = Tokenizer.load(tmp_path)
    assert (again.tokens, again.words, again.begins) == (known[kind].tokens, known[kind].words, known[kind].begins)
    for text in made.texts("everything")[:200]:
        assert again.encode(text) == known[kind].encode(text)


# By the constructor, as from a GGUF file


def test_a_constructor_with_lists_gives_the_same_ids(known):
    found = known["qwen2"]
    again = BytePairTokenizer(found.tokens, found.merges, found.specials, found.roles,
                              way="qwen2", words=found.words, nfc=True, begins=False)
    assert not again.begins
    for text in made.texts("everything")[:200]:
        assert again.encode(text) == found.encode(text)


# Cutting


@pytest.mark.parametrize(("way", "chunks"), [
    ("gpt-2", ["x", "1984", ",", " 2½", "'ll", "'", "LL", " ", " (", "a", ")", "\n", "\n", "b", " ", " 7"]),
    ("smollm", ["x", "1", "9", "8", "4", ",", " ", "2", "½", "'ll", "'", "LL", " ", " (", "a", ")", "\n", "\n", "b", "  ", "7"]),
    ("llama-bpe", ["x", "198", "4", ",", " ", "2½", "'ll", "'LL", " ", " (", "a", ")\n\n", "b", " ", " ", "7"]),
    ("qwen2", ["x", "1", "9", "8", "4", ",", " ", "2", "½", "'ll", "'LL", " ", " (", "a", ")\n\n", "b", " ", " ", "7"]),
])
def test_each_way_cuts_numbers_signs_and_line_breaks_in_its_own_manner(way, chunks):
    assert chunk_pattern(way).findall("x1984, 2½'ll'LL  (a)\n\nb  7") == chunks


@pytest.mark.parametrize("way", PATTERNS)
def test_every_way_cuts_every_character_exactly_once(way):
    text = "".join(f"{chr(c)}a{chr(c)} " for c in range(0x3100))
    assert "".join(chunk_pattern(way).findall(text)) == text


# Added words


def words_of(found, text):
    return [found.tokens[token] for token in found.encode(text) if found.tokens[token] in found.words]


def test_an_added_word_is_a_token_and_a_special_one_is_text(known):
    found = known["qwen2"]
    assert words_of(found, "<think>a</think>") == ["<think>", "</think>"]
    ids = found.encode("<|im_end|><|im_start|><|endoftext|>")
    assert not {found.ids[token] for token in found.specials} & {*ids}
    assert found.decode(ids) == "<|im_end|><|im_start|><|endoftext|>"


def test_the_leftmost_word_counts_and_then_the_longest(known):
    assert words_of(known["qwen2"], "<tool_call>> a[word] <tool_call>") == ["<tool_call>>", "a[w", "<tool_call>"]


def test_a_word_inside_of_a_special_token_is_not_looked_for(known):
    assert words_of(known["qwen2"], "im_s <|im_start|> im_s") == ["im_s", "im_s"]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_a_word_with_a_flag_is_refused_by_word_and_flag(flag, opened):
    def change(files):
        files[TOOL]["added_tokens"][3][flag] = True
    with pytest.raises(UserError, match=f"'<tool_call>' with {flag}"):
        opened("qwen2", change)


def test_a_word_that_only_the_config_declares_is_refused_by_name(opened):
    def change(files):
        files[CONFIG]["added_tokens_decoder"]["623"] = made.token("[new]", False)
    with pytest.raises(UserError, match=r"declares the added token '\[new\]'"):
        opened("llama-bpe", change)


# Refusals


OTHER = r"\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+"


@pytest.mark.parametrize(("kind", "change", "says"), [
    ("llama-bpe", lambda f: f[TOOL]["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=OTHER), "pre_tokenizer .*1,2"),
    ("llama-bpe", lambda f: f[TOOL]["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "Removed"),
    ("llama-bpe", lambda f: f[TOOL]["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True), "'use_regex': True"),
    ("llama-bpe", lambda f: f[TOOL]["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix_space"),
    ("llama-bpe", lambda f: f[TOOL]["post_processor"]["processors"][1]["single"].reverse(), "tokens behind the text"),
    ("llama-bpe", lambda f: f[TOOL]["post_processor"].update(type="RobertaProcessing", sep=["x", 1]), "RobertaProcessing"),
    ("smollm", lambda f: f[TOOL]["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False), "'individual_digits': False"),
    ("qwen2", lambda f: f[TOOL].update(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
     "normalizer NFC, Lowercase"),
    ("qwen2", lambda f: f[TOOL].update(normalizer={"type": "Prepend", "prepend": "▁"}), "normalizer Prepend"),
    ("llama-bpe", lambda f: f[TOOL]["model"].update(byte_fallback=True), "SentencePiece's model.byte_fallback"),
    ("llama-bpe", lambda f: f[TOOL].update(pre_tokenizer={"type": "Metaspace", "replacement": "▁"}), "pre_tokenizer .*Metaspace"),
    ("llama-bpe", lambda f: f[TOOL]["model"].update(type="Unigram", vocab=[["a", -1.0]]), "SentencePiece's model Unigram"),
])
def test_what_would_give_other_ids_is_refused_in_a_sentence_that_names_it(kind, change, says, opened):
    with pytest.raises(UserError, match=says) as caught:
        opened(kind, change)
    assert "\n" not in str(caught.value) and kind in str(caught.value)


def test_a_directory_with_only_a_tokenizer_model_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(UserError, match="tokenizer.model and no tokenizer.json.*SentencePiece"):
        Tokenizer.load(tmp_path)


def test_qwens_class_without_tokenizer_json_is_not_cut_as_gpt_2(tmp_path):
    files = contents("qwen2")
    model = files.pop(TOOL)["model"]
    made.write(tmp_path, {**files, "vocab.json": model["vocab"]})
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]), "utf-8")
    with pytest.raises(UserError, match="vocab.json and no tokenizer.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("single", [[], [{}], [{"SpecialToken": 5}], 7, [{"SpecialToken": {"id": "no such token"}}, {}]])
def test_a_template_of_another_shape_costs_one_sentence(single, opened):
    def change(files):
        files[TOOL]["post_processor"] = {"type": "TemplateProcessing", "single": single}
    try:
        assert not opened("llama-bpe", change).begins
    except UserError as error:
        assert "tokenizer.json" in str(error) and "\n" not in str(error)
