"""A run of a user's project, and its bundle's code on a machine that has nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiny_project import call

from paredown.pipeline.bundle.archive import extract, unpack

BOARD = """
import runpy, sys
folder, module = sys.argv.pop(1), sys.argv.pop(1)
absent = "torch torchvision executorch paredown.pipeline pydantic typer rich zstandard"
for name in absent.split():
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, folder)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_of(recipe: Path, *arguments: object) -> Path:
    """The folder of a recipe's run."""
    runs = recipe.parent / "runs"
    done = call("run", recipe, "--runs", runs, *arguments)
    assert done.code == 0, done.err
    return runs / recipe.stem / "host"


def figures_of(run: Path) -> dict[tuple[str, str], float]:
    """Variant and metric to value."""
    found = json.loads((run / "figures.json").read_text())
    return {(figure["variant"], figure["metric"]): figure["value"] for figure in found}


def board_of(run: Path, folder: Path) -> Path:
    """The run's bundle, unpacked."""
    extract(unpack(run / "bundle.paredown"), folder)
    return folder


def on_board(board: Path, module: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs a device's command in isolation: no PYTHONPATH, no working folder on the path, no torch."""
    command: list[Any] = [sys.executable, "-I", "-c", BOARD, board, f"paredown.apps.{module}", *arguments]
    return subprocess.run([str(word) for word in command], cwd=board, capture_output=True, text=True)


def line_of(done: subprocess.CompletedProcess) -> str:
    """The one line of an error."""
    lines = [line for line in done.stderr.splitlines() if "WARN" not in line]  # OpenCV's own
    assert len(lines) == 1 and done.stdout == "", done.stderr
    return lines[0]


def proven(recipe: Path, metric: str) -> dict[tuple[str, str], float]:
    """The figures of a whole run on both runtimes, after its bundle was validated here."""
    run = run_of(recipe)
    figures = figures_of(run)
    for runtime in ("executorch", "litert"):
        assert figures[runtime, "parity_lsb"] == 0 and figures[runtime, "undelegated_ops"] == 0
        assert figures[runtime, metric] == figures["integer", metric]
    assert figures["pruned", "macs"] < figures["fp32", "macs"]
    # the network is a factory of the user's: the bundle may not name it, the recipe may
    done = call("validate", run / "bundle.paredown", "--recipe", recipe, "--times", "2")
    assert done.code == 0 and f"executorch score    {metric}" in done.out, done.out + done.err
    assert (run / "preview.png").stat().st_size > 1000 and "squantized" in (run / "report.md").read_text()
    return figures
