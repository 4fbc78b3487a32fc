"""Appendix D: the index of chunks and the index of names, made from the book's code.

    python tools/index.py            write it: index.md
    python tools/index.py check      exit 1 if it is stale

It is a file of its own, for it is made by a program, and would be a sixteenth of the book.
`make book` puts it where the book says <!-- index -->.
"""
from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT)]

import tangle  # noqa: E402

INDEX = ROOT / "index.md"
Definition = ast.FunctionDef | ast.ClassDef


def chapters(text: str, blocks: list[tangle.Block]) -> dict[int, str]:
    """The number of the chapter (or the letter of the appendix) of each block's line."""
    inside = {n for b in blocks for n in range(b.line, b.line + len(b.body) + 2)}
    number, found = "", {}
    for line, words in enumerate(text.split("\n"), 1):
        if words.startswith("## ") and line not in inside:
            match = re.match(r"## (?:Appendix )?(\w+)\. ", words)
            number = match[1] if match else ""
        found[line] = number
    return {block.line: found[block.line] for block in blocks}


def refer(block: tangle.Block) -> str:
    """A link to a block, short: where it leads is written once, at the index's end."""
    name = block.name
    if block.kind == "file":
        package, inside, path = name.partition("simple_llm/")
        name = path if inside else f"build/{package}"
    name = name.replace("__", r"\_\_")                    # no bold type
    return f"[{name} {block.part}]" if block.part > 1 else f"[{name}]"


def public(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The functions and classes of a module, the methods of classes as Class.method."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node.lineno
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner.lineno


def used(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The names that a module's code mentions; imports do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, node.lineno


def sources(module: str, tree: ast.Module) -> dict[str, str]:
    """For each name that a module can mean, the module of the package it comes from."""
    found = {name: module for name, _ in public(tree) if "." not in name}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simple_llm"):
            for alias in node.names:
                found[alias.asname or alias.name] = str(node.module)
    return found


def name_index(files: tangle.Files) -> dict[tuple[str, str], tuple[tangle.Block, list]]:
    """For each public function, class and method: the block that defines it, and (but for
    methods, whose class the text does not tell) those that use it."""
    modules = {path[:-3].replace("/", "."): (ast.parse(text), files[path])
               for path, text in tangle.texts(files).items()
               if path.startswith("simple_llm/") and path.endswith(".py")}
    index: dict[tuple[str, str], tuple[tangle.Block, list]] = {}
    for module, (tree, lines) in modules.items():
        for name, line in public(tree):
            index[name, module] = (lines[line - 1].block, [])
    for module, (tree, lines) in modules.items():
        known = sources(module, tree)
        for name, line in used(tree):
            key, block = (name, known.get(name, "")), lines[line - 1].block
            if key in index and block not in (index[key][0], *index[key][1]):
                index[key][1].append(block)
    return index


def make(text: str) -> str:
    """The index of a book, as Markdown."""
    files = tangle.tangle(text)
    blocks = [b for b in tangle.read_blocks(text)[0] if b.kind]
    chapter, chunks = chapters(text, blocks), tangle.gather_chunks(blocks)
    users: dict[str, dict[str, None]] = {}
    for use in tangle.find_uses(blocks):
        users.setdefault(use.text, {})[refer(use.block)] = None
    lines = ["### Chunks", ""]
    for name, parts in sorted(chunks.items()):
        where = ", ".join(dict.fromkeys(chapter[part.line] for part in parts))
        lines.append(f"- {refer(parts[0])} {where}: {', '.join(users[name])}")
    lines += ["", "### Names", ""]
    index = sorted(name_index(files).items(), key=lambda item: item[0][0].lower())
    for (name, module), (block, uses) in index:
        uses.sort(key=lambda use: use.line)
        used_in = f": {', '.join(map(refer, uses))}" if uses else ""
        lines.append(f"- `{name}` {refer(block)}{used_in}")
    body = "\n".join(lines)
    targets = [f"{refer(block)}: {tangle.DOCUMENT.name}#{block.anchor()}"
               for block in sorted(blocks, key=refer) if refer(block) in body]
    return "\n".join([body, "", *targets, ""])


def main(arguments: list[str]) -> int:
    fresh = make(tangle.read_document())
    old = INDEX.read_text(encoding="utf-8") if INDEX.is_file() else ""
    if arguments == ["check"] and fresh != old:
        print("index.md is stale: `make captions` renews it", file=sys.stderr)
        return 1
    if fresh != old:
        tangle.replace_file(INDEX, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
