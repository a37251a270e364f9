"""What int8 without training costs real networks, for each way of choosing scales and codes.

    python bench/post_training.py                 # all settings; several minutes on 2 cores
    python bench/post_training.py quantize.observer=auto "quantize.observer=auto quantize.equalize=true"
    python bench/post_training.py --cifar CIFAR --mobilenet FOLDER   # as bench/squantizer.py takes them

Calibrated on an ImageNet sample; scored on COCO images that nothing was chosen on: 64 of val and twice 64 of
train, and all of them; classifiers on their test images. The integer graph is scored, whose codes both
runtimes give. Each drop is in points of mAP@0.5 or top-1, with its paired 95 % bootstrap interval. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from accuracy import NETS, recipe
from cases import ROOT, data
from numpy.typing import NDArray
from record import Table, add_option

from paredown.pipeline.recipe.file import change_recipe, load_recipe
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Metric, Scores
from paredown.pipeline.report.drop import draws, interval
from paredown.pipeline.run.run import Run
from paredown.pipeline.store.files import read_json, write_json
from paredown.targets.cards.card import load_card

SETTINGS = (
    "quantize.observer=minmax",
    "quantize.observer=percentile",
    "quantize.observer=mse",
    "quantize.observer=auto",
    "quantize.observer=auto quantize.equalize=true",
    "quantize.observer=auto quantize.rounding=gptq",
    "quantize.observer=auto quantize.bias_correction=true",
    "quantize.observer=auto quantize.equalize=true quantize.rounding=gptq quantize.bias_correction=true",
)


def main() -> None:
    """Prints a row per network and setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", default=SETTINGS, metavar='"KEY=VALUE ..."')
    parser.add_argument("--cifar", type=Path, help="what bench/cifar.py made: instead of the detectors")
    parser.add_argument("--mobilenet", type=Path, help="what bench/mobilenet.py prepared")
    parser.add_argument("--runs", type=Path, default=None, help="keep the store here")
    parser.add_argument("--keep", type=Path, help="folder of rows that were found, to go on with")
    add_option(parser)
    arguments = parser.parse_args()
    root = arguments.runs or Path(tempfile.mkdtemp())
    heads = ("network", "settings", "images", "fp32", "int8", "drop, points", "95 % interval")
    with Table("post_training", heads, arguments.record) as table:
        for title, base in networks(arguments.cifar, arguments.mobilenet).items():
            before: list[Scores] = []
            for settings in arguments.settings:
                shown = settings.replace("quantize.", "")
                path = arguments.keep / f"{title} {shown}.json" if arguments.keep else None
                if path is not None and path.exists():
                    rows = read_json(path)
                else:
                    rows = scored(title, change_recipe(base, settings.split()), root, before)
                    if path is not None:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        write_json(path, rows)
                for row in rows:
                    table.row(title, shown, *row)


def scored(title: str, recipe: Recipe, root: Path, before: list[Scores]) -> list[list[str]]:
    """The cells of a network's rows in one setting; `before` holds the float network's scores once known."""
    run = Run(title, recipe, load_card("host"), root)
    job = run.job
    run.reach([job.integer])
    test = job.task.data("test")
    if not before:
        before.append(job.task.score(job.predictor("fp32"), test))
    after = job.task.score(job.predictor("integer"), test)
    paths = [test[index].name for index in range(len(test))]
    parts = subsets(paths) if job.metric.name == "map50" else {"all": np.arange(len(paths))}
    return [[name, *cells(job.metric, before[0], after, images)] for name, images in parts.items()]


def networks(cifar: Path | None, mobilenet: Path | None) -> dict[str, Recipe]:
    """Name -> recipe of the detectors, or of the classifiers whose folders are given."""
    found = {"resnet20": cifar, "resnet56": cifar, "mobilenet": mobilenet}
    chosen = {case: folder.absolute() for case, folder in found.items() if folder}
    if chosen:
        digits = ROOT / "apps" / "detector" / "recipes" / "digits.toml"
        return {case: load_recipe(digits, data(case, folder)) for case, folder in chosen.items()}
    return {title: recipe(stem, names, "images", "minmax", 20) for title, (stem, names) in NETS.items()}


def subsets(names: list[str]) -> dict[str, NDArray[np.int64]]:
    """The images of val, the two halves of those of train, and all: their indices."""
    val = np.array([index for index, name in enumerate(names) if "val" in name])
    train = np.setdiff1d(np.arange(len(names)), val)
    half = len(train) // 2
    return {"val": val, "train, first half": train[:half], "train, second half": train[half:],
            "all": np.arange(len(names))}  # fmt: skip


def cells(metric: Metric, before: Scores, after: Scores, images: NDArray[np.int64]) -> list[str]:
    """Both scores, the drop, and its interval, on some of the images."""
    only = np.zeros((1, before.samples), np.uint8)
    only[:, images] = 1
    resampled = np.zeros((len(draws(len(images))), before.samples), np.uint8)
    resampled[:, images] = draws(len(images))
    one, other = (float(scores.resampled(only)[0]) for scores in (before, after))
    ends = interval(metric, before.resampled(resampled), after.resampled(resampled))
    between = "" if ends is None else f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}"
    return [f"{one:.4f}", f"{other:.4f}", f"{100 * (one - other):.2f}", between]


if __name__ == "__main__":
    main()
