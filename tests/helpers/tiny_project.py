"""A whole project of a user in miniature: a darknet network of three layers, six labelled images, a recipe.

One run of it takes seconds; the fixture `tiny` of conftest.py makes it once per session, for all tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import write_weights

ROOT = Path(__file__).parents[2]
CFG = """[net]
width=64
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
pad=1
activation=leaky

[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear

[region]
anchors=3.3,4.4, 2.8,3.8
classes=2
coords=4
num=2
softmax=1
"""
RECIPE = """network = "tiny.cfg"
weights = "tiny.weights"

[data]
format = "yolo"
names = "tiny.names"
train = "images/train"
test = "images/test"

[bench]
runs = 3
"""


@dataclass(frozen=True)
class Tiny:
    """The project's folder, and the folder of runs with one finished run in it."""

    folder: Path
    runs: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def run(self) -> Path:
        return self.runs / "tiny" / "host"

    @property
    def bundle(self) -> Path:
        return self.run / "bundle.paredown"

    def figures(self) -> list[dict]:
        return json.loads((self.run / "figures.json").read_text())


def make_project(folder: Path, seed: int = 7) -> Path:
    """Writes cfg, seeded weights, names, images, labels and the recipe; returns the recipe."""
    (folder / "tiny.cfg").write_text(CFG)
    torch.manual_seed(seed)
    network = YoloV2.from_cfg(folder / "tiny.cfg").eval()
    with torch.no_grad():
        for name, values in network.named_parameters():
            if name.startswith("head") and values.ndim == 4:
                values.copy_(3 * torch.randn_like(values))
        network.head.wh.weight.mul_(0.03)  # boxes about as large as the anchors
        network.head.obj.bias.fill_(2.0)  # enough boxes over .5 that drawing and scoring have work
    write_weights(folder / "tiny.weights", network)
    (folder / "tiny.names").write_text("square\ndisc\n")
    generator = np.random.default_rng(seed)
    for split, count in (("train", 4), ("test", 2)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for index in range(count):
            image, lines = scene(generator)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            (folder / "labels" / split / f"{index}.txt").write_text("".join(lines))
    (folder / "tiny.toml").write_text(RECIPE)
    return folder / "tiny.toml"


def scene(generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """One image of 72 x 96 pixels with a square and a disc, and its YOLO label lines."""
    image = generator.integers(0, 90, (72, 96, 3), dtype=np.uint8)
    x, y = (int(v) for v in generator.integers(12, 36, 2))
    cv2.rectangle(image, (x - 10, y - 10), (x + 9, y + 9), (40, 200, 220), cv2.FILLED)
    cv2.circle(image, (x + 44, y + 12), 8, (210, 60, 180), cv2.FILLED)
    boxes = ((0, x, y, 20, 20), (1, x + 44, y + 12, 17, 17))
    return image, [f"{c} {cx / 96} {cy / 72} {w / 96} {h / 72}\n" for c, cx, cy, w, h in boxes]


def copy_project(tiny: Tiny, folder: Path) -> Path:
    """A copy of the project to break; returns its recipe."""
    shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
    return folder / "tiny.toml"


def copy_runs(tiny: Tiny, folder: Path) -> Path:
    """A copy of the finished run with its store, so that stages are reused; returns it."""
    shutil.copytree(tiny.runs, folder)
    return folder


@dataclass(frozen=True)
class Done:
    """How a command went."""

    code: int
    out: str
    err: str

    def line(self) -> str:
        """The one line of an error; there must be nothing else."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("paredown: "), self.err
        assert self.out == "", self.out
        return lines[0]


def call(*arguments: object) -> Done:
    """Runs the command in this process, where torch and the runtimes are imported already."""
    from paredown.apps.cli.main import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        app([str(argument) for argument in arguments], prog_name="paredown")
    return Done(end.value.code or 0, out.getvalue(), err.getvalue())


def start(*arguments: object) -> subprocess.Popen:
    """Starts the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "paredown.apps.cli.main", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def paredown(*arguments: object) -> Done:
    """Runs the command in a process of its own."""
    process = start(*arguments)
    out, err = process.communicate()
    return Done(process.returncode, out, err)


def python(
    code: str, *arguments: object, cwd: Path | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess:
    """Runs Python code in a process of its own, our packages at hand; kills it after so many seconds."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def predict_of(bundle: Any) -> Any:
    """`Predict` of a bundle's LiteRT model, made from what its manifest says."""
    from paredown.pipeline.lower.integer import Affine
    from paredown.pipeline.lower.runtimes import float_predict
    from paredown.targets.runners.litert import Runner

    model = next(model for model in bundle.manifest.models if model.runtime == "litert")
    outputs = [Affine(output.scale, output.zero_point) for output in model.outputs]
    source = Affine(model.input.scale, model.input.zero_point)
    return float_predict(source, outputs, Runner(bundle.read(model.file)))
