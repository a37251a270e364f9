"""`paredown sweep`: many runs through one store, one table, one page.

Every point is an ordinary run in a folder of its own. A point that fails is a row with its reason; a sweep
that was killed goes on where it was, since what its runs made is in the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.pipeline.report.page.document import read_document
from paredown.pipeline.report.page.render import render_comparison
from paredown.pipeline.run.search.grid import Point
from paredown.pipeline.run.search.table import Row, marked, page_parts, row_of
from paredown.pipeline.run.search.workers import Executor, LocalWorkers, Work
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import UsageError

TABLE, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True)
class Sweep:
    """What a sweep made.

    Attributes:
        rows: one per point, in their order.
        folder: of table and page.
        page: None where every point failed.
        code: the exit code of the first point that failed, else 0.
    """

    rows: tuple[Row, ...]
    folder: Path
    page: Path | None
    code: int

    def lines(self) -> list[str]:
        """What failed and why, and what was reused."""
        failed = [f"failed: {r.point} on {r.target}: {r.reason}" for r in self.rows if r.verdict == "FAILED"]
        built, reused = (sum(getattr(row, name) for row in self.rows) for name in ("built", "reused"))
        share = f", {reused / (built + reused):.0%} of all" if built + reused else ""
        return [*failed, f"{len(self.rows)} points: {built} stages built, {reused} reused{share}"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        page = None if self.page is None else str(self.page)
        return {"rows": [row.to_dict() for row in self.rows], "page": page}


def sweep(
    points: Sequence[Point],
    root: Path,
    out: Path,
    *,
    jobs: int = 1,
    smoke: bool = False,
    emulated: bool = False,
    limit: int | None = None,
    tell: Tell = nobody,
    executor: Executor | None = None,
    shared: str | None = None,
) -> Sweep:
    """Makes every point.

    Args:
        points: from `make_points`.
        root: folder of all runs and of the store.
        out: folder of the table and the page.
        jobs: worker processes on this machine.
        smoke: handfuls of samples everywhere.
        emulated: whether every point is proved on its target's emulated board, which counts instructions.
        limit: test images that are scored there at most.
        tell: hears of events, the point's label in front.
        executor: does the work instead of processes on this machine.
        shared: URL of the store that machines share.

    Raises:
        UsageError: a target that is not emulated, where that is asked for.
        InputError: table or page cannot be written.
    """
    works = [
        Work(p.name, p.recipe, p.target, root, smoke, _board(p) if emulated else None, limit, shared)
        for p in points
    ]
    rows: dict[int, Row] = {}
    code = 0

    def hear(number: int, event: Event) -> None:
        about = ": ".join(filter(None, (points[number].label, event.stage)))
        tell(Event(about, event.state, event.seconds, event.detail))

    for number, outcome in (executor or LocalWorkers(jobs)).outcomes(works, hear):
        point = points[number]
        folder = root / point.name / point.target.name
        row = Row(
            point.name, point.of, point.target.name, dict(point.chosen), str(folder), "FAILED", outcome.error,
            built=outcome.built, reused=outcome.reused, seconds=outcome.seconds,
        )  # fmt: skip
        rows[number] = row if outcome.error else row_of(row, read_document(folder))
        code = code or outcome.code
        found = rows[number]
        detail = found.reason if found.verdict == "FAILED" else found.verdict
        tell(Event(f"{point.label} ({len(rows)} of {len(points)})", "done", outcome.seconds, detail))
    return _write(marked([rows[number] for number in range(len(points))]), out, code)


def _write(rows: tuple[Row, ...], out: Path, code: int) -> Sweep:
    table = {"rows": [row.to_dict() for row in rows]}
    write_atomic(out / TABLE, (json.dumps(table, indent=1, allow_nan=False) + "\n").encode())
    documents = [read_document(Path(row.folder)) for row in rows if row.verdict != "FAILED"]
    page = out / PAGE if documents else None
    if page is not None:
        write_atomic(page, render_comparison(documents, page_parts(rows)))
    return Sweep(rows, out, page, code)


def _board(point: Point) -> str | None:
    """The address of the emulated board of a point's target; a microcontroller is simulated anyway."""
    card = point.target
    if card.microcontroller:
        return None
    if card.emulate is None or not card.emulate.cpu:
        raise UsageError(f"target {card.name} is not emulated", where="--emulated",
                         hint="leave it out, or name a board, as raspberry-pi-5")  # fmt: skip
    return f"emulated:{card.name}"
