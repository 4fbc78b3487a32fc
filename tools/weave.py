"""Weave the book: python tools/weave.py simple_llm.md build/book/index.html"""
from __future__ import annotations

import json
import os
import re
import struct
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "build")]

import tangle  # noqa: E402

try:
    import pygments
    from markdown_it import MarkdownIt
    from math_core import LatexError, LatexToMathML
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    MISSING = ""
except ImportError as error:
    MISSING = f"weave: there is no {error.name} here: `make book` installs it"


def anchor(heading: str, taken: dict[str, int]) -> str:
    """The anchor that GitHub gives a heading; `taken` counts those it gave before."""
    name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
    count = taken.get(name, 0)
    taken[name] = count + 1
    return f"{name}-{count}" if count else name


FORMULA = re.compile(r"\$`(.+?)`\$", re.DOTALL)


def read_formula(state: Any, silent: bool) -> bool:
    """A rule for markdown-it: is there a formula at this place?"""
    match = FORMULA.match(state.src, state.pos)
    if match and not silent:
        state.push("formula", "math", 0).content = match[1]
    if match:
        state.pos = match.end()
    return bool(match)


def mathml(formula: str, display: bool) -> str:
    """A formula as MathML."""
    try:
        found = LatexToMathML().convert_with_local_state(formula, displaystyle=display)
    except LatexError as error:
        sys.exit(f"weave: cannot read the formula {formula!r}: {error}")
    return f'<div class="formula">{found}</div>' if display else found


PLAIN = re.compile(r'<span class="(?:n|o|p|w|go)">([^<]*)</span>')


def code(body: list[str], language: str, chunks: dict[str, Any]) -> str:
    """Lines of code as HTML, in which each reference can be unfolded."""
    uses = [tangle.REFERENCE.fullmatch(line) for line in body]
    mark = "//" if language == "js" else "#"             # a comment in a reference's place
    text = "\n".join(mark if use else line for use, line in zip(uses, body))
    lexer = get_lexer_by_name(language or "text", stripnl=False, ensurenl=False)
    marked = pygments.highlight(text, lexer, HtmlFormatter(nowrap=True))
    lines = [unfold(use[2], len(use[1]), chunks) if use and use[2] in chunks else line
             for use, line in zip(uses, PLAIN.sub(r"\1", marked).split("\n"))]
    return "<pre>\n" + "\n".join(lines) + "</pre>"


def unfold(name: str, indent: int, chunks: dict[str, Any]) -> str:
    """A chunk behind its name, moved right as far as the reference."""
    inside = "".join(code(part.body, part.language, chunks) for part in chunks[name])
    link = f'<a href="#{chunks[name][0].anchor()}">where it is explained</a>'
    return (f'</pre><details style="--indent:{indent}ch"><summary>⟨{name}⟩</summary>'
            f"<div>{link}{inside}</div></details><pre>")


COMMAND = re.compile(r"<!-- (?:output|long)\b[^:]*: (.+?) -->")


LIVE = re.compile(r"<!-- live: (\w+) -->")
TITLES = {"story": "Edit the story", "attention": "Who looks at whom", "lens": "The logit lens",
          "removal": "Take a head away", "sampling": "Load and roll the die",
          "softmax": "Softmax and its gradient", "valley": "Three ways down a valley",
          "rope": "The hands of RoPE", "merges": "Merge byte pairs", "jump": "The jump"}


def place(name: str, still: str = "") -> str:
    """Where live.js puts a widget; where there is no JavaScript, and in print, the picture."""
    if name not in TITLES:
        sys.exit(f"weave: there is no widget {name}: there are {', '.join(TITLES)}")
    shown = f'<div class="still">{still}</div>' if still else ""
    return f'<div class="live" data-live="{name}" data-title="{TITLES[name]}">{shown}</div>\n'


def comment(html: str) -> str:
    """HTML in the document: a comment shows its command, or nothing at all."""
    if not html.startswith("<!--"):
        return html
    if live := LIVE.match(html):
        return place(live[1])
    shown = COMMAND.match(html)
    return f'<p class="command">$ {escape(shown[1])}</p>\n' if shown else ""


def draw_with(book: Path, text: str) -> dict[str, Any]:
    """The functions that draw our kinds of tokens."""
    blocks, _ = tangle.read_blocks(text)
    chunks = tangle.gather_chunks(blocks)
    at = {block.line: block for block in blocks}

    def fence(self: Any, tokens: Any, i: int, *_: Any) -> str:
        block = at[tokens[i].map[0] + 1]
        if block.language == "math":
            return mathml("\n".join(block.body), display=True)
        kind = "code" if block.kind else "code loose"
        return f'<div class="{kind}">{code(block.body, block.language, chunks)}</div>\n'

    def image(self: Any, tokens: Any, i: int, *_: Any) -> str:
        picture = book.parent / tokens[i].attrs["src"]
        if not picture.is_file():
            sys.exit(f"weave: there is no picture {picture}")
        source = picture.read_text(encoding="utf-8")
        for letter, spelt in (("%", "%25"), ("#", "%23"), ("'", "%27"), ('"', "'"), ("\n", " ")):
            source = source.replace(letter, spelt)         # shorter than in base64
        return (f'<img alt="{escape(tokens[i].content)}" '
                f'src="data:image/svg+xml,{escape(source, quote=False)}">')

    def html(self: Any, tokens: Any, i: int, *_: Any) -> str:
        return comment(tokens[i].content)

    return {"fence": fence, "image": image, "html_block": html, "html_inline": html,
            "formula": lambda self, tokens, i, *_: mathml(tokens[i].content, False)}


def prepare(tokens: list[Any], up: str) -> list[tuple[int, str, str]]:
    """Give headings their anchors, mend links; return the headings for the contents."""
    taken: dict[str, int] = {}
    headings = []
    for token, following in zip(tokens, [*tokens[1:], None]):
        if token.type == "heading_open":
            name = anchor(following.content, taken)
            token.attrs["id"] = name
            headings.append((int(token.tag[1]), name, following.content))
        for child in token.children or []:
            href = child.attrs.get("href", "#")
            if not re.match(r"#|\w+:", str(href)):
                child.attrs["href"] = f"{up}/{href}"
    return headings


def put_in_places(tokens: list[Any], markdown: Any) -> None:
    """A picture with <!-- live: NAME --> right beneath it becomes the widget's still."""
    for n, token in enumerate(tokens):
        live = LIVE.match(token.content) if token.type == "html_block" else None
        before = tokens[n - 1]
        if live and before.type == "paragraph_close" and tokens[n - 3].map[1] == token.map[0]:
            still = markdown.renderer.render(tokens[n - 3:n], markdown.options, {})
            for used in tokens[n - 3:n]:
                used.type, used.content, used.children = "html_block", "", None
            token.content = place(live[1], still)


def navigation(headings: list[tuple[int, str, str]]) -> str:
    """The contents: parts, chapters, and in each a folded list of its sections."""
    html, end = "", ""
    for (level, name, title), (below, *_) in zip(headings[1:], [*headings[2:], (0,)]):
        title = escape(title.replace("`", ""))
        link = f'<a href="#{name}">{title}</a>'
        if level == 1:
            html, end = html + end + f'<p class="part">{link}</p>', ""
        elif level == 2:                                # a link in a summary could not be reached
            html, end = html + end + f'<div class="chapter">{link}', "</div>"
            if below > 2:
                html += f'<details><summary aria-label="Sections of {title}"></summary>'
                end = "</details></div>"
        else:
            html += f'<div class="section">{link}</div>'
    return html + end


def in_sections(html: str) -> str:
    """Each chapter, and the beginning of each part, in a section of its own."""
    parts = re.split("(?=<h[12] id=)", html)
    return "\n".join(f"<section>{part}</section>" for part in parts if part.strip())


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<style>{style}</style></head>
<body><a class="skip" href="#text">Skip to the text</a>
<nav id="contents" aria-label="Contents"><details open><summary>Contents</summary>{contents}
</details></nav><main id="text" tabindex="-1">{text}<a class="up" href="#contents">Contents</a></main>
{scripts}</body></html>
"""


def facts() -> dict[str, Any]:
    """What the widgets know: the trained model of the tests, of which the pictures tell,
    and what live_data.py has found out."""
    trained = ROOT / "tests/trained"
    data = (trained / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {name: (entry["shape"], struct.unpack_from(
        f"<{(entry['data_offsets'][1] - entry['data_offsets'][0]) // 4}f", data,
        start + entry["data_offsets"][0])) for name, entry in header.items()}
    config = json.loads((trained / "config.json").read_bytes())
    vocabulary = json.loads((trained / "tokenizer.json").read_bytes())["model"]["vocab"]
    from simple_llm.live import in_base64, in_halves
    return {"model": in_base64(in_halves(tensors)), "cut": "word",
            "names": sorted(vocabulary, key=vocabulary.get),
            "heads": config["n_head"], "layers": config["n_layer"],
            **json.loads((ROOT / "tools/live.json").read_bytes())}


def weave(book: Path, page: Path) -> str:
    """The book as a page that will stand at this place."""
    index = tangle.read_document(book.with_name("index.md")).replace(book.name, "")
    text = tangle.read_document(book).replace("\n<!-- index -->\n", index, 1)
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    markdown.inline.ruler.before("backticks", "formula", read_formula)
    for kind, draw in draw_with(book, text).items():
        markdown.add_render_rule(kind, draw)
    tokens = markdown.parse(text)
    up = Path(os.path.relpath(book.parent, page.parent)).as_posix()
    headings = prepare(tokens, up)
    put_in_places(tokens, markdown)
    from simple_llm.live import part, scripts
    html = markdown.renderer.render(tokens, markdown.options, {})
    return PAGE.format(
        title=escape(headings[0][2]), contents=navigation(headings), text=in_sections(html),
        style=part("live.css") + part("weave.css"),
        scripts=scripts(facts()) if 'class="live"' in html else "")


def main(book: str, page: str) -> None:
    if MISSING:
        sys.exit(MISSING)
    html = weave(Path(book), Path(page))
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    tangle.replace_file(Path(page), html)
    print(f"{page}: {len(html.encode()) / 1000:,.0f} KB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
