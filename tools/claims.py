"""The numbers in the book's sentences, and where each of them comes from: numbers.txt.

Every number in the prose (in digits; in words if it is large, a share, or has a unit) must
stand in a phrase of numbers.txt. A line of that file is a phrase, " <- " and its origin:

    costs {} nats <- log(2)              the phrase, {} for a number, and the expression
                                         whose value it is, rounded as the number is
    {} s, {} times as fast <- 2; 3 ~ 5%  several numbers; this one may differ by so much
    token 5 <- given: a name             this number claims nothing, and here is why; or
                                         it is a fact about others, and this is where from
    /chapters? \\d+/ <- given: a name     the same for all that a pattern matches
    : import numpy as np                 a statement, run before the values below
    ## 3.                                what follows is of the chapter with this title (or
                                         ## Part II. of the words before its chapters);
                                         what stands before the first, of every chapter

Line ends, comments and where links lead do not matter. Expressions know the names of the
chapter's sessions, all of math, ROOT, and three readers, which give the one number that the
group of a pattern finds: shown(REGEX, WORD="") in the outputs of the book (those whose
command has the word), code(REGEX) in its program and in those that it quotes, said(REGEX)
in its other sentences.
"""
from __future__ import annotations

import math
import re
from bisect import bisect_left
from functools import cache, lru_cache
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

TABLE = Path(__file__).with_name("numbers.txt")
QUOTED = ["bench.py", "bench_charts.py", "experiments.py", "figures.py", "pictures.py",
          "torture.py"]                                     # by the book's words
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen "
        "fourteen fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = {"hundred": 100.0, "thousand": 1e3, "million": 1e6, "billion": 1e9}
SHARES = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7,
          "eighth": 8, "tenth": 10, "twentieth": 20, "fiftieth": 50, "hundredth": 100}
WORDS = {"a": 1, "an": 1, "once": 1, "twice": 2, "thrice": 3,
         **{word: n for n, word in enumerate(ONES)},
         **{word: 10 * n for n, word in enumerate(TENS, 2)}}
DIGITS = r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?"
SMALL = rf"(?:{'|'.join(ONES[1:13])})"
SCALE = rf"(?:{'|'.join(SCALES)})"
LARGE = (rf"(?:(?:an?|{SMALL})[\s-])?(?:(?:{'|'.join([*ONES[13:], *TENS])})(?:-{SMALL})?"
         rf"(?:\s{SCALE})*|{SCALE}(?:\s{SCALE})*)")
SHARE = rf"twice|thrice|half|(?:an?|{SMALL})[\s-](?:{'|'.join(SHARES)})s?"
TIME = r"(?:(?:milli|micro)?second|minute|hour|day|week|year)"
UNIT = rf"(?:times|percent|{TIME}s?|(?:kilo|mega|giga)?bytes?|parameters|operations|nats?)"
CLAIM = re.compile(
    rf"{DIGITS}|\b(?:{LARGE}|{SHARE}|one(?:\s\w+)?\sin\s{SMALL}|{SCALE}fold|"
    rf"{SMALL}(?=[\s-]{UNIT}\b)|"
    rf"(?<=about )an?(?=\s{TIME}\b)|(?<=than )an?(?=\s{TIME}\b))\b", re.I)
ANY = rf"(?:{DIGITS}|\b(?i:{LARGE}|{SHARE}|{SMALL}|{'|'.join(SHARES)}|an?)\b)"
HIDDEN = re.compile(
    r"^```(?!math)\w.*?^```$|<!--.*?-->|^<a id=[^\n]*$|"
    r"(?<=\])\([^()\s]*(?:\([^()\s]*\))?[^()\s]*\)|^\[[^\]\n]+\]: \S+$", re.S | re.M)
BARE = re.compile(r"`\d[\d.,]*(?: ?(?:%|ms|s|[KMG]B))?`")       # a number printed as code
FORMULA_OR_CODE = re.compile(
    r"(?P<formula>\$`.+?`\$|^```math.*?^```)|`(?:[^`\n]|\n(?![ \t]*\n))+`", re.S | re.M)


class Problem(NamedTuple):
    """Something wrong, at a place of the book, or (with line) in the table."""

    place: int
    message: str
    line: int = 0


class Entry(NamedTuple):
    """A line of the table."""

    line: int
    chapter: str
    phrase: str
    origin: str

    def pattern(self) -> str:
        if re.fullmatch("/.*/", self.phrase):
            return self.phrase[1:-1]
        words = [re.escape(word).replace(r"\{\}", f"({ANY})") for word in self.phrase.split()]
        before, after = (r"(?<!\w)" if re.match(r"\w", self.phrase) else "",
                         r"(?!\w)" if re.search(r"\w$", self.phrase) else "")
        return before + r"\s+".join(words) + after


class Slot(NamedTuple):
    """A number in the prose that an expression must give; places are the book's."""

    entry: Entry
    start: int
    end: int
    text: str
    code: str
    tolerance: str


class Prose:
    """The text without what is not read, and where each of its characters stood."""

    def __init__(self, text: str) -> None:
        self.places: list[int] = []
        last, pieces = 0, []
        for hidden in [*HIDDEN.finditer(text), None]:
            end = hidden.start() if hidden else len(text)
            pieces.append(text[last:end])
            self.places += range(last, end)
            last = hidden.end() if hidden else end
        self.places.append(len(text))
        self.plain = "".join(pieces)
        self.formulas = [match.span() for match in FORMULA_OR_CODE.finditer(self.plain)
                         if match["formula"]]
        self.unquoted = FORMULA_OR_CODE.sub(
            lambda m: m[0] if m["formula"] or BARE.fullmatch(m[0]) else " " * len(m[0]),
            self.plain)

    def chapter(self, title: str) -> tuple[int, int]:
        """Where a chapter begins and ends; all of the text if there is no title."""
        if not title:
            return 0, len(self.plain)
        found = re.search(rf"^##? {re.escape(title)}.*?(?=^## |^# Part |\Z)", self.plain,
                          re.M | re.S)
        return found.span() if found else (0, 0)

    def claims(self) -> Iterator[tuple[int, int]]:
        """Each number, but for the single digits of formulas."""
        for match in CLAIM.finditer(self.unquoted):
            last = bisect_left(self.formulas, match.span()) - 1
            inside = last >= 0 and match.start() < self.formulas[last][1]
            if not (inside and len(match[0]) == 1):
                yield match.span()

    def matches(self, entry: Entry) -> Iterator[re.Match[str]]:
        yield from compiled(entry.pattern()).finditer(self.plain, *self.chapter(entry.chapter))


@cache                                                  # re keeps 512, and these are more
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.M)


def read_table(table: str) -> tuple[list[Entry], list[Entry]]:
    """The entries of a table; and its statements, each as an entry without a phrase."""
    chapter, entries, statements = "", [], []
    for number, line in enumerate(table.split("\n"), 1):
        phrase, arrow, origin = line.rpartition(" <- ")
        if line.startswith("## "):
            chapter = line.removeprefix("## ").strip()
        elif line.startswith(": "):
            statements.append(Entry(number, chapter, "", line[2:]))
        elif line.strip() and not line.startswith("# "):
            entries.append(Entry(number, chapter, phrase.strip() if arrow else line,
                                 origin.strip()))
    return entries, statements


def unexplained(text: str, table: str) -> Iterator[Problem]:
    """Every number of a book that no phrase covers; every phrase that covers none."""
    prose, covered = Prose(text), set()
    for entry in read_table(table)[0]:
        spans = [match.span() for match in prose.matches(entry)]
        if not entry.origin or entry.origin == "given:" or (
                "{}" in entry.phrase and entry.origin.startswith("given")):
            yield Problem(0, f"nothing says where `{entry.phrase}` comes from", entry.line)
        elif not spans:
            where = f"chapter {entry.chapter}" if entry.chapter else "the book"
            yield Problem(0, f"`{entry.phrase}` is not in {where}", entry.line)
        for start, end in spans:
            covered.update(range(start, end))
    for start, end in prose.claims():
        if not covered.issuperset(range(start, end)):
            claim, around = (" ".join(words.split()) for words in (
                prose.plain[start:end], prose.plain[max(0, start - 30):end + 20]))
            yield Problem(prose.places[start], f"`{claim}` comes from nowhere "
                          f"(tools/{TABLE.name}): {around}")


def slots(prose: Prose, entry: Entry) -> Iterator[Slot]:
    """The numbers that an entry's expressions give."""
    if entry.origin.startswith("given:"):
        return
    codes = entry.origin.split("; ")
    for match in prose.matches(entry):
        if len(codes) == 1:
            codes *= len(match.groups())
        if len(codes) != len(match.groups()):
            raise ValueError(f"{len(match.groups())} numbers, {len(codes)} expressions")
        for n, code in enumerate(codes, 1):
            code, _, tolerance = code.partition(" ~ ")
            start, end = prose.places[match.start(n)], prose.places[match.end(n) - 1] + 1
            yield Slot(entry, start, end, match[n], code, tolerance.strip())


def counts(text: str, table: str) -> tuple[int, int]:
    """How many numbers of a book expressions give, and how many are given."""
    prose = Prose(text)
    computed = sum(1 for entry in read_table(table)[0] for _ in slots(prose, entry))
    return computed, sum(1 for _ in prose.claims()) - computed


def number(text: str) -> float:
    """What digits, or words, say."""
    if re.match(r"\d", text):
        return float(text.replace(",", ""))
    whole, part = 0.0, 0.0
    for word in re.split(r"[\s-]+", text.lower()):
        share = SHARES.get(word) or SHARES.get(word.removesuffix("s"))
        if word in WORDS:
            part += WORDS[word]
        else:
            part = (part or 1) * (1 / share if share else SCALES[word])
    return whole + part


def near(one: float, other: float, tolerance: str) -> bool:
    """Do two numbers differ by no more than 0.1, or 5%?"""
    allowed = float(tolerance.rstrip("%"))
    if tolerance.endswith("%"):
        allowed *= abs(other) / 100
    return abs(one - other) <= allowed * (1 + 1e-9)


def as_written(value: float, old: str) -> str:
    """A value with as many decimals as the old number, and its commas."""
    decimals = len(old.partition(".")[2])
    comma = "," if "," in old or (value >= 10_000 and "." not in old) else ""
    return f"{value:{comma}.{decimals}f}"


def right(slot: Slot, names: dict[str, object]) -> str:
    """The number as it should stand there; the old one if it may."""
    value = float(eval(slot.code, names))
    if slot.tolerance and near(number(slot.text), value, slot.tolerance):
        return slot.text
    if not re.fullmatch(r"[\d.,]+", slot.text):        # words, or 1e-5
        return slot.text if math.isclose(number(slot.text), value) else f"{value:g}"
    if number(as_written(value, slot.text)) == number(slot.text):
        return slot.text                    # 1024, be it with a comma or not
    return as_written(value, slot.text)


prose_of = lru_cache(maxsize=1)(Prose)

def only(found: set[str], pattern: str) -> float:
    if len({number(one) for one in found}) != 1:
        raise ValueError(f"{len(found)} numbers stand as {pattern}")
    return number(found.pop())


def readers(text: str, outputs: list[tuple[str, str]]) -> dict[str, object]:
    """What finds numbers in a book, given its outputs with their commands."""
    fence = r"^```(?:python|pycon|css|js|sh|text \{)[^\n]*\n(.*?)^```$"
    parts = re.findall(fence, text, re.M | re.S)
    program = "\n".join(parts + [(TABLE.parent / name).read_text(encoding="utf-8")
                                 for name in QUOTED if (TABLE.parent / name).is_file()])

    def shown(pattern: str, word: str = "") -> float:
        return only({match[1] for command, output in outputs if word in command
                     for match in re.finditer(pattern, output, re.M)}, pattern)

    def code(pattern: str) -> float:
        return only({m[1] for m in re.finditer(pattern, program, re.M)}, pattern)

    def said(pattern: str) -> float:
        spaced = re.sub(r" +", r"\\s+", pattern)
        return only({m[1] for m in re.finditer(spaced, prose_of(text).plain, re.M)}, pattern)

    return {"shown": shown, "code": code, "said": said, "program": program}


def failed(statement: Entry, names: dict[str, object]) -> list[Problem]:
    try:
        exec(statement.origin, names)
        return []
    except Exception as error:
        return [Problem(0, f"{type(error).__name__}: {error}", statement.line)]


def renewed(text: str, table: str, names_of: Callable[[str], dict[str, object]]
            ) -> tuple[str, list[Problem]]:
    """The text with every number as its expression gives it, and what was wrong.

    `names_of` gives the names of the chapter with a title (that begins so).
    """
    prose, wrong, changes = Prose(text), [], {}
    entries, statements = read_table(table)
    spaces: dict[str, dict[str, object]] = {}
    for entry in entries:
        if prose.chapter(entry.chapter) == (0, 0):
            continue                            # a part of the book: not its chapter
        if entry.chapter not in spaces:
            spaces[entry.chapter] = names_of(entry.chapter)
            for statement in statements:
                if statement.chapter in ("", entry.chapter):
                    wrong += failed(statement, spaces[entry.chapter])
        try:
            for slot in slots(prose, entry):
                new = right(slot, spaces[entry.chapter])
                if new != slot.text:
                    wrong.append(Problem(slot.start, f"{slot.text}: {slot.code} is {new}"))
                    changes[slot.start, slot.end] = new
        except Exception as error:
            wrong.append(Problem(0, f"{type(error).__name__}: {error}", entry.line))
    for (start, end), new in sorted(changes.items(), reverse=True):
        if re.match(r"\d", text[start:end]):
            text = text[:start] + new + text[end:]
    return text, wrong
