"""The sensitivity report for people: a table for the terminal, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.sensitivity.sensitivity import GIVEN_UP, Point, Sensitivity
from paredown.pipeline.graph.graph import Graph

COLUMNS = 5  # of small plots in a row
INCHES = (2.3, 1.5)  # of one, with what is around it
MARGINS = (0.55, 0.1, 0.5, 0.5)  # inches left, right, below and above all of them


def table(found: Sensitivity, groups: Sequence[Group], graph: Graph) -> Table:
    """One row per group: its channels, its share of the MACs, the metric at each width.

    Args:
        found: what `measure` gave.
        groups: of the same network.
        graph: of the same network.
    """
    macs = {group.name: sum(graph[maker.node].macs for maker in group.makers) for group in groups}
    each = {group.name: group.channels // group.units for group in groups}
    most = max((len(curve.points) for curve in found.curves), default=0)
    base = found.baseline
    title = (
        f"{found.metric} on {found.images} images, {_words(base)} with all channels; channels: {found.metric}"
    )
    made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=0, title_justify="left")
    made.add_column("group", no_wrap=True)
    made.add_column("MACs", justify="right", no_wrap=True)
    for _ in range(1, most):
        made.add_column("", justify="right", no_wrap=True)
    for curve in found.curves:
        thinner = [_cell(point, each[curve.group]) for point in curve.points if point.width < curve.units]
        thinner += [Text("")] * (most - 1 - len(thinner))
        share = f"{macs[curve.group] / graph.macs:.1%}"
        made.add_row(f"{curve.group} ({curve.units * each[curve.group]})", share, *thinner)
    skipped = [gave_up(point) for curve in found.curves for point in curve.points if point.skipped]
    notes = {
        f"-: stopped early, not part of the answer ({skipped.count(True)} points)": skipped.count(True),
        f"·: the answer did not need it ({skipped.count(False)} points)": skipped.count(False),
    }
    words = "\n".join(note for note, count in notes.items() if count)
    made.caption, made.caption_justify = Text(words) if words else None, "left"
    return made


def gave_up(point: Point) -> bool:
    """Whether a part of the images was enough to leave it out."""
    return point.skipped.startswith(GIVEN_UP)


def _cell(point: Point, each: int) -> Text:
    channels = point.width * each
    if point.metric is None:
        return Text(f"{channels}: {'-' if gave_up(point) else '·'}", style="dim")
    return Text(f"{channels}: {_short(point.metric)}")


def _short(metric: float) -> str:
    return f"{metric:.3f}".removeprefix("0") if 0 <= metric < 1 else f"{metric:.2f}"


def _words(point: Point) -> str:
    assert point.metric is not None
    return f"{point.metric:.4f} (95 % interval {point.low:.4f} to {point.high:.4f})"


def plot(found: Sensitivity, groups: Sequence[Group], graph: Graph, path: Path) -> None:
    """Draws a small plot per group as a PNG: the metric over the share of channels that stay.

    Args:
        found: what `measure` gave.
        groups: of the same network.
        graph: of the same network.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, max(1, len(found.curves)))
    rows = max(1, -(-len(found.curves) // columns))
    left, right, below, above = MARGINS
    width, height = columns * INCHES[0] + left + right, rows * INCHES[1] + below + above
    figure = Figure((width, height), dpi=110)
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - above / height, 0.12, 0.3)
    canvas = FigureCanvasAgg(figure)
    base = found.baseline
    assert base.metric is not None and base.low is not None and base.high is not None
    known = [p.metric for curve in found.curves for p in curve.points if p.metric is not None]
    low = min(known)
    panes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    macs = {group.name: sum(graph[maker.node].macs for maker in group.makers) for group in groups}
    for pane in panes.flat[len(found.curves) :]:
        pane.set_axis_off()
    for pane, curve in zip(panes.flat, found.curves, strict=False):
        pane.axhspan(base.low, base.high, color="0.85", lw=0)
        measured = [p for p in curve.points if p.metric is not None]
        share = [p.width / curve.units for p in measured]
        pane.plot(share, [p.metric for p in measured], color="tab:blue", marker="o", ms=3, lw=1)
        skipped = [p.width / curve.units for p in curve.points if gave_up(p)]
        pane.plot(
            skipped, [low] * len(skipped), color="tab:red", marker="x", ms=6, mew=1.5, lw=0, clip_on=False
        )
        pane.set_title(f"{curve.group} ({macs[curve.group] / graph.macs:.1%} of MACs)", fontsize=6.5)
        pane.tick_params(labelsize=6)
        pane.grid(lw=0.3, color="0.9")
        pane.set_xlim(0, 1.03)
        pane.set_ylim(low - 0.02, max(1.0, base.high, *known) + 0.02 if base.high <= 1 else None)
    figure.text(0.5, 0.12 / height, "share of the group's channels that stay", ha="center", fontsize=8)
    figure.text(0.12 / width, 0.5, found.metric, va="center", rotation=90, fontsize=8)
    words = (
        f"Sensitivity of {found.metric}, {found.images} images. Grey: 95 % interval of the unpruned network",
        "red cross: stopped early, not part of the answer",
    )  # fmt: skip
    lines = "; ".join(words) if columns > 3 else "\n".join(words)
    figure.text(0.5, 1 - 0.06 / height, lines, ha="center", va="top", fontsize=7.5 if columns > 3 else 5)
    canvas.print_png(str(path))
