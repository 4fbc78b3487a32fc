"""Byte-pair encoding: learning, encoding, decoding, and its file."""
import json
import random
import sys
import time
import unicodedata
from collections import Counter

import pytest

from simple_llm.errors import UserError
from simple_llm.text import TextCorpus
from simple_llm.tokenizer import (
    ALPHABET, Tokenizer, cut_into_chunks, learn_merges, learn_merges_slowly,
)

TEXT = (
    "The cat sat on the mat, and the other cat's mat was where that cat had sat.\n\n"
    "  They'll say: \"né, naïve\" 12 or 345 times…  日本語 日本 🙂🙂 ½ \x1c x_1\r\n"
) * 3
ODD = "\x00\x1b <eos><bos> \ud800"[:-1] + "a\u0301 \u200b\ufeff\U0010ffff 𐍈 \t\t\x85 the"


def learned(size=400):
    return Tokenizer.from_text(TEXT, "bpe", vocab_size=size)


def merge_slowly(tokenizer, chunk):
    """Encode a chunk: again and again, the merge that was learned first, everywhere."""
    pieces = [ALPHABET[byte] for byte in chunk.encode()]
    for a, b in tokenizer.merges:
        at = 0
        while at < len(pieces) - 1:
            if (pieces[at], pieces[at + 1]) == (a, b):
                pieces[at : at + 2] = [a + b]
            at += 1
    return [tokenizer.ids[piece] for piece in pieces]


# Learning


def full_of_ties(seed):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("ab", k=rng.randrange(1, 9))) for _ in range(60))


@pytest.mark.parametrize("text", [
    TEXT, "aaaaaaa aaaa aaa", "abababab ab aba", "sing singing ringing ring ring", "a",
    "abcabcabcabc bca cab bcabca", "  \n\n   \n" * 9, "x" * 1000, "ab ab", "abc",
    *map(full_of_ties, range(20))], ids=range(30))
def test_counting_only_what_changed_learns_what_counting_everything_learns(text):
    chunks = Counter(cut_into_chunks(text))
    merges = list(learn_merges_slowly(chunks, 60))
    assert list(learn_merges(chunks, 60)) == merges
    assert list(learn_merges(dict(reversed(chunks.items())), 60)) == merges    # in any order


def test_the_vocabulary_is_specials_bytes_and_as_many_merges_as_there_is_room_for():
    tokenizer = learned(300)
    assert tokenizer.vocab_size == 300 == len(set(tokenizer.tokens))
    assert tokenizer.tokens[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert sorted(b"".join(tokenizer.bytes[4:260])) == list(range(256))
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == (0, 1, 2, 3)
    assert learned(260).merges == [] and tokenizer.merges == learned(400).merges[:40]
    assert Tokenizer.from_text("ab ab", "bpe", vocab_size=50_000).vocab_size == 261
    tokens = Tokenizer.from_text("aaaaa aaa ababa bab aab " * 3, "bpe", 2000).tokens
    assert len(set(tokens)) == len(tokens)                      # no piece is made twice


def test_a_vocabulary_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="260"):
        Tokenizer.from_text(TEXT, "bpe", vocab_size=259)


# Cutting


def test_every_character_is_cut_exactly_once():
    """Each beside its neighbours; and alone, if it is not one of a million without a name."""
    every = [*map(chr, range(sys.maxunicode + 1))]
    alone = [f"{c}\n" for c in every if unicodedata.category(c) not in ("Cn", "Co")]
    assert len(alone) > 100_000
    for text in ("".join(every), "".join(alone)):
        assert "".join(cut_into_chunks(text)) == text


@pytest.mark.parametrize(("text", "chunks"), [
    ("I'll they've I'LL", ["I", "'ll", " they", "'ve", " I", "'", "LL"]),
    ("a  b", ["a", " ", " b"]), ("a \n b", ["a", " \n", " b"]), ("a  ", ["a", "  "]),
    ("\tx", ["\t", "x"]), ("x_1²½", ["x", "_", "1²½"]), ("né", ["né"]),
    ("e\u0301e", ["e", "\u0301", "e"]), ("a\x1cb", ["a", "\x1c", "b"]),
    (" \x1f\x1f.", [" \x1f\x1f."]), ("a\u00a0b", ["a", "\u00a0", "b"]),
])
def test_chunks_are_those_of_gpt2(text, chunks):
    assert [*cut_into_chunks(text)] == chunks


def test_no_token_crosses_a_cut():
    tokenizer = learned()
    for token, data in zip(tokenizer.tokens, tokenizer.bytes):
        if b" " in data:
            assert data.rindex(b" ") == 0 or not data.strip(), token


# Encoding and decoding


def test_encode_and_decode_are_exact_for_text_and_for_any_bytes():
    tokenizer, rng = learned(), random.Random(0)
    for text in (TEXT, ODD, "", " ", "the cat's", "zzz \U0001f468\u200d"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for data in (bytes(range(256)), *(rng.randbytes(50) for _ in range(50))):
        ids = tokenizer.encode(data.decode("utf-8", "surrogateescape"))
        assert b"".join(tokenizer.bytes[token] for token in ids) == data
    with pytest.raises(UserError, match="ud800"):
        tokenizer.encode("a\ud800b")                            # half a surrogate


def test_encoding_repeats_the_merges_in_their_order():
    tokenizer = learned()
    for chunk in {*cut_into_chunks(TEXT + ODD), "thethecatcat", "aaaa", "ooooothhe"}:
        assert tokenizer.encode(chunk) == merge_slowly(tokenizer, chunk)


def test_the_earliest_merge_goes_first_and_not_the_longest_or_the_leftmost():
    tokenizer = Tokenizer.from_text("bc bc bc bc ab ab ab abcd abcd", "bpe")
    assert tokenizer.merges[0] == ("b", "c")
    assert [tokenizer.tokens[token] for token in tokenizer.encode("abc")] == ["a", "bc"]


def test_encoding_a_text_twice_gives_the_same():
    tokenizer = learned()
    first = tokenizer.encode(TEXT)
    first.clear()                                  # the answer is ours to change
    assert tokenizer.encode(TEXT) == learned().encode(TEXT)


def test_a_chunk_of_a_hundred_thousand_letters_takes_no_longer_than_others():
    tokenizer, rng = learned(), random.Random(0)
    text = "".join(rng.choices("thecatsong", k=100_000))
    start = time.perf_counter()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.perf_counter() - start < 5


def test_text_never_gives_a_special_token_and_special_tokens_give_no_text():
    tokenizer = Tokenizer.from_text("<eos> <pad> <bos> <unk> <|endoftext|>" * 9, "bpe")
    for text in ("<eos>", "<pad><bos>", "a <unk> b", "<|endoftext|>"):
        ids = tokenizer.encode(text)
        assert not {0, 1, 2, 3} & {*ids} and tokenizer.decode(ids) == text
    first, second = tokenizer.encode("é")
    assert tokenizer.decode([1, first, 2, second, 0, 3]) == "é"


@pytest.mark.parametrize("wrong", [-1, 300])
def test_an_id_outside_the_vocabulary_says_nothing(wrong):
    tokenizer = learned(300)
    assert tokenizer.decode([70, wrong, 71]) == tokenizer.decode([70, 71]) != ""


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_streaming_gives_the_same_text_as_decoding(kind):
    tokenizer, rng = Tokenizer.from_text(TEXT, kind), random.Random(1)
    some = [[rng.randrange(4, tokenizer.vocab_size) for _ in range(rng.randrange(12))]
            for _ in range(200)]                               # for bytes, mostly no text
    for ids in ([1, *tokenizer.encode(TEXT), 2], *some):
        assert "".join(tokenizer.stream(iter(ids))) == tokenizer.decode(ids)


def test_streaming_never_shows_a_part_of_a_character_and_a_sign_for_one_cut_off():
    tokenizer = Tokenizer.from_text("x", "bpe")            # no merges: one byte a token
    ids = tokenizer.encode("né 日本 🙂")
    assert list(tokenizer.stream(ids)) == list("né 日本 🙂")
    assert tokenizer.decode(ids[:-1]) == "né 日本 \ufffd" == "".join(tokenizer.stream(ids[:-1]))
    assert [tokenizer.show(token) for token in tokenizer.encode("é ")] == ["\\xc3", "\\xa9", " "]
    assert tokenizer.show(2) == "<eos>"


def test_streaming_waits_for_no_more_than_it_must():
    tokenizer = Tokenizer.from_text("x", "bpe")
    seen = []

    def ids():
        for token in tokenizer.encode("aé"):
            yield token
            seen.append("".join(shown))

    shown = []
    for piece in tokenizer.stream(ids()):
        shown.append(piece)
    assert seen == ["a", "a", "aé"]


# The file, and those who use the tokenizer


def test_a_saved_tokenizer_loads_as_it_was(tmp_path):
    tokenizer = learned()
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.kind == "bpe" and loaded.tokens == tokenizer.tokens
    assert (loaded.merges, loaded.specials) == (tokenizer.merges, list(tokenizer.specials))
    assert loaded.encode(TEXT + ODD) == tokenizer.encode(TEXT + ODD)
    before = (tmp_path / "tokenizer.json").read_bytes()
    loaded.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_tokenizer_json_has_the_form_that_hugging_face_reads(tmp_path):
    tokenizer = learned()
    tokenizer.save(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert whole["model"]["type"] == "BPE"
    assert whole["model"]["vocab"] == tokenizer.ids
    assert whole["model"]["merges"][0] == list(tokenizer.merges[0])
    assert whole["pre_tokenizer"] == {"type": "ByteLevel", "add_prefix_space": False,
                                      "trim_offsets": True, "use_regex": True}
    assert whole["decoder"]["type"] == "ByteLevel"
    assert [token["content"] for token in whole["added_tokens"]] == list(
        tokenizer.specials)


@pytest.mark.parametrize(("change", "says"), [
    (lambda whole: whole.update(pre_tokenizer=None), "pre_tokenizer"),
    (lambda whole: whole.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
    (lambda whole: whole["pre_tokenizer"].update(use_regex=False), "'use_regex': False"),
    (lambda whole: whole.update(normalizer={"type": "NFKC"}), "normalizer NFKC"),
    (lambda whole: whole["model"].update(byte_fallback=True), "byte_fallback"),
    (lambda whole: whole["model"].update(end_of_word_suffix="</w>"), "suffix"),
    (lambda whole: whole["added_tokens"][0].update(special=False, content="a word", lstrip=True),
     "'a word' with lstrip"),
    (lambda whole: whole["model"]["vocab"].pop("Ġ"), "Ġ"),
    (lambda whole: whole["model"]["merges"].append(["q", "x"]), "qx"),
    (lambda whole: whole["model"]["merges"].append(["q"]), "tokenizer.json"),
    (lambda whole: whole["model"]["merges"].append("q x y"), "tokenizer.json"),
    (lambda whole: whole["model"].update(merges=None), "tokenizer.json"),
    (lambda whole: whole["model"]["vocab"].update(gap=9999), "ids"),
    (lambda whole: whole["model"].update(type="Unigram"), "tokenizer.json"),
])
def test_what_is_not_gpt2s_way_is_refused_by_its_name(change, says, tmp_path):
    learned().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text("utf-8"))
    change(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert str(path.parent) in str(caught.value)


def test_windows_of_text_begin_with_the_tokenizers_own_bos():
    tokenizer = learned()
    tokenizer.bos = 77
    corpus = TextCorpus(TEXT, tokenizer, context=8, batch_size=2)
    assert all((batch.ids[:, 0] == 77).all() for batch in corpus.batches(0))
