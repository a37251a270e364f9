"""`paredown fit`: budgets on this machine and on emulated boards, met or told what stands in the way.

    python bench/fit.py FOLDER RECIPE:TARGET:OPTION=VALUE,... ... [--slice 285] [--set KEY=VALUE]

as `digits:host:bundle-kib=200,drop=0.02`; RECIPE may be a case of bench/cases.py. Each search is killed after
so many seconds and started again until it ends: it goes on where it was. The folder keeps what was made, so
only the first call measures wall time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
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


def test_drop(told: dict[str, Any]) -> str:
    """The drop on the test images, of the worst program that ships; none of a budget that is not met."""
    if told["run"] is None:
        return "not scored"
    cells = {(f.variant, f.metric): f.value for f in read_figures(Path(told["run"]) / "figures.json")}
    metric = "top1" if ("fp32", "top1") in cells else "map50"
    values = [cells[name, metric] for name in ("executorch", "litert") if (name, metric) in cells]
    return f"{cells['fp32', metric] - min(values):.4f}"


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
            if told["killed"]:
                table.note(
                    f"`{case}` was killed {told['killed']} times and went on; counts are of its last part"
                )


if __name__ == "__main__":
    main()
