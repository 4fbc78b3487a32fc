"""The charts of bench.py: drawn from what it has measured."""
from __future__ import annotations

from pathlib import Path
from typing import Mapping

from chart import BLUE, RED, Axes, Drawing


def draw_roofline(
    path: Path, peak: float, memory: float, jobs: Mapping[str, tuple[float, float]]
) -> None:
    """Jobs by name, each (operations per byte, operations per second), under the limits.

    The limits are the best that was seen, of the jobs too: `peak` operations per second at
    least, and `memory` bytes per second.
    """
    peak = max(peak, *(rate for _, rate in jobs.values())) / 1e9
    memory = max(memory, *(rate / ratio for ratio, rate in jobs.values())) / 1e9
    drawing = Drawing(
        "Starved below the slope, busy under the roof",
        "What some jobs of a training step reach on one core, by how much they compute for "
        "each byte: a large product touches the flat roof, long sums lie on the slope, and "
        "what starts many short loops stays far below both.",
        440, ["What some jobs reach on one core, and two limits: the best rates that were seen."])
    low, high = 0.03, 100.0
    axes = Axes(drawing, (72, 104, 690, 376), (low, high), (0.3, 2 * peak), True, True)
    axes.x_axis("operations per byte of input and output", [0.1, 1, 10, 100])
    axes.y_axis("billion operations per second", [tick for tick in (1, 10, 100) if tick < peak])
    corner = peak / memory
    axes.curve([low, corner, high], [low * memory, peak, peak], RED, 2.5)
    drawing.text(axes.x(corner) + 6, axes.y(peak) - 10,
                 f"the roof: {peak:.0f} billion per second", RED, 13)
    slope = (low * corner) ** 0.5
    drawing.text(axes.x(slope) - 10, axes.y(slope * memory) - 8,
                 f"the slope: {memory:.0f} GB/s", RED, 13, "end", halo=True)
    taken: list[tuple[float, float]] = []
    for name, (ratio, rate) in sorted(jobs.items(), key=lambda job: -job[1][1]):
        x, y = axes.point(ratio, rate / 1e9)
        left = any(abs(x - x0) < 80 and abs(y - y0) < 16 for x0, y0 in taken)
        if not left:
            taken.append((x, y))
        below = 16 if y - axes.y(peak) < 12 else 4     # its words would lie on the roof
        drawing.dot(x, y, BLUE, 5)
        drawing.text(x - 10 if left else x + 10, y + below, name, BLUE, 14,
                     "end" if left else "start", halo=True)
    drawing.save(path)
