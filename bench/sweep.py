"""`paredown sweep` with one and with two worker processes: wall time, and whether they make the same bits.

    python bench/sweep.py FOLDER RECIPE [KEY=V,V ...] [--targets host] [--set KEY=VALUE] [--jobs 1,2] --record

as `digits squantize.weight_bits=2,3,4 squantize.sparsity=0.3,0.5,0.7,0.8 quantize.weights=minmax,mse`, which
are 24 points. Each number of workers gets a store of its own, so each makes everything; what is in FOLDER
already is reused, and then times say nothing. On a machine that does other work, look at `CPU s / wall s`:
how many cores the sweep really had. What was made is compared file by file: a training notes the seconds it
took, and a stage that times makes times; the others must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from record import Table, add_option

TIMES, SECONDS = "bench", ("history.json", "ledger.json")


def spent() -> float:
    """CPU seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def made(store: Path) -> dict[str, str]:
    """Key and file -> sha256, of all files of a store that hold no time."""
    found = {}
    for path in store.glob("*/artefact.json"):
        manifest = json.loads(path.read_bytes())
        if manifest["meta"]["stage"] != TIMES:
            for name, entry in manifest["files"].items():
                if name not in SECONDS:
                    found[f"{manifest['key']}/{name}"] = entry["sha256"]
    return found


def main() -> None:
    """Prints a row per number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="+", help="recipes and grids")
    parser.add_argument("--targets", default="host")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--jobs", default="1,2")
    add_option(parser)
    given = parser.parse_args()
    heads = ("workers", "points", "stages built", "reused", "wall s", "times faster", "CPU s",
             "CPU s / wall s", "files equal")  # fmt: skip
    notes = [f"{len(os.sched_getaffinity(0))} cores; files of stages that time, and a training's seconds, "
             "are not compared"]  # fmt: skip
    first: tuple[float, dict[str, str]] | None = None
    with Table("sweep", heads, given.record, notes=notes) as table:
        for jobs in given.jobs.split(","):
            runs = given.folder / f"workers-{jobs}"
            command = [sys.executable, "-m", "paredown.apps.cli.main", "sweep", *given.words, "--jobs", jobs]
            command += ["--targets", given.targets, "--runs", str(runs), "--json", "--quiet"]
            command += [word for each in given.set for word in ("--set", each)]
            began, before = time.perf_counter(), spent()
            done = subprocess.run(command, stdout=subprocess.PIPE)
            wall, cpu = time.perf_counter() - began, spent() - before
            rows = json.loads(done.stdout)["rows"]
            if failed := [row["reason"] for row in rows if row["verdict"] == "FAILED"]:
                raise SystemExit(f"{len(failed)} points failed: {failed[0]}")
            files = made(runs / ".store")
            first = first or (wall, files)
            equal = sum(first[1].get(name) == digest for name, digest in files.items())
            table.row(
                jobs, len(rows), sum(row["built"] for row in rows), sum(row["reused"] for row in rows),
                f"{wall:.0f}", f"{first[0] / wall:.2f}", f"{cpu:.0f}", f"{cpu / wall:.2f}",
                f"{equal} of {len(first[1] | files)}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
