"""The pictures of the book: python tools/pictures.py DIRECTORY, or DIRECTORY MODEL.

The first draws all those that need no trained model, in a few seconds; the second those that
do. All are drawn from what the package computes, and the same arrays give the same bytes.
Needs build/ (make tangle), and NumPy alone.
"""
from __future__ import annotations

import io
import os
import random
import sys
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Sequence

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))

import numpy as np  # noqa: E402

from chart import (  # noqa: E402
    BLUE, CARD, DASHED, DOTTED, GREY, INK, OCHRE, RED, SOLID, Axes, Drawing, plain, shade,
)
from simple_llm import tiny  # noqa: E402
from simple_llm.batches import pad_rows  # noqa: E402
from simple_llm.checkpoint import save_safetensors  # noqa: E402
from simple_llm.generate import next_token_probabilities  # noqa: E402
from simple_llm.gradcheck import numerical_gradient  # noqa: E402
from simple_llm.layers import (  # noqa: E402
    GELU, Array, CrossEntropy, LayerNorm, Parameter, causal_mask, softmax,
)
from simple_llm.model import Config, SimpleLLM, sinusoids  # noqa: E402
from simple_llm.ngram import ladder  # noqa: E402
from simple_llm.optimizer import SGD, AdamW, learning_rate  # noqa: E402
from simple_llm.today.gguf import quantize  # noqa: E402
from simple_llm.today.layers import rotary_angles, rotate  # noqa: E402
from simple_llm.today.muon import COEFFICIENTS  # noqa: E402
from simple_llm.tokenizer import (  # noqa: E402
    ALPHABET, Tokenizer, byte_ids, cut_into_chunks, learn_merges_slowly, replace,
)
from simple_llm.world import Story, StoryCorpus, World, floor  # noqa: E402


# Chapter 1: the whole thing in one page

def learned_table() -> tuple[list[str], Array]:
    """The words of chapter 1 and, for each, the (V, V) probabilities of what follows."""
    found: dict[str, Any] = {}

    def look(frame: Any, event: str, value: Any) -> None:
        if event == "return" and frame.f_code is tiny.main.__code__:
            found.update(frame.f_locals)               # the table lives in there alone

    sys.setprofile(look)
    try:
        with redirect_stdout(io.StringIO()):
            tiny.main()
    finally:
        sys.setprofile(None)
    return found["vocabulary"], softmax(found["table"].copy())


def draw_table(path: Path) -> None:
    words, p = learned_table()
    drawing = Drawing(
        "The learned table: only five words leave any doubt",
        "Heat map of the learned table, a row for each token: eight rows have a single dark "
        "cell, the one token that ever came next; those of the names, of the full stop and of "
        "'the' are shared out among two to five.",
        484, ["Each row sums to 1. Numbers from 0.01 up are shown; a point is a smaller one."])
    left, top, width, height = 92, 116, 46, 27
    drawing.text(left - 10, top - 10, "token here", GREY, 13, "end")
    drawing.text(left + 6.5 * width, top - 30, "the token that comes next", GREY, 13, "middle")
    for i, word in enumerate(words):
        drawing.text(left + (i + 0.5) * width, top - 10, word, anchor="middle")
        drawing.text(left - 10, top + (i + 0.5) * height + 4, word, anchor="end")
        for j, share in enumerate(p[i]):
            shown = f"{share:.2f}" if share >= 0.01 else ""
            drawing.cell(left + j * width, top + i * height, width, height, share, shown)
    drawing.rect(left, top, 13 * width, 13 * height, color=GREY)
    drawing.save(path)


# Chapter 2: the small world

def draw_odds(path: Path) -> None:
    story = World().tell(random.Random(3))
    answers = {answer.position for answer in story.answers}
    drawing = Drawing(
        "What each word of a story costs: only choices, never an answer",
        "A story word by word, with the probability of each word above it and its price, "
        "-ln p, as a bar: names, places and things have a price, words that had to come have "
        "none, and neither have the answers.",
        506, ["Above each bar is the word's probability p; the bar is its price, −ln p. A word",
              "that had to come costs nothing, and so does an answer: it stands in the story."])
    left, width, nat, columns = 54, 65, 38, 10
    for row in range(3):
        base = 198 + 132 * row
        for tick in (0, 1, 2):
            y = base - tick * nat
            drawing.text(left - 12, y + 4, str(tick), anchor="end")
            drawing.line([(left - 8, y), (left - 3, y)], GREY, 1)
        drawing.line([(left - 3, base - 2 * nat), (left - 3, base),
                      (left + columns * width, base)], GREY, 1)
        if not row:
            drawing.text(24, base - 2 * nat - 14, "nats", GREY, 13)
        for column in range(columns):
            k = row * columns + column
            x, p = left + (column + 0.5) * width, story.probabilities[k]
            high, answer = -np.log(p) * nat, k in answers
            if high:
                drawing.rect(x - 13, base - high, 26, high, fill=BLUE)
            drawing.text(x, base - high - 6, f"{p:.3g}", GREY if p == 1 else INK, 12, "middle")
            drawing.text(x, base + 20, story.words[k], RED if answer else INK, 14, "middle",
                         bold=answer)
            if answer:
                drawing.rect(x - width / 2 + 2, base - 22, width - 4, 48, color=RED,
                             stroke=1.5, dashes="5 3", round_=5)
                drawing.text(x, base - 28, "answer", RED, 12, "middle")
    drawing.text(left + columns * width, 494, "and so on", GREY, 13, "end", italic=True)
    drawing.save(path)


# Chapter 3: tokens

def draw_batch(path: Path) -> None:
    tokenizer = Tokenizer.from_text("anna went to the garden . ben took the key .")
    rows = [[6, 12, 2], [5, 11, 9, 8, 2]]                   # as in the chapter
    batch = pad_rows(rows)
    B, T = batch.ids.shape
    drawing = Drawing(
        "A batch of two stories: what is seen, and what comes next",
        "The ids and the targets of two stories as two rectangles: the targets are the ids "
        "moved to the left by one, and behind the shorter story there is padding in the ids "
        "and −1 in the targets.",
        292, ["The targets are the same list, moved by one: targets[b, t] is ids[b, t + 1].",
              "Grey is padding: <pad> in the ids; in the targets −1, which the loss skips."])
    side, top, high = 62, 134, 48
    for name, array, left in (("ids", batch.ids, 24), ("targets", batch.targets, 384)):
        drawing.text(left, top - 26, f"{name}, shape ({B}, {T})", INK, 14, bold=True)
        for t in range(T):
            drawing.text(left + (t + 0.5) * side, top - 8, f"t = {t}", GREY, 12, "middle")
        for b, t in np.ndindex(B, T):
            token, x, y = int(array[b, t]), left + t * side, top + b * high
            off = token == -1 or (name == "ids" and token == Tokenizer.pad)
            fill = "#d9d5ca" if off else CARD
            drawing.rect(x, y, side, high, fill, GREY)
            word = tokenizer.tokens[token] if token >= 0 else "no target"
            drawing.text(x + side / 2, y + 20, f"{token}".replace("-", "−"), INK, 15, "middle")
            drawing.text(x + side / 2, y + 38, word, "#4d483f" if off else INK, 12, "middle")
    y, t = top + high, 1
    drawing.rect(24 + 2, y + 2, 2 * side - 4, high - 4, color=BLUE, stroke=3)
    drawing.rect(384 + t * side + 2, y + 2, side - 4, high - 4, color=RED, stroke=3,
                 dashes="6 3")
    drawing.arrow([(24 + side, y + high), (24 + side, y + high + 18),
                   (384 + 1.5 * side, y + high + 18), (384 + 1.5 * side, y + high + 2)], INK)
    drawing.text(354, y + high + 40, "at t = 1 the second story has seen <bos> anna, "
                 "and is to say took", INK, 13, "middle")
    drawing.save(path)


# Chapter 4: counting

def ladder_of_losses() -> dict[str, float]:
    """The losses of the chapter's session, and the floor."""
    corpus, rng = StoryCorpus(World()), random.Random(0)
    stories = [World().tell(rng) for _ in range(2000)]

    def rows(stories: Sequence[Story]) -> list[list[int]]:
        ids = corpus.tokenizer.ids
        return [[Tokenizer.bos] + [ids[word] for word in story.words] for story in stories]

    losses = ladder(rows(stories), rows(corpus.held_out), corpus.tokenizer.vocab_size)
    return {**losses, "floor": floor(corpus.held_out)}


def draw_ladder(path: Path) -> None:
    losses = ladder_of_losses()
    drawing = Drawing(
        "Counting goes far, and stops well above the floor",
        "Bars of the losses of the uniform, unigram, bigram and trigram model, and of the "
        "floor: the step from unigram to bigram is the largest, and the trigram still stands "
        "well above the floor.",
        372, ["Loss on held-out stories. In brackets e to that power: among how many equally",
              "likely words one might as well choose."])
    axes = Axes(drawing, (92, 92, 560, 320), (0, 3.5), (5, 0))
    axes.x_axis("nats per token", [0, 1, 2, 3])
    x_floor, x_trigram = axes.x(losses["floor"]), axes.x(losses["trigram"])
    for k, (name, loss) in enumerate(losses.items()):
        y, last = axes.y(k + 0.2), name == "floor"
        drawing.text(84, y + 18, name, INK, 14, "end", bold=last)
        color = OCHRE if last else BLUE
        drawing.rect(axes.x(0), y, axes.x(loss) - axes.x(0), 27, fill=color)
        x = axes.x(loss) + 8
        drawing.text(x, y + 18, f"{loss:.3f}  ({np.exp(loss):.1f})", INK, 14)
    y = axes.y(3.2)
    drawing.rect(x_floor, y, x_trigram - x_floor, 27, fill=CARD, color=RED, stroke=2.5)
    drawing.line([(x_floor, axes.y(3.1)), (x_floor, axes.y(4.9))], OCHRE, 2, "5 3")
    gap = losses["trigram"] - losses["floor"]
    drawing.arrow([(x_trigram + 162, y + 14), (x_trigram + 112, y + 14)], RED)
    drawing.text(x_trigram + 170, y + 10, f"the outlined part, {gap:.3f} above the floor,", RED,
                 13)
    drawing.text(x_trigram + 170, y + 27, "is for those who can read", RED, 13)
    drawing.save(path)


# Chapter 5: gradients

def draw_tangent(path: Path) -> None:
    def cube(x: Any) -> Any:
        return x**3

    step, at = 0.5, np.array([1.0])
    central = float(numerical_gradient(lambda: float(cube(at).sum()), at, step)[0])
    one_sided, exact = (cube(1 + step) - cube(1)) / step, 3.0
    drawing = Drawing(
        "Looking both ways comes nearer to the slope",
        "The curve of x cubed, a tangent, and two secants with a step that is far too "
        "large: the one through both neighbours is nearly as steep as the tangent, the one "
        "that looks to one side is much too steep.",
        480, [f"The slope of y = x³ at x = 1, with the step ε = {step:g}, too large on purpose."])
    axes = Axes(drawing, (60, 104, 440, 424), (0, 1.8), (-1, 5.6))
    axes.x_axis("x", [0, 0.5, 1, 1.5])
    axes.y_axis("y", [0, 1, 2, 3, 4, 5])
    xs = [k / 50 for k in range(89)]
    axes.curve(xs, map(cube, xs), INK, 3)
    end, low, high = 1.76, 1 - step, 1 + step
    lines = [
        (1.0, 1.0, one_sided, 0.94, OCHRE, DOTTED,
         f"one side: (1.5³ − 1³) / 0.5 = {one_sided:.2f}"),
        (low, cube(low), central, 0.36, BLUE, DASHED,
         f"both: (1.5³ − 0.5³) / 1 = {central:.2f}"),
        (1.0, 1.0, exact, 0.6, RED, SOLID, f"tangent: 3x² = {exact:.2f}"),
    ]
    for x, y, slope, start, color, dashes, words in lines:
        axes.curve([start, end], [y + slope * (start - x), y + slope * (end - x)], color,
                   3 if dashes == DOTTED else 2.4, dashes)
        axes.label(end, y + slope * (end - x), words, color, 8, 5)
    axes.label(end, cube(end), "the curve y = x³", INK, 8, 3)
    for x in (low, 1.0, high):
        drawing.dot(*axes.point(x, cube(x)), INK, 5)
    for x, words in ((low, "1 − ε"), (1.0, "1"), (high, "1 + ε")):
        drawing.line([axes.point(x, -1), axes.point(x, cube(x))], GREY, 1, "2 3")
        axes.label(x, cube(x), words, INK, -10 if x > low else 0, -8 if x > low else -12,
                   "end" if x > low else "middle")
    drawing.save(path)


# Chapter 6: layers

def draw_gelu(path: Path) -> None:
    x, gelu = np.linspace(-4, 4, 161), GELU()
    y = gelu.forward(x)
    slope = gelu.backward(np.ones_like(x))
    drawing = Drawing(
        "GELU bends where ReLU breaks",
        "GELU and ReLU, and their slopes: far from zero the two agree; the slope of ReLU jumps "
        "from zero to one, and that of GELU goes there smoothly, from a little below to a "
        "little above.",
        372, ["Left the functions, right their slopes: what backward multiplies the gradient by."])
    left = Axes(drawing, (56, 100, 340, 316), (-4, 4), (-0.9, 4))
    right = Axes(drawing, (420, 100, 704, 316), (-4, 4), (-0.4, 1.4))
    for axes, name, ticks in ((left, "output", [0, 1, 2, 3, 4]), (right, "slope", [0, 0.5, 1])):
        axes.x_axis("input x", [-4, -2, 0, 2, 4])
        axes.y_axis(name, ticks)
        drawing.line([axes.point(-4, 0), axes.point(4, 0)], GREY, 0.8)
    left.curve([-4, 0, 4], [0, 0, 4], RED, 2.4, DASHED)
    left.curve(x, y, BLUE, 2.6)
    left.label(2.1, 2.1, "ReLU", RED, -12, -2, "end")
    left.label(1.4, 1.4, "GELU", BLUE, 14, 14)
    k = int(y.argmin())
    drawing.dot(*left.point(x[k], y[k]), BLUE)
    left.label(x[k], y[k], f"{y[k]:.2f} at {x[k]:.2f}".replace("-", "−"), BLUE, 0, 22, "middle")
    right.curve([-4, 0], [0, 0], RED, 2.4, DASHED)
    right.curve([0, 4], [1, 1], RED, 2.4, DASHED)
    right.curve(x, slope, BLUE, 2.6)
    right.label(-2.2, 0, "ReLU: 0 …", RED, 0, -8, "middle")
    right.label(2.9, 1, "… then 1", RED, 0, 20, "middle")
    k = int(slope.argmax())
    drawing.dot(*right.point(x[k], slope[k]), BLUE)
    right.label(x[k], slope[k], f"GELU: at most {slope[k]:.2f}", BLUE, -2, -9, "middle")
    right.label(0, 0.5, "GELU", BLUE, 12, 8)
    drawing.save(path)


def layer_norm_steps() -> dict[str, Array]:
    """A row, the row centred, and what LayerNorm makes of it (gain 1, bias 0)."""
    row = np.array([1.0, 8.0, 3.0, 5.0, 2.0, 9.0, 4.0, 0.0])               # (8,)
    return {"as it comes": row, "minus its mean": row - row.mean(),
            "over its deviation": LayerNorm(8, np.float64).forward(row[None])[0]}


def draw_layernorm(path: Path) -> None:
    drawing = Drawing(
        "LayerNorm: the same shape, around 0, of size 1",
        "A row of eight numbers as it comes, minus its mean, and divided by its deviation: the "
        "pattern stays, the mean becomes zero and the deviation one.",
        380, ["A row of eight numbers. The band is one deviation to either side of the mean."])
    for k, (name, row) in enumerate(layer_norm_steps().items()):
        left = 52 + 226 * k
        axes = Axes(drawing, (left, 112, left + 200, 316), (0, 9), (-5, 10))
        low, high = row.mean() - row.std(), row.mean() + row.std()
        drawing.rect(left, axes.y(high), 200, axes.y(low) - axes.y(high), fill="#f3e3bf")
        drawing.line([axes.point(0, row.mean()), axes.point(9, row.mean())], OCHRE, 2, "7 4")
        axes.y_axis("value" if not k else "", [-5, 0, 5, 10], plain)
        for i, value in enumerate(row):
            drawing.line([axes.point(i + 1, row.mean()), axes.point(i + 1, value)], BLUE, 3)
            drawing.dot(*axes.point(i + 1, value), BLUE, 4)
        drawing.text(left + 100, 98, name, INK, 15, "middle", bold=True)
        mean, deviation = abs(round(row.mean(), 2)), row.std()
        drawing.text(left + 100, 338, f"mean {mean:g}, deviation {deviation:.3g}", INK, 13,
                     "middle")
        if k < 2:
            drawing.arrow([(left + 196, 92), (left + 226, 92)], INK)
    drawing.text(360, 366, "element of the row, 1 to 8", GREY, 13, "middle")
    drawing.save(path)


LOGITS = {"garden": 2.0, "kitchen": 1.0, "key": 0.0, "ben": -1.0}    # as live.js begins


def draw_softmax(path: Path) -> None:
    z, loss = np.array([[*LOGITS.values()]]), CrossEntropy()               # (1, 4)
    price = loss.forward(z, np.array([0]))
    p, gradient = loss.p[0], loss.backward()[0]                            # (4,) each
    drawing = Drawing(
        "Softmax: a logit more is e times the chance",
        "Four logits, the probabilities that softmax makes of them, and the gradient when "
        "garden came: it is the probability, less one for the word that came, so a step "
        "down raises that word's logit and lowers the others in proportion to their chances.",
        330, [f"“garden” came: the loss is −ln {p[0]:.3f} = {price:.3f} nats.",
              "The gradient is the probability, less 1 for the word that came."])
    for left, name, values, low, high in (
            (110, "logits", z[0], -2, 3), (320, "probabilities", p, 0, 1),
            (530, "gradient", gradient, -1, 1)):
        axes = Axes(drawing, (left, 124, left + 150, 300), (low, high), (4, 0))
        drawing.text(left + 75, 108, name, INK, 15, "middle", bold=True)
        drawing.line([axes.point(0, 0), axes.point(0, 4)], GREY, 1)
        for k, (word, value) in enumerate(zip(LOGITS, values)):
            x, y, color = axes.x(min(0.0, value)), axes.y(k + 0.3), BLUE if k else RED
            drawing.rect(x, y, abs(axes.x(value) - axes.x(0)), 20, color)
            shown = f"{value:.2f}".replace("-", "−")
            drawing.text(axes.x(max(0.0, value)) + 6, y + 15, shown, color, 13, halo=True)
            if name == "logits":
                drawing.text(78, y + 15, word, color, 14, "end", bold=not k)
    drawing.save(path)


# Chapter 7: attention

def draw_mask(path: Path) -> None:
    words = "anna went to the attic .".split()
    mask = causal_mask(len(words), np.float64)                             # (6, 6)
    shares = softmax(mask.copy())                                          # (6, 6)
    drawing = Drawing(
        "The causal mask: nobody looks ahead",
        "Two grids of six words by six: above the diagonal the mask holds minus infinity, so "
        "after softmax no word has a share in those that come after it, and equal scores give "
        "equal shares to itself and all before.",
        352, ["Row: the word that looks. Column: the word that is looked at."])
    width, height, top = 46, 34, 116
    for left, name in ((76, "what is added to the scores"), (424, "equal scores, after softmax")):
        drawing.text(left + 3 * width, top - 34, name, INK, 14, "middle", bold=True)
        for i, word in enumerate(words):
            drawing.text(left + (i + 0.5) * width, top - 9, word, anchor="middle")
            drawing.text(left - 9, top + (i + 0.5) * height + 4, word, anchor="end")
        for i, j in np.ndindex(mask.shape):
            x, y = left + j * width, top + i * height
            if left > 100:
                share = shares[i, j]
                drawing.cell(x, y, width, height, share, f"{share:.2f}" if share else "0", 13)
            elif mask[i, j] == 0:
                drawing.rect(x, y, width, height, shade(0.25))
                drawing.text(x + width / 2, y + 22, "0", "#000000", 14, "middle")
            else:
                drawing.text(x + width / 2, y + 22, "−∞", RED, 14, "middle")
        drawing.rect(left, top, 6 * width, 6 * height, color=GREY)
        steps = [(left, top)]
        for i in range(1, 7):
            steps += [(left + i * width, top + (i - 1) * height),
                      (left + i * width, top + i * height)]
        drawing.line(steps, INK, 2)
    drawing.save(path)


# Chapter 8: the model

def shapes_of_a_pass(B: int = 2, T: int = 5) -> dict[str, str]:
    """The shape that each layer of a small model returned, in letters."""
    config = Config(vocab_size=27, context_length=73)
    model, seen = SimpleLLM(config), {}
    letters = {B: "B", T: "T", config.d_model: "C", 3 * config.d_model: "3C",
               4 * config.d_model: "4C", config.vocab_size: "V", config.n_heads: "H"}

    def watch(name: str, layer: Any) -> None:
        forward = layer.forward

        def watched(*inputs: Any) -> Array:
            seen[name] = forward(*inputs)
            return seen[name]
        layer.forward = watched

    block = model.blocks[0]
    for name, layer in (("tokens", model.tokens), ("positions", model.positions),
                        ("norm 1", block.norm_1), ("qkv", block.attention.qkv),
                        ("attention", block.attention), ("norm 2", block.norm_2),
                        ("widen", block.feed_forward.widen), ("gelu", block.feed_forward.gelu),
                        ("narrow", block.feed_forward.narrow),
                        ("feed-forward", block.feed_forward), ("block", block),
                        ("norm", model.norm), ("stream", model.drop)):
        watch(name, layer)
    ids = np.arange(B * T).reshape(B, T)
    seen["ids"], seen["logits"] = ids, model.forward(ids)
    seen["weights"], seen["mixed"] = block.attention.p, block.attention.project.x
    return {name: f"({', '.join(letters[size] for size in array.shape)})"
            for name, array in seen.items()}


def draw_model(path: Path) -> None:
    shapes = shapes_of_a_pass()
    drawing = Drawing(
        "The whole model, and the shape of what flows through it",
        "The whole model from top to bottom: token vectors and position vectors are added to "
        "the residual stream, which runs straight down; in each block norm and attention, "
        "then norm and feed-forward branch off and are added to it again; norm, head and "
        "softmax make probabilities of it.",
        932, ["B stories, T tokens, C numbers for each token, H heads, V words in the vocabulary.",
              "Only in attention (red) does a position see others; all else treats each alone."])
    x, branch = 200, 440                               # the stream, and what branches off
    blue, red, yellow = "#dfe9f5", "#f6dcd9", "#f3e3bf"

    def box(at: float, y: float, words: str, wide: float = 172, high: float = 34) -> None:
        drawing.rect(at - wide / 2, y, wide, high, blue, INK, 1.5, round_=6)
        drawing.text(at, y + 22, words, INK, 15, "middle", bold=True)

    def shape(at: float, y: float, name: str, anchor: str = "start") -> None:
        drawing.text(at, y, shapes[name], RED, 14, anchor)

    def plus(y: float) -> None:
        drawing.dot(x, y, INK, 12, yellow)
        drawing.line([(x - 6, y), (x + 6, y)], INK, 2)
        drawing.line([(x, y - 6), (x, y + 6)], INK, 2)

    def stream(start: float, end: float) -> None:
        drawing.line([(x, start), (x, end)], BLUE, 5)

    def half(y: float, norm: str, layer: str, inside: dict[str, str], fill: str) -> float:
        """A branch of a block, from where it leaves the stream at y to below its plus."""
        out = y + 122 + 19 * len(inside)
        stream(y - 16, out + 12)
        drawing.arrow([(x, y), (branch, y), (branch, y + 26)], INK, 2)
        box(branch, y + 26, "norm")
        drawing.arrow([(branch, y + 60), (branch, y + 88)], INK, 2)
        shape(branch + 10, y + 78, norm)
        drawing.rect(branch - 118, y + 88, 236, out - y - 88, fill, INK, 1.5, round_=6)
        drawing.text(branch, y + 110, layer, INK, 15, "middle", bold=True)
        for k, (name, words) in enumerate(inside.items()):
            drawing.text(branch, y + 130 + 19 * k, words, INK, 12, "middle")
            shape(branch + 126, y + 131 + 19 * k, name)
        drawing.arrow([(branch, out), (branch, out + 24), (x + 13, out + 24)], INK, 2)
        shape(branch - 70, out + 18, layer, "end")
        plus(out + 24)
        return out + 36

    drawing.text(x, 102, "ids of the tokens", INK, 15, "middle", italic=True)
    drawing.arrow([(x, 110), (x, 140)], INK, 2)
    shape(x + 12, 129, "ids")
    box(x, 140, "token table")
    drawing.line([(x, 174), (x, 206)], INK, 2)
    shape(x + 12, 193, "tokens")
    box(branch, 201, "position table")
    drawing.arrow([(branch - 86, 218), (x + 13, 218)], INK, 2)
    shape(branch - 92, 211, "positions", "end")
    plus(218)
    stream(230, 284)
    shape(x + 12, 252, "stream")
    middle = half(300, "norm 1", "attention",
                  {"qkv": "queries, keys and values", "weights": "who looks at whom, in each head",
                   "mixed": "the values, blended"}, red)
    end = half(middle + 16, "norm 2", "feed-forward",
               {"widen": "four times as wide", "gelu": "bent by GELU",
                "narrow": "as narrow as before"}, blue)
    drawing.rect(62, 270, 642, end + 10 - 270, "none", GREY, 1.5, "7 4", 10)
    drawing.text(76, 292, "a block", INK, 15, bold=True)
    drawing.text(76, 311, "two in ours, at", GREY, 13)
    drawing.text(76, 328, "least 12 in GPT-2", GREY, 13)
    drawing.text(x - 14, (middle + end) / 2 + 20, "the residual stream", BLUE, 15, "middle",
                 turn=-90)
    stream(end, end + 24)
    drawing.arrow([(x, end), (x, end + 32)], BLUE, 5, size=12)
    shape(x + 12, end + 28, "block")
    box(x, end + 32, "norm")
    drawing.arrow([(x, end + 66), (x, end + 94)], INK, 2)
    shape(x + 12, end + 84, "norm")
    box(x, end + 94, "head")
    drawing.arrow([(x + 86, end + 111), (branch - 66, end + 111)], INK, 2)
    shape(x + 98, end + 104, "logits")
    box(branch, end + 94, "softmax", 132)
    drawing.arrow([(branch + 66, end + 111), (branch + 150, end + 111)], INK, 2)
    shape(branch + 74, end + 104, "logits")
    drawing.text((x + 86 + branch - 66) / 2, end + 128, "logits", INK, 15, "middle", italic=True)
    drawing.text(696, end + 154, "probabilities of the token that comes next", INK, 15, "end",
                 italic=True)
    drawing.line([(x - 86, 157), (40, 157), (40, end + 111), (x - 86, end + 111)], GREY, 1.5,
                 "2 4")
    drawing.text(34, 620, "the same table, twice", GREY, 13, "middle", turn=-90)
    drawing.save(path)


def draw_clocks(path: Path) -> None:
    table, shown = 0.3 * sinusoids(73, 64), (0, 8, 16)                     # (73, 64)
    drawing = Drawing(
        "Positions as clocks: two of them tell how far they are apart",
        "The hands of three clocks at eight positions, each clock slower than the one above "
        "it, and the dot product of two positions by their distance: it falls, and is the "
        "same wherever one starts.",
        392, ["Left: of a position's vector, elements i and i + 32 are sine and cosine of a hand.",
              "Right: the dot product of whole vectors, of 32 hands. Only the distance matters."])
    for row, i in enumerate(shown):
        y = 154 + 74 * row
        drawing.text(62, y + 4, f"i = {i}", INK, 13, "end")
        for t in range(8):
            x, (sine, cosine) = 92 + 40 * t, table[t, [i, i + 32]] / 0.3
            if not row:
                drawing.text(x, y - 27, str(t), anchor="middle")
            drawing.dot(x, y, GREY, 18, CARD)
            drawing.line([(x, y - 18), (x, y - 14)], GREY, 1)
            drawing.arrow([(x - 5 * sine, y + 5 * cosine), (x + 15 * sine, y - 15 * cosine)],
                          BLUE, 2.4, size=7)
    drawing.text(92 + 40 * 3.5, 354, "position t", GREY, 13, "middle")
    axes = Axes(drawing, (452, 124, 700, 316), (0, 40), (0, 3))
    axes.x_axis("distance of two positions", [0, 10, 20, 30, 40])
    axes.y_axis("dot product", [0, 1, 2, 3])
    first, later = table @ table[0], table @ table[30]                     # (73,), (73,)
    axes.curve(range(41), first[:41], BLUE, 2.4)
    for k in range(0, 41, 4):
        drawing.dot(*axes.point(k, later[30 + k]), RED, 5, CARD)
    axes.label(12, 2, "line: from position 0", BLUE, 0, -14)
    axes.label(12, 2, "rings: from position 30", RED, 0, 6)
    drawing.save(path)


# Chapter 9: training

VALLEY = np.array([1.0, 100.0])                        # how steep, along x and along y


def descend(make: Callable[..., Any], rate: float, steps: int = 300) -> Array:
    """(steps + 1, 2): the way of an optimizer down the valley."""
    p = Parameter(np.array([-8.0, 1.0]))
    optimizer, way = make([p]), [p.data.copy()]
    for _ in range(steps):
        p.grad[...] = VALLEY * p.data
        optimizer.step(rate)
        p.data.clip(-1e3, 1e3, out=p.data)                             # it may diverge
        way.append(p.data.copy())
    return np.array(way)


def steps_needed(way: Array) -> int:
    """After how many steps the height stays below a thousandth of that of the start."""
    height = (VALLEY * way**2).sum(axis=1)                             # (steps + 1,)
    return int(np.flatnonzero(height >= height[0] / 1000).max()) + 1


def best_descent(make: Callable[..., Any]) -> tuple[float, Array, int]:
    """The learning rate that needs the fewest steps, its way, and these steps."""
    rates = [digit * size for size in (0.001, 0.01, 0.1) for digit in (1, 1.5, 2, 3, 5, 7)]
    ways = [(rate, descend(make, rate)) for rate in rates]
    rate, way = min(ways, key=lambda each: steps_needed(each[1]))
    return rate, way, steps_needed(way)


def draw_valley(path: Path) -> None:
    optimizers = {"SGD": SGD, "SGD, momentum 0.9": lambda p: SGD(p, momentum=0.9), "AdamW": AdamW}
    found = {name: best_descent(make) for name, make in optimizers.items()}
    counts = ", ".join(str(steps) for _, _, steps in found.values())
    drawing = Drawing(
        f"Down a narrow valley in {counts} steps",
        "Three paths into a narrow valley, seen from above: plain descent is soon on its floor "
        "and crawls along it, momentum swings from side to side and arrives in fewer steps, "
        "and AdamW, with a pace for each direction, in fewer still.",
        600, ["The height is ½ (x² + 100 y²): a hundred times as steep across as along. A mark",
              "for each step, at the best of 18 rates, until a thousandth of the height is left."])
    for k, (name, (rate, way, steps)) in enumerate(found.items()):
        top = 108 + 156 * k
        axes = Axes(drawing, (56, top, 700, top + 126), (-9, 4.2), (-1.45, 1.45))
        for level in (8, 4, 2, 1):
            angles = np.linspace(0, 2 * np.pi, 73)                         # (73,)
            inside = [(level * np.cos(a), level * np.sin(a) / 10) for a in angles]
            drawing.line([axes.point(px, py) for px, py in inside if px <= 4.2], GREY, 0.8)
        color, dashes = ((OCHRE, DOTTED), (RED, DASHED), (BLUE, SOLID))[k]
        way = way[: steps + 1]
        axes.curve(way[:, 0], way[:, 1], color, 1.6)
        for px, py in way:
            drawing.dot(*axes.point(px, py), color, 2.2)
        drawing.dot(*axes.point(0, 0), INK, 5, CARD)
        axes.y_axis("y" if not k else "", [-1, 0, 1])
        drawing.text(700, top + 12, f"{name}, rate {rate:g}: {steps} steps", color, 15, "end",
                     bold=True)
    axes.x_axis("x", [-8, -6, -4, -2, 0, 2, 4])
    drawing.save(path)


def draw_schedule(path: Path) -> None:
    total, peak, warmup = 2000, 0.004, 100
    rates = [learning_rate(step, total, peak, warmup) for step in range(total)]
    drawing = Drawing(
        "The schedule: quickly up, slowly down",
        "The learning rate by step: a steep straight line up to the peak, then a long "
        "bend down along a cosine, to a small rest.",
        360, ["The learning rate over 2,000 steps, with a peak of 0.004."])
    axes = Axes(drawing, (76, 104, 690, 300), (0, total), (0, 0.0044))
    axes.x_axis("step", range(0, total + 1, 500), "{:,}".format)
    axes.y_axis("learning rate", [0, 0.001, 0.002, 0.003, 0.004])
    axes.curve(range(total), rates, BLUE, 2.6)
    drawing.line([axes.point(warmup, 0), axes.point(warmup, peak)], GREY, 1, "3 3")
    axes.label(warmup, 0.0012, f"warm-up: {warmup} steps", GREY, 8, 0)
    axes.label(warmup, peak, f"peak {peak:g}", INK, 22, -9)
    axes.label(1050, rates[1050], "half a cosine", BLUE, 14, -6)
    drawing.line([axes.point(total, rates[-1]), axes.point(total, 0.001)], GREY, 1, "3 3")
    axes.label(total, 0.001, f"a twentieth: {rates[-1]:.1g}", INK, 6, -8, "end")
    drawing.dot(*axes.point(warmup, peak), BLUE)
    drawing.dot(*axes.point(total, rates[-1]), BLUE)
    drawing.save(path)


# With the trained model of tests/trained

def read(model: SimpleLLM, words: Sequence[str]) -> tuple[Array, list[Array]]:
    """(T, V) logits after some words, and who looked at whom (H, T, T) in each block."""
    tokenizer = StoryCorpus(World()).tokenizer
    looks: list[Array] = []

    def observe(stream: Array, attention: Array | None) -> None:
        if attention is not None:
            looks.append(attention[0].copy())
    ids = np.array([[tokenizer.ids[word] for word in words]])              # (1, T)
    return model.head.forward(model.run(ids, observe=observe))[0], looks


# Chapter 7: attention, on words

STORY = "<bos> anna went to the attic . ben took the key . what about anna ? the"


def draw_attention_words(model: SimpleLLM, path: Path) -> None:
    words = STORY.split()
    _, looks = read(model, words)
    last, asked, fact = len(words) - 1, len(words) - 3, words.index("attic")
    first, second = int(looks[0][:, last, asked].argmax()), int(looks[1][:, last, fact].argmax())
    drawing = Drawing(
        "Asked about anna: one head finds her name, the next finds the attic",
        "Heat maps of where two heads look from the last five words of a story and a question "
        "about anna: from the last word the head of layer 1 looks at the anna of the question, "
        "and the head of layer 2 at the attic of the story, which is the answer.",
        502, ["Row: the word that looks. Column: what it looks at. Darker is more; the numbers are",
              "percent. Red: the last word, after which “attic” must come."])
    left, width, high = 66, 37.4, 27
    for top, name, head, look, found in (
            (146, "Layer 1", first, looks[0], "from “the” to the person in the question"),
            (354, "Layer 2", second, looks[1], "from “the” to the fact of that person")):
        drawing.text(24, top - 34, f"{name}, head {head + 1}", INK, 15, bold=True)
        drawing.text(184, top - 34, found, INK, 14)
        for j, word in enumerate(words):
            drawing.text(left + (j + 0.5) * width, top - 7, word, size=12, anchor="middle")
        for row, i in enumerate(range(last - 4, last + 1)):
            y = top + row * high
            drawing.text(left - 8, y + 18, words[i], RED if i == last else INK, 13, "end",
                         i == last)
            for j in range(i + 1):
                share = look[head, i, j]
                drawing.cell(left + j * width, y, width, high, share,
                             f"{100 * share:.0f}" if share >= 0.005 else "", 13)
            drawing.line([(left, y), (left + (i + 1) * width, y)], GREY, 0.6)
        drawing.line([(left, top), (left, top + 5 * high)], GREY, 1)
        drawing.rect(left, top + 4 * high, len(words) * width, high, color=RED, stroke=2)
    drawing.save(path)


# Chapter 10: sampling

def draw_temperature(model: SimpleLLM, path: Path) -> None:
    words = "<bos> anna took the apple . eva took the".split()
    tokens = StoryCorpus(World()).tokenizer.tokens
    logits = read(model, words)[0][-1]                                     # (V,)
    order = np.argsort(-next_token_probabilities(logits), kind="stable")[:5]
    drawing = Drawing(
        "Temperature: cold sharpens the odds, heat flattens them",
        "The probabilities of the next word at three temperatures: cold gives nearly all to "
        "the likeliest word, heat gives some even to apple, which cannot come, and top-k and "
        "top-p cut it off.",
        400, ["What comes after “anna took the apple . eva took the”? Eva likes the key.",
              "The apple is taken and cannot come; a bold sampler may say it, unless it is cut."])
    for k, temperature in enumerate((0.5, 1.0, 2.0)):
        left = 56 + 224 * k
        axes = Axes(drawing, (left, 142, left + 205, 332), (0, 5), (0, 1))
        axes.y_axis("probability" if not k else "", [0, 0.25, 0.5, 0.75, 1] if not k else [])
        drawing.text(left + 102, 104, f"temperature {temperature:g}", INK, 15, "middle", bold=True)
        p = next_token_probabilities(logits, temperature)                  # (V,)
        for i, token in enumerate(order):
            x, y = axes.x(i + 0.5), axes.y(p[token])
            taken = tokens[token] == "apple"
            drawing.rect(x - 14, y, 28, axes.y(0) - y, RED if taken else BLUE)
            digits = 1 if 0.0005 <= p[token] < 0.01 else 0
            drawing.text(x, y - 6, f"{p[token]:.{digits}%}", RED if taken else INK, 12, "middle",
                         halo=True)
            drawing.text(x, 350, tokens[token], RED if taken else INK, 13, "middle", taken)
        drawing.line([axes.point(0, 0), axes.point(5, 0)], GREY, 1)
        if temperature == 1.0:
            for cut, name, y in (({"top_k": 3}, "top-k 3", 0.72),
                                 ({"top_p": 0.9}, "top-p 0.9", 0.5)):
                kept = int((next_token_probabilities(logits, **cut) > 0).sum())
                drawing.line([axes.point(kept, 0), axes.point(kept, y)], OCHRE, 2, "5 3")
                axes.label(kept, y, name, OCHRE, 0, -6, "middle")
    drawing.text(380, 378, "a cut keeps what is left of its dashed line", OCHRE, 13, "middle")
    drawing.save(path)


# Chapter 11: what it has learned

ASKED = "anna went to the attic . ben took the key . what about anna ?"


def draw_story(model: SimpleLLM, path: Path) -> None:
    tokens = StoryCorpus(World()).tokenizer.tokens
    drawing = Drawing(
        "One word of the story changes, and the answer follows",
        "The same question about anna after three stories that differ in one word, where anna "
        "went: each time the answer is the word that stands there, with nearly all of the "
        "probability.",
        330, ["Three stories with the same question; bars: the two likeliest words at the",
              "place of the answer."])
    for row, place in enumerate(("attic", "garden", "kitchen")):
        y, words = 98 + 74 * row, ASKED.replace("attic", place)
        drawing.text(24, y, words, INK, 15)
        p = softmax(read(model, f"<bos> {words} the".split())[0][-1])      # (V,)
        for k, token in enumerate(np.argsort(-p, kind="stable")[:2]):
            right, top = tokens[token] == place, y + 10 + 22 * k
            color = RED if right else BLUE
            drawing.text(128, top + 14, tokens[token], color, 14, "end", right)
            drawing.rect(136, top, max(1.0, 440 * p[token]), 17, color)
            drawing.text(144 + 440 * p[token], top + 14, f"{p[token]:.1%}", color, 13)
    drawing.save(path)


# Chapter 14: byte-pair encoding

SONG = "sing singing ringing ring ring"


def merged_song() -> list[tuple[str, list[list[str]]]]:
    """After each merge of the chapter's text: what was merged, and the chunks in pieces."""
    names = [chr(byte) if 32 < byte < 127 else "␣" for byte in ALPHABET]
    counts = Counter(cut_into_chunks(SONG))
    words = [byte_ids(chunk) for chunk in counts]
    rows = [("bytes", [[names[each] for each in word] for word in words])]
    for a, b in learn_merges_slowly(counts, 50):
        names.append(names[a] + names[b])
        words = [replace(word, (a, b), len(names) - 1) for word in words]
        rows.append((f"{names[a]} + {names[b]}", [[names[each] for each in word] for word in words]))
    return rows


def draw_merges(path: Path) -> None:
    rows = merged_song()
    drawing = Drawing(
        f"{len(rows) - 1} merges: “ing” is found without a word of grammar",
        "The four chunks of a text about singing, cut into bytes and then into ever larger "
        "pieces, a row for each merge: first in, then ing, then ring, and at last whole words.",
        130 + 46 * len(rows), ["The most frequent pair of neighbours becomes one piece; outlined: the "
                               "new one.", "␣ is a space; “ ring” occurs twice."])
    for row, (name, words) in enumerate(rows):
        y, new = 104 + 46 * row, name.replace(" + ", "")
        drawing.text(24, y + 19, name, INK, 14, bold=True)
        x = 132.0
        for word in words:
            for piece in word:
                wide = 10 + 9.5 * len(piece)
                fresh = row > 0 and piece == new
                drawing.rect(x, y, wide, 28, "#f6dcd9" if fresh else CARD, RED if fresh else GREY,
                             2 if fresh else 1, round_=4)
                drawing.text(x + wide / 2, y + 19, piece, INK, 14, "middle")
                x += wide + 2
            x += 14
    drawing.save(path)


# Chapter 15: real weights

def tiny_file() -> tuple[bytes, int]:
    """The chapter's safetensors file of two arrays, and the length of its header."""
    W, b = np.array([[0.5, -1.0, 2.0]], np.float32), np.array([3.0, 0.1], np.float32)
    with TemporaryDirectory() as directory:
        path = Path(directory, "tiny.safetensors")
        save_safetensors(path, {"W": W, "b": b})
        data = path.read_bytes()
    return data, int.from_bytes(data[:8], "little")


def draw_safetensors(path: Path) -> None:
    data, n = tiny_file()
    lines = -(-n // 24)
    drawing = Drawing(
        "A safetensors file: a length, a header in JSON, and the numbers",
        "All bytes of a file of two small arrays: first the length of the header, then the "
        "header, which names each array, its type, its shape and where its bytes lie, and "
        "then the numbers, four bytes each.",
        286 + 26 * lines, [f"All {len(data)} bytes of a file with the arrays W and b."])
    side, high, left = 28, 26, 24

    def cells(y: float, part: bytes, fill: str, show: Callable[[int], str]) -> None:
        for k, byte in enumerate(part):
            x, top = left + side * (k % 24), y + high * (k // 24)
            drawing.rect(x, top, side, high, fill, GREY, 0.8)
            if show(byte) != " ":
                drawing.text(x + side / 2, top + 17, show(byte), INK, 12, "middle")

    y = 104
    drawing.text(left, y - 9, f"8 bytes: the length of the header, {n}; in base 16, smallest first",
                 INK, 14)
    cells(y, data[:8], "#f3e3bf", "{:02x}".format)
    y += high + 40
    drawing.text(left, y - 9, f"{n} bytes: the header, filled up with spaces", INK, 14)
    cells(y, data[8 : 8 + n], "#dfe9f5", chr)
    y += high * lines + 40
    numbers = np.frombuffer(data[8 + n :], "<f4")                          # (5,)
    drawing.text(left, y - 9, f"{4 * len(numbers)} bytes: {len(numbers)} numbers of type F32",
                 INK, 14)
    cells(y, data[8 + n :], "#f6dcd9", "{:02x}".format)
    for k, value in enumerate(numbers):
        x = left + side * 4 * k
        drawing.line([(x + 4, y + high + 4), (x + 4, y + high + 9),
                      (x + 4 * side - 4, y + high + 9), (x + 4 * side - 4, y + high + 4)], INK, 1)
        name = f"W[0,{k}]" if k < 3 else f"b[{k - 3}]"
        drawing.text(x + 2 * side, y + high + 25, f"{name} = {value:g}".replace("-", "−"), INK, 13,
                     "middle")
    drawing.save(path)


def formats(value: float) -> dict[str, tuple[str, tuple[int, int], float]]:
    """A number in three formats: its bits, how many of exponent and fraction, its value."""
    single, half = np.float32(value), np.float16(value)
    bits = int(single.view(np.uint32))
    cut = np.uint32(bits >> 16 << 16).view(np.float32)
    return {"float32": (f"{bits:032b}", (8, 23), float(single)),
            "float16": (f"{int(half.view(np.uint16)):016b}", (5, 10), float(half)),
            "bfloat16": (f"{bits >> 16:016b}", (8, 7), float(cut))}


def draw_floats(path: Path) -> None:
    drawing = Drawing(
        "0.1 in three formats: bfloat16 is the upper half of float32",
        "The bits of the same number in three formats: bfloat16 keeps the sign, the exponent "
        "and the first bits of the fraction of float32; float16 has a shorter exponent and a "
        "longer fraction, and errs less.",
        372, ["Sign, exponent, fraction. Below each: the number that is really stored."])
    side, left, tints = 18.5, 104, ("#f6dcd9", "#f3e3bf", "#dfe9f5")
    for row, (name, (bits, (exponent, fraction), value)) in enumerate(formats(0.1).items()):
        y = 108 + 90 * row
        drawing.text(left - 12, y + 20, name, INK, 15, "end", bold=True)
        starts = (0, 1, 1 + exponent)
        for part, (start, count) in enumerate(zip(starts, (1, exponent, fraction))):
            for k in range(start, start + count):
                drawing.rect(left + side * k, y, side, 30, tints[part], GREY, 0.8)
                drawing.text(left + side * (k + 0.5), y + 20, bits[k], INK, 14, "middle")
            words = ("sign", f"exponent: {exponent}", f"fraction: {fraction} bits")[part]
            x = left + side * (start + count / 2)
            drawing.text(x - 10 * (part == 0), y - 8, words, GREY, 12, "middle")
        error = f", too small by {1 - value / 0.1:.2%}" if value < 0.1 else ""
        drawing.text(left, y + 48, f"= {value:.9f}{error}", INK, 14)
    x = left + 16 * side
    drawing.line([(x, 98), (x, 318)], RED, 2, "5 4")
    drawing.text(x + 8, 312, "right of this line, float32 alone has bits", RED, 13)
    drawing.save(path)


# Chapter 16: a model of today

PLACES = ((5, 3), (107, 105), (5, 4))                   # of a query and a key


def draw_rope(path: Path) -> None:
    cos, sin = rotary_angles(108, 4, 100.0)                                # (108, 2) each
    q, k = np.array([1.0, 0.5, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.0])
    drawing = Drawing(
        "Both hands turn together: only the distance counts",
        "The two hands of a query and of a key at three pairs of positions. At the first two the "
        "positions are 2 apart, the hands point elsewhere, and the angle between them and the "
        "score are the same; at the third they are 1 apart, and both differ.",
        424, ["Solid: the query, dashed: the key. One clock for each pair of elements of a head."])
    for row, (name, i) in enumerate((("1 radian a token", 0), ("0.1 radian a token", 1))):
        y = 152 + 128 * row
        drawing.text(24, y - 2, "the fast hand" if not row else "the slow hand", INK, 14, bold=True)
        drawing.text(24, y + 17, name, GREY, 13)
        for column, (a, b) in enumerate(PLACES):
            x = 262 + 180 * column
            drawing.dot(x, y, GREY, 50, CARD)
            drawing.line([(x + 50, y), (x + 44, y)], GREY, 1)              # where no angle begins
            for vector, t, color, dashes in ((q, a, BLUE, SOLID), (k, b, RED, "5 3")):
                u, v = rotate(vector, cos[t], sin[t])[[i, i + 2]]
                long = 42 / np.hypot(u, v)
                drawing.arrow([(x, y), (x + long * u, y - long * v)], color, 2.6, dashes)
    for column, (a, b) in enumerate(PLACES):
        x, score = 262 + 180 * column, rotate(q, cos[a], sin[a]) @ rotate(k, cos[b], sin[b])
        drawing.text(x, 358, f"query at {a}, key at {b}", INK, 13, "middle")
        drawing.text(x, 378, f"{a - b} apart: score {score:.2f}", INK, 14, "middle", bold=True)
    drawing.text(24, 408, "Each hand is drawn equally long; the score is the sum over both clocks "
                 "of length times length times cosine.", GREY, 12)
    drawing.save(path)


def rounds_of(s: Array, count: int) -> Array:
    """What some rounds of Newton-Schulz make of singular values."""
    a, b, c = COEFFICIENTS
    for _ in range(count):
        s = a * s + b * s**3 + c * s**5
    return s


def draw_newton_schulz(path: Path) -> None:
    s = np.geomspace(1e-4, 1, 1201)
    after = rounds_of(s, 5)
    drawing = Drawing(
        "Five rounds lift every singular value above 0.003 to about 1",
        "Singular values before and after one, three and five rounds of the polynomial. After "
        f"five, all that were above 0.003 lie between {after[s >= 0.003].min():.2f} and "
        f"{after[s >= 0.003].max():.2f}; smaller ones have been made 485 times as large.",
        400, ["Before (to the right, each mark ten times the last) and after (upwards)."])
    axes = Axes(drawing, (64, 96, 560, 336), (1e-4, 1), (0, 1.25), log_x=True)
    axes.x_axis("singular value before, as a share of the matrix", [1e-4, 1e-3, 1e-2, 0.1, 1])
    axes.y_axis("after", [0, 0.25, 0.5, 0.75, 1])
    axes.curve([1e-4, 1], [1, 1], GREY, 1, DOTTED)
    axes.curve(s, s, GREY, 1.5, "2 3")
    for count, color, dashes in ((1, OCHRE, DOTTED), (3, RED, DASHED), (5, BLUE, SOLID)):
        axes.curve(s, rounds_of(s, count), color, 2.4, dashes)
    for words, color, y in (("after five rounds", BLUE, 0.95), ("after three", RED, 0.78),
                            ("after one", OCHRE, 0.61), ("before", GREY, 0.44)):
        drawing.text(580, axes.y(y), words, color, 14)
    drawing.save(path)


# Chapter 17: a real chat model

def draw_quantization(model: SimpleLLM, path: Path) -> None:
    w = model.blocks[0].feed_forward.widen.weight.data[:32, 0]             # (32,)
    coarse, (low, high) = quantize(w, 4), (w.min(), w.max())
    levels = np.linspace(low, high, 16)                                    # (16,)
    drawing = Drawing(
        "32 weights in four bits: each goes to the nearest of 16 levels",
        "The 32 weights of a block from the trained model, as rings, and the levels, from the "
        "smallest weight to the largest, to which they are moved, as dots: none moves by more "
        f"than half a step, which is {(high - low) / 30:.3f}.",
        432, ["Rings: the weights of one block; dots: what four bits make of them. On the right",
              "the number that is stored; the block keeps its smallest weight m and the step d."])
    axes = Axes(drawing, (88, 112, 640, 400), (-1, 32), (low, high))
    for number, level in enumerate(levels):
        axes.curve([-1, 32], [level, level], GREY, 0.6)
        drawing.text(652, axes.y(level) + 4, str(number), GREY, 12)
    for place, (exact, near) in enumerate(zip(w, coarse)):
        axes.curve([place, place], [exact, near], RED, 1.6)
        drawing.dot(axes.x(place), axes.y(near), BLUE, 3.4)
        drawing.dot(axes.x(place), axes.y(exact), INK, 4.5, "none")
    drawing.text(80, axes.y(low) + 4, f"m = {plain(round(float(low), 2))}", INK, 13, "end")
    drawing.text(80, axes.y(high) + 4, f"{plain(round(float(high), 2))}", INK, 13, "end")
    drawing.save(path)


def main(out: str, trained: str = "") -> None:
    if trained:
        model = SimpleLLM.from_pretrained(trained)
        for name, draw in WITH_MODEL.items():
            draw(model, Path(out) / name)
    else:
        for name, draw in ALONE.items():
            draw(Path(out) / name)


ALONE: dict[str, Callable[[Path], None]] = {
    "table.svg": draw_table, "odds.svg": draw_odds, "batch.svg": draw_batch,
    "ladder.svg": draw_ladder, "tangent.svg": draw_tangent, "gelu.svg": draw_gelu,
    "layernorm.svg": draw_layernorm, "mask.svg": draw_mask, "model.svg": draw_model,
    "softmax.svg": draw_softmax, "merges.svg": draw_merges, "clocks.svg": draw_clocks, "valley.svg": draw_valley, "schedule.svg": draw_schedule,
    "safetensors.svg": draw_safetensors, "floats.svg": draw_floats, "rope.svg": draw_rope,
    "newton-schulz.svg": draw_newton_schulz,
}
WITH_MODEL: dict[str, Callable[[SimpleLLM, Path], None]] = {
    "attention-words.svg": draw_attention_words, "temperature.svg": draw_temperature,
    "quantization.svg": draw_quantization, "story.svg": draw_story,
}

if __name__ == "__main__":
    if not 1 < len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
