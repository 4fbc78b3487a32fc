"""The reader's own text: files, stretches, windows, and the price of a text."""
import math
import re
import tracemalloc

import numpy as np
import pytest

from simple_llm.errors import UserError
from simple_llm.text import TextCorpus, encode_long, gather_text, read_text
from simple_llm.tokenizer import Tokenizer

UNIQUE = "".join(chr(0x4E00 + i) for i in range(500))      # id i + 4 stands at position i


def unique_corpus(context=7, batch_size=4, length=500, seed=0):
    text = UNIQUE[:length]
    tokenizer = Tokenizer.from_text(text, "char")
    return TextCorpus(text, tokenizer, context, batch_size, seed)


def test_a_windows_targets_are_its_ids_moved_by_one_and_the_text_stays_as_it_is():
    """All but the first, in whose place stands <bos>. In this text i + 1 follows i."""
    corpus = unique_corpus()
    for batch in [*corpus.batches(1), *corpus.validation_batches()]:
        assert batch.ids.shape == batch.targets.shape
        assert (batch.ids[:, 0] == 1).all()
        assert np.array_equal(batch.ids[:, 1:], batch.targets[:, :-1])
        assert (np.diff(batch.targets) == 1).all()
    assert corpus.training.tolist() == list(range(4, 454))      # a tenth is held out
    assert corpus.validation.tolist() == list(range(454, 504))


@pytest.mark.parametrize("length", [30, 100, 101, 102, 103, 107, 500])
@pytest.mark.parametrize("context", [1, 2, 7, 25])
def test_windows_of_an_epoch_are_full_and_do_not_overlap(length, context):
    corpus = unique_corpus(context, 3, length)
    for epoch in range(1, 12):
        batches = list(corpus.batches(epoch))
        assert len(batches) == corpus.steps_per_epoch
        targets = np.concatenate([batch.targets.ravel() for batch in batches])
        assert len(set(targets.tolist())) == len(targets)
        assert all(batch.ids.shape[1] == context for batch in batches)
        assert all(len(batch.ids) >= 1 for batch in batches)
        assert all(len(batch.ids) == 3 for batch in batches[:-1])
        assert targets.max() < 4 + len(corpus.training)


def test_training_windows_touch_nothing_that_is_held_out():
    corpus = unique_corpus()
    seen = {int(token) for epoch in range(30) for batch in corpus.batches(epoch)
            for array in batch for token in array.ravel()}
    assert seen - {1} <= set(corpus.training.tolist())
    assert len(seen) >= len(corpus.training) - 1   # the cuts move from epoch to epoch


@pytest.mark.parametrize("length", [30, 100, 101, 108, 300, 500])
@pytest.mark.parametrize("context", [1, 2, 7, 25])
def test_validation_predicts_each_token_once(length, context):
    corpus = unique_corpus(context, 3, length)
    targets = [token for batch in corpus.validation_batches()
               for token in batch.targets.ravel().tolist()]
    assert targets == corpus.validation[1:].tolist()


def test_text_epochs_are_reproducible_and_differ():
    def windows(seed, epoch):
        return [b.ids.tolist() for b in unique_corpus(seed=seed).batches(epoch)]

    assert windows(0, 1) == windows(0, 1)
    assert windows(0, 1) != windows(0, 2)
    assert windows(0, 1) != windows(1, 1)


@pytest.mark.parametrize(("length", "context"), [(19, 1), (30, 27), (100, 500), (1, 1)])
def test_a_text_that_is_too_short_is_refused_with_the_length_needed(length, context):
    with pytest.raises(UserError, match=f"has {length} tokens") as caught:
        unique_corpus(context, 1, length)
    enough = int(re.search(r"at least (\d+)", str(caught.value))[1])
    if enough <= len(UNIQUE):
        assert list(unique_corpus(context, 1, enough).batches(1))


# Files


def test_a_directory_says_how_many_of_its_files_are_texts(tmp_path, capsys):
    for name in ("a.txt", "B.TXT", "c.markdown", "d.Md", "e.pdf", "README", ".hidden.txt"):
        (tmp_path / name).write_text(name, "utf-8")
    assert gather_text([str(tmp_path)]).split() == ["B.TXT", "a.txt", "c.markdown", "d.Md"]
    assert f"{tmp_path}: 4 of 6 files are texts: .txt" in capsys.readouterr().err
    for name in ("a.txt", "B.TXT", "c.markdown", "d.Md"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="no text in it"):
        gather_text([str(tmp_path)])


def test_a_text_is_read_without_byte_order_mark_and_carriage_returns(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\xc3\xa9")
    assert read_text(str(path)) == "one\ntwo\né"


@pytest.mark.parametrize(("data", "says"), [
    (b"", "empty"), (b" \n\t\r\n", "empty"), (b"\xef\xbb\xbf", "empty"),
    (b"abc\0def", "byte 3 is NUL"), (b"abcd\xff\n", "not UTF-8: byte 0xff at 4"),
    (b"abc\xe2\x82", "not UTF-8: byte 0xe2 at 3"),
])
def test_a_file_that_is_no_text_is_refused_in_one_sentence(tmp_path, data, says):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says):
        read_text(str(path))


def test_a_missing_file_and_a_directory_are_refused_in_one_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="cannot read"):
            read_text(str(path))


def test_a_directory_gives_the_files_of_text_but_nothing_hidden_or_empty(tmp_path):
    for name, text in (("b.md", "second"), ("a.txt", "first"), ("c.py", ""), ("d.png", "no"),
                       (".venv/x.txt", "hidden"), ("more/e.rst", "third")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert gather_text([str(tmp_path)]) == "first\nsecond\nthird"
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no text in it"):
        gather_text([str(tmp_path / "none")])


# Long texts


def test_a_long_text_in_stretches_is_the_same_text():
    assert encode_long("", Tokenizer.from_text("x")).shape == (0,)
    text = "one two,\n\n  three\nfour 'tis\n" * 40 + "no end"
    for kind in ("char", "bpe"):
        tokenizer = Tokenizer.from_text(text, kind)
        assert encode_long(text, tokenizer).tolist() == tokenizer.encode(text)
        for size in (1, 7, 50, 999, len(text)):
            assert tokenizer.decode(encode_long(text, tokenizer, size).tolist()) == text


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_a_vocabulary_is_made_in_little_memory(kind):
    text = "the cat sat on the mat\n" * 20_000              # 0.5 MB, 120,000 words
    Tokenizer.from_text("x", kind)                          # makes the pattern, once for all
    tracemalloc.start()
    Tokenizer.from_text(text, kind)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(text)


def test_the_text_is_read_in_memory_of_its_own_size(tmp_path):
    (tmp_path / "a").write_text("the cat sat on the mat\n" * 200_000)     # 4.6 MB
    tracemalloc.start()
    text = read_text(str(tmp_path / "a"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(text)


# The price


def test_what_is_unknown_is_paid_for_but_brings_no_bytes():
    tokenizer = Tokenizer.from_text("ab", "char")
    corpus = TextCorpus("ab" * 50, tokenizer, context=4)
    assert corpus.price(math.log(2)) == "1.000 bits per byte"
    corpus.validation[:5] = tokenizer.unk                    # five of ten
    assert corpus.price(math.log(2)) == "2.000 bits per byte (50.0% of the tokens unknown)"


def test_the_price_does_not_depend_on_how_the_text_was_cut():
    text = "ab " * 100
    letters = TextCorpus(text, Tokenizer.from_text(text, "char"), context=4)
    pieces = TextCorpus(text, Tokenizer.from_text(text, "bpe"), context=4)
    assert len(letters.validation) == 30 and len(pieces.validation) == 11    # ab, 9 " ab", " "
    assert letters.price(1.1) == pieces.price(3.0)


@pytest.mark.parametrize("kind", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, kind):
    (tmp_path / "u.txt").write_bytes("\ufeffnine ferries".encode(kind))
    with pytest.raises(UserError, match="u.txt is UTF-16: save it as UTF-8"):
        gather_text([str(tmp_path / "u.txt")])
