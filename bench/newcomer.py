"""The way of a newcomer: labelled photos in, a bundle proved on an emulated Raspberry Pi out, all timed.

    python bench/newcomer.py [--train 48] [--epochs 12]

The set is one of our own, of the kind that people bring: VOC with ImageSets, three classes, of which one is
a few pixels large (`tests/helpers/blood_cells.py`). In the end the test labels of a class are put where there
is nothing, as labels of another set would be: that must not ship.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from record import ROOT, Table, add_option

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
NAMES = ("Platelets", "RBC", "WBC")
PI, RUN = "raspberry-pi-5", "runs/cells/raspberry-pi-5"
NOWHERE = (
    "<name>WBC</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>5</ymax>"
    "</bndbox>"
)


@dataclass(frozen=True)
class Done:
    """What a command did: its exit code, seconds, seconds of all processors, and its last line."""

    code: int
    seconds: float
    cpu: float
    last: str


def paredown(folder: Path, words: str) -> Done:
    """Runs a command as a user types it, in a folder."""
    command = [sys.executable, "-m", "paredown.apps.cli", *shlex.split(words)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, os.times()
    cpu = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )  # of what was waited for
    lines = [line for line in (done.stdout.strip() or done.stderr.strip()).splitlines() if line.strip()]
    return Done(done.returncode, seconds, cpu, lines[-1].strip() if lines else "")


def classes(folder: Path) -> list[str]:
    """The score of each class on the test images: what was trained, and what ships, here and on the board."""
    figures = json.loads((folder / RUN / "figures.json").read_text())
    found: dict[tuple[str, str], dict[str, float]] = {}
    for each in figures:
        name = each["metric"].removeprefix("class_score_")
        if name in NAMES and each["variant"] in ("fp32", "litert"):
            found.setdefault((each["where"]["name"], each["variant"]), {})[name] = each["value"]
    told = []
    for (where, variant), scores in found.items():
        each_one = ", ".join(f"{name} {scores[name]:.3f}" for name in NAMES if name in scores)
        told.append(f"mAP@50 of each class, {variant} on {where}: {each_one}.")
    return told


def main() -> None:
    """Runs the way, and prints it as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=48, help="photos that are trained on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder to work in, which stays")
    add_option(parser)
    asked = parser.parse_args()
    from blood_cells import blood_cells

    folder = asked.keep or Path(tempfile.mkdtemp(prefix="newcomer-"))
    columns = ("command", "exit code", "seconds", "CPU seconds", "last line")
    small = f"--epochs {asked.epochs} --batch 8 --warmup 6 --threads 1"
    way = [
        f"train photos --out cells.safetensors {small}",
        f"run cells.toml --target {PI} --device emulated:{PI} --limit 8",
        f"report {RUN}",
    ]
    try:
        cells = blood_cells(folder / "photos", {"train": asked.train, "val": 16, "test": 16}, seed=7)
        with Table("newcomer", columns, asked.record) as table:

            def step(words: str) -> Done:
                done = paredown(folder, words)
                table.row(
                    f"`paredown {words}`", done.code, f"{done.seconds:.0f}", f"{done.cpu:.0f}", done.last
                )
                return done

            for words in way:
                step(words)
            for line in classes(folder):
                table.note(line)
            for file in (cells / "Annotations").glob("test_*.xml"):
                text = re.sub(r"<name>WBC</name>.*?</bndbox>", NOWHERE, file.read_text())
                file.write_text(text)
            bad = step(f"run cells.toml --target {PI} --set budget.least_class_score=0.05")
            table.note("Before the last command the labels of WBC in the test images were spoiled.")
            if bad.code != 3:
                raise SystemExit(f"a bad class ends in exit code {bad.code}")
    finally:
        if not asked.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
