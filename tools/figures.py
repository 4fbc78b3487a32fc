"""The figures of chapter 13: python tools/figures.py MODEL DIRECTORY, or MODEL looks.

The second prints the table of looks instead. Needs build/ (make tangle), and NumPy alone.
"""
from __future__ import annotations

import os
import sys
from html import escape
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")    # before NumPy

import numpy as np  # noqa: E402

from simple_llm.corpus import StoryCorpus, World  # noqa: E402
from chart import Chart  # noqa: E402
from simple_llm.inside import (  # noqa: E402
    ablate, logit_lens, look_inside, principal_components, similarity_by_distance,
    three_looks,
)
from simple_llm.layers import Array  # noqa: E402
from simple_llm.model import SimpleLLM, sinusoids  # noqa: E402
from simple_llm.tokenizer import Tokenizer  # noqa: E402

EXAMPLE = "anna took the apple . ben went to the kitchen . cleo took the bell . " \
          "what about ben ? the"


def draw_bars(
    path: Path, title: str, groups: dict[str, dict[str, float]], best: set[str]
) -> None:
    """Groups of labelled bars, each a share of 1; some of them in another colour."""
    chart = Chart(title, sum(len(bars) + 1 for bars in groups.values()), (0, 1.15))
    place = 0.5
    for group, bars in groups.items():
        middle = chart.x(place + len(bars) / 2)
        chart.text(middle, chart.height - 14, group, anchor="middle")
        for label, value in bars.items():
            x, color = chart.x(place + 0.5), "#b3312c" if label in best else "#1f5fa8"
            chart.line([x, x], [chart.y(0), chart.y(value)], f"{color} 22 none")
            chart.text(x, chart.y(0) + 16, label, anchor="middle")
            chart.text(x, chart.y(value) - 6, f"{value:.0%}", color, anchor="middle")
            place += 1
        place += 1
    chart.save(path)


def draw_attention(
    path: Path, words: Sequence[str], looks: Sequence[tuple[int, Array, str, str]]
) -> None:
    """Arcs from a position to those it looks at: (from, weights (T,), color, name)."""
    chart, base = Chart("Who looks at whom", 0.76 * len(words), (0, 1)), 350
    for t, word in enumerate(words):
        chart.parts.append(
            f'<text transform="translate({chart.x(t + 1):.0f},{base + 14}) '
            f'rotate(-60)" font-size="12" text-anchor="end">{escape(word)}</text>')
    for i, (place, weights, color, name) in enumerate(looks):
        chart.text(chart.left, 52 + 16 * i, f"— {name}" if name else "", color)
        for t in np.flatnonzero(weights > 0.05):
            x0, x1 = chart.x(place + 1), chart.x(t + 1)
            peak = f"{(x0 + x1) / 2:.0f},{base - 10 - abs(x0 - x1) * 0.8:.0f}"
            chart.parts.append(
                f'<path d="M{x0:.0f},{base} Q{peak} {x1:.0f},{base}" fill="none" '
                f'stroke="{color}" stroke-width="{6 * weights[t]:.1f}"/>')
    chart.save(path)


KINDS = {"person": "#1f5fa8", "place": "#b3312c", "thing": "#b87503",
         "other": "#8a8577"}


def kind_of(token: str, world: World) -> str:
    """Which kind of word of the small world a token is."""
    kinds = (world.people, world.places, world.things)
    return next((kind for kind, words in zip(KINDS, kinds) if token in words), "other")


def draw_embeddings(path: Path, model: SimpleLLM, tokens: Sequence[str]) -> None:
    """The tokens' vectors along their two principal components."""
    points = principal_components(model.tokens.weight.data[4:])        # the words
    low, high = points.min(axis=0), points.max(axis=0)
    chart = Chart("The words, seen from where they differ most", 1, (0, 1))
    for token, point in zip(tokens[4:], (points - low) / (high - low)):
        color = KINDS[kind_of(token, World())]
        x, y = chart.x(point[0]), chart.y(point[1])
        chart.dot(x, y, color)
        chart.text(x + 7, y + 4, token, color)
    for i, (kind, color) in enumerate(KINDS.items()):
        chart.text(chart.x(1.18), chart.top + 18 * i, f"• {kind}", color)
    chart.save(path)


def draw_positions(path: Path, model: SimpleLLM) -> None:
    """How alike two positions are, by their distance."""
    chart = Chart("Mean cosine of two positions, by their distance", 40, (0, 1))
    for tick in (0, 10, 20, 30, 40):
        chart.text(chart.x(tick), chart.height - 28, str(tick), anchor="middle")
    for tick in (0, 0.5, 1):
        chart.text(chart.left - 8, chart.y(tick) + 4, f"{tick:g}", anchor="end")
    L = len(model.positions.weight.data)
    starts = {"after training": (model.positions.weight.data, "#1f5fa8 2.5 none"),
              "at the start": (sinusoids(L, model.config.d_model), "#8a8577 1.5 4 4")}
    for i, (name, (rows, style)) in enumerate(starts.items()):
        similar = similarity_by_distance(rows)[:41]                    # (41,)
        chart.line([chart.x(k) for k in range(len(similar))],
                   [chart.y(max(0.0, value)) for value in similar], style)
        chart.text(chart.x(25), chart.top + 18 * i, f"— {name}", style.split()[0])
    chart.save(path)


def draw_all(model: SimpleLLM, corpus: StoryCorpus, directory: Path) -> None:
    """Every figure of the chapter, for one model."""
    words = ["<bos>", *EXAMPLE.split()]
    view = look_inside(model, [Tokenizer.bos, *corpus.tokenizer.encode(EXAMPLE)])
    means = three_looks(model, corpus, corpus.held_out[:100])
    subject = int(means["fact to person"][0].argmax())           # a head of layer 1
    reader = int(means["answer to fact"][-1].argmax())           # and one of layer 2
    last, fact = len(words) - 1, words.index("kitchen")
    draw_attention(directory / "attention.svg", words, [
        (last, view.weights[-1, reader, last], "#1f5fa8",
         f"layer 2, head {reader + 1}"),
        (fact, view.weights[0, subject, fact], "#b3312c",
         f"layer 1, head {subject + 1}"),
        (last, view.weights[0, subject, last], "#b3312c", ""),
    ])
    lens, depths = {}, ["tokens and positions", "after block 1", "after block 2"]
    for depth, p in zip(depths, logit_lens(model, view.streams)[:, -1]):       # (V,)
        likeliest = np.argsort(-p, kind="stable")[:4]
        lens[depth] = {corpus.tokenizer.tokens[id]: float(p[id]) for id in likeliest}
    draw_bars(directory / "lens.svg", f'What would be said after "... {EXAMPLE[-20:]}"',
              lens, {"kitchen"})
    heads = {f"layer {layer + 1}": {f"head {head + 1}": float(share)
                                    for head, share in enumerate(row)}
             for layer, row in enumerate(ablate(model, corpus))}
    draw_bars(directory / "heads.svg", "Questions answered without each head", heads, set())
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
