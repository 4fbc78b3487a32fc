"""The rules of the book: it keeps them, and each is seen to notice a book that does not."""
import re
from pathlib import Path

import pytest

import book
import claims
import index
import lint
import tangle

TEXT = book.BOOK.read_text(encoding="utf-8")
INDEX = index.make(TEXT)
NUMBERS = claims.TABLE.read_text(encoding="utf-8")
CHUNK = """
<a id="c-x"></a><sub>**⟨x⟩** · used in nothing</sub>
```python {#x}
a = 1
```
"""


def broken(text, rule, root=book.ROOT):
    """What a rule says of a book; the line of each must be one of the book's."""
    found = list(rule(lint.Book(text, root)))
    assert all(0 <= line <= text.count("\n") + 1 for line, _ in found)
    return [message for _, message in found]


def changed(old, new, text=TEXT):
    """The real book, with one thing spoilt."""
    assert old in text
    return text.replace(old, new, 1)


def test_the_book_keeps_its_rules():
    assert lint.problems(lint.Book(TEXT, numbers=NUMBERS)) == []


def test_the_index_is_fresh():
    assert index.INDEX.read_text(encoding="utf-8") == index.make(TEXT), (
        "run `make captions`")


def test_the_captions_are_fresh():
    assert tangle.add_captions(TEXT) == TEXT, "run `make captions`"


def first_chunk():
    return next(b for b in lint.Book(TEXT).tangled if b.kind == "chunk")


def test_a_chunk_of_26_lines_is_noticed():
    fence = "```python {#%s}\n" % first_chunk().name
    size = len(first_chunk().body)
    fits = changed(fence, fence + "x = 0\n" * (25 - size))
    assert not broken(fits, lint.find_long_chunks)
    assert broken(changed(fence, fence + "x = 0\n", fits), lint.find_long_chunks) == [
        f"⟨{first_chunk().name}⟩ has 26 lines of code"]


def test_a_file_of_26_lines_is_noticed():
    fence = "```python {file=simple_llm/model.py}\n"
    assert broken(changed(fence, fence + "x = 0\n" * 26), lint.find_long_chunks)


def test_a_line_of_89_columns_is_noticed():
    fence = "```python {#%s}\n" % first_chunk().name
    assert not broken(changed(fence, fence + "#" * 88 + "\n"), lint.find_wide_lines)
    assert broken(changed(fence, fence + "#" * 89 + "\n"), lint.find_wide_lines)


def test_a_chunk_without_a_word_before_it_is_noticed():
    text = "# Book\n\nA sentence.\n" + CHUNK + "\n## Heading\n" + CHUNK.replace("x", "y")
    assert broken(text, lint.find_silent_chunks) == ["no prose before ⟨y⟩"]


def test_a_chunk_that_nothing_uses_is_noticed():
    assert broken(TEXT + "\nWords.\n" + CHUNK, lint.find_unused_chunks) == [
        "nothing uses the chunk ⟨x⟩"]


def test_a_caption_changed_by_hand_is_stale():
    caption = re.search(r"(?m)^<a id=\"c-.* · used in .*$", TEXT)[0]
    spoilt = changed(caption, caption.replace("used in", "is used in"))
    assert tangle.add_captions(spoilt) != spoilt


def test_a_picture_that_the_book_does_not_show_is_noticed():
    assert not broken(TEXT, lint.find_pictures_not_shown)
    assert broken(changed("(figures/loss.svg)", "(figures/tokens.svg)"),
                  lint.find_pictures_not_shown) == ["figures/loss.svg is not shown"]


@pytest.mark.parametrize("link", ["#no-such-heading", "no/such/file.py", "figures/no.svg"])
def test_a_dead_link_is_noticed(link):
    assert broken(TEXT + f"\nSee [it]({link}).\n", lint.find_dead_links) == [
        f"the link {link} is dead"]


@pytest.mark.parametrize("link", ["#3-tokens", "tangle.py", "https://example.org/a_(b)"])
def test_a_live_link_is_left_alone(link):
    assert not broken(TEXT + f"\nSee [it]({link}).\n", lint.find_dead_links)


def test_a_link_of_the_index_to_a_chunk_that_has_gone_is_noticed():
    assert broken(TEXT + "\n[gone]: #c-gone\n", lint.find_dead_links)


def test_a_heading_that_is_renamed_leaves_dead_links_behind():
    assert broken(changed("## 3. Tokens\n", "## 3. Pieces\n"), lint.find_dead_links)


def test_the_second_heading_of_a_name_has_a_number_as_on_github():
    text = "# A b\n\n# A b\n\n[one](#a-b) [two](#a-b-1) [three](#a-b-2)\n"
    assert broken(text, lint.find_dead_links) == ["the link #a-b-2 is dead"]


def test_an_anchor_that_stands_twice_is_noticed():
    anchor = f'<a id="c-{first_chunk().name}"></a>'
    assert broken(changed(anchor, f"{anchor}\n\n{anchor}"), lint.find_doubled_anchors)


def test_a_picture_without_a_description_or_a_mark_is_noticed():
    text = "<!-- figure: x -->\n![words](a.svg)\n\n<!-- figure: x -->\n![](b.svg)\n"
    assert len(broken(text, lint.find_bare_pictures)) == 1
    assert len(broken(text + "\n![words](c.svg)\n", lint.find_bare_pictures)) == 2


def test_an_output_without_its_command_is_noticed():
    output = "```text\n42\n```\n"
    marked = f"Words:\n\n<!-- output: x -->\n{output}"
    assert not broken(marked, lint.find_unmarked_outputs)
    assert broken(f"Words:\n\n{output}", lint.find_unmarked_outputs)


def test_a_tag_that_browsers_would_swallow_is_noticed():
    assert not broken("Text `<eos>` and 1 < 2 and $`a <b`$.\n", lint.find_stray_tags)
    assert broken("Text ends with <eos>.\n", lint.find_stray_tags)


TERMS = """# Book

An attic is mentioned in the preface.

## 1. One

*At the end of this chapter you know attics.*

### Two

An **attic** is a room under the roof.

## Appendix A. Glossary

- [Attic](#two): a room.

## Appendix B. Solutions
"""


def test_a_term_that_is_defined_where_the_glossary_says_is_left_alone():
    assert not broken(TERMS, lint.find_undefined_terms)
    linked = changed("### Two", "Many [attics](#two) are full of attics.\n\n### Two", TERMS)
    assert not broken(linked, lint.find_undefined_terms)


def test_a_term_that_is_used_before_it_is_defined_is_noticed():
    early = changed("### Two", "She went to the\nattic.\n\n### Two", TERMS)
    assert broken(early, lint.find_undefined_terms) == [
        "Attic is used here, and defined only at line 14"]


def test_a_term_that_is_defined_nowhere_or_elsewhere_is_noticed():
    for spoilt in (changed("**attic**", "attic", TERMS),
                   changed("**attic**", "**barn** and attic and **cellar**", TERMS),
                   changed("(#two)", "(#1-one)", TERMS)):
        assert "is not defined (in bold type) at" in broken(
            spoilt, lint.find_undefined_terms)[0]


def test_too_little_prose_is_noticed():
    words = "one two three four five six seven eight " * 2
    text = f"{words}\n```python {{file=a.py}}\na = 1\nb = 2\nc = 3\nd = 4\n```\n"
    assert not broken(text, lint.find_too_few_words)
    assert broken(changed("eight", "", text), lint.find_too_few_words)


def test_captions_and_comments_are_no_prose():
    block = lint.Book("words\n" + CHUNK + "<!-- many words here -->\n")
    assert lint.words_of_prose(block) == 1


def test_a_book_of_500_kilobytes_is_noticed():
    assert not broken("x" * 399_999, lint.find_too_many_bytes)
    assert broken("x" * 500_000, lint.find_too_many_bytes)


def test_the_table_counts_what_is_there():
    text = ("## 1. One\n\nFive words and a formula: $`x`$ here.\n" + CHUNK +
            "\n```math\nx\n```\n\n- *1.1* (paper, ★, 5 minutes) Why?\n- *1.2* (project, ★★,\n"
            "  2 hours) Do it.\n- *1.3* (rewrite, ★, 1 hour) This.\n")
    table = lint.table(lint.Book(text))
    assert table["chunks"] == "1 in 1 blocks"
    assert table["equations"] == "1, and 1 in the text"
    assert table["exercises"] == "3 (1 paper, 1 project, 1 rewrite)"


# The index

def test_a_stale_index_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index, "INDEX", tmp_path / "index.md")
    assert index.main(["check"]) == 1 and "make captions" in capsys.readouterr().err
    assert index.main([]) == 0 == index.main(["check"])
    (tmp_path / "index.md").write_text(INDEX.replace("`AdamW`", "`Adam`"))
    assert index.main(["check"]) == 1


def test_every_link_of_the_index_leads_into_the_book():
    anchors = {f"simple_llm.md#{name}" for name in lint.anchors(lint.Book(TEXT))}
    targets = dict(re.findall(r"(?m)^\[(.*)\]: (.*)$", INDEX))
    assert set(targets.values()) <= anchors
    assert set(re.findall(r"\[(.*?)\]", INDEX)) == targets.keys()


def test_the_index_says_where_a_name_is_defined_and_used():
    line = re.search(r"(?m)^- `LayerNorm` (.*)$", INDEX)[1]
    assert line.startswith("[layer-norm]: ") and "[block]" in line


def test_the_index_has_every_chunk_and_every_public_function():
    for name in tangle.gather_chunks(tangle.read_blocks(TEXT)[0]):
        assert f"\n- [{name}] " in INDEX
    for path in ("layers", "model", "train"):
        source = Path(book.ROOT, f"build/simple_llm/{path}.py").read_text(encoding="utf-8")
        for name in re.findall(r"(?m)^(?:def|class) ([A-Za-z]\w*)", source):
            assert f"\n- `{name}` [" in INDEX, name


# Numbers: in sentences, and seals

VALUES = """## 1. One

```pycon
>>> n = 13
```

It is 2.565, or $`\\ln 13 = 2.6`$, of 1,300 rooms, and
took 50 s, twice as long as `sleep 25`; half of [it](#2) in chapter 2.

<!-- output: python -c print('took',49,'s') -->
```text
took 49 s
```

## 2. Two

A token 5 of 1024, a hundred thousand times.
"""
TABLE = """/chapter \\d|^## \\d\\./ <- given: a reference
## 1.
: half = 1 / 2
It is {}, or $`\\ln {} = {}`$, <- log(n); n; log(n)
of {} rooms, and took {} s, {} as long <- 100 * n; shown("took (.*) s") ~ 3%; 2
; {} of [it] <- half

## 2.
token 5 <- given: a name
token 5 of {} <- 2 ** 10
{} times. <- said("of (1,300) rooms") * 76.923 ~ 1%
"""


def wrong_numbers(text, table=TABLE):
    return [p.message for p in claims.unexplained(text, table)] + book.stale(text, "", table)


def test_numbers_in_sentences_are_compared():
    assert wrong_numbers(VALUES) == []
    assert book.refresh(VALUES, None, TABLE) == VALUES
    assert wrong_numbers(VALUES.replace(" rooms, and\ntook", "\nrooms, and  took")) == []


@pytest.mark.parametrize(("right", "wrong"), [
    ("2.565", "2.566"), ("= 2.6", "= 2.7"), ("1,300", "1,301"), ("50 s", "60 s"),
    ("took 49 s", "took 48 s"), ("n = 13", "n = 14"), ("1024", "1025"), ("twice", "thrice"),
    ("half", "a third"), ("hundred", "million"), ("token 5", "token 6"), ("It is", "It was"),
    (" rooms", "th room"), ("13 =", "14 =")])
def test_a_number_changed_by_hand_is_noticed(right, wrong):
    spoilt = changed(right, wrong, VALUES)
    assert wrong_numbers(spoilt)
    if right in ("2.565", "= 2.6", "1024", "50 s", "13 ="):
        assert wrong_numbers(book.refresh(spoilt, None, TABLE)) == []


def test_refresh_tells_what_it_leaves_to_the_writer(capsys):
    spoilt = changed("twice", "thrice", VALUES)
    assert book.refresh(spoilt, None, TABLE) == spoilt
    assert "cannot renew this: thrice: 2 is 2" in capsys.readouterr().err


@pytest.mark.parametrize(("right", "wrong"), [
    ("2 ** 10", "2 ** 9"), ("<- half", "<- half / 2"), ("~ 3%", "~ 1%"), ("log(n); n", "n; n"),
    (": half = 1 / 2\n", ""), ('said("of', 'said("no'), ("rooms, and", "roofs, and"),
    ("; {} of [it] <- half\n", ""), ("log(n); n; log(n)", "log(n); n"), ("## 2.", "## 3."),
    ("given: a name", "given:"), ("token 5 <-", "token 6 <-"),
    ('"took', '"need'), ("log(n)", "log(m)")])
def test_a_change_of_the_table_is_noticed(right, wrong):
    assert wrong_numbers(VALUES, changed(right, wrong, TABLE))


@pytest.mark.parametrize("claim", [
    "it took 3.5 s", "37 %", "1,024 rows", "three times as fast", "two thirds of it",
    "about a minute", "twice", "some thirty", "one run in ten", "$`x = 42`$", "a tenfold 10",
    "`4.2 ms`", "a thousandfold gain"])
def test_a_number_that_comes_from_nowhere_is_noticed(claim):
    spoilt = changed("A token", f"Here {claim}. A token", VALUES)
    assert "comes from nowhere" in wrong_numbers(spoilt)[0]
    assert broken(spoilt, lambda b: lint.find_unexplained_numbers(
        lint.Book(b.text, numbers=TABLE)))


@pytest.mark.parametrize("words", [
    "`x = 42`", "[here](figures/42.svg)", "$`x_1^2 + 1`$", "one of two",
    "```python\nx = 42\n```\n", "float32 and x86"])
def test_what_is_no_number_in_a_sentence_is_left_alone(words):
    assert wrong_numbers(changed("A token", f"{words}\n A token", VALUES)) == []


@pytest.mark.parametrize(("words", "value"), [
    ("1,024.5", 1024.5), ("twenty-seven", 27), ("a hundred thousand", 1e5), ("twice", 2),
    ("a hundred million", 1e8), ("two thirds", 2 / 3), ("half", 0.5), ("1e-9", 1e-9),
    ("Three", 3), ("ten thousand million", 1e10), ("one\nhalf", 0.5)])
def test_words_are_read_as_numbers(words, value):
    assert claims.number(words) == pytest.approx(value, rel=1e-12)


def numbers_of_the_book():
    """Every number of the book that an expression gives, and every one that is given."""
    prose = claims.Prose(TEXT)
    entries = claims.read_table(NUMBERS)[0]
    slots = [slot for entry in entries for slot in claims.slots(prose, entry)]
    given = [(entry, prose.places[match.start() + digit.start()])
             for entry in entries if entry.origin.startswith("given:")
             and entry.phrase[0] != "/" for match in prose.matches(entry)
             for digit in re.finditer(r"(?<![-\w.])[1-9]", match[0])]
    return slots, given


def test_any_number_of_the_book_that_is_changed_is_noticed():
    """All at once: each computed one is told apart from its value, and if the phrases
    with a number that is given have another one, they are no longer there."""
    slots, given = numbers_of_the_book()
    assert len(slots) > 150 and len(given) > 50
    spoilt = list(TEXT)
    for _, place in given:
        spoilt[place] = "123456789"[int(spoilt[place]) % 9]
    found = {p.line for p in claims.unexplained("".join(spoilt), NUMBERS)}
    assert {entry.line for entry, _ in given} <= found
    for slot in slots:
        wrong = slot._replace(text="7.7e7", code=repr(claims.number(slot.text)))
        assert claims.right(wrong, {}) != wrong.text


def test_an_empty_output_cannot_be_sealed():
    assert book.seal_all(changed("90\n", "", LONG)) == changed("90\n", "", LONG)


def test_a_mark_that_marks_nothing_is_noticed():
    spoilt = changed("s') -->\n", "s') -->\n\n", VALUES)
    assert "nothing to mark" in "\n".join(book.stale(spoilt))
    assert book.stale("In code, `<!-- output: x -->` is not a mark.\n") == []
    assert "no mark" in book.stale("It costs 0.69<!-- value: log(2) -->.\n")[0]


LONG = """<!-- long ~ 20%: python -c print(100) -->
```text
90
```
"""


def test_a_long_output_that_was_never_made_is_noticed():
    assert book.NEVER in book.stale(LONG)[0]


def test_a_long_output_that_was_changed_by_hand_is_noticed():
    sealed = book.seal_all(LONG)
    assert book.stale(sealed) == []
    assert "by hand" in book.stale(changed("90", "99", sealed))[0]
    assert "by hand" in book.stale(changed("(100)", "(99)", sealed))[0]


def test_a_long_output_run_again_may_differ_by_its_tolerance():
    sealed = book.seal_all(LONG)
    assert book.stale(sealed, run_all=True) == []
    assert book.stale(book.seal_all(changed("90", "79", LONG)), run_all=True)
    assert "\n100\n" in book.refresh(sealed, "print")
    assert book.stale(book.refresh(sealed, "print")) == []
    assert book.refresh(sealed, None) == sealed


def test_a_stale_figure_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "build").mkdir()
    (tmp_path / "build/draw.py").write_text(
        "import sys; open(sys.argv[1] + '/a.svg', 'w').write('<svg/>')")
    (tmp_path / "a.svg").write_text("<svg/>")
    text = "<!-- figure: python draw.py ../figures -->\n![Words](a.svg)\n"
    assert book.stale(text) == []
    (tmp_path / "a.svg").write_text("<svg>1</svg>")
    assert "is not what" in book.stale(text)[0]
    book.refresh(text, None)
    assert book.stale(text) == []
    assert "is not what" in book.stale(text.replace("(a.svg)", "(b.svg)"))[0]


def test_a_figure_that_took_long_is_sealed(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "a.svg").write_text("<svg/>\n")
    text = "<!-- long figure: make train -->\n![Words](a.svg)\n"
    assert book.NEVER in book.stale(text)[0]
    assert book.stale(book.seal_all(text)) == []
    sealed = book.seal_all(text)
    (tmp_path / "a.svg").write_text("<svg>2</svg>\n")
    assert "sealed" in book.stale(sealed)[0]
