"""Charts as inline SVG: no library, no script, colours from the page's own style sheet."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

WIDE, HIGH = 360, 230  # units of a chart; a phone shows one unit as one pixel
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 10, 34
MOST_NAMED, LONGEST = 4, 16  # points of a plot that are named beside their marks, and letters of a name
SPAN = 0.01  # of the largest value: what the height of a plot of points shows at least
COLOURS = 8  # classes c0 to c7 of the style sheet


def number(value: float, step: float = 0.0) -> str:
    """A short number for an axis; `step` is how far its marks are apart."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 3
    if not step and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.{decimals}f}" if step else f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values from low to high, about so many; the lowest alone where nothing lies between."""
    raw = (high - low) / count
    if not raw >= sys.float_info.min:
        return [low]
    step = 10 ** math.floor(math.log10(raw))
    step *= next(each for each in (1, 2, 5, 10) if each * step >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """An area with two axes."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float], high: int = HIGH) -> None:
        self.across, self.up, self.high = _wide(across), _wide(up), high

    def x(self, value: float) -> float:
        low, high = self.across
        return round(LEFT + (value - low) / (high - low) * (WIDE - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        low, high = self.up
        return round(self.high - BOTTOM - (value - low) / (high - low) * (self.high - BOTTOM - TOP), 2)

    def parts(self, x_label: str, y_label: str) -> list[Markup]:
        """Grid, numbers and names of the axes."""
        found = []
        foot, side = self.high - BOTTOM, WIDE - RIGHT
        marks = ticks(*self.up), ticks(*self.across)
        steps = [each[1] - each[0] if len(each) > 1 else 0.0 for each in marks]
        for value in marks[0]:
            y = self.y(value)
            found.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, y, side))
            found.append(
                Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
                    LEFT - 4, y + 4, number(value, steps[0])
                )
            )
        for value in marks[1]:
            x = self.x(value)
            found.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, TOP, foot))
            found.append(
                Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    x, foot + 14, number(value, steps[1])
                )
            )
        middle = (LEFT + side) / 2
        found.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                middle, self.high - 4, x_label
            )
        )
        found.append(
            Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
                (TOP + foot) / 2, y_label
            )
        )
        return found


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _svg(parts: Sequence[Markup], title: str, high: int = HIGH) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')
    return head.format(WIDE, high, title, title) + Markup("").join(parts) + Markup("</svg>")


def lines(
    series: Sequence[tuple[str, Points]], title: str, x_label: str, y_label: str,
    across: tuple[float, float] | None = None, up: tuple[float, float] | None = None,
) -> Markup:  # fmt: skip
    """A line per series, each a colour, with a legend below where there are several.

    Args:
        series: name and points.
        title: for those who do not see it.
        x_label: of the axis.
        y_label: of the axis.
        across: its ends; None = those of the points.
        up: likewise; from 0 where it is None.
    """
    every = [point for _, points in series for point in points]
    if not every:
        return Markup("")
    xs, ys = zip(*every, strict=True)
    frame = _Frame(across or (min(xs), max(xs)), up or (0.0, max(ys) * 1.05))
    parts = frame.parts(x_label, y_label)
    for index, (name, points) in enumerate(series):
        colour = index % COLOURS
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
        parts.append(Markup('<polyline class="line s{}" points="{}"><title>{}</title></polyline>').format(
            colour, path, name))  # fmt: skip
        if len(points) < 30:
            for x, y in points:
                parts.append(Markup('<circle class="dot c{}" cx="{}" cy="{}" r="2.5"/>').format(
                    colour, frame.x(x), frame.y(y)))  # fmt: skip
    return _svg(parts, title) + (legend([name for name, _ in series]) if len(series) > 1 else Markup(""))


def legend(names: Sequence[str]) -> Markup:
    """Names with the colours of their lines."""
    items = [
        Markup('<li><i class="b{}"></i>{}</li>').format(index % COLOURS, name)
        for index, name in enumerate(names)
    ]
    return Markup('<ul class="legend">') + Markup("").join(items) + Markup("</ul>")


def scatter(
    points: Sequence[tuple[str, float, float]], title: str, x_label: str, y_label: str,
    front: Sequence[int] = (),
) -> Markup:  # fmt: skip
    """Named points; those of the front are joined by a line.

    More points than `MOST_NAMED`, and long names, stand below, with their numbers: beside the marks they
    hide each other.

    Args:
        points: name, x and y.
        title: for those who do not see it.
        x_label: of the axis.
        y_label: of the axis.
        front: numbers of points, by x.
    """
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    # What differs by less than a hundredth is not spread over the whole height.
    middle, span = (min(ys) + max(ys)) / 2, max(max(ys) - min(ys), SPAN * max(map(abs, ys))) or SPAN
    frame = _Frame((0.0, max(xs) * 1.15), (middle - 0.65 * span, middle + 0.65 * span))
    parts = frame.parts(x_label, y_label)
    if len(front) > 1:
        path = " ".join(f"{frame.x(points[i][1])},{frame.y(points[i][2])}" for i in front)
        parts.append(Markup('<polyline class="front" points="{}"/>').format(path))
    beside = len(points) <= MOST_NAMED and all(len(name) <= LONGEST for name, _, _ in points)
    taken: list[tuple[float, float]] = []
    for index, (name, x, y) in enumerate(points):
        cx, cy = frame.x(x), frame.y(y)
        parts.append(Markup('<circle class="dot c{}" cx="{}" cy="{}" r="4.5"/>').format(
            index % COLOURS, cx, cy))  # fmt: skip
        if not beside:
            continue
        end = cx > WIDE * 0.6
        at = cy - 8 if cy > TOP + 14 else cy + 16
        while any(abs(at - other) < 12 and abs(cx - left) < 150 for left, other in taken):
            at = at + 12 if abs(at + 12 - cy) >= 12 else cy + 16  # never on the mark itself
        taken.append((cx, at))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
            cx, at, "end" if end else "start", name))  # fmt: skip
    if beside:
        return _svg(parts, title)
    return _svg(parts, title) + legend([f"{name}: {number(x)} {x_label}, {y:.4f}" for name, x, y in points])


def intervals(
    rows: Sequence[tuple[str, float, float | None, float | None]], title: str, most: float = 1.0
) -> Markup:
    """A bar per row with its interval and its value in words.

    Args:
        rows: name, value and the ends of its interval, where they are known.
        title: for those who do not see it.
        most: value of the whole width.
    """
    step, parts = 22, []
    start, end = 110, WIDE - 44
    scale = (end - start) / (most or 1.0)
    for index, (name, value, low, high) in enumerate(rows):
        y = 4 + index * step
        short = name if len(name) <= 16 else f"{name[:15]}…"
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end"><title>{}</title>{}</text>').format(
            start - 6, y + 13, name, short))  # fmt: skip
        parts.append(Markup('<rect class="bar" x="{}" y="{}" width="{}" height="14"/>').format(
            start, y + 2, round(max(value, 0.0) * scale, 2)))  # fmt: skip
        if low is not None and high is not None:
            parts.append(Markup('<path class="whisker" d="M{} {}H{}"/>').format(
                round(start + low * scale, 2), y + 9, round(start + high * scale, 2)))  # fmt: skip
        parts.append(Markup('<text x="{}" y="{}">{:.3f}</text>').format(end + 5, y + 13, value))
    return _svg(parts, title, 8 + step * len(rows))


def strips(rows: Sequence[tuple[str, Sequence[float]]], title: str, unit: str) -> Markup:
    """A row of marks per name, one for each value, with the median and the 90th percentile larger.

    Args:
        rows: name and values, none of them empty.
        title: for those who do not see it.
        unit: of the values.
    """
    step, high = 26, 26 * len(rows) + BOTTOM + TOP
    ordered = [sorted(values) for _, values in rows]
    most = max(values[min(len(values) - 1, int(0.98 * len(values)))] for values in ordered)
    start, end = 124, WIDE - RIGHT
    scale = (end - start) / (most * 1.05 or 1.0)
    parts = []
    for value in ticks(0.0, most * 1.05, 3):
        x = round(start + value * scale, 2)
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, TOP, high - BOTTOM))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            x, high - BOTTOM + 14, number(value)))  # fmt: skip
    for index, ((name, _), values) in enumerate(zip(rows, ordered, strict=True)):
        y, colour = TOP + index * step + step / 2, index % COLOURS
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(start - 6, y + 4, name))
        for value in values:
            if value <= most * 1.05:
                x = round(start + value * scale, 2)
                parts.append(Markup('<path class="tick s{}" d="M{} {}v10"/>').format(colour, x, y - 5))
        for share, radius in ((0.5, 4), (0.9, 3)):
            value = values[min(len(values) - 1, int(share * len(values)))]
            x = round(start + min(value, most * 1.05) * scale, 2)
            parts.append(Markup('<circle class="dot c{}" cx="{}" cy="{}" r="{}"/>').format(
                colour, x, y, radius))  # fmt: skip
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (start + end) / 2, high - 4, escape(unit)))  # fmt: skip
    return _svg(parts, title, high)
