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
from collections.abc import Mapping
from pathlib import Path

import torch
from record import Table, add_option

from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import write_weights
from paredown.calibration.datasets import open_dataset, read_names
from paredown.calibration.preprocess import Preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data"
COLUMNS = ("program", "median ms", "p90", "file MB", "peak MiB", "codes apart, 32 inputs")


def main() -> None:
    """Prints a row per program."""
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
    figures = json.loads(result.stdout)["figures"]
    with Table("large", COLUMNS, arguments.record) as table:
        table.note(f"`{arguments.network}` at {network.height}, random weights, one thread.")
        table.note(peak_text)
        for variant in ("executorch-fp32", "executorch", "litert-fp32", "litert"):
            table.row(*cells(variant, {f["metric"]: f["value"] for f in figures if f["variant"] == variant}))


def cells(variant: str, found: Mapping[str, float]) -> list[str]:
    """A program's row; float programs have no codes to compare."""
    apart = "-"
    if "parity_lsb" in found:
        apart = f"{100 * found['parity_share']:.4g} % by {found['parity_lsb']:.0f}"
    return [
        variant, f"{found['latency_p50']:.0f}", f"{found['latency_p90']:.0f}",
        f"{found['file_bytes'] / 1e6:.1f}", f"{found['memory_peak']:.0f}", apart,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
