"""A public CIFAR-10 network through the whole pipeline: both runtimes, on real images."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from tiny_project import call

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def convert(shared, name: str, count: int) -> bytes:
    """The first images of a picture of rows as CIFAR-10's binary records."""
    rows = cv2.imread(str(shared / "cifar10" / f"{name}.png"))[:count, :, ::-1]
    labels = np.loadtxt(shared / "cifar10" / f"{name}.labels.txt", dtype=np.uint8)[:count]
    return np.concatenate([labels[:, None], rows.transpose(0, 2, 1).reshape(count, 3072)], axis=1).tobytes()


@pytest.mark.slow
def test_resnet20_is_as_good_in_eight_bits_and_exact_on_both_runtimes(shared, tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(convert(shared, "train4000", 128))
    (tmp_path / "test_batch.bin").write_bytes(convert(shared, "test500", 200))
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES))
    recipe = tmp_path / "resnet20.toml"
    recipe.write_text(
        'app = "apps.classifier"\nnetwork = "resnet20"\n'
        f'weights = "{shared / "cifar10-resnets" / "resnet20-12fca82f.th"}"\n'
        '[data]\nformat = "cifar"\ntrain = "."\ntest = "."\n[bench]\nruns = 3\n'
    )
    done = call("run", recipe, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    listed = json.loads((tmp_path / "runs" / "resnet20" / "host" / "figures.json").read_text())
    figures = {(figure["variant"], figure["metric"]): figure["value"] for figure in listed}
    for runtime in ("executorch", "litert"):
        assert figures[runtime, "parity_lsb"] == 0
        assert figures[runtime, "top1"] == figures["integer", "top1"] >= figures["fp32", "top1"] - 0.02
    assert figures["fp32", "top1"] > 0.85 and figures["fp32", "top5"] > 0.98
    assert figures["fp32", "macs"] == 40_813_184
