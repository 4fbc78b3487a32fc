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


def broken(text, rule):
    """What a rule says of a book; the line of each must be one of the book's."""
    found = list(rule(lint.Book(text)))
    assert all(0 <= line <= text.count("\n") + 1 for line, _ in found)
    return [message for _, message in found]


def changed(old, new, text=TEXT):
    """The real book, with one thing spoilt."""
    assert old in text
    return text.replace(old, new, 1)


def test_the_book_keeps_its_rules():
    assert lint.problems(lint.Book(TEXT, numbers=NUMBERS)) == []


def test_what_tangle_and_index_make_is_fresh():
    assert index.INDEX.read_text(encoding="utf-8") == INDEX, "run `make captions`"
    assert tangle.add_captions(TEXT) == TEXT, "run `make captions`"


def chunk(name="x", lines=1):
    return f"```python {{#{name}}}\n" + "a = 1\n" * lines + "```\n"


OUTPUT = "```text\n42\n```\n"
DEFINED = """# Book

An attic is mentioned in the preface.

## 1. One

*At the end of this chapter you know attics.*

### Two

An **attic** is a room under the roof.

## Appendix A. Glossary

- [Attic](#two): a room.

## Appendix B. References
"""
FINE_AND_BROKEN = [
    (lint.find_long_chunks, chunk(lines=25), chunk(lines=26)),
    (lint.find_long_chunks, "", "```python {file=a.py}\n" + "x = 0\n" * 26 + "```\n"),
    (lint.find_wide_lines, chunk().replace("a", "a" * 84), chunk().replace("a", "a" * 85)),
    (lint.find_silent_chunks, f"Words.\n{chunk()}", f"Words.\n{chunk()}\n## Two\n{chunk('y')}"),
    (lint.find_unused_chunks, "", chunk()),
    (lint.find_dead_links, "# A b\n\n# A b\n\n[one](#a-b) [two](#a-b-1)\n",
     "# A b\n\n# A b\n\n[three](#a-b-2)\n"),
    (lint.find_dead_links, "[it](tangle.py) [there](https://example.org/a_(b))\n",
     "[it](no/such/file.py)\n"),
    (lint.find_dead_links, "", changed("## 3. Tokens\n", "## 3. Pieces\n")),
    (lint.find_doubled_anchors, '<a id=a></a>\n<a id="b"></a>\n',
     '<a id=a></a>\n\n<a id="a"></a>\n'),
    (lint.find_bare_pictures, "<!-- figure: x -->\n![words](a.svg)\n", "![words](a.svg)\n"),
    (lint.find_bare_pictures, "", "<!-- long figure: x -->\n![](a.svg)\n"),
    (lint.find_unmarked_outputs, f"Words:\n\n<!-- output: x -->\n{OUTPUT}", f"Words:\n\n{OUTPUT}"),
    (lint.find_stray_tags, "Text `<eos>` and 1 < 2 and $`a <b`$.\n", "Text ends with <eos>.\n"),
    (lint.find_stray_tags, f"{lint.FOLD}Six.\n\n</details>\n", "<details open>\n"),
    (lint.find_undefined_terms, DEFINED, changed("**attic**", "attic", DEFINED)),
    (lint.find_undefined_terms, DEFINED, changed("(#two)", "(#1-one)", DEFINED)),
    (lint.find_undefined_terms,
     changed("### Two", "Many [attics](#two) are full of attics.\n\n### Two", DEFINED),
     changed("### Two", "She went to the\nattic.\n\n### Two", DEFINED)),
    (lint.find_undefined_terms, DEFINED, "# Book\n"),
    (lint.find_too_few_words, "one two three four <!-- five -->\n" + chunk(),
     "one two three <!-- four -->\n" + chunk()),
    (lint.find_too_many_bytes, "x" * 511_999, "x" * 512_000),
]


@pytest.mark.parametrize(("rule", "fine", "spoilt"), FINE_AND_BROKEN,
                         ids=lambda value: getattr(value, "__name__", ""))
def test_what_breaks_a_rule_is_noticed_and_what_keeps_it_is_left_alone(rule, fine, spoilt):
    assert broken(fine, rule) == [] != broken(spoilt, rule)


PARTS = f"""# Book

A preface.

# Part I. A language model

## 1. One

Eight words of prose for a line of code: an **attic**, which is
defined. (**Guess** more.)

{chunk()}
<!-- figure: x -->
![words](a.svg)

**To remember.** It is
12.

**Exercises.**

- *1.1* (paper, ★, 5 minutes) Why **not**?

{lint.FOLD}Because of **attics**.

</details>

- *1.2* (project, ★★, 2 hours) Do it.

# Part II. More

Words before a chapter.

## 2. Two

{chunk("long", 25)}
**To remember.** Half of it.

- *2.1* (rewrite, ★, 1 hour) This.

## Appendix A. Glossary

- [Attic](#1-one): a room.

- [Not](#1-one): no.

## Appendix B. References
"""


def in_parts(text):
    return [message for rule in lint.IN_PARTS if rule is not lint.find_pictures_not_shown
            for message in broken(text, rule)]


@pytest.mark.parametrize(("old", "new", "wrong"), [
    ("a = 1\n", "a = 1\n" * 9, "of prose for a line of code of part I"),
    ("# Part II. More", "", "25 lines of code"),
    ("![words](a.svg)", "", "no picture in chapter 1. One"),
    ("**To remember.** Half", "Half", "no **To remember.** in chapter 2. Two"),
    ("is\n12.", "is\nsweet.", "no number to remember in chapter 1. One"),
    ("<details><summary>", "<details>\n<summary>", "1.1 has no solution"),
    (lint.FOLD, lint.FOLD[:-1], "1.1 has no solution"),
    ("- *1.2*", f"- *1.2* (paper, ★, 1 minute) Too.\n\n- *1.3*", "1.2 has no solution"),
    ("\n\n</details>", "\n</details>", "does not end in an empty line"),
    ("an **attic**", "an **attic** or **old\ncellar**", "old cellar is not in the glossary"),
    ("- [Not](#1-one): no.", "", "not is not in the glossary"),
    ("A preface.", "x" * 512_000, "512 is the limit")])
def test_what_breaks_a_rule_of_the_parts_is_noticed(old, new, wrong):
    assert in_parts(PARTS) == []
    found = in_parts(changed(old, new, PARTS))
    assert any(wrong in message for message in found), found


def test_a_picture_that_the_book_does_not_show_is_noticed(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/a.svg").touch()
    for text, wrong in (("(figures/a.svg)", []), ("(a.svg)", ["figures/a.svg is not shown"])):
        found = lint.find_pictures_not_shown(lint.Book(text, tmp_path))
        assert [message for _, message in found] == wrong


def test_the_table_counts_what_is_there():
    table = lint.table(lint.Book(PARTS + "\nA formula: $`x`$.\n\n```math\nx\n```\n"))
    assert table["chunks"] == "2 in 2 blocks"
    assert table["equations"] == "1, and 1 in the text"
    assert table["exercises"] == "3 (1 paper, 1 project, 1 rewrite)"


def test_the_second_table_has_a_line_for_each_part():
    head, *lines = lint.table_of_parts(lint.Book(PARTS))
    assert head.split() == "chunks median longest code words for a line KB".split()
    assert [(line[:38].strip(), *line[38:].split()[:4]) for line in lines] == [
        ("Preface", "0", "0", "0", "0"), ("Part I. A language model", "1", "1", "1", "1"),
        ("Part II. More", "1", "25", "25", "25"), ("the whole book", "2", "13", "25", "26")]
    parts = lint.Book(TEXT + "\n# Part II. More\n").parts()
    assert sum(lint.lines_of_code(part) for part in parts.values()) == lint.lines_of_code(
        lint.Book(TEXT))


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


def test_the_index_has_every_chunk_and_every_public_function_and_says_where_it_is_used():
    for name in tangle.gather_chunks(tangle.read_blocks(TEXT)[0]):
        assert f"\n- [{name}] " in INDEX
    for path in ("layers", "model", "train"):
        source = Path(book.ROOT, f"build/simple_llm/{path}.py").read_text(encoding="utf-8")
        for name in re.findall(r"(?m)^(?:def|class) ([A-Za-z]\w*)", source):
            assert f"\n- `{name}` [" in INDEX, name
    line = re.search(r"(?m)^- `LayerNorm` (.*)$", INDEX)[1]
    assert line.startswith("[layer-norm]: ") and "[block]" in line


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


FOLDED = f"""# Part I. One

Eight of us.

## 1. One

```pycon
>>> n = 13
```

- *1.1* (paper, ★, 5 minutes) Why?

{lint.FOLD}Because it is 26:

```pycon
>>> 2 * n
26
```

</details>

# Part II. Two

Seven of 20.

## 2. Two

```pycon
>>> m = 30
```
"""
OF_PARTS = """## 1. One
- *1.1* (paper, ★, 5 minutes) <- given: an exercise
it is {}: <- 2 * n
1. One <- given: a chapter

## Part II.
of {}. <- 20

## 2.
2. Two <- given: a chapter
"""


def test_a_folded_solution_belongs_to_its_chapter_and_words_of_a_part_to_the_part():
    assert wrong_numbers(FOLDED, OF_PARTS) == []
    for old, new in (("is 26", "is 27"), ("\n26", "\n27"), ("of 20", "of 21")):
        spoilt = changed(old, new, FOLDED)
        assert wrong_numbers(spoilt, OF_PARTS)
        assert wrong_numbers(book.refresh(spoilt, None, OF_PARTS), OF_PARTS) == []


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


def test_a_long_output_is_sealed_and_run_again_may_differ_by_its_tolerance():
    empty, sealed = changed("90\n", "", LONG), book.seal_all(LONG)
    assert book.NEVER in book.stale(LONG)[0] and book.seal_all(empty) == empty
    assert book.stale(sealed) == book.stale(sealed, run_all=True) == []
    for spoilt in (changed("90", "99", sealed), changed("(100)", "(99)", sealed)):
        assert "by hand" in book.stale(spoilt)[0]
    assert book.stale(book.seal_all(changed("90", "79", LONG)), run_all=True)
    renewed = book.refresh(sealed, "print")
    assert "\n100\n" in renewed and book.stale(renewed) == []
    assert book.refresh(sealed, None) == sealed


def test_a_figure_is_compared_and_one_that_took_long_is_sealed(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "build").mkdir()
    (tmp_path / "build/draw.py").write_text(
        "import sys; open(sys.argv[1] + '/a.svg', 'w').write('<svg/>')")
    text = "<!-- figure: python draw.py ../figures -->\n![Words](a.svg)\n"
    long = text.replace("figure", "long figure", 1)
    (tmp_path / "a.svg").write_text("<svg/>")
    sealed = book.seal_all(long)
    assert book.NEVER in book.stale(long)[0] and book.stale(text) == book.stale(sealed) == []
    (tmp_path / "a.svg").write_text("<svg>1</svg>")
    assert "is not what" in book.stale(text)[0] and "sealed" in book.stale(sealed)[0]
    book.refresh(text, None)
    assert book.stale(text) == []
    assert "is not what" in book.stale(text.replace("(a.svg)", "(b.svg)"))[0]
    monkeypatch.setitem(book.DRAWERS, "a", "python draw.py ../figures")
    assert book.stale("<!-- figure: a -->\n![Words](a.svg)\n") == []
