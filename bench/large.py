"""`paredown run` on the full yolov2-voc at 416 (50.7 M parameters): peak memory and parity.

    python bench/large.py               # about 10 minutes on 2 cores

No trained weights of this size are at hand: they are random, with BN statistics from real images, so that
every layer works in a realistic range. The scores mean nothing; memory, parity, bytes and time do.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from record import Table, add_option

from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import write_weights
from paredown.calibration.datasets import open_dataset, read_names
from paredown.calibration.preprocess import Preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data"


def main() -> None:
    """Prints the figures that matter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="yolov2-voc")
    parser.add_argument("--images", type=int, default=8)
    add_option(parser)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    names = SHARED / "yololite-yolov2" / "voc.names"
    data = open_dataset("folder", SHARED / "imagenet", names=read_names(names))
    torch.manual_seed(0)
    network = YoloV2(builtin_cfg(arguments.network)).train()
    preprocess = Preprocess(network.width, network.height)
    with torch.no_grad():
        for _ in range(4):
            batch = [torch.from_numpy(preprocess(data[i].image)) for i in range(4)]
            network(torch.stack(batch))
    weights = folder / "random.weights"
    write_weights(weights, network.eval())
    recipe = folder / "large.toml"
    coco = SHARED / "yololite-yolov2" / "coco.names"
    recipe.write_text(
        f'network = "{arguments.network}"\nweights = "{weights}"\n[data]\nformat = "yolo"\n'
        f'names = "{names}"\n'
        f'label_names = "{coco}"\ncalibration = "{SHARED}/imagenet"\ntest = "{SHARED}/coco/images/val"\n'
        f"limit = {arguments.images}\n[bench]\nruns = 5\n"
    )
    command = [
        sys.executable,
        "-m",
        "paredown.apps.cli.main",
        "run",
        str(recipe),
        "--runs",
        str(folder / "runs"),
        "--json",
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    peak_text = f"Peak memory of `paredown run`: {peak:.2f} GiB."
    print(f"weights file: {weights.stat().st_size} bytes. {peak_text}\n")
    with Table("large", ("variant", "metric", "value", "unit"), arguments.record, notes=[peak_text]) as table:
        for figure in json.loads(result.stdout)["figures"]:
            if figure["metric"] not in {"map", "map50"}:
                table.row(figure["variant"], figure["metric"], f"{figure['value']:,.6g}", figure["unit"])


if __name__ == "__main__":
    main()
