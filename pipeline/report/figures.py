"""Figures: every number of a run with where it comes from and whether it was measured at all.

`figures.json` is the one list that the table, the report and other people's scripts read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich import box
from rich.table import Table
from rich.text import Text

from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError
from paredown.targets.host.host import Machine

Tag = Literal["measured", "simulated", "predicted", "smoke"]
TAGS: tuple[str, ...] = get_args(Tag)
VARIANTS = (
    "fp32", "pruned", "squantized", "integer", "executorch-fp32", "executorch-original", "executorch",
    "litert-fp32", "litert-original", "litert",
)  # fmt: skip
"""The rows of a table, in order; other names follow, sorted."""
ORIGINAL = "-original"  # a runtime with the network as it came, in int8, where another is shipped
SCORES = ("map50", "map", "top1", "top5", "miou", "pixel_accuracy", "pck", "r2", "perplexity")
RATES = ("prefill_rate", "decode_rate", "first_token")  # of language models
COSTS = ("parity_lsb", "file_bytes", "bundle_bytes", "instructions", *RATES, "latency_p50", "latency_p90")
HEADS = {
    "map50": "mAP@50", "map": "mAP", "top1": "top-1", "top5": "top-5", "perplexity": "perplexity",
    "miou": "mIoU", "pixel_accuracy": "pixel\nacc.", "pck": "PCK@0.2", "r2": "R2",
    "parity_lsb": "parity\nLSB", "file_bytes": "file\n{}", "bundle_bytes": "bundle\n{}",
    "latency_p50": "median\nms", "latency_p90": "p90\nms", "macs": "MACs\nM", "instructions": "instr.\nM",
    "prefill_rate": "prefill\ntok/s", "decode_rate": "decode\ntok/s", "first_token": "first\nms",
}  # fmt: skip
SIZES = {"KiB": 1024, "MiB": 1024**2}
CLASS = "class_score_"
"""What begins the metrics of single classes; the class's name follows."""
MARKS = {"measured": "", "simulated": "s", "predicted": "p", "smoke": "!"}


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        stage: what made it ("score", "bench").
        variant: of what ("fp32" = the original network, "litert").
        metric: what it counts ("map50", "latency_p50").
        value: the number; finite.
        unit: "1" for a fraction, "ms", "B", "LSB".
        tag: measured, simulated, predicted, or from a smoke run.
        where: the machine, with versions.

    Raises:
        ValueError: the value is not a finite number, the tag is unknown, or it claims an emulated latency.
    """

    stage: str
    variant: str
    metric: str
    value: float
    unit: str
    tag: Tag
    where: Machine

    def __post_init__(self) -> None:
        """Refuses what must never reach a report."""
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise ValueError(f"{self.variant} {self.metric} is {self.value!r}, not a number")
        if not math.isfinite(self.value):
            raise ValueError(f"{self.variant} {self.metric} is {self.value}")
        if self.tag not in TAGS:
            raise ValueError(f"unknown tag {self.tag!r}, not one of {', '.join(TAGS)}")
        if self.tag == "simulated" and self.unit in ("s", "ms", "us"):
            raise ValueError("an emulated millisecond is no figure: count instructions")

    def to_dict(self) -> dict[str, Any]:
        """The figure as JSON has it."""
        return {**asdict(self), "where": self.where.to_dict()}


def write_figures(path: Path, figures: Iterable[Figure]) -> None:
    """Writes `figures.json` in one step, sorted by variant, metric, stage and machine.

    Raises:
        InputError: the file cannot be written.
    """
    document = [figure.to_dict() for figure in sorted(figures, key=_order)]
    write_atomic(path, (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode())


def read_figures(path: Path) -> tuple[Figure, ...]:
    """Reads `figures.json`.

    Raises:
        InputError: the file is missing, or not a list of figures; the line names the first that is not.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError("no figures here", where=path, hint="run the recipe first") from error
    except OSError as error:
        raise InputError(f"cannot read the figures: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the figures are not JSON: {error}", where=path) from error
    if not isinstance(document, list):
        raise InputError("the figures are not a list", where=path)
    return parse_figures(document, path)


def parse_figures(document: Sequence[Any], where: object) -> tuple[Figure, ...]:
    """Figures from what `Figure.to_dict` gave; `where` names their file in errors.

    Raises:
        InputError: the line names the first that is no figure.
    """
    return tuple(_figure(fields, where, number) for number, fields in enumerate(document, start=1))


def _figure(fields: Any, path: object, number: int) -> Figure:
    names = tuple(Figure.__dataclass_fields__)
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise InputError(f"figure {number} does not have exactly the keys {', '.join(names)}", where=path)
    words = [name for name in names if name not in ("value", "where")]
    try:
        if not all(isinstance(fields[name], str) for name in words) or not isinstance(fields["where"], dict):
            raise ValueError("a field has the wrong type")
        return Figure(**{**fields, "where": Machine.from_dict(fields["where"])})
    except ValueError as error:
        raise InputError(f"figure {number}: {error}", where=path) from error


def figures_table(figures: Sequence[Figure], title: str | None = None) -> Table:
    """One row per variant, one column per metric, at most 80 columns wide.

    A number that was not measured carries a mark (s simulated, p predicted, ! smoke), see `caption`. Of
    figures for the same cell the last one shows.
    """
    heads, rows = figure_rows(figures)
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("variant", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for variant, cells in rows:
        table.add_row(variant, *(Text(cell) if cell else Text("-", style="dim") for cell in cells))
    return table


def figure_rows(figures: Sequence[Figure]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The table of figures as text: heads of its columns, then each variant with its cells, "" for none."""
    metrics = shown_metrics(figures)
    cells = {(figure.variant, figure.metric): figure for figure in figures}
    sizes = [figure.value for figure in figures if figure.unit == "B"]
    size = "MiB" if max(sizes, default=0) >= 10_000 * SIZES["KiB"] else "KiB"
    rows = []
    for variant in sorted({variant for variant, metric in cells if metric in metrics}, key=_rank):
        found = [cells.get((variant, metric)) for metric in metrics]
        rows.append((variant, [_cell(figure, size) if figure else "" for figure in found]))
    return [HEADS.get(metric, metric).format(size) for metric in metrics], rows


def shown_metrics(figures: Sequence[Figure]) -> list[str]:
    """The metrics that have a column, in order."""
    present = {figure.metric for figure in figures}
    thinner = len({figure.value for figure in figures if figure.metric == "macs"}) > 1
    costs = ("macs", *COSTS[:-1]) if thinner else COSTS  # there is no room for both
    scores = (*SCORES, *own_scores(figures))
    return [metric for metric in (*scores, *costs) if metric in present]


def own_scores(figures: Sequence[Figure]) -> tuple[str, ...]:
    """Metrics of scores that are not among the known ones: those of a task of the user's own."""
    found = (f.metric for f in figures if f.stage == "score" and f.metric not in HEADS)
    return tuple(name for name in dict.fromkeys(found) if not name.startswith(CLASS))


def _cell(figure: Figure, size: str) -> str:
    if figure.metric in SCORES or (figure.stage == "score" and figure.metric not in HEADS):
        number = f"{figure.value:.2f}" if figure.metric == "perplexity" else f"{figure.value:.4f}"
    elif figure.unit == "B":
        number = f"{figure.value / SIZES[size]:,.1f}"
    elif figure.metric in {"macs", "instructions"}:
        number = f"{figure.value / 1e6:,.1f}"
    elif figure.unit == "ms":
        number = f"{figure.value:.2f}" if figure.value < 100 else f"{figure.value:.0f}"
    else:
        number = f"{figure.value:,.0f}" if float(figure.value).is_integer() else f"{figure.value:,.2f}"
    return number + MARKS[figure.tag]


def caption(figures: Sequence[Figure]) -> list[str]:
    """What the marks in the cells of a table mean, then each machine once."""
    metrics = set(shown_metrics(figures))
    figures = [figure for figure in figures if figure.metric in metrics]
    tags = {figure.tag for figure in figures}
    words = {
        "measured": "no mark: measured",
        "simulated": "s: simulated",
        "predicted": "p: predicted",
        "smoke": "!: smoke run, a handful of samples, says nothing of accuracy or speed",
    }
    lines = ["; ".join(words[tag] for tag in TAGS if tag in tags)] if tags else ["no figures"]
    return lines + sorted({figure.where.line() for figure in figures})


def _rank(variant: str) -> tuple[int, str]:
    return (VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS), variant)


def _order(figure: Figure) -> tuple[Any, ...]:
    return (_rank(figure.variant), figure.metric, figure.stage, figure.where.line(), figure.tag, figure.value)


NOISE = 1.05  # times slower before medians of one run mean it
