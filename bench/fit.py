"""`paredown fit`: budgets on this machine and on emulated boards, met or told what stands in the way.

    python bench/fit.py FOLDER RECIPE:TARGET:OPTION=VALUE,... ... [--slice 285] [--set KEY=VALUE]
        [--by-hand KEY=V,V ...]

as `digits:host:bundle-kib=200,drop=0.02`; RECIPE may be a case of bench/cases.py. Each search is killed after
so many seconds and started again until it ends: it goes on where it was. The folder keeps what was made, so
only the first call measures wall time. --by-hand adds a row per search: the front as one makes it without
`fit`, a sweep of these keys with a store of its own, in int8 even where that is slower. A sweep knows no
held-out images: its drops are those of the test images.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cases import CASES, ROOT, data
from record import Table, add_option

from paredown.pipeline.recipe.file import load_recipe, resolved_toml
from paredown.pipeline.report.figures import read_figures

KILLED = (137, -9, 247)  # by a shell, by Python, by Python that ran it


def searched(
    case: str, folder: Path, cifar: Path, slice_s: int, queue: str, settings: list[str]
) -> dict[str, Any]:
    """Runs a search to its end; adds its budget, seconds of all its parts, and how often it was killed."""
    name, target, budget = case.split(":")
    recipe = recipe_of(name, folder, cifar)
    options = [word for each in budget.split(",") for word in _option(*each.split("="))]
    command = [sys.executable, "-m", "paredown.apps.cli.main", "fit", recipe, "--target", target, *options]
    command += ["--runs", str(folder), *(word for each in settings for word in ("--set", each)), "--json"]
    before, killed = [*shlex.split(queue), "timeout", "-s", "KILL", str(slice_s)], 0
    while (done := subprocess.run([*before, *command], stdout=subprocess.PIPE)).returncode in KILLED:
        killed += 1
    told: dict[str, Any] = json.loads(done.stdout)
    if "error" in told:
        raise SystemExit(told["error"])
    told |= {"seconds": told["seconds"] + killed * slice_s, "killed": killed, "asked": " ".join(options)}
    return told


def _option(name: str, value: str) -> tuple[str, str]:
    return f"--{name}", value


def recipe_of(name: str, folder: Path, cifar: Path) -> str:
    """The recipe's name, or its file where it is a case of `cases`: that of digits with other data."""
    if name not in CASES or name == "digits":
        return name
    file = folder.absolute() / f"{name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    digits = ROOT / "apps" / "detector" / "recipes" / "digits.toml"
    file.write_text(resolved_toml(load_recipe(digits, data(name, cifar.absolute()))))
    return str(file)


def by_hand(case: str, folder: Path, cifar: Path, grid: list[str], settings: list[str]) -> list[str]:
    """Sweeps a grid, and finds what keeps the budget; the cells of its row."""
    name, target, budget = case.split(":")
    limits = {key: float(value) for key, value in (each.split("=") for each in budget.split(","))}
    runs = folder / "by-hand" / f"{name}-{target}"
    command = [sys.executable, "-m", "paredown.apps.cli.main", "sweep", recipe_of(name, folder, cifar)]
    command += [*grid, "--targets", target, "--runs", str(runs), "--json", "--set", "lower.allow_float=false"]
    command += [word for each in settings for word in ("--set", each)]
    start = time.monotonic()
    subprocess.run(command, stdout=subprocess.PIPE)  # a point that does not ship ends it with another code
    seconds = time.monotonic() - start
    rows = json.loads(next(runs.glob("sweeps/*/sweep.json")).read_text())["rows"]
    made = [row for row in rows if row["bundle_kib"] is not None]
    drops = [_drop(Path(row["folder"])) for row in made]
    keep = [
        (drop, row) for drop, row in zip(drops, made, strict=True)
        if row["bundle_kib"] <= limits.get("bundle-kib", math.inf) and drop <= limits.get("drop", math.inf)
    ]  # fmt: skip
    best, kib, drop = "none", "-", "-"
    if keep:
        least, row = min(keep, key=lambda each: each[0])
        best = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        kib, drop = f"{row['bundle_kib']:.1f}", f"{least:.4f}"
    built, reused = (sum(row[key] for row in rows) for key in ("built", "reused"))
    return [
        f"{name}:{target}", "by hand: " + " ".join(grid), f"{len(keep)} of {len(rows)} keep it", best, "-",
        kib, "-", drop, str(len(rows)), f"{seconds:.0f}", str(built),
        f"{reused} ({reused / max(1, built + reused):.0%})",
    ]  # fmt: skip


def _drop(run: Path) -> float:
    """On the test images, of the worst program that ships."""
    cells = {(f.variant, f.metric): f.value for f in read_figures(run / "figures.json")}
    metric = "top1" if ("fp32", "top1") in cells else "map50"
    values = [cells[name, metric] for name in ("executorch", "litert") if (name, metric) in cells]
    return cells["fp32", metric] - min(values)


def test_drop(told: dict[str, Any]) -> str:
    """The drop on the test images, of the worst program that ships; none of a budget that is not met."""
    if told["run"] is None:
        return "not scored"
    return f"{_drop(Path(told['run'])):.4f}"


def main() -> None:
    """Prints a row per search."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--slice", type=int, default=285, help="seconds until a search is killed")
    parser.add_argument("--queue", default="", help="a command to put before each part")
    parser.add_argument("--cifar", type=Path, default=Path("cifar"), help="what bench/cifar.py made")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--by-hand", nargs="+", default=[], metavar="KEY=V,V", help="a grid to sweep beside")
    add_option(parser)
    given = parser.parse_args()
    heads = (
        "recipe:target", "budget", "outcome", "network", "cost", "bundle KiB", "drop, held out", "drop, test",
        "judged", "s", "stages built", "reused",
    )  # fmt: skip
    with Table(
        "fit", heads, given.record, notes=[f"recipe with `--set {each}`" for each in given.set]
    ) as table:
        for case in given.cases:
            told = searched(case, given.folder, given.cifar, given.slice, given.queue, given.set)
            best = told["chosen"] or told["nearest"]
            chosen = best["candidate"]
            kept = {key: value for key, value in chosen.items() if value}
            network = ", ".join(f"{key} {value:.3g}" for key, value in kept.items())
            cost = "-" if best["cost"] is None else f"{best['cost']:.3g}"
            table.row(
                case.rpartition(":")[0], told["asked"], "met" if told["met"] else told["why"] or "not met",
                network or "int8 alone", cost, f"{best['kib']:.1f}", f"{best['drop']:.4f}",
                test_drop(told), len(told["judged"]),
                f"{told['seconds']:.0f}", told["built"],
                f"{told['reused']} ({told['reused'] / max(1, told['built'] + told['reused']):.0%})",
            )  # fmt: skip
            if given.by_hand:
                table.row(*by_hand(case, given.folder, given.cifar, given.by_hand, given.set))
            if told["killed"]:
                table.note(
                    f"`{case}` was killed {told['killed']} times and went on; counts are of its last part"
                )


if __name__ == "__main__":
    main()
