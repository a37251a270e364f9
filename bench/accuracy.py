"""The three real YOLO-v2 networks through the whole pipeline, scored on 192 COCO images new to them.

    python bench/accuracy.py            # about 10 minutes on 2 cores

Calibrated on 128 images of an ImageNet sample, never on an image that is scored. The drop is the worst
variant's, with its paired 95 % bootstrap interval over the images. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from record import Table, add_option

from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.report.drop import DROP
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card

SHARED = Path(__file__).parents[2] / "shared" / "data"
NETS = {
    "VOC, no BN": ("voc-trial3-noBatch", "voc.names"),
    "VOC, BN": ("voc-trial3-bn", "voc.names"),
    "COCO": ("coco-trial6", "coco.names"),
}
SPLITS = {"coco/val": "images/val", "coco/train": "images/train", "all 192": "images"}


def recipe(stem: str, names: str, test: str, observer: str, runs: int) -> Recipe:
    """One network, one set of test images."""
    folder = SHARED / "yololite-yolov2"
    weights = next(folder.glob(f"{stem}*.weights"))
    data = {
        "format": "yolo", "names": str(folder / names), "label_names": str(folder / "coco.names"),
        "calibration": str(SHARED / "imagenet"), "test": str(SHARED / "coco" / test),
    }  # fmt: skip
    fields = {"network": str(folder / f"{stem}.cfg"), "weights": str(weights), "data": data}
    return Recipe.model_validate(fields | {"quantize": {"observer": observer}, "bench": {"runs": runs}})


def main() -> None:
    """Prints one row per network and set of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observer", default="auto")
    parser.add_argument("--runs", type=Path, default=None, help="keep the store here")
    add_option(parser)
    arguments = parser.parse_args()
    root = arguments.runs or Path(tempfile.mkdtemp())
    heads = (
        "network", "images", "fp32", "integer", "ExecuTorch", "LiteRT", "drop, points", "95 % interval",
        "parity LSB, ExecuTorch/LiteRT", "undelegated",
    )  # fmt: skip
    with Table("accuracy", heads, arguments.record) as table:
        for title, (stem, names) in NETS.items():
            for split, test in SPLITS.items():
                table.row(title, split, *row(stem, names, split, test, arguments.observer, root))


def row(stem: str, names: str, split: str, test: str, observer: str, root: Path) -> list[str]:
    """The cells of one network and one set of images."""
    name = f"{stem}-{split.replace('/', '-').replace(' ', '-')}"
    result = Run(name, recipe(stem, names, test, observer, 20), load_card("host"), root).execute()
    cells = {(f.variant, f.metric): f.value for f in result.figures}
    variants = ("fp32", "integer", "executorch", "litert")
    worst = max(variants[1:], key=lambda variant: cells[variant, DROP])
    drop, low, high = (100 * cells[worst, name] for name in (DROP, f"{DROP}_low", f"{DROP}_high"))
    return [
        *(f"{cells[variant, 'map50']:.4f}" for variant in variants),
        f"{drop:.2f}",
        f"{low:.2f} to {high:.2f}",
        "/".join(f"{cells[v, 'parity_lsb']:.0f}" for v in ("executorch", "litert")),
        "/".join(f"{cells[v, 'undelegated_ops']:.0f}" for v in ("executorch", "litert")),
    ]


if __name__ == "__main__":
    main()
