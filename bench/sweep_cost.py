"""What a sweep of many models and targets costs, from a run of one model for two targets.

    python bench/sweep_cost.py RUNS/NAME/TARGET RUNS/NAME/OTHER [--models 1000] [--targets 50] --record

Stages that both runs have are made once per model, the others once per model and target. Seconds are those
of the ledgers (`stages.json`), of stages that were built there. Bytes and requests are counted at an
S3-compatible server: every artefact is looked for, locked and pushed; and pulled by a second machine, which
is what each further target of a model costs where every point runs on another machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import ROOT, Table, add_option

from paredown.pipeline.run.search.table import Row, marked
from paredown.pipeline.store.shared.shared import open_shared
from paredown.pipeline.store.store import Store

MIB, GIB, HOUR = 1 << 20, 1 << 30, 3600
WRITING = ("PUT", "POST", "DELETE", "LIST")


@dataclass(frozen=True)
class Cost:
    """Of some stages, or of many of them."""

    stages: float = 0
    seconds: float = 0
    kept: float = 0  # bytes
    moved: float = 0  # bytes
    reads: float = 0
    writes: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def times(self, count: float) -> Cost:
        return Cost(*(count * value for value in self.values()))

    def values(self) -> tuple[float, ...]:
        return self.stages, self.seconds, self.kept, self.moved, self.reads, self.writes


class Requests(logging.Handler):
    """Counts the requests of a server that logs each as `"METHOD /path HTTP/1.1" status`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def split(self) -> tuple[int, int]:
        """Requests that read, and those that write or list."""
        writes = sum(self.seen[method] for method in WRITING)
        return self.seen.total() - writes, writes

    def emit(self, record: logging.LogRecord) -> None:
        method, _, rest = record.getMessage().partition('"')[2].partition(" ")
        method = "".join(letter for letter in method if letter.isalpha())[-6:]
        self.seen["LIST" if "list-type" in rest else method.removeprefix("m")] += 1


def ledger(folder: Path) -> dict[str, Any]:
    """Key -> entry of a run's ledger, with the seconds of an earlier one where that built the stage."""
    before = folder / "stages.previous.json"
    earlier = json.loads(before.read_text()) if before.exists() else []
    built = {entry["key"]: entry for entry in earlier if entry["outcome"] == "built"}
    now = json.loads((folder / "stages.json").read_text())
    return {entry["key"]: built.get(entry["key"], entry) for entry in now}


def costs(runs: list[Path]) -> list[tuple[bool, Cost, Cost]]:
    """Of each stage whether both runs have it, and what making and pulling it cost, by real requests."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from shared_stores import s3_server

    ledgers = [ledger(folder) for folder in runs]
    store, counter = Store(runs[0].parents[1] / ".store"), Requests()
    found = []
    with s3_server() as bucket, tempfile.TemporaryDirectory() as scratch:
        log = logging.getLogger("werkzeug")
        log.setLevel(logging.INFO)
        log.handlers, log.propagate = [counter], False
        for key in {key: None for each in ledgers for key in each}:
            entries = [each[key] for each in ledgers if key in each]
            seconds = next((entry["seconds"] for entry in entries if entry["outcome"] == "built"), None)
            if seconds is None:
                raise SystemExit(f"{entries[0]['name']} was built by neither run: give an empty --runs")
            folder = store.get(key)
            if folder is None:
                raise SystemExit(f"{entries[0]['name']} is not in {store.root}")
            shared = open_shared(f"{bucket}/store", print)
            counter.seen.clear()
            with shared.turn(key, print):
                shared.pull(key, Store(Path(scratch)))
                shared.push(key, folder)
            out = shared.objects.moved["out"]
            made = Cost(1, seconds, out, out, *counter.split())
            other = open_shared(f"{bucket}/store", print)
            counter.seen.clear()
            with other.turn(key, print):
                other.pull(key, Store(Path(scratch)))
            pulled = Cost(0, 0, 0, other.objects.moved["in"], *counter.split())
            found.append((len(entries) == len(ledgers), made, pulled))
    return found


def table_seconds(models: int, targets: int) -> float:
    """Seconds for the stars of a table of so many points."""
    rows = [
        Row(f"m{m}", "r", f"t{t}", {}, "", "SHIP", metric="map", score=m * 7919 % 1000 / 1000,
            cost=m * 31 % 97, unit="ms", bundle_kib=m * 17 % 89)
        for m in range(models)
        for t in range(targets)
    ]  # fmt: skip
    began = time.perf_counter()
    marked(rows)
    return time.perf_counter() - began


def main() -> None:
    """Prints what one model and one target cost, and all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=50)
    add_option(parser)
    given = parser.parse_args()
    each, points = costs(given.runs), given.models * given.targets
    model = sum((made for both, made, _ in each if both), Cost())
    target = sum((made for both, made, _ in each if not both), Cost()).times(0.5)
    further = sum((pulled for both, _, pulled in each if both), Cost())
    once = model.times(given.models) + target.times(points)
    heads = ("of", "stages", "core s", "core hours", "MiB kept", "MiB moved", "reading requests",
             "writing requests")  # fmt: skip
    notes = [
        "writing requests are PUT, DELETE and LIST, which cost most; reading ones GET and HEAD. In the last "
        "row but one each model stays on one machine; in the last one every point is on another machine, "
        "which pulls what it does not make."
    ]
    with Table("sweep-cost", heads, given.record, notes=notes) as table:
        name = f"{given.models:,} models x {given.targets} targets"
        worst = once + further.times(points - given.models)
        rows = (("a model", model), ("a target of it", target), ("another machine for it", further),
                (name, once), (f"{name}, at worst", worst))  # fmt: skip
        for what, cost in rows:
            table.row(
                what, f"{cost.stages:,.0f}", f"{cost.seconds:,.1f}", f"{cost.seconds / HOUR:,.3g}",
                f"{cost.kept / MIB:,.1f}", f"{cost.moved / MIB:,.1f}", f"{cost.reads:,.0f}",
                f"{cost.writes:,.0f}",
            )  # fmt: skip
        sizes = [sum(p.stat().st_size for p in run.iterdir() if p.is_file()) for run in given.runs]
        pages = [(run / "report.json").stat().st_size for run in given.runs]
        table.note(
            f"A point's folder has {sum(sizes) / 2 / MIB:.2f} MiB, {points:,} of them "
            f"{points * sum(sizes) / 2 / GIB:,.0f} GiB. The sweep's page has all of every point's report, "
            f"{sum(pages) / 2 / 1024:,.0f} KiB: {points * sum(pages) / 2 / GIB:,.1f} GiB for all. The stars "
            f"of a table of {points:,} rows take {table_seconds(given.models, given.targets):.0f} s."
        )


if __name__ == "__main__":
    main()
