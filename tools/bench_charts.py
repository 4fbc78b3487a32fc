"""The charts of bench.py: drawn from what it has measured."""
from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

from chart import BLUE, DASHED, DOTTED, GREY, INK, OCHRE, RED, SOLID, Axes, Drawing, apart


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


def draw_growth(path: Path, costs: Mapping[str, Sequence[float]]) -> None:
    """Costs at 1, 2, 4 and 8 times the size, as multiples of the first."""
    sizes, last = (1, 2, 4, 8), [each[-1] for each in costs.values()]
    drawing = Drawing(
        f"Eight times as much costs {min(last):.1f} to {max(last):.1f} times as much",
        "Time and memory of a training step as the batch or the layers are doubled again "
        "and again: all lines follow the dashed diagonal, so cost grows in proportion or a "
        "little more slowly.",
        420, ["A step of nano, as the batch or the number of layers is multiplied."])
    top = max(8.6, 1.05 * max(last))
    axes = Axes(drawing, (60, 104, 520, 356), (0, 8), (0, top))
    axes.x_axis("size, as a multiple of the smallest", [0, 1, 2, 4, 6, 8])
    axes.y_axis("cost, as a multiple of the smallest", range(0, int(top) + 1, 2))
    axes.curve([0, 8], [0, 8], GREY, 1.5, "3 4")
    styles = ((BLUE, SOLID), (RED, DASHED), (OCHRE, "12 3 3 3"))
    names = {"in proportion: 8.0": (8.0, GREY)}
    for (name, each), (color, dashes) in zip(costs.items(), styles):
        axes.curve(sizes, each, color, 2.2, dashes)
        names[f"{name}: {each[-1]:.1f}"] = (each[-1], color)
    for y, (name, (value, color)) in zip(apart([axes.y(v) for v, _ in names.values()], 18),
                                         names.items()):
        drawing.line([(axes.x(8) + 3, axes.y(value)), (axes.x(8) + 16, y)], color, 1)
        drawing.text(axes.x(8) + 20, y + 4, name, color, 13)
    drawing.save(path)


def draw_token_times(path: Path, times: Mapping[str, Sequence[float]], each: int) -> None:
    """Milliseconds per token of models by name, a number for each so many positions."""
    growth = [found[-1] / found[0] for found in times.values()]
    most = max(len(found) for found in times.values()) * each
    drawing = Drawing(
        f"A late token costs {min(growth):.1f} to {max(growth):.1f} times an early one",
        "Milliseconds for a generated token by its position, on a logarithmic axis: the "
        "lines of the small and of the big model rise slowly from the first position to the last.",
        400, ["Milliseconds for a generated token, by its position in the text."])
    low = min(min(found) for found in times.values())
    high = max(max(found) for found in times.values())
    axes = Axes(drawing, (68, 104, 600, 336), (0, most), (low / 2, high * 2), log_y=True)
    axes.x_axis("position in the text", range(0, most + 1, 256))
    axes.y_axis("milliseconds per token", [
        tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low / 2 <= tick <= high * 2])
    for (name, found), (color, dashes) in zip(
            times.items(), ((BLUE, SOLID), (RED, DASHED), (OCHRE, DOTTED))):
        xs = [each * (k + 0.5) for k in range(len(found))]
        axes.curve(xs, found, color, 2.2, dashes)
        axes.label(xs[-1], found[-1], f"{name}: {found[-1]:.2g} ms", color, 8, 4)
        axes.label(xs[0], found[0], f"{found[0]:.2g} ms", INK, 0, -10)
    drawing.save(path)
