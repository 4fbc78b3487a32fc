#!/usr/bin/env python3
"""Tangle the book: write the program that simple_llm.md contains into build/.

The book is plain Markdown. A fenced block belongs to the program when braces stand
behind its language:

    ```python {file=simple_llm/model.py}     a file of the program
    ```python {#apply-the-causal-mask}       a chunk, a named piece of a file
    ```python                                an illustration: never tangled

A chunk is used by writing <<apply-the-causal-mask>> alone on a line of another block.
The chunk's lines take that line's place, each moved right by its indentation. A second
block with the same name continues the first. What is tangled is what GitHub shows as a
block: in a list, a quote or an HTML comment a block of the program is an error.

    tangle.py                      write build/; only what has changed is touched
    tangle.py --blank NAME         the same, but chunk NAME raises NotImplementedError
    tangle.py check                exit 1, with a diff, if build/ or a caption is stale
    tangle.py where FILE:LINE      from a line of the program to the book, and back
    tangle.py captions             refresh the caption line above each tangled block

Mistakes in the book are reported as simple_llm.md:LINE, all of them in one run, and
then nothing is written. The exit status is 1 for any failure, 2 for a wrong option.
"""
from __future__ import annotations

import sys

if __name__ == "__main__":
    del sys.path[0]  # a json.py beside this file is not the one that is meant

import argparse
import base64
import difflib
import json
import os
import re
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Collection, Iterator, NamedTuple

DOCUMENT = Path(__file__).resolve().with_name("simple_llm.md")
BUILD = DOCUMENT.with_name("build")
NO_FILES = "no block is a file (```language {file=PATH}), so nothing was changed"
OURS = ".tangled"  # how the names of our own files in build/ begin
MOST_LINES = 1_000_000  # of a file; chunks that use others twice double with each level
MANIFEST = OURS + ".json"  # the sha256 of every file that we wrote

FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*?)[ \t]*")
ATTRIBUTES = re.compile(r"([^\s{}]+)[ \t]+\{ *(?:file=([^\s{}]+)|#([^\s{}]+)) *\}")
MARKED = re.compile(r"[{}&\\]|\bfile=|\s#")  # an info string that wants to be tangled
NAME = r"[A-Za-z][A-Za-z0-9_-]*"
REFERENCE = re.compile(rf"([ \t]*)<<({NAME})>>[ \t]*")
MISWRITTEN = re.compile(rf"<<{NAME}>>|^\s*<<.*>>\s*$")  # if it is no REFERENCE
CAPTION = re.compile(r' {0,3}(?:<a id=[cf][a-z2-7]{4}></a>\*[^*]+\*(?: .*)?|'
                     r'<a id="[^"]*"></a><sub>.*</sub>)\s*')  # as they are, and as they were
# The markers of lists, footnotes and quotes, behind which begins what they hold.
PREFIX = re.compile(r"(?:[ \t]*(?:(?:[-+*]|\d{1,9}[.)]|\[\^[^]\s]+\]:)(?![^ \t])|>))*[ \t]*")
HTML = [(re.compile(start, re.I), re.compile(end, re.I)) for start, end in (
    (r"<(?a:pre|script|style|textarea)(?=\s|>|$)", r"</(?a:pre|script|style|textarea)>"),
    ("<!--", "-->"), (r"<\?", r"\?>"), ("<![a-z]", ">"), (r"<!\[CDATA\[", r"\]\]>"))]
TAG = re.compile(  # any but those in captions, or one that is alone on its line
    r"""</?(?!(?:a|sub)\b)[a-z]|</?[a-z](?:"[^"]*"|'[^']*'|[^"'<>])*>\s*$""", re.I)


class Block(NamedTuple):
    """A fenced block of the book, tangled or not."""
    kind: str  # "file", "chunk", or "" for an illustration
    name: str  # the path or the chunk's name
    part: int  # 1, and 2, 3, ... where a chunk is continued
    language: str
    line: int  # of the opening fence, counted from 1; the body begins one below
    body: list[str]  # without the line ends

    def label(self) -> str:
        part = f" {self.part}" if self.part > 1 else ""
        return f"⟨{self.name}⟩{part}" if self.kind == "chunk" else f"`{self.name}`"

    def anchor(self) -> str:
        name = f"{self.kind} {self.name} {self.part}"       # of any name, five letters
        hashed = base64.b32encode(sha256(name.encode()).digest()).decode().lower()
        return self.kind[0] + hashed[:4]

    def title(self) -> str:
        """The name in Markdown: an underscore at the edge of a word would mark emphasis."""
        name = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", self.name)
        return f"{name} {self.part}" if self.part > 1 else name

    def link(self) -> str:
        return f"[{self.title().rpartition('/')[2]}](#{self.anchor()})"


class Line(NamedTuple):
    """A line of a tangled file, and where in the book it comes from."""
    text: str
    number: int
    block: Block


Files = dict[str, list[Line]]  # the lines of each file, by its path below build/
Problem = tuple[int, str]  # a line of the book (0: none of them), and what is wrong


class TangleError(Exception):
    """All that is wrong; nothing has been written."""
    def __init__(self, *problems: Problem) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(f"{line}: {wrong}" for line, wrong in self.problems))


def read_document(path: Path = DOCUMENT) -> str:
    """The document's text, with its line ends as they are."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise TangleError((data.count(b"\n", 0, error.start) + 1, wrong)) from None


def read_blocks(text: str) -> tuple[list[Block], list[Problem]]:
    """Every fenced block, and what is wrong with the fences."""
    reader = Reader()
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        reader.read(number, line.removesuffix("\r"))
    if reader.block:
        reader.problem(reader.block.line, "this fence is never closed")
    return reader.blocks, reader.problems


class Reader:
    """Reads line by line, and finds the fences that CommonMark, and so GitHub, finds.

    Of lists, quotes and HTML it knows just enough to see where the two could differ, and
    says so. Whatever stands in a list ends, at the latest, where a line begins in column
    0 or 1 that does not go on with a paragraph.
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.problems: list[Problem] = []
        self.block: Block | None = None  # the block that is open
        self.mark = ""  # its fence
        self.html: re.Pattern[str] | None = None  # the end of the HTML that is open
        self.start = self.column = 0  # where what is open begins
        self.deep = False  # may it be in a list?
        self.listed = False  # may the next line be in a list?
        self.after_text = False  # may the next line go on with a paragraph?
        self.tag = 0  # the line of an HTML tag, up to the next empty line

    def problem(self, number: int, wrong: str) -> None:
        self.problems.append((number, wrong))

    def read(self, number: int, line: str) -> None:
        text = line.strip(" \t")
        column = len(line[:line.find(text)].expandtabs(4))
        if "\r" in line:
            self.problem(number, "a CR inside a line: lines end in LF, or in CR and LF")
        if (self.block or self.html) and self.deep and text and column < self.column:
            self.problem(number, f"stands left of what line {self.start} opens in a list: "
                         "move it right, or end that first")
            self.block = self.html = None
        if self.block:
            self.read_code(number, line, text, column)
        elif self.html:
            self.read_html(number, text)
        else:
            self.read_prose(number, line, text)

    def read_code(self, number: int, line: str, text: str, column: int) -> None:
        """A line of the open block, or its end."""
        assert self.block
        fence = FENCE.fullmatch(text if self.deep else line)
        if fence and fence[2].startswith(self.mark):
            if not fence[3] and self.deep and column > self.column:
                self.problem(number, f"in a list, this fence stands as the one in line "
                             f"{self.start}, and no further right")
            if not fence[3]:
                self.block = None
                return
            self.problem(number, "a fence inside the block that line "
                f"{self.start} opens: close that one, or make its fence longer")
        spaces = len(line) - len(line.lstrip(" "))
        if self.block.kind and "\t" in line[spaces:self.column]:
            self.problem(number, "a tab where the block's own indentation stands: use spaces")
        self.block.body.append(line[min(self.column, spaces):])

    def read_html(self, number: int, text: str) -> None:
        """A line of HTML that goes on up to its own end."""
        assert self.html
        fence = FENCE.fullmatch(text[PREFIX.match(text).end():])
        wrong = f"hidden by the HTML or comment that line {self.start} opens"
        if fence and any(read_info(fence[3])) and wrong not in dict(self.problems).values():
            self.problem(number, wrong)  # once, however many blocks it hides
        if self.html.search(text):
            self.html = None

    def read_prose(self, number: int, line: str, text: str) -> None:
        """A line outside of everything: does it open a block, or HTML?"""
        prefix = PREFIX.match(line)[0]
        markers, rest = prefix.strip(" \t"), line[len(prefix):]
        column = len(prefix.expandtabs(4))
        if markers and markers[0] != ">":
            self.listed = True
        elif text and column < 2 and not self.after_text:
            self.listed = False
        self.deep = bool(markers) or self.listed and column > 1
        self.after_text = bool(text)
        self.tag = self.tag if text else 0
        fence = FENCE.fullmatch(rest) if self.deep or column < 4 else None
        if fence:
            self.open_block(number, fence, markers, column)
        elif ">" not in markers and (self.deep or column < 4):
            self.open_html(number, rest, markers, column)

    def open_block(self, number: int, fence: re.Match[str], markers: str, column: int) -> None:
        kind, name, wrong = read_info(fence[3])
        if self.deep and (kind or wrong):
            kind, wrong = "", ("a tangled block in a list or a quote: it must stand "
                              "outside of them, at the margin")
        elif ">" not in markers and markers:
            wrong = "a fence behind the marker of a list: give it a line of its own"
        elif self.tag and not markers:
            wrong = f"HTML goes on from line {self.tag} to here: leave an empty line between"
        if wrong:
            self.problem(number, wrong)
        if ">" in markers:
            return
        part = 1 + sum(b.kind == kind == "chunk" and b.name == name for b in self.blocks)
        self.block = Block(kind, name, part, fence[3].split(" ")[0], number, [])
        self.blocks.append(self.block)
        self.mark, self.start, self.column = fence[2], number, column
        self.after_text = False

    def open_html(self, number: int, text: str, markers: str, column: int) -> None:
        """HTML goes on up to its own end, or, as a tag does, up to an empty line."""
        end = next((end for start, end in HTML if start.match(text)), None)
        if end and not end.search(text):
            if markers or self.tag:
                self.problem(number, "HTML of several lines needs an empty line above, and "
                             "no marker of a list before it")
            self.html, self.start, self.column = end, number, column
            self.tag, self.after_text = 0, False
        elif not end and TAG.match(text):
            self.tag = self.tag or number


def read_info(info: str) -> tuple[str, str, str | None]:
    """The kind and name that a fence gives its block, and what is wrong with them."""
    match = ATTRIBUTES.fullmatch(info)
    if match and match[2]:
        return "file", match[2], None
    if match and re.fullmatch(NAME, match[3]):
        return "chunk", match[3], None
    wrong = (f"cannot read `{info}`: write ```language {{file=PATH}} or ```language "
             "{#NAME}; a name is a letter, then letters, digits, - and _")
    return "", "", wrong if MARKED.search(info) else None


def find_problems(blocks: list[Block], build: Path | None) -> Iterator[Problem]:
    """What is wrong with paths, names and references."""
    files: dict[str, int] = {}
    for path, line in [(b.name, b.line) for b in blocks if b.kind == "file"]:
        if files.setdefault(path, line) != line:
            yield line, f"the file {path} is defined twice, first at line {files[path]}"
        elif wrong := path_problem(path, build):
            yield line, f"the path {path} {wrong}"
    for path, line in files.items():
        for parent in set(parents(path)) & files.keys():
            yield line, (f"the path {path} needs a directory {parent}, "
                         f"which is a file at line {files[parent]}")
    chunks, uses = gather_chunks(blocks), list(find_uses(blocks))
    for name in chunks.keys() - {use.text for use in uses}:
        yield chunks[name][0].line, f"nothing uses the chunk ⟨{name}⟩"
    for name in chunks.keys() & files.keys():
        yield chunks[name][0].line, f"the chunk ⟨{name}⟩ has the name of a file"
    for use in uses:
        if use.text not in chunks:
            yield use.number, f"there is no chunk ⟨{use.text}⟩"
    for line in numbered_lines(blocks):
        if MISWRITTEN.search(line.text) and not REFERENCE.fullmatch(line.text):
            yield line.number, (
                f"`{line.text.strip()}`: a reference is <<name>> alone on its line, "
                "with no spaces in the name (a shift has spaces around it)")
        if "\0" in line.text:
            yield line.number, "a NUL character, which GitHub shows as another one"
    yield from find_cycles(chunks)


def path_problem(path: str, build: Path | None) -> str | None:
    """Why a file cannot have this path, or cannot be written to it below build/."""
    parts = path.split("/")
    if path.startswith("/"):
        return "is absolute; paths start in build/"
    if ".." in parts:
        return "has a `..`; all that is tangled stays in build/"
    if not re.fullmatch(r"[A-Za-z0-9_.+/-]+", path) or "" in parts or "." in parts:
        return "is not plain: names of letters, digits and _.+-, with one / between"
    if max(map(len, parts)) > 200 or len(path) > 1000:
        return "is longer than file systems allow"
    if any(part.startswith(OURS) for part in parts):
        return "has a name that tangle.py keeps for itself"
    if build is None:
        return None
    if any((build / step).is_symlink() for step in (path, *parents(path))):
        return f"goes through a symbolic link in {build}"
    if (build / path).is_dir() or any((build / up).is_file() for up in parents(path)):
        return f"has a directory for a file, or a file for one, in {build}: remove it"
    return None


def find_cycles(chunks: dict[str, list[Block]]) -> Iterator[Problem]:
    """Let the standard library find a cycle; report it, break it, and look again."""
    inside = {name: {use.text: use for use in find_uses(parts)}
              for name, parts in chunks.items()}
    while True:
        try:
            return TopologicalSorter(inside).prepare()
        except CycleError as error:
            names = error.args[1][:0:-1]  # each uses the next, and the last the first
            last = max((inside[a][b] for a, b in zip(names, names[1:] + names)),
                       key=lambda use: use.number)
            first = names.index(last.text)
            names = names[first:] + names[:first + 1]
            yield last.number, "a cycle: " + " → ".join(f"⟨{name}⟩" for name in names)
            del inside[last.block.name][last.text]


def find_uses(blocks: list[Block]) -> Iterator[Line]:
    """Every reference: the chunk's name as the text, and where it stands."""
    for line in numbered_lines(blocks):
        if match := REFERENCE.fullmatch(line.text):
            yield line._replace(text=match[2])


def gather_chunks(blocks: list[Block]) -> dict[str, list[Block]]:
    """The blocks of each chunk, in order."""
    chunks: dict[str, list[Block]] = {}
    for block in blocks:
        if block.kind == "chunk":
            chunks.setdefault(block.name, []).append(block)
    return chunks


def parents(path: str) -> list[str]:
    """The directories on the way to a file: a/b/c.py has a/b and a."""
    return [str(parent) for parent in PurePosixPath(path).parents][:-1]


def tangle(text: str, blank: Collection[str] = (), build: Path | None = None,
           title: str = DOCUMENT.name) -> Files:
    """The lines of every file of the book; a TangleError says all that is wrong.

    The chunks in `blank` are left out: each raises NotImplementedError in its place.
    With `build`, it is an error if a path goes through a symbolic link there.
    """
    blocks, problems = read_blocks(text)
    chunks = gather_chunks(blocks)
    problems += find_problems(blocks, build)
    problems += [(0, f"--blank {name}: the book has no such chunk")
                 for name in blank if name not in chunks]
    if problems:
        raise TangleError(*problems)
    for name in set(blank):
        first = chunks[name][0]
        raising = f'raise NotImplementedError("exercise {name}: {title}:{first.line}")'
        chunks[name] = [first._replace(line=first.line - 1, body=[raising])]
    return {block.name: list(expand(block, chunks))
            for block in blocks if block.kind == "file"}


def expand(block: Block, chunks: dict[str, list[Block]]) -> Iterator[Line]:
    """The lines of a block, with the lines of chunks in place of references."""
    stack = [("", numbered_lines([block]))]
    for _ in range(MOST_LINES):
        if not stack:
            return
        indent, lines = stack[-1]
        line = next(lines, None)
        if line is None:
            stack.pop()
        elif match := REFERENCE.fullmatch(line.text):
            stack.append((indent + match[1], numbered_lines(chunks[match[2]])))
        else:
            yield line._replace(text=indent + line.text) if line.text.strip() else line
    raise TangleError((block.line, f"{block.name} would have more than {MOST_LINES:,} lines"))


def numbered_lines(blocks: list[Block]) -> Iterator[Line]:
    """The lines of the tangled ones of these blocks, as they stand in the book."""
    for block in blocks:
        if block.kind:
            for number, text in enumerate(block.body, block.line + 1):
                yield Line(text, number, block)


def texts(files: Files) -> dict[str, str]:
    """The text of every file that `tangle` returned."""
    return {path: "".join(line.text + "\n" for line in lines)
            for path, lines in files.items()}


def locate(files: Files, file: str, number: int, build: Path = BUILD) -> Line:
    """The line of a tangled file, given from here, from the root or from build/."""
    path = Path(os.path.relpath(os.path.realpath(file), os.path.realpath(build)))
    path = path.as_posix() if path.as_posix() in files else Path(file).as_posix()
    if path not in files:
        raise TangleError((0, f"{file} is not one of: {', '.join(files)}"))
    if not 1 <= number <= len(files[path]):
        raise TangleError((0, f"{path} ends at line {len(files[path])}"))
    return files[path][number - 1]


def add_captions(text: str) -> str:
    """The document with a caption, which GitHub shows, above each tangled block."""
    blocks, _ = read_blocks(text)
    fresh = captions(blocks)
    hidden = {n for b in blocks for n in range(b.line, b.line + len(b.body) + 2)}
    lines, out = text.split("\n"), []
    for number, line in enumerate(lines, 1):
        if number not in hidden and CAPTION.fullmatch(line):
            if out and not (out[-1] + "".join(lines[number:number + 1])).strip():
                out.pop()  # of the blank lines around an orphan, one is enough
            continue
        if number in fresh:
            end = "\r" if line.endswith("\r") else ""
            if out and out[-1].strip():
                out.append(end)
            out.append(line[:len(line) - len(line.lstrip(" "))] + fresh[number] + end)
        out.append(line)
    return "\n".join(out)


def captions(blocks: list[Block]) -> dict[int, str]:
    """The caption of each tangled block, by the line of its fence."""
    chunks, uses, lines = gather_chunks(blocks), list(find_uses(blocks)), {}
    for block in (block for block in blocks if block.kind):
        words = [f"*{block.title()}*"]
        if block.kind == "chunk":
            parts = chunks[block.name]
            users = dict.fromkeys(u.block.link() for u in uses if u.text == block.name)
            words[0] += f" in {', '.join(users)}"
            words += [f"continues {parts[0].link()}"] if block.part > 1 else []
            words += [f"continued in {b.link()}" for b in parts[block.part:][:1]]
        lines[block.line] = f"<a id={block.anchor()}></a>{' · '.join(words)}"
    return lines


def write(files: dict[str, str], build: Path = BUILD, force: bool = False) -> list[str]:
    """Make build/ hold these files; return the paths that were written or removed.

    The manifest learns the hashes of the new files, beside those of the old, before any
    is written. So whatever a killed run leaves, the next one knows as ours.
    """
    if not files:
        raise TangleError((0, NO_FILES))
    new = {path: digest(text.encode("utf-8")) for path, text in files.items()}
    build.mkdir(parents=True, exist_ok=True)
    with open(__file__) as lock:
        with suppress(ImportError, OSError):  # two runs at once take turns
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
        for temporary in build.rglob(OURS + "-*.tmp"):
            temporary.unlink()  # a killed run left it
        known = read_manifest(build)
        found = {path: digest((build / path).read_bytes())
                 for path in sorted({*known, *new}) if (build / path).is_file()}
        lost = [path for path in found
                if found[path] not in [*known.get(path, []), new.get(path)]]
        if lost and not force:
            why = {True: "changed by hand", False: "not written by tangle.py"}
            raise TangleError((0, "\n".join([
                "nothing was written, because this would be lost:",
                *(f"  {os.path.relpath(build / x)}: {why[x in known]}" for x in lost),
                "Move a change into the book (`tangle.py where FILE:LINE` finds the place)",
                "and delete the file; or --force discards what is listed."])))
        gone = [path for path in found if path not in new]
        stale = [path for path in new if found.get(path) != new[path]]
        for path in gone:
            (build / path).unlink()
        for path in known.keys() - new.keys():
            with suppress(OSError):  # up to one that is not empty, as build/ never is
                os.removedirs((build / path).parent)
        if gone or any(new[path] not in known.get(path, []) for path in new):
            both = {path: sorted({right, found.get(path, right)})
                    for path, right in new.items()}
            replace_file(build / MANIFEST, json.dumps(both, indent=1))
        for path in stale:
            (build / path).parent.mkdir(parents=True, exist_ok=True)
            replace_file(build / path, files[path])
    return gone + stale


def read_manifest(build: Path) -> dict[str, list[str]]:
    """The hashes that each file of ours may have, without what cannot be trusted."""
    known = {}
    with suppress(FileNotFoundError, ValueError, AttributeError, TypeError):
        for path, hashes in json.loads((build / MANIFEST).read_bytes()).items():
            if not path_problem(path, build):
                known[path] = list(hashes)
    return known


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def replace_file(path: Path, text: str) -> None:
    """Write a file so that nobody, at any moment, finds half of it."""
    temporary = path.with_name(f"{OURS}-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def command_tangle(args: argparse.Namespace, text: str, files: Files) -> int:
    changed = write(texts(files), args.build, args.force)
    written = len(files.keys() & set(changed))
    print(f"{args.build.name}: {written} of {len(files)} files written, "
          f"{len(changed) - written} removed" if changed else "nothing to do")
    return 0


def command_check(args: argparse.Namespace, text: str, files: Files) -> int:
    wanted = {args.build / path: None for path in read_manifest(args.build)}
    wanted |= {args.build / path: new for path, new in texts(files).items()}
    wanted[args.document] = add_captions(text)
    stale = 0
    for path, new in wanted.items():
        old = path.read_bytes().decode("utf-8", "replace") if path.is_file() else None
        if old != new:
            stale = 1
            name = os.path.relpath(path)
            print(f"{name} is stale", file=sys.stderr)
            print(*difflib.unified_diff(
                (old or "").split("\n"), (new or "").split("\n"),
                name, f"{name} as it should be", lineterm=""), sep="\n")
    return stale


def command_where(args: argparse.Namespace, text: str, files: Files) -> int:
    file, _, digits = args.place.rpartition(":")
    if file != args.document.name and Path(file).resolve() != args.document.resolve():
        line = locate(files, file, int(digits), args.build)
        print(f"{args.document.name}:{line.number} {line.block.label()}")
        return 0
    places = [f"{args.build.name}/{path}:{n}" for path, lines in files.items()
              for n, line in enumerate(lines, 1) if line.number == int(digits)]
    if not places:
        raise TangleError((int(digits), "no line of the program comes from here"))
    print("\n".join(places))
    return 0


def command_captions(args: argparse.Namespace, text: str, files: Files) -> int:
    captioned = add_captions(text)
    if captioned != text:
        replace_file(args.document.resolve(), captioned)
    print("nothing to do" if captioned == text else f"{args.document.name}: written")
    return 0


COMMANDS = {"tangle": command_tangle, "check": command_check,
            "where": command_where, "captions": command_captions}


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="tangle.py", description=description, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("command", nargs="?", choices=COMMANDS, default="tangle", help="see below")
    add("place", nargs="?", metavar="FILE:LINE", help="for `where`")
    add("--document", type=Path, default=DOCUMENT, help="the book: %(default)s")
    add("--build", type=Path, default=BUILD, help="the program: %(default)s")
    add("--blank", action="append", default=[], metavar="NAME",
        help="leave chunk NAME out, as an exercise; may be repeated")
    add("--force", action="store_true", help="discard what was changed by hand")
    args = parser.parse_intermixed_args(argv)
    if (args.command == "where") != bool(re.fullmatch(".+:[0-9]{1,9}", args.place or "")):
        parser.error("`where`, and nothing else, takes one FILE:LINE")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    args = read_arguments(argv)
    try:
        text = read_document(args.document)
        files = tangle(text, args.blank, args.build, args.document.name)
        if not files:
            raise TangleError((0, f"{args.document}: {NO_FILES}"))
        return COMMANDS[args.command](args, text, files)
    except TangleError as error:
        for line, wrong in error.problems:
            place = f"{args.document.name}:{line}" if line else "tangle.py"
            print(f"{place}: {wrong}", file=sys.stderr)
    except OSError as error:
        print(f"tangle.py: {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal without ⟨ ⟩
    sys.exit(main())
