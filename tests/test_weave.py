"""The woven page. What needs the weaver's libraries is skipped where they are missing."""
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tangle
import weave

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "simple_llm.md"
SMALL = """# A *book*

[Top](#a-book) and [the license](LICENSE), [out](https://example.org).

## One & `two`

In a line: $`x_1 < \\frac12`$. In a block:

```math
\\begin{aligned} a &= b_1 \\\\ c &= d \\end{aligned}
```

```python {#body}
if x < 1:

    <<deep>>
```

The deep.

```python {#deep}
y = "&"
```

### A section

![Words & more](figures/loss.svg)

<!-- output: python -m a -->
```text
1 < 2
```

It is 2.565<!-- a note -->.

<details><summary>Solution</summary>

Because $`a = b`$:

```pycon
>>> 1 + 1
2
```

</details>

| a | b |
|---|---|
| $`\\lvert x \\rvert`$ | 2 |

```python {file=a.py}
def f(x):
    <<body>>
    return x
```

## One & `two`
"""


SMALL = tangle.add_captions(SMALL)


def anchors(text):
    return {block.name: block.anchor() for block in tangle.read_blocks(text)[0] if block.kind}


def pythons():
    """Interpreters that may have the libraries: this one, and that of `make book`."""
    for python in (sys.executable, ROOT / ".venv-book/bin/python"):
        if Path(python).exists():
            done = subprocess.run([python, "-c", "import markdown_it, pygments, math_core"],
                                  stderr=subprocess.DEVNULL)
            if done.returncode == 0:
                yield str(python)


@pytest.fixture(scope="module")
def make_page(tmp_path_factory):
    python = next(pythons(), None)
    if python is None:
        pytest.skip("the weaver's libraries are not installed (make book)")

    def make(text, check=True):
        home = tmp_path_factory.mktemp("book")
        (home / "figures").mkdir()
        for figure in (ROOT / "figures").glob("*.svg"):
            (home / "figures" / figure.name).write_bytes(figure.read_bytes())
        (home / "simple_llm.md").write_text(text, encoding="utf-8")
        (home / "index.md").write_bytes((ROOT / "index.md").read_bytes())
        done = subprocess.run(
            [python, ROOT / "tools/weave.py", home / "simple_llm.md", home / "out/index.html"],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
        if not check:
            return done
        assert done.returncode == 0, done.stderr
        return (home / "out/index.html").read_text(encoding="utf-8")

    return make


@pytest.fixture(scope="module")
def small(make_page):
    return make_page(SMALL)


@pytest.fixture(scope="module")
def whole(make_page):
    return make_page(BOOK.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """What is open is closed, in order; the ids, links and sources that there are."""

    EMPTY = {"meta", "link", "img", "hr", "br"}

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.tags = [], [], [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" and "href" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


# Without the libraries

def test_anchors_are_those_of_github():
    taken = {}
    headings = ["1. The whole, in one page", "A `b_c` & d", "And PyTorch?", "A b", "A b"]
    assert [weave.anchor(h, taken) for h in headings] == [
        "1-the-whole-in-one-page", "a-b_c--d", "and-pytorch", "a-b", "a-b-1"]


def test_the_contents_fold_the_sections_of_a_chapter_away_and_name_the_parts():
    html = weave.navigation([
        (1, "t", "Title"), (2, "a", "A"), (3, "b", "B <"), (3, "c", "C"), (1, "p", "Part"),
        (2, "d", "D")])
    assert html == ('<div class="chapter"><a href="#a">A</a>'
                    '<details><summary aria-label="Sections of A"></summary>'
                    '<div class="section"><a href="#b">B &lt;</a></div>'
                    '<div class="section"><a href="#c">C</a></div></details></div>'
                    '<p class="part"><a href="#p">Part</a></p>'
                    '<div class="chapter"><a href="#d">D</a></div>')


def test_a_comment_shows_its_command_or_nothing():
    assert weave.comment("<!-- note -->") == ""
    assert "$ make x &lt; y" in weave.comment("<!-- output: make x < y -->")
    assert "$ make x<" in weave.comment("<!-- long 0123abcd ~ 5%: make x -->")
    assert weave.comment('<a id="x">') == '<a id="x">'


def test_missing_libraries_give_one_sentence(tmp_path):
    (tmp_path / "markdown_it.py").write_text("raise ImportError(name='markdown_it')")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/weave.py", BOOK, tmp_path / "page.html"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, text=True,
        capture_output=True)
    assert done.returncode == 1 and "make book" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "page.html").exists()


# With them

def test_a_small_page_is_well_formed_and_has_what_it_must(small):
    page = Page(small)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    assert "../LICENSE" in page.links and "https://example.org" in page.links
    assert small.count("<math") == 4 and "$`" not in small and "\\frac" not in small
    assert '<div class="formula"><math' in small and "<mtable" in small
    assert '<span class="k">def</span>' in small and "1 &lt; 2" in small
    assert '<p class="command">$ python -m a</p>' in small
    assert "<!--" not in small and "It is 2.565." in small
    assert len(page.sources) == 1 and page.sources[0].startswith("data:image/svg+xml")
    fold = re.search(r"<details><summary>Solution</summary>\n(.*?)</details>", small, re.S)[1]
    assert "<p>Because <math" in fold and '<div class="code loose"><pre>' in fold


def test_references_unfold_in_place(small):
    code = small[small.index(f'id={anchors(SMALL)["a.py"]}>'):]
    assert code.count("<details style") == 2                    # the body, and the deep in it
    assert f'<summary>⟨body⟩</summary><div><a href="#{anchors(SMALL)["body"]}">where it is explained</a>' in code
    plain = re.sub(r"<summary>.*?</summary>|<a [^>]*>where.*?</a>|<[^>]+>", "", code.split("<h2")[0])
    assert "def f(x):\nif x &lt; 1:\n" in plain.replace("\n\n", "\n")
    assert "&lt;&lt;" not in code


def test_a_picture_with_a_mark_beneath_it_is_the_still_of_a_widget(make_page):
    picture = "<!-- figure: python -m a -->\n![Words](figures/loss.svg)\n"
    html = make_page(f"# A\n\nText.\n\n{picture}<!-- live: jump -->\n\n{picture}\n<!-- live: lens -->\n")
    places = re.findall(r'<div class="live" data-live="(\w+)" data-title="[^"]+">(.*?)</div>\n', html, re.S)
    assert [name for name, _ in places] == ["jump", "lens"]
    assert "<img" in places[0][1]
    assert places[1][1] == "" and html.count("<img") == 2        # one below the other keeps its place


def test_a_page_without_widgets_carries_no_model(make_page):
    assert "<script" not in make_page("# A\n\nText.\n")


@pytest.mark.parametrize(("text", "says"), [
    ("$`\\frac{1`$", "weave: cannot read the formula"),
    ("![x](figures/none.svg)", "weave: there is no picture"),
    ("<!-- live: none -->", "weave: there is no widget none")])
def test_what_cannot_be_woven_stops_the_weaving(make_page, text, says):
    done = make_page(f"# A\n\n{text}\n", check=False)
    assert done.returncode == 1 and done.stderr.startswith(says)


def test_the_book_is_one_file_that_needs_nothing_and_has_no_dead_link(whole):
    page = Page(whole)
    assert not {"iframe", "object"} & set(page.tags) and page.tags.count("script") == 2
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"url\(|@import|<link rel=.stylesheet", whole)
    assert len(whole.encode()) < 3_000_000
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|https?://(?!www\.w3\.org/2000/svg)", whole[whole.index("<script>"):])
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)


def test_all_of_the_book_is_on_the_page_and_nothing_of_its_markdown(whole):
    contents = whole[whole.index("<nav"):whole.index("</nav>")]
    book = BOOK.read_text(encoding="utf-8")
    for title in re.findall(r"(?m)^##? ((?:Part|Appendix|\d+\.) .*)$", book):
        assert title.replace("`", "") in contents
    index = re.search(r'(?s)id="appendix-\w-index".*?(?=<h2|$)', whole)[0]
    found = anchors(book)
    assert index.count("<li>") > 300 and f'href="#{found["layer-norm"]}"' in index
    text = re.sub(r"(?s)<style>.*?</style>|<(pre|code|script)\b.*?</\1>|<[^>]+>", "", whole)
    assert "$`" not in text and "```" not in text and "](" not in text and "**" not in text
    for block in tangle.read_blocks(book)[0]:
        if block.kind == "chunk":
            assert f'<a href="#{found[block.name]}">' in whole, block.name


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome"))), None)
LOOK = """<!DOCTYPE html><iframe width=1400 height=1600></iframe>
<iframe width=400 height=800></iframe><pre></pre><script>
const found = [], frames = [...document.querySelectorAll("iframe")];
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const nav = page.querySelector("nav"), link = nav.querySelector("a[href^='#11-']");
  const box = link.getBoundingClientRect(), fold = page.querySelector(".code details");
  const high = fold.offsetHeight;
  fold.open = true;
  found[frames.indexOf(frame)] = {wide: root.scrollWidth, left: box.left, right: box.right, top: box.top,
    unfolds: fold.offsetHeight > high, formula:
    page.querySelector(".formula math").getBoundingClientRect().height, dead:
    [...page.querySelectorAll("a[href^='#']")].map(a => a.getAttribute("href").slice(1))
    .filter(id => !page.getElementById(id)), pictures:
    [...page.images].filter(image => !image.naturalWidth).length};
  if (found[0] && found[1]) document.querySelector("pre").textContent = JSON.stringify(found);
}
for (const frame of frames) {
  frame.onload = () => look(frame);
  frame.src = "index.html";
}
</script>"""


@pytest.fixture(scope="module")
def seen(whole, tmp_path_factory):
    """What a browser finds on the page at 1400 and at 400 pixels, and its console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    home = tmp_path_factory.mktemp("browser")
    (home / "index.html").write_text(whole, encoding="utf-8")
    (home / "look.html").write_text(LOOK, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr",
         f"--user-data-dir={home / 'profile'}", "--window-size=1500,2500",
         "--virtual-time-budget=20000", "--dump-dom", (home / "look.html").as_uri()],
        capture_output=True, text=True, timeout=120)
    text = re.search(r"(?s)<pre>(.*?)</pre>", done.stdout)[1]
    return json.loads(text), [line for line in done.stderr.split("\n") if "CONSOLE" in line]


def test_a_browser_has_nothing_to_complain_of(seen):
    assert seen[1] == []


@pytest.mark.parametrize(("place", "width"), [(0, 1400), (1, 400)])
def test_the_page_is_readable_at_this_width(seen, place, width):
    found = seen[0][place]
    assert found["wide"] <= width                       # nothing sticks out
    assert 0 <= found["left"] < found["right"] <= width and 0 <= found["top"] < 800
    assert found["unfolds"] and found["formula"] > 10
    assert found["dead"] == [] and found["pictures"] == 0
