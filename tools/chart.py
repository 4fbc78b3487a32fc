"""Drawings and charts as SVG, for pictures.py, figures.py and bench.py.

All have their own light card, whatever the page's colour. Words on them have a contrast of
at least 4.5 to 1, lines of 3 to 1, and colours are never alone: a line has its dashes and
its label, too. Coordinates are rounded, so that the same arrays give the same bytes.
"""
from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Callable, Iterable, Sequence

CARD = "#fffdf8"
INK, GREY = "#2b2b2b", "#666159"
BLUE, RED, OCHRE = "#1f5fa8", "#a82a26", "#855600"
SOLID, DASHED, DOTTED = "none", "9 5", "2 4"


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{round(float(value), 1) + 0.0:.1f}".removesuffix(".0")


def plain(value: float) -> str:
    """A value on an axis, with a true minus."""
    return f"{value:g}".replace("-", "−")


def luminance(color: str) -> float:
    """How bright a colour is, from 0 to 1, by the definition of WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def shade(share: float, dark: str = "#143c6e") -> str:
    """The colour of a share in a heat map: 0 is the card, 1 is dark."""
    share = round(min(1.0, max(0.0, float(share))), 2)
    mixed = [round(int(CARD[i : i + 2], 16) * (1 - share) + int(dark[i : i + 2], 16) * share)
             for i in (1, 3, 5)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def ink_on(color: str) -> str:
    """The colour for words on a colour."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, color))


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Heights of labels, in their order, moved so that none covers another."""
    order, moved = sorted(range(len(heights)), key=heights.__getitem__), [*map(float, heights)]
    for _ in range(100):
        for low, high in zip(order, order[1:]):
            lack = least - (moved[high] - moved[low])
            if lack > 0.01:
                moved[low], moved[high] = moved[low] - lack / 2, moved[high] + lack / 2
    return moved


class Drawing:
    """A card with a heading, on which things are drawn in pixels from its upper left."""

    width = 720

    def __init__(
        self, title: str, description: str, height: int, explain: Sequence[str] = ()
    ) -> None:
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height}" '
            'font-family="Georgia, serif" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f'<rect width="{self.width}" height="{height}" rx="8" fill="{CARD}"/>',
        ]
        self.text(24, 32, title, size=17, bold=True)
        for i, line in enumerate(explain):
            self.text(24, 55 + 18 * i, line, GREY, size=13)

    def text(
        self, x: float, y: float, words: str, color: str = INK, size: int = 12,
        anchor: str = "start", bold: bool = False, italic: bool = False,
        halo: bool = False, turn: float = 0,
    ) -> None:
        """Words, whose baseline begins (or has its middle, or its end) at x, y."""
        where = (f'transform="translate({number(x)} {number(y)}) rotate({number(turn)})"'
                 if turn else f'x="{number(x)}" y="{number(y)}"')
        more = (' font-weight="bold"' if bold else "") + (
            ' font-style="italic"' if italic else "") + (
            f' paint-order="stroke" stroke="{CARD}" stroke-width="5" '
            'stroke-linejoin="round"' if halo else "")
        self.parts.append(f'<text {where} fill="{color}" font-size="{size}" '
                          f'text-anchor="{anchor}"{more}>{escape(words, quote=False)}</text>')

    def path(
        self, data: str, color: str = INK, width: float = 1.5, dashes: str = SOLID,
        fill: str = "none",
    ) -> None:
        dashed = "" if dashes == SOLID else f' stroke-dasharray="{dashes}"'
        self.parts.append(f'<path d="{data}" fill="{fill}" stroke="{color}" '
                          f'stroke-width="{number(width)}"{dashed}/>')

    def line(
        self, points: Iterable[tuple[float, float]], color: str = INK, width: float = 1.5,
        dashes: str = SOLID,
    ) -> None:
        """A line through points."""
        self.path("M" + " ".join(f"{number(x)},{number(y)}" for x, y in points),
                  color, width, dashes)

    def arrow(
        self, points: Sequence[tuple[float, float]], color: str = INK, width: float = 1.5,
        dashes: str = SOLID, size: float = 8,
    ) -> None:
        """A line through points, with a head at its end."""
        (x0, y0), (x1, y1) = points[-2], points[-1]
        long = math.hypot(x1 - x0, y1 - y0)
        a, b = (x1 - x0) / long * size, (y1 - y0) / long * size
        self.line([*points[:-1], (x1 - a, y1 - b)], color, width, dashes)
        corners = [(x1, y1), (x1 - a - b / 2, y1 - b + a / 2), (x1 - a + b / 2, y1 - b - a / 2)]
        triangle = " ".join(f"{number(x)},{number(y)}" for x, y in corners)
        self.parts.append(f'<polygon points="{triangle}" fill="{color}"/>')

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str = "none",
        color: str = "none", stroke: float = 1, dashes: str = SOLID, round_: float = 0,
    ) -> None:
        more = "" if color == "none" else f' stroke="{color}" stroke-width="{number(stroke)}"'
        more += "" if dashes == SOLID else f' stroke-dasharray="{dashes}"'
        more += f' rx="{number(round_)}"' if round_ else ""
        self.parts.append(f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" '
                          f'height="{number(height)}" fill="{fill}"{more}/>')

    def dot(
        self, x: float, y: float, color: str = INK, radius: float = 4,
        fill: str | None = None,
    ) -> None:
        """A dot, or with a fill of its own a ring."""
        more = "" if fill is None else f' stroke="{color}" stroke-width="1.5"'
        self.parts.append(f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" '
                          f'fill="{color if fill is None else fill}"{more}/>')

    def cell(
        self, x: float, y: float, width: float, height: float, share: float, words: str = "",
        size: int = 12, bold: bool = False,
    ) -> None:
        """A cell of a heat map; nothing at all in it is a small point."""
        color = shade(share)
        if color != CARD:
            self.rect(x, y, width, height, fill=color)
        if words:
            self.text(x + width / 2, y + height / 2 + size * 0.36, words, ink_on(color), size,
                      "middle", bold)
        elif share < 0.005:
            self.dot(x + width / 2, y + height / 2, GREY, 0.8)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("\n".join([*self.parts, "</svg>", ""]).encode())


class Axes:
    """A rectangle of a drawing, left, top, right, bottom, with an x and a y axis."""

    def __init__(
        self, drawing: Drawing, box: tuple[float, float, float, float],
        xs: tuple[float, float], ys: tuple[float, float], log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        self.drawing, self.box = drawing, box
        left, top, right, bottom = box
        self.x = self.scale(xs, (left, right), log_x)
        self.y = self.scale(ys, (bottom, top), log_y)

    @staticmethod
    def scale(
        values: tuple[float, float], pixels: tuple[float, float], logarithmic: bool
    ) -> Callable[[float], float]:
        """From values to pixels."""
        bend = math.log if logarithmic else float
        low, high = map(bend, values)
        start, end = pixels
        return lambda value: start + (end - start) * (bend(value) - low) / (high - low)

    def point(self, x: float, y: float) -> tuple[float, float]:
        return self.x(x), self.y(y)

    def x_axis(
        self, name: str, ticks: Sequence[float], show: Callable[[float], str] = plain,
        at: float | None = None,
    ) -> None:
        """The axis at the bottom (or at a value of y), its ticks, and its name."""
        left, _, right, bottom = self.box
        y = bottom if at is None else self.y(at)
        self.drawing.line([(left, y), (right, y)], GREY, 1)
        for tick in ticks:
            self.drawing.line([(self.x(tick), y), (self.x(tick), y + 5)], GREY, 1)
            self.drawing.text(self.x(tick), y + 18, show(tick), anchor="middle")
        self.drawing.text((left + right) / 2, max(y, bottom) + 38, name, GREY, 13, "middle")

    def y_axis(
        self, name: str, ticks: Sequence[float], show: Callable[[float], str] = plain,
        right: bool = False,
    ) -> None:
        """The axis on the left (or on the right), its ticks, and its name above it."""
        x = self.box[2 if right else 0]
        out, anchor = (5, "start") if right else (-5, "end")
        self.drawing.line([(x, self.box[1]), (x, self.box[3])], GREY, 1)
        for tick in ticks:
            self.drawing.line([(x, self.y(tick)), (x + out, self.y(tick))], GREY, 1)
            self.drawing.text(x + 1.8 * out, self.y(tick) + 4, show(tick), anchor=anchor)
        self.drawing.text(x + 30 if right else x - 30, self.box[1] - 12, name, GREY, 13,
                          "end" if right else "start")

    def curve(
        self, xs: Iterable[float], ys: Iterable[float], color: str = BLUE, width: float = 2.2,
        dashes: str = SOLID,
    ) -> None:
        self.drawing.line([self.point(x, y) for x, y in zip(xs, ys)], color, width, dashes)

    def label(
        self, x: float, y: float, words: str, color: str, dx: float = 8, dy: float = 4,
        anchor: str = "start", size: int = 13, bold: bool = False,
    ) -> None:
        """Words beside a point, in the colour of its line."""
        self.drawing.text(self.x(x) + dx, self.y(y) + dy, words, color, size, anchor, bold,
                          halo=True)
