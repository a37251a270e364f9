"""The networks and data of the benches, as overrides of the embedded recipe."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from record import add_option

from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.pipeline.run.search.grid import read_axes
from paredown.targets.cards.card import load_card

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
YOLO = SHARED / "yololite-yolov2"
CASES = ("digits", "v8", "yolo", "resnet20", "resnet32", "resnet56", "mobilenet")


def data(case: str, made: Path) -> list[str]:
    """Network, weights and data of a case.

    Args:
        case: one of CASES.
        made: what `bench/cifar.py` made; of mobilenet, what `bench/mobilenet.py` prepared; of v8, the folder
            with `v8.safetensors` of `paredown train digits --network yolov8-nano-like --size 160`.
    """
    if case == "digits":
        return []
    if case == "v8":
        return [
            "network=yolov8-nano-like", f"weights={made / 'v8.safetensors'}",
            "preprocess.width=160", "preprocess.height=160",
        ]  # fmt: skip
    if case == "yolo":
        return [
            f"network={YOLO / 'voc-trial3-bn.cfg'}", f"weights={YOLO / 'voc-trial3-bn.weights'}",
            "data.format=yolo", f"data.names={YOLO / 'voc.names'}", f"data.label_names={YOLO / 'coco.names'}",
            f"data.train={SHARED / 'imagenet'}", f"data.test={SHARED / 'coco' / 'images'}",
            "prune.images=125",
        ]  # fmt: skip
    if case == "mobilenet":
        return [
            "app=apps.classifier", "network=mobilenet_v2", f"weights={made / 'mobilenet_v2.pt'}",
            "data.format=imagefolder", f"data.names={made / 'names'}", f"data.train={made / 'train'}",
            f"data.test={made / 'test'}", "preprocess.mean=[0.5]", "preprocess.std=[0.5]",
            "preprocess.resize=crop", "prune.images=50",
        ]  # fmt: skip
    return [
        "app=apps.classifier", f"network={case}",
        f"weights={next((SHARED / 'cifar10-resnets').glob(f'{case}-*.th'))}",
        "data.format=cifar", f"data.train={made / 'mixed'}", f"data.test={made / 'test'}",
        "prune.images=512",
    ]  # fmt: skip


def parsed(description: str | None, cases: Iterable[str]) -> argparse.Namespace:
    """The arguments of a bench of one case: it, further settings, and folders; and those of a record."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=tuple(cases))
    parser.add_argument("more", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--cifar", type=Path, default=Path("cifar"))
    parser.add_argument("--runs", type=Path, default=None)
    add_option(parser)
    arguments = parser.parse_intermixed_args()
    arguments.runs = arguments.runs or Path(tempfile.mkdtemp())
    return arguments


def combinations(asked: Sequence[str]) -> list[list[str]]:
    """KEY=VALUE,VALUE and so on as the settings of every combination."""
    axes = [[f"{axis.key}={value}" for value in axis.values] for axis in read_axes(asked)]
    return [list(settings) for settings in itertools.product(*axes)]


def make_run(case: str, settings: list[str], runs: Path) -> Run:
    """A run of the pipeline on this machine, nothing of it done yet."""
    recipe = load_recipe(ROOT / "apps" / "detector" / "recipes" / "digits.toml", settings)
    return Run(case, recipe, load_card("host"), runs)
