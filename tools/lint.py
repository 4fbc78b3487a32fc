"""The rules that the book keeps, and its table of figures.

    python tools/lint.py        say what breaks a rule; exit 1 if anything does
"""
from __future__ import annotations

import re
import statistics
import sys
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT)]

import claims  # noqa: E402
import tangle  # noqa: E402

WIDEST_LINE, MOST_KILOBYTES = 88, 512
LONGEST_CHUNK, LONGEST_IN_PART_I = 25, 20
FEWEST_WORDS, FEWEST_IN_PART_I = 4.0, 8.0               # of prose, for each line of code
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FORMULA = re.compile(r"\$`.+?`\$", re.DOTALL)
EXERCISE = re.compile(r"^- \*(\d+\.\d+)\* \(([^)]*)\)", re.M)
FOLD = "<details><summary>Solution</summary>\n\n"
TO_REMEMBER = re.compile(r"^\*\*To remember\.\*\*(.*?)(?=\n\n|\Z)", re.M | re.S)
Problem = tuple[int, str]


class Book:
    """The text, and the same with all code blanked, line for line."""

    def __init__(self, text: str, root: Path = ROOT, numbers: str = "") -> None:
        self.text, self.root, self.numbers = text, root, numbers
        self.cuts: dict[str, dict[str, Book]] = {}          # made once, for many rules
        self.blocks, _ = tangle.read_blocks(text)
        self.tangled = [block for block in self.blocks if block.kind]
        lines = text.split("\n")
        for block in self.blocks:
            for number in range(block.line - 1, block.line + len(block.body) + 1):
                lines[number] = ""
        self.lines = lines                                  # the prose alone
        self.headings = [(number, line) for number, line in enumerate(lines, 1)
                         if re.match("#{1,6} ", line)]

    def prose(self) -> str:
        return "\n".join(self.lines)

    def line_at(self, place: int) -> int:
        return self.prose().count("\n", 0, place) + 1

    def cut(self, levels: str) -> dict[str, Book]:
        """The book cut before each heading of these levels, with the lines it has here."""
        if levels in self.cuts:
            return self.cuts[levels]
        lines = self.text.split("\n")
        starts = [(number, line.lstrip("# ")) for number, line in self.headings
                  if re.match(levels, line) and number > self.headings[0][0]]
        ends = [number for number, _ in starts] + [len(lines) + 1]
        pieces = {name: (start, end) for (start, name), end in zip(starts, ends[1:])}
        self.cuts[levels] = {
            name: Book("\n" * (start - 1) + "\n".join(lines[start - 1:end - 1]), self.root)
            for name, (start, end) in {"Preface": (1, ends[0]), **pieces}.items()}
        return self.cuts[levels]

    def parts(self) -> dict[str, Book]:
        """The preface, the parts and the appendices; {} if the book has no parts."""
        parts = self.cut("# ")
        return parts if len(parts) > 1 else {}

    def part_one(self) -> Book:
        return next(part for name, part in self.parts().items() if name.startswith("Part I."))

    def chapters(self) -> dict[str, Book]:
        """The chapters that have a number."""
        return {name: chapter for name, chapter in self.cut("##? ").items()
                if re.match(r"\d+\. ", name)}

    def size(self) -> float:
        """In kilobytes."""
        return len(self.text.strip("\n").encode()) / 1000


def blank(match: re.Match[str]) -> str:
    """As many lines and columns of nothing."""
    return re.sub(r"[^\n]", " ", match[0])


def code_lines(block: tangle.Block) -> int:
    return sum(bool(line.strip()) for line in block.body)


def find_long_chunks(book: Book) -> Iterator[Problem]:
    for block in book.tangled:
        if code_lines(block) > LONGEST_CHUNK:
            yield block.line, f"{block.label()} has {code_lines(block)} lines of code"


def find_wide_lines(book: Book) -> Iterator[Problem]:
    for block in book.tangled:
        for number, line in enumerate(block.body, block.line + 1):
            if len(line) > WIDEST_LINE:
                yield number, f"{len(line)} columns"


def find_silent_chunks(book: Book) -> Iterator[Problem]:
    """A sentence or more stands between a chunk and the block or heading before it."""
    last = 0
    for block in book.blocks:
        between = book.lines[last:block.line - 1]
        last = block.line + len(block.body) + 1
        prose = [line for line in between
                 if line.strip() and not line.startswith(("#", "<!--", "<a id"))]
        if block.kind == "chunk" and not prose:
            yield block.line, f"no prose before ⟨{block.name}⟩"


def find_unused_chunks(book: Book) -> Iterator[Problem]:
    """With all else that makes tangling impossible."""
    try:
        tangle.tangle(book.text)
    except tangle.TangleError as error:
        yield from error.problems


def anchors(book: Book) -> set[str]:
    """Where a link within the book may lead, as GitHub and the page see it."""
    from weave import anchor
    taken: dict[str, int] = {}
    names = {anchor(line.lstrip("#"), taken) for _, line in book.headings}
    return names | set(re.findall(r'<a id="?([^">]+)', book.prose()))


def find_links(book: Book) -> list[tuple[int, str]]:
    """Every link and picture: its line, and where it leads."""
    prose = re.sub(r"(?<!\$)`[^`\n]*`(?!\$)", blank, book.prose())
    prose = COMMENT.sub(blank, prose)
    inline = re.finditer(r"\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)", prose)
    below = re.finditer(r"^\[[^\]]+\]: (\S+)$", prose, re.M)
    links = [(book.line_at(m.start()), m[1]) for found in (inline, below) for m in found]
    return sorted(links)


def find_dead_links(book: Book) -> Iterator[Problem]:
    known = anchors(book)
    for line, link in find_links(book):
        if link.startswith("#"):
            dead = link[1:] not in known
        elif re.match(r"https?://|mailto:", link):
            dead = False                                    # the network is not asked
        else:
            dead = not (book.root / link.partition("#")[0]).is_file()
        if dead:
            yield line, f"the link {link} is dead"


def find_doubled_anchors(book: Book) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, line in enumerate(book.lines, 1):
        for name in re.findall(r'<a id="?([^">]+)', line):
            if name in seen:
                yield number, f"a second anchor {name}"
            seen.add(name)


def find_bare_pictures(book: Book) -> Iterator[Problem]:
    """A picture has a description, and above it stands how it was drawn."""
    for number, line in enumerate(book.lines, 1):
        if "![](" in line:
            yield number, "a picture without a description"
        if "![" in line and not re.match("<!-- (long )?figure", book.lines[number - 2]):
            yield number, "a picture without <!-- figure: COMMAND --> right above it"


def find_pictures_not_shown(book: Book) -> Iterator[Problem]:
    """A picture that nobody sees."""
    for path in sorted((book.root / "figures").iterdir()):
        if f"(figures/{path.name})" not in book.text:
            yield 0, f"figures/{path.name} is not shown"


def find_unmarked_outputs(book: Book) -> Iterator[Problem]:
    """Above what a program printed stands the command that printed it."""
    for block in book.blocks:
        if block.language == "text" and not block.kind and not re.match(
                "<!-- (output|long)[ :]", book.lines[block.line - 2]):
            yield block.line, "an output without <!-- output: COMMAND --> right above it"


def find_stray_tags(book: Book) -> Iterator[Problem]:
    """What looks like HTML is not shown, unless it is marked as code."""
    prose = COMMENT.sub(blank, FORMULA.sub(blank, book.prose()))
    prose = re.sub(r"`[^`\n]*`", blank, prose)
    for tag in re.finditer(r"</?(?!a id=|/?a>|details>|summary>)[a-z]\w*\b[^<\n]*>", prose):
        yield prose.count("\n", 0, tag.start()) + 1, f"{tag[0]} will not be seen"


GLOSSARY = re.compile(r"^## Appendix A\. Glossary$(.*?)(?=^## )", re.M | re.S)
ENTRY = re.compile(r"^- \[([^\]]+)\]\(#([^)]+)\): ", re.M)


def forms(term: str) -> str:
    """A pattern for a term in the singular and the plural, at the line's end or not."""
    stem = r"\s+".join(re.escape(word) for word in re.split(r"\s+", term.lower()))
    stem = re.sub(r"y$", "(?:y|ie)", stem)
    return rf"(?<![\w-]){stem}(?:e?s)?(?![\w-])"


def find_undefined_terms(book: Book) -> Iterator[Problem]:
    """Each entry of the glossary leads to the section that defines it, in bold type; and
    its (first) term is not used before, unless the first use is a link."""
    from weave import anchor
    prose = FORMULA.sub(blank, book.prose())
    prose = re.sub(r"`[^`\n]*`", blank, COMMENT.sub(blank, prose))
    prose = re.sub(r"(?m)^\*At the end of this [^*]*\*$", blank, prose)
    glossary = GLOSSARY.search(prose)
    if not glossary:
        yield 0, "there is no appendix `A. Glossary`"
        return
    starts = re.compile(r"^## 1\. ", re.M).search(prose)
    taken: dict[str, int] = {}
    sections: dict[str, tuple[int, int]] = {}
    found = list(re.finditer(r"^#{1,6} (.*)$", prose, re.M))
    for here, following in zip(found, [*found[1:], None]):
        end = following.start() if following else len(prose)
        sections[anchor(here[1], taken)] = (here.end(), end)
    for entry in ENTRY.finditer(glossary[1]):
        term, target = entry[1].split(", ")[0], entry[2]
        line = prose.count("\n", 0, glossary.start(1) + entry.start()) + 1
        begin, end = sections.get(target, (0, 0))
        bold = next((span for span in re.compile(r"\*\*(.+?)\*\*", re.S).finditer(
            prose, begin, end) if re.search(forms(term), span[1], re.I)), None)
        if not bold:
            yield line, f"{term} is not defined (in bold type) at #{target}"
            continue
        from_chapter_1 = starts.start() if starts else 0
        for use in re.finditer(forms(term), prose[from_chapter_1:bold.start()], re.I):
            place = from_chapter_1 + use.start()
            linked = re.match(r"[^\[\]]*\]\(|[\w-]*\)", prose[place:])
            heading = prose[prose.rfind("\n", 0, place) + 1:place].startswith("#")
            if heading:
                continue
            if not linked:
                yield (prose.count("\n", 0, place) + 1, f"{term} is used here, and "
                       f"defined only at line {prose.count(chr(10), 0, bold.start()) + 1}")
            break


def words_of_prose(book: Book) -> int:
    text = re.sub(r"(?m)^<a id=.*|</?[a-z]+>", "", COMMENT.sub("", book.prose()))
    return len(re.findall(r"[A-Za-z][\w'-]*", FORMULA.sub("x", text)))


def lines_of_code(book: Book) -> int:
    return sum(code_lines(block) for block in book.tangled)


def words_per_line(book: Book) -> float:
    return words_of_prose(book) / max(1, lines_of_code(book))


def find_too_few_words(book: Book) -> Iterator[Problem]:
    if words_per_line(book) < FEWEST_WORDS:
        yield 0, f"{words_per_line(book):.1f} words of prose for a line of code: too few"


def find_unexplained_numbers(book: Book) -> Iterator[Problem]:
    """Every number in a sentence stands in tools/numbers.txt, with what it comes from."""
    for problem in claims.unexplained(book.text, book.numbers):
        line = book.text.count("\n", 0, problem.place) + 1
        yield ((0, f"tools/{claims.TABLE.name}:{problem.line}: {problem.message}")
               if problem.line else (line, problem.message))


def find_a_crowded_part_one(book: Book) -> Iterator[Problem]:
    """In part I there is more prose, chunks are shorter, and every chapter has a picture."""
    part = book.part_one()
    for block in part.tangled:
        if block.kind == "chunk" and code_lines(block) > LONGEST_IN_PART_I:
            yield block.line, (f"{block.label()} has {code_lines(block)} lines of code: "
                               f"in part I, {LONGEST_IN_PART_I} are the most")
    if words_per_line(part) < FEWEST_IN_PART_I:
        yield 0, (f"{words_per_line(part):.1f} words of prose for a line of code of part I: "
                  f"{FEWEST_IN_PART_I:g} are the fewest")
    for title, chapter in part.chapters().items():
        if "![" not in chapter.prose():
            yield chapter.headings[0][0], f"there is no picture in chapter {title}"


def find_nothing_to_remember(book: Book) -> Iterator[Problem]:
    """Each chapter says, in a sentence with a number in it, what is to be remembered."""
    for title, chapter in book.chapters().items():
        found = TO_REMEMBER.search(chapter.prose())
        if not found or not claims.CLAIM.search(found[1]):
            wrong = "no number to remember" if found else "no **To remember.**"
            yield chapter.headings[0][0], f"there is {wrong} in chapter {title}"


def find_missing_solutions(book: Book) -> Iterator[Problem]:
    """Below each exercise on paper, before the next, its solution is folded."""
    for chapter in book.chapters().values():
        prose = chapter.prose()
        found = list(EXERCISE.finditer(prose))
        for here, following in zip(found, [*found[1:], None]):
            below = prose[here.end():following.start() if following else None]
            if here[2].startswith("paper") and not re.search(f"^{FOLD}", below, re.M):
                yield chapter.line_at(here.start()), f"exercise {here[1]} has no solution"
            if below.count("<details>") != below.count("\n\n</details>"):
                yield chapter.line_at(here.start()), (
                    f"the solution of exercise {here[1]} does not end in an empty line and "
                    "</details>")


NO_TERMS = {"guess"}                                    # bold, and not in the glossary


def find_terms_without_entry(book: Book) -> Iterator[Problem]:
    """What is bold within a paragraph of a chapter is a term, and stands in the glossary."""
    glossary = GLOSSARY.search(book.prose())
    entries = {term for entry in ENTRY.finditer(glossary[1] if glossary else "")
               for term in entry[1].split(", ")}
    for chapter in book.chapters().values():
        prose = COMMENT.sub(blank, chapter.prose())
        prose = re.sub(r"^(\||#|<a id=|<summary).*$", blank, prose, flags=re.M)
        for paragraph in re.finditer(r"(?:.+\n?)+", prose):
            for bold in re.finditer(r"\*\*([^*]+)\*\*", paragraph[0]):
                term = " ".join(bold[1].split()).rstrip(".,:")
                before = paragraph[0][:bold.start()].rpartition("\n- ")[2]
                if re.search(r"\w", before) and term.lower() not in NO_TERMS and not any(
                        re.search(forms(one), other, re.I)
                        for entry in entries for one, other in ((entry, term), (term, entry))):
                    yield (chapter.line_at(paragraph.start() + bold.start()),
                           f"{term} is not in the glossary")


def find_too_many_bytes(book: Book) -> Iterator[Problem]:
    if book.size() >= MOST_KILOBYTES:
        yield 0, f"the book has {book.size():.0f} KB: {MOST_KILOBYTES} is the limit"


RULES = [find_long_chunks, find_wide_lines, find_silent_chunks, find_unused_chunks,
         find_dead_links, find_doubled_anchors, find_bare_pictures, find_stray_tags,
         find_unmarked_outputs, find_undefined_terms, find_too_few_words,
         find_unexplained_numbers]
IN_PARTS = [find_a_crowded_part_one, find_nothing_to_remember, find_missing_solutions,
            find_terms_without_entry, find_pictures_not_shown,
            find_too_many_bytes]                       # of a book that has parts


def problems(book: Book) -> list[str]:
    rules = RULES + (IN_PARTS if book.parts() else [])
    found = sorted(problem for rule in rules for problem in rule(book))
    return [f"simple_llm.md:{line}: {wrong}" if line
            else wrong if wrong.startswith("tools/") else f"simple_llm.md: {wrong}"
            for line, wrong in found]


def kinds_of_exercises(book: Book) -> dict[str, int]:
    """An exercise opens with *N.m* (kind, difficulty, time)."""
    kinds = [mark.partition(",")[0] for _, mark in EXERCISE.findall(book.prose())]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def bytes_of(book: Book) -> dict[str, int]:
    """What the book's bytes are spent on."""
    captions = re.findall(r"^<a id=.*$", book.prose(), re.M)
    sizes = {"captions": sum(len(line.encode()) + 1 for line in captions)}
    for block in book.blocks:
        kind = "code" if block.kind else "shown"
        size = sum(len(line.encode()) + 1 for line in block.body) + len("```\n```python\n")
        sizes[kind] = sizes.get(kind, 0) + size
    return {"prose": len(book.text.encode()) - sum(sizes.values()), **sizes}


def table(book: Book) -> dict[str, str]:
    """The figures of the whole book."""
    chunks = [block for block in book.tangled if block.kind == "chunk"]
    sizes = [code_lines(block) for block in chunks]
    words, lines = words_of_prose(book), lines_of_code(book)
    prose = book.prose()
    exercises = kinds_of_exercises(book)
    kinds = ", ".join(f"{count} {kind}" for kind, count in exercises.items())
    languages = [block.language for block in book.blocks]
    computed, given = claims.counts(book.text, book.numbers)
    parts = ", ".join(f"{size / 1000:.0f} {kind}" for kind, size in bytes_of(book).items())
    return {
        "chapters": str(len(re.findall(r"^## \d+\. ", prose, re.M))),
        "words of prose": f"{words:,}",
        "lines of code": f"{lines:,}",
        "words for each line": f"{words_per_line(book):.1f}",
        "chunks": f"{len({block.name for block in chunks})} in {len(chunks)} blocks",
        "lines of code of a chunk": f"median {statistics.median(sizes):g}, at most {max(sizes)}",
        "files": str(len(book.tangled) - len(chunks)),
        "exercises": f"{sum(exercises.values())} ({kinds})",
        "figures": str(len(re.findall(r"!\[", prose))),
        "equations": f"{languages.count('math')}, and {len(FORMULA.findall(prose))} in "
                     "the text",
        "sessions": str(languages.count("pycon")),
        "outputs": str(len(re.findall(r"^<!-- (?:output|long)\b", prose, re.M))),
        "numbers in sentences": f"{computed} computed, {given} given or names",
        "links": str(len(find_links(book))),
        "size": f"{book.size():.0f} KB of {MOST_KILOBYTES}: {parts}",
    }


def table_of_parts(book: Book) -> Iterator[str]:
    """A line for each part of the book, and one for all of it."""
    yield (f"{'':38}{'chunks':>7}{'median':>7}{'longest':>8}{'code':>7}{'words':>8}"
           f"{'for a line':>11}{'KB':>5}")
    for name, part in {**book.parts(), "the whole book": book}.items():
        sizes = [code_lines(block) for block in part.tangled if block.kind == "chunk"] or [0]
        lines = lines_of_code(part)
        ratio = f"{words_per_line(part):.1f}" if lines else ""
        yield (f"{name:38}{len(sizes) if lines else 0:7}{statistics.median(sizes):7g}"
               f"{max(sizes):8}{lines:7,}{words_of_prose(part):8,}{ratio:>11}{part.size():5.0f}")


def main() -> int:
    numbers = claims.TABLE.read_text(encoding="utf-8")
    book = Book(tangle.read_document(), numbers=numbers)
    wrong = problems(book)
    for name, figure in table(book).items():
        print(f"{name:29}{figure}")
    print("", *table_of_parts(book), sep="\n")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
