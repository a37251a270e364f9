"""The table of a sweep: a row per point, those that nothing beats, and what the page shows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import shipped
from paredown.pipeline.report.figures import MARKS, Figure, parse_figures
from paredown.pipeline.report.verdict import recommended


@dataclass(frozen=True)
class Row:
    """A point of a sweep and what came of it.

    Attributes:
        point: its name.
        of: the recipe's name.
        target: of the card.
        settings: key -> value of the grid.
        folder: of its run.
        program: the variant that is recommended; empty where the point failed.
        metric: of the task.
        less_is_better: of the metric.
        score: on the test data.
        cost: milliseconds, or millions of instructions; None where nothing timed it.
        unit: of the cost, "ms" or "M instr.".
        bundle_kib: of the bundle.
        tag: of the figures; smoke figures are in no plot.
        verdict: in one word; "FAILED" where there is no result.
        reason: of the verdict.
        built: stages.
        reused: stages.
        seconds: of the run.
        best: whether no other row of its target is better in one of score, cost and bytes and as good in all.
    """

    point: str
    of: str
    target: str
    settings: Mapping[str, str]
    folder: str
    verdict: str
    reason: str = ""
    program: str = ""
    metric: str = ""
    less_is_better: bool = False
    score: float | None = None
    cost: float | None = None
    unit: str = ""
    bundle_kib: float | None = None
    tag: str = "measured"
    built: int = 0
    reused: int = 0
    seconds: float = 0.0
    best: bool = False

    def cells(self, keys: Sequence[str]) -> tuple[str, ...]:
        """As the table has it, with the values of these keys."""
        mark = MARKS[self.tag]
        score = "-" if self.score is None else f"{self.score:.4f}{mark}"
        cost = "-" if self.cost is None else f"{self.cost:.4g} {self.unit}"
        size = "-" if self.bundle_kib is None else f"{self.bundle_kib:,.1f}"
        values = (self.settings.get(key, "-") for key in keys)
        return (self.of, *values, self.target, self.program or "-", score, cost, size, self.verdict)

    @property
    def why(self) -> str:
        """What there is to say of a verdict that is not to ship."""
        return "" if self.verdict == "SHIP" else self.reason

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def row_of(row: Row, document: Mapping[str, Any]) -> Row:
    """A row with what the run's document says of its recommended program."""
    figures = parse_figures(document["figures"], "report")
    metric = Metric(**document["metric"])
    verdict = document["verdict"] or {"word": "", "reasons": (), "runtime": ""}
    names = shipped(figures)
    program = verdict["runtime"] or recommended(names, figures, metric)[0]
    cells = {f.metric: f for f in figures if f.variant == program}
    score, size = cells.get(metric.name), cells.get("bundle_bytes")
    cost, unit = cost_of(cells)
    return replace(
        row, program=program, metric=metric.name, less_is_better=metric.less_is_better,
        score=None if score is None else score.value, cost=cost, unit=unit,
        bundle_kib=None if size is None else size.value / 1024,
        tag="measured" if score is None or score.tag != "smoke" else "smoke",
        verdict=verdict["word"], reason="; ".join(verdict["reasons"]),
    )  # fmt: skip


def cost_of(cells: Mapping[str, Figure]) -> tuple[float | None, str]:
    """The median time of a program, else what an emulated board counted, with its unit."""
    if (ms := cells.get("latency_p50")) is not None:
        return ms.value, "ms"
    if (count := cells.get("instructions")) is not None:
        return count.value / 1e6, "M instr."
    return None, ""


def heads_of(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The heads of the table, and the keys of the grid."""
    keys = tuple(dict.fromkeys(key for row in rows for key in row.settings))
    short = [key.rpartition(".")[2] for key in keys]
    names = (name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True))
    metrics = {row.metric for row in rows if row.metric}
    score = metrics.pop() if len(metrics) == 1 else "score"
    return ("recipe", *names, "target", "program", score, "time", "bundle KiB", "verdict"), keys


def marked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, those marked that no other one beats: of the same target, metric and unit of cost."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.score is not None:
            groups.setdefault(_peers(row), []).append(row)
    return tuple(replace(row, best=_unbeaten(row, groups.get(_peers(row), ()))) for row in rows)


def _unbeaten(row: Row, alike: Sequence[Row]) -> bool:
    return row.score is not None and not any(_beats(each, row) for each in alike)


def _peers(row: Row) -> tuple[str, str, str]:
    return row.target, row.metric, row.unit


def _beats(one: Row, other: Row) -> bool:
    """Whether one is as good in everything and better in something."""
    mine, theirs = _losses(one), _losses(other)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def _losses(row: Row) -> tuple[float, float, float]:
    score = row.score or 0.0
    return (score if row.less_is_better else -score, row.cost or 0.0, row.bundle_kib or 0.0)


def _label(row: Row, rows: Sequence[Row]) -> str:
    """A point's name in a plot: what differs from the others."""
    words = [name for name, every in ((row.of, {r.of for r in rows}), (row.target, {r.target for r in rows}))
             if len(every) > 1]  # fmt: skip
    return " ".join([*words, ", ".join(row.settings.values())]).strip() or row.point


def page_parts(rows: Sequence[Row]) -> dict[str, Any]:
    """What the page shows above the runs: the table, and a plot of score over each kind of cost."""
    from paredown.pipeline.report.page.sections import pareto

    shown = [row for row in rows if row.score is not None and row.tag != "smoke"]
    heads, keys = heads_of(rows)
    metric = {"name": shown[0].metric, "less_is_better": shown[0].less_is_better} if shown else None
    plots = []
    for unit in ("KiB", "ms", "M instr."):
        points = [
            (_label(row, shown), value, row.score or 0.0)
            for row in shown
            if metric and row.metric == metric["name"]
            and (value := row.bundle_kib if unit == "KiB" else row.cost if row.unit == unit else None)
            is not None
        ]  # fmt: skip
        if metric and (plot := pareto(points, metric, unit)):
            plots.append((plot, {"KiB": "the bundle", "ms": "the median time"}.get(unit, "the instructions")))
    return {
        "heads": (*heads, "built", "reused"), "plots": plots, "metric": metric, "keys": ", ".join(keys),
        "rows": [(row.best, (*row.cells(keys), row.built, row.reused), row.why) for row in rows],
    }  # fmt: skip
