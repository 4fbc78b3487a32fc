"""The figures of "Looking inside": python tools/figures.py MODEL DIRECTORY, or MODEL looks.

The second prints the table of looks instead. Needs build/ (make tangle), and NumPy alone.
"""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Callable, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from chart import (  # noqa: E402
    BLUE, CARD, DASHED, GREY, INK, OCHRE, RED, SOLID, Axes, Drawing, apart,
)
from simple_llm.inside import (  # noqa: E402
    ablate, logit_lens, look_inside, principal_components, similarity_by_distance,
    three_looks,
)
from simple_llm.layers import Array  # noqa: E402
from simple_llm.model import SimpleLLM, sinusoids  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402
from simple_llm.world import StoryCorpus, World  # noqa: E402

EXAMPLE = "anna took the apple . ben went to the kitchen . cleo took the bell . " \
          "what about ben ? the"


def draw_bars(
    path: Path, drawing: Drawing, groups: dict[str, dict[str, float]],
    stands_out: Callable[[str, float], bool], name: str,
) -> None:
    """Groups of labelled bars, each a share of 1; some of them in another colour."""
    count = sum(len(bars) + 0.6 for bars in groups.values()) - 0.6
    axes = Axes(drawing, (40, 116, 690, 330), (0, count), (0, 1))
    drawing.text(24, 92, name, GREY, 13)
    drawing.line([axes.point(0, 0), axes.point(count, 0)], GREY, 1)
    start = 0.0
    for group, bars in groups.items():
        drawing.text(axes.x(start + len(bars) / 2), 376, group, INK, 14, "middle", bold=True)
        for i, (label, value) in enumerate(bars.items()):
            x, best = axes.x(start + i + 0.5), stands_out(label, value)
            color = RED if best else BLUE
            y = axes.y(value)
            drawing.rect(x - 15, y, 30, axes.y(0) - y, color)
            drawing.text(x, 350, label, color if best else INK, 13, "middle", best)
            drawing.text(x, y - 7, f"{value:.0%}", color, 13, "middle")
        start += len(bars) + 0.6
    drawing.save(path)


def draw_attention(
    path: Path, words: Sequence[str],
    looks: Sequence[tuple[int, Array, str, str, str]],
) -> None:
    """Arcs from a position to those it looks at: (from, weights (T,), color, dashes, name)."""
    drawing = Drawing(
        "Layer 1 joins fact and person; layer 2 follows to the fact",
        "Arcs over a story with a question: from the place of the answer a head of layer 2 "
        "goes to the fact that is asked for, and a head of layer 1 goes from the fact to its "
        "person and from the place of the answer to the person in the question.",
        384, ["From right to left: who looks, and at whom. Thick is much attention."])
    axes, base = Axes(drawing, (40, 90, 690, 310), (0, len(words) - 1), (0, 1)), 310
    for t, word in enumerate(words):
        drawing.text(axes.x(t) + 4, base + 16, word, INK, 13, "end", turn=-55)
    for looker, weights, color, dashes, name in looks:
        for t in np.flatnonzero(weights > 0.05):
            x0, x1 = axes.x(looker), axes.x(t)
            high = 10 + abs(x0 - x1) * 0.8
            drawing.path(f"M{x0:.0f},{base} Q{(x0 + x1) / 2:.0f},{base - high:.0f} "
                         f"{x1:.0f},{base}", color, max(1.0, 6 * float(weights[t])), dashes)
        t = int(weights.argmax())
        x0, x1, words_there = axes.x(looker), axes.x(t), f"{name}: {weights[t]:.0%}"
        if abs(x0 - x1) < 100:                         # beside a short arc, above a long one
            drawing.text(min(x0, x1) - 6, base - 14, words_there, color, 13, "end", halo=True)
        else:
            drawing.text((x0 + x1) / 2, base - 13 - abs(x0 - x1) * 0.4, words_there, color, 13,
                         "middle", halo=True)
    drawing.save(path)


KINDS = {"person": BLUE, "place": RED, "thing": OCHRE, "other": GREY}


def kind_of(token: str, world: World) -> str:
    """Which kind of word of the small world a token is."""
    kinds = (world.people, world.places, world.things)
    return next((kind for kind, words in zip(KINDS, kinds) if token in words), "other")


def mark(drawing: Drawing, x: float, y: float, kind: str) -> None:
    """A mark for a kind of word: dot, square, triangle, ring."""
    color = KINDS[kind]
    if kind == "place":
        drawing.rect(x - 4, y - 4, 8, 8, color)
    elif kind == "thing":
        drawing.path(f"M{x:.0f},{y - 5:.0f} l5.5,9 h-11 z", color, 1, fill=color)
    else:
        drawing.dot(x, y, color, 4, CARD if kind == "other" else None)


def draw_embeddings(path: Path, model: SimpleLLM, tokens: Sequence[str]) -> None:
    """The tokens' vectors along their two principal components."""
    points = principal_components(model.tokens.weight.data[4:])        # the words
    points *= np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])   # a fixed sign
    low, high = points.min(axis=0), points.max(axis=0)
    drawing = Drawing(
        "People, places and things: nobody told it which is which",
        "The words of the small world by the two principal components of their vectors: "
        "people, places and things stand in three groups apart, with the other words "
        "between them.",
        464, ["Each word's vector of 64 numbers, seen from where the words differ most."])
    axes = Axes(drawing, (48, 108, 622, 404), (low[0], high[0]), (low[1], high[1]))
    drawing.text(344, 444, "first principal component", GREY, 13, "middle")
    drawing.text(24, 250, "second principal component", GREY, 13, "middle", turn=-90)
    drawing.line([(40, 84), (40, 420), (704, 420)], GREY, 1)
    for kind in KINDS:
        group = [(token, axes.x(x), axes.y(y)) for token, (x, y) in zip(tokens[4:], points)
                 if kind_of(token, World()) == kind]
        if kind == "other":
            places = [(x + 8, y + 4) for _, x, y in group]
        else:                                          # a column of labels beside the group
            right = max(x for _, x, _ in group) + 22
            places = [(right, y + 4) for y in apart([y for _, _, y in group], 16)]
            drawing.text(right + 4, min(y for _, y in places) - 18, {
                "person": "people", "place": "places", "thing": "things"}[kind],
                KINDS[kind], 14, bold=True)
        for (token, x, y), (label_x, label_y) in zip(group, places):
            if kind != "other":
                drawing.line([(x + 5, y), (label_x - 3, label_y - 4)], KINDS[kind], 0.7)
            mark(drawing, x, y, kind)
            drawing.text(label_x, label_y, token, KINDS[kind], 13)
    drawing.save(path)


def draw_positions(path: Path, model: SimpleLLM) -> None:
    """How alike two positions are, by their distance."""
    drawing = Drawing(
        "Neighbours are alike, before training and after",
        "The mean cosine of two positions falls with their distance, at the start and after "
        "training alike; training has changed it little.",
        400, ["How alike the vectors of two positions are, by the distance between the two."])
    axes = Axes(drawing, (64, 106, 690, 340), (0, 40), (0, 1))
    axes.x_axis("distance of the two positions, in tokens", [0, 10, 20, 30, 40])
    axes.y_axis("mean cosine", [0, 0.25, 0.5, 0.75, 1])
    L = len(model.positions.weight.data)
    rows = {"at the start": sinusoids(L, model.config.d_model),
            "after training": model.positions.weight.data}
    lines = {name: np.maximum(0, similarity_by_distance(each)[:41])    # (41,)
             for name, each in rows.items()}
    for (name, line), color, dashes in zip(lines.items(), (RED, BLUE), (DASHED, SOLID)):
        axes.curve(range(len(line)), line, color, 2.4, dashes)
    axes.label(24, lines["at the start"][24], "at the start", RED, 0, -12)
    axes.label(6, lines["after training"][6], "after training", BLUE, 12, 0)
    drawing.save(path)


def draw_all(model: SimpleLLM, corpus: StoryCorpus, directory: Path) -> None:
    """Every figure of the chapter, for one model."""
    words = ["<bos>", *EXAMPLE.split()]
    view = look_inside(model, [Tokenizer.bos, *corpus.tokenizer.encode(EXAMPLE)])
    means = three_looks(model, corpus, corpus.held_out[:100])
    subject = int(means["fact to person"][0].argmax())           # a head of layer 1
    reader = int(means["answer to fact"][-1].argmax())           # and one of layer 2
    last, fact = len(words) - 1, words.index("kitchen")
    first, second = f"layer 1, head {subject + 1}", f"layer 2, head {reader + 1}"
    draw_attention(directory / "attention.svg", words, [
        (last, view.attention[-1, reader, last], BLUE, SOLID, second),
        (fact, view.attention[0, subject, fact], RED, "10 3", first),
        (last, view.attention[0, subject, last], RED, "10 3", first),
    ])
    lens, depths = {}, ["tokens and positions", "after block 1", "after block 2"]
    for depth, p in zip(depths, logit_lens(model, view.streams)[:, -1]):       # (V,)
        likeliest = np.argsort(-p, kind="stable")[:4]
        lens[depth] = {corpus.tokenizer.tokens[token]: float(p[token]) for token in likeliest}
    draw_bars(directory / "lens.svg", Drawing(
        "Undecided after the first block, certain after the second",
        "The four likeliest words at the place of the answer, at each depth: at first the "
        "word that stands there itself, after the first block several, after the second "
        "kitchen, the answer, alone.",
        396, [f'What would be said after "... {EXAMPLE[-20:]}", if the model ended there. '
              "Red: the answer."]),
        lens, lambda word, share: word == "kitchen", "probability")
    answered = ablate(model, corpus)                                       # (n, H)
    heads = {f"layer {layer + 1}": {f"head {head + 1}": float(share)
                                    for head, share in enumerate(row)}
             for layer, row in enumerate(answered)}
    draw_bars(directory / "heads.svg", Drawing(
        "Few heads matter, and those matter much",
        "The share of questions that are answered when one head is taken away: without head 1 "
        "of layer 1 most answers are lost, without head 2 half, without any other few or "
        "none.",
        396, ["What is still answered when one head is taken away. Red: less than half."]),
        heads, lambda head, share: share < 0.5, "questions answered")
    draw_embeddings(directory / "embeddings.svg", model, corpus.tokenizer.tokens)
    draw_positions(directory / "positions.svg", model)


def main(directory: str, what: str) -> None:
    model, corpus = SimpleLLM.from_pretrained(directory), StoryCorpus(World())
    if what != "looks":
        return draw_all(model, corpus, Path(what))
    for name, means in three_looks(model, corpus, corpus.held_out).items():
        print(f"{name:26}" + "".join(f"  layer {layer + 1}:" + "".join(
            f"{share:5.0%}" for share in row) for layer, row in enumerate(means)))


if __name__ == "__main__":
    main(*sys.argv[1:])
