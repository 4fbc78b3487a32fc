"""The program as it is known at the end of a chapter.

    python tools/chapter.py 5 [DIRECTORY]      the directory: build/chapters/5
    python tools/chapter.py --starter 5        build/chapters/5-starter: what the chapter's
                                               exercises ask to rewrite raises an exception

Of every file it holds what chapters 1 to 5 have shown. A file's own block, which lists its
chunks and says what it imports, counts as shown as soon as one of its chunks is. In place
of a chunk that comes later stands `...`, with the chapter's number. Names that are used
already and explained later (an exception, say, or a method) are borrowed: the chunk that
defines such a name is put in, and those that it needs. Imports of what nobody uses yet are left out.
"""
from __future__ import annotations

import ast
import builtins
import functools
import io
import os
import symtable
import sys
from pathlib import Path
from random import Random
from typing import Iterator

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tools")]

import index  # noqa: E402
import tangle  # noqa: E402
from exercises.chunks import Book  # noqa: E402

PACKAGE = "simple_llm/__init__.py"
GIVEN = {*dir(builtins), "__name__", "__file__", "__doc__"}
OF_OTHERS = {name for kind in (list, dict, set, str, bytes, Path, np, np.ndarray, io.TextIOBase,
                         Random)
             for name in dir(kind)}  # methods that say nothing about whose they are
Lines = list[tuple[str, tangle.Block]]


@functools.cache
def parse(text: str) -> ast.Module:
    """The same texts are asked for again and again; nobody changes a tree."""
    return ast.parse(text)


class Prefix:
    """The blocks of a book, and which of them the program of a chapter has."""

    def __init__(self, text: str, last: int, starter: bool = False) -> None:
        blocks = [block for block in tangle.read_blocks(text)[0] if block.kind]
        where = index.chapters(text, blocks)
        self.chapter = {block.line: int(number) if number.isdigit() else 10**6
                        for block in blocks for number in [where[block.line]]}
        self.chunks = tangle.gather_chunks(blocks)
        if starter:
            book = Book(text)
            for name, exercise in book.rewrites.items():
                if exercise.number.startswith(f"{last}."):
                    body = book.starter(name).rstrip("\n").split("\n")
                    self.chunks[name] = [self.chunks[name][0]._replace(body=body)]
        self.files = {block.name: block for block in blocks
                      if block.kind == "file" and block.name.endswith(".py")}
        self.others = [block for block in blocks if block.name.endswith(".js")]
        self.uses = {part.line: {use.text for use in tangle.find_uses([part])}
                     for part in [*blocks, *(part for parts in self.chunks.values() for part in parts)]}
        self.known = {line for line, chapter in self.chapter.items() if chapter <= last}
        self.borrowed: dict[str, int] = {}              # from which chapters
        self.defined_in: dict[str, dict[str, tangle.Block]] = {}
        self.method_in: dict[str, tangle.Block] = {}

    def expand(self, block: tangle.Block, whole: bool = False, indent: str = "") -> Lines:
        """A block's lines with the chunks it names; those unknown only if `whole`."""
        lines: Lines = []
        for text in block.body:
            use = tangle.REFERENCE.fullmatch(text)
            if not use:
                lines.append((indent + text if text.strip() else "", block))
                continue
            parts = [part for part in self.chunks[use[2]]
                     if whole or part.line in self.known]
            for part in parts:
                lines += self.expand(part, whole, indent + use[1])
            if not parts:
                chapter = self.chapter[self.chunks[use[2]][0].line]
                lines.append((f"{indent}{use[1]}...  # <<{use[2]}>>: chapter {chapter}",
                              block))
        return lines

    def has(self, block: tangle.Block) -> bool:
        """Is anything of this file known?"""
        return block.line in self.known or any(
            part.line in self.known for name in self.uses[block.line]
            for part in self.chunks[name])

    def parents(self, block: tangle.Block) -> Iterator[tangle.Block]:
        """The blocks through which a block comes into its file, and itself."""
        yield block
        for parts in [*self.chunks.values(), [*self.files.values()]]:
            for part in parts:
                if block.kind == "chunk" and block.name in self.uses[part.line]:
                    yield from self.parents(part)

    def definitions(self, path: str) -> dict[str, tangle.Block]:
        """The block that defines each name of a whole file."""
        if path not in self.defined_in and path in self.files:
            lines = self.expand(self.files[path], whole=True)
            self.defined_in[path] = {name: lines[node.lineno - 1][1]
                                     for node in parse(source(lines)).body
                                     for name in defined(node)}
        return self.defined_in.get(path, {})

    def methods(self) -> dict[str, tangle.Block]:
        """The block of each method whose name no other class has, nor NumPy or Python.

        A class that is made from one with such a method may have it anew.
        """
        if not self.method_in:
            found: dict[str, list[tuple[ast.ClassDef, tangle.Block]]] = {}
            for block in self.files.values():
                lines = self.expand(block, whole=True)
                for owner, method in methods_in(parse(source(lines))):
                    found.setdefault(method.name, []).append(
                        (owner, lines[method.lineno - 1][1]))
            for name, pairs in found.items():
                owners = {owner.name for owner, _ in pairs}
                first = [block for owner, block in pairs if not bases(owner) & owners]
                if len(first) == 1 and name not in OF_OTHERS:
                    self.method_in[name] = first[0]
        return self.method_in

    def borrow(self, block: tangle.Block | None) -> bool:
        """Make known the chunk that defines a name, and the parts of its functions."""
        if block is None or block.line in self.known:
            return False
        new = [block for block in self.parents(block) if block.line not in self.known]
        new += [part for name in names_in_functions(block) for part in self.chunks[name]]
        self.known |= {block.line for block in new}
        self.borrowed |= {block.name: self.chapter[block.line]
                          for block in new if block.kind == "chunk"}
        return True

    def complete(self) -> dict[str, str]:
        """Borrow until no name is missing; return the files."""
        others = {block.name: source(self.expand(block)) for block in self.others
                  if block.line in self.known}
        while True:
            files = {path: source(self.expand(block))
                     for path, block in self.files.items() if self.has(block)}
            passed = passed_on(files)
            wanted: list[tangle.Block | None] = []
            for file, text in files.items():
                names, called = wanted_by(file, text, passed[file])
                wanted += [self.definitions(path).get(name) for path, name in names]
                wanted += [self.methods().get(name) for name in called]
            if not any([self.borrow(block) for block in wanted]):
                return {path: drop_imports(text, passed[path])
                        for path, text in files.items()} | others


def source(lines: Lines) -> str:
    return "".join(f"{text}\n" for text, _ in lines)


def defined(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return {name.id for name in ast.walk(node)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    return set()


def names_in_functions(block: tangle.Block) -> list[str]:
    """The chunks that are named where a block's functions have their lines."""
    uses = [tangle.REFERENCE.fullmatch(line) for line in block.body]
    code = "\n".join(f"{use[1]}..." if use else line for use, line in zip(uses, block.body))
    within = {line for node in ast.walk(parse(code)) if isinstance(node, ast.FunctionDef)
              for line in range(node.lineno, node.end_lineno + 1)}
    return [use[2] for number, use in enumerate(uses, 1) if use and number in within]


def methods_in(tree: ast.Module) -> list[tuple[ast.ClassDef, ast.FunctionDef]]:
    """Each method, beside its class."""
    return [(node, method) for node in tree.body if isinstance(node, ast.ClassDef)
            for method in node.body if isinstance(method, ast.FunctionDef)]


def bases(owner: ast.ClassDef) -> set[str]:
    """The names of the classes that a class is made from, without their modules'."""
    return {ast.unparse(base).rpartition(".")[2] for base in owner.bases}


def called_of_objects(text: str) -> set[str]:
    """The names in calls such as model.generate(...)."""
    return {node.func.attr for node in ast.walk(parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}


def path_of(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


def imports(tree: ast.Module) -> list[ast.ImportFrom]:
    return [node for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            and node.module.split(".")[0] == "simple_llm"]


def mentioned(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@functools.cache
def takes(path: str, text: str) -> tuple[set[str], set[str]]:
    """The attributes that a file takes of anything, and the files it uses as modules."""
    tree = parse(text)
    modules = {path_of(f"{node.module}.{alias.name}")
               for node in imports(tree) for alias in node.names}
    itself = {path} if "sys.modules[__name__]" in text else set()
    return ({node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)},
            modules | itself)


@functools.cache
def imported(text: str) -> frozenset[str]:
    return frozenset(alias.asname or alias.name
                     for node in imports(parse(text)) for alias in node.names)


def passed_on(files: dict[str, str]) -> dict[str, frozenset[str]]:
    """What each file imports for others, who take it of the file, as in layers.Head."""
    taken = [takes(path, text) for path, text in files.items()]
    attributes = set().union(*(each for each, _ in taken))
    modules = set().union(*(each for _, each in taken))
    return {path: imported(text) & attributes if path in modules else frozenset()
            for path, text in files.items()}


def needs(path: str, text: str, passed: frozenset[str]) -> Iterator[tuple[str, str]]:
    """The names that a file needs from itself and from others: the file, and the name."""
    tree = parse(text)
    top = symtable.symtable(text, path, "exec")
    here = {symbol.get_name() for symbol in top.get_symbols()
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()}
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            name = symbol.get_name()
            outer = symbol.is_global() or table.get_type() == "class"  # as in x = f(x)
            if outer and symbol.is_referenced() and name not in here | GIVEN:
                yield path, name
    uses = mentioned(tree) | passed
    attributes = [(use.value.id, use.attr) for use in ast.walk(tree)
                  if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name)]
    for node in imports(tree):
        for alias in node.names:
            name = alias.asname or alias.name
            for owner, attribute in attributes:         # a module, used as module.name
                if owner == name:
                    yield path_of(f"{node.module}.{alias.name}"), attribute
            if name in uses:
                yield path_of(node.module), alias.name


@functools.cache
def wanted_by(path: str, text: str,
              passed: frozenset[str]) -> tuple[list[tuple[str, str]], set[str]]:
    """What a file needs, and what it calls of objects; most files are asked again and again."""
    return list(needs(path, text, passed)), called_of_objects(text)


@functools.cache
def drop_imports(text: str, passed: frozenset[str]) -> str:
    """The text without imports from the package that it neither uses nor passes on."""
    tree, lines = parse(text), text.split("\n")
    uses = mentioned(tree) | passed
    for node in reversed(imports(tree)):
        names = [alias for alias in node.names if (alias.asname or alias.name) in uses]
        if len(names) < len(node.names):
            kept = ast.unparse(ast.ImportFrom(node.module, names, 0)) if names else ""
            lines[node.lineno - 1:node.end_lineno] = [kept] if kept else []
    return "\n".join(lines)


def one_thread(prefix: Prefix) -> str:
    """The package's __init__, with the lines that give each process one BLAS thread.

    In the book they stand in that of the command line, which comes last. NumPy reads the
    setting when it is imported, so it must stand before all else.
    """
    setting = prefix.expand(prefix.files["simple_llm/cli/__init__.py"], whole=True)[1:]
    return source(prefix.expand(prefix.files[PACKAGE], whole=True)) + source(setting)


def commands(files: dict[str, str]) -> list[str]:
    """What can be run in the program of a chapter."""
    modules = [path.removesuffix(".py").replace("/", ".").replace(".__main__", " --help")
               for path, text in sorted(files.items()) if '__name__ == "__main__"' in text]
    return [*(f"python -m {module}" for module in modules),
            "python -i -c 'import simple_llm, numpy as np'"]


def read_me(number: str, files: dict[str, str]) -> str:
    """What to do with the program of a chapter."""
    return "\n".join([
        f"The program as chapter {number} of simple_llm.md leaves it. It needs Python and NumPy.",
        "In this directory:", "", *(f"    {command}" for command in commands(files)), ""])


def main(arguments: list[str]) -> int:
    starter = "--starter" in arguments
    number, *rest = [each for each in arguments if each != "--starter"] or [""]
    text = tangle.read_document()
    blocks = tangle.read_blocks(text)[0]
    numbers = sorted({int(n) for n in index.chapters(text, blocks).values()
                      if n.isdigit()})
    if number not in map(str, numbers):
        print(f"say which chapter: make chapter N={numbers[0]}, up to {numbers[-1]}",
              file=sys.stderr)
        return 1
    prefix = Prefix(text, int(number), starter)
    files = prefix.complete()
    files[PACKAGE] = one_thread(prefix)
    if any(path.startswith("simple_llm/live/") for path in files):
        files |= {f"simple_llm/live/{path.name}": path.read_text(encoding="utf-8")
                  for name in ("play.js", "live.js", "live.css", "live.html")
                  for path in [ROOT / "tools" / name]}          # what draws in a page
    directory = Path(rest[0] if rest else
                     ROOT / "build/chapters" / (number + "-starter" * starter))
    try:
        tangle.write({**files, "README.md": read_me(number, files)}, directory)
    except tangle.TangleError as error:
        print("\n".join(wrong for _, wrong in error.problems), file=sys.stderr)
        return 1
    print(f"{os.path.relpath(directory)}: {len(files)} files, as chapter {number} leaves "
          f"them{', but for its exercises' * starter}; README.md says how to run it")
    if prefix.borrowed:
        print("borrowed from later chapters:", ", ".join(
            f"{name} ({chapter})" for name, chapter in sorted(prefix.borrowed.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
