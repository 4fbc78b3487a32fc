"""Charts as SVG, for figures.py and bench.py."""
from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Sequence

from simple_llm.checkpoint import write_atomically


class Chart:
    """A line chart as SVG; its y axis is logarithmic unless it begins at 0."""

    width, height, left, right, top, bottom = 720, 420, 56, 176, 64, 48

    def __init__(self, title: str, most_x: float, ys: tuple[float, float]) -> None:
        self.most_x, self.ys = most_x, ys
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} '
            f'{self.height}" font-family="Georgia, serif" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{self.width}" height="{self.height}" rx="8" '
            'fill="#fffdf8"/>',
        ]
        self.text(self.left, 28, title, size=16)

    def x(self, value: float) -> float:
        """Pixels from the left for a value on the x axis."""
        return self.left + (self.width - self.left - self.right) * value / self.most_x

    def y(self, value: float) -> float:
        """Pixels from the top for a value on the y axis."""
        low, high = self.ys
        if not low:
            return self.y_share(value / high)
        return self.y_share(math.log(value / low) / math.log(high / low))

    def y_share(self, share: float) -> float:
        """Pixels from the top for a share of the axis's height: 0 bottom, 1 top."""
        return self.top + (self.height - self.top - self.bottom) * (1 - share)

    def text(
        self, x: float, y: float, words: str, color: str = "#333", size: int = 12,
        anchor: str = "start",
    ) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        """A line through points in pixels; the style is color, width and dashes."""
        color, width, dashes = style.split(" ", 2)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys))
        self.parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" '
            f'stroke-width="{width}" stroke-dasharray="{dashes}"/>'
        )

    def dot(self, x: float, y: float, color: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')

    def save(self, path: Path) -> None:
        write_atomically(path, "\n".join([*self.parts, "</svg>", ""]).encode())
