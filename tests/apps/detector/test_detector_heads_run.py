"""A detector of the user's own without anchors, from training on labels to its proof on both runtimes."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from task_board import proven
from task_projects import WHOLE
from tiny_project import call, scene

import paredown
from paredown.apps.detector.web import site
from paredown.pipeline.bundle.archive import unpack

NETS = """
from paredown.apps.detector.network.v8 import V8Like


def make():
    return V8Like(2, widths=(8, 12, 16, 24), depths=(1, 1, 1), levels=2, bins=6, input_size=64)
"""
RECIPE = """network = "free_nets_whole:make"
weights = "net.safetensors"

[data]
format = "yolo"
names = "tiny.names"
train = "images/train"
test = "images/test"
"""


@pytest.mark.slow
def test_v8_heads_are_trained_pruned_squantized_and_proven_on_both_runtimes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "free_nets_whole.py").write_text(NETS)
    (tmp_path / "tiny.names").write_text("square\ndisc\n")
    generator = np.random.default_rng(5)
    for split, count in (("train", 48), ("test", 8)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(count):
            image, lines = scene(generator)
            cv2.imwrite(str(tmp_path / "images" / split / f"{index:02}.png"), image)
            (tmp_path / "labels" / split / f"{index:02}.txt").write_text("".join(lines))
    done = call(
        "train", "images/train", "--names", "tiny.names", "--network", "free_nets_whole:make", "--out",
        "net.safetensors", "--epochs", "30", "--batch", "8", "--warmup", "20", "--ema", "0.95", "--lr",
        "0.02", "--threads", "1",
    )  # fmt: skip
    assert done.code == 0, done.err
    recipe = tmp_path / "free.toml"
    whole = WHOLE.replace("[recover]", '[recover]\nmethod = "labels"')
    recipe.write_text(RECIPE + whole)
    figures = proven(recipe, "map50")
    assert figures["fp32", "map50"] > 0.9 and figures["litert", "map50"] > 0.8
    (bundle,) = tmp_path.rglob("host/bundle.paredown")
    image = cv2.imread(str(tmp_path / "images" / "test" / "00.png"))
    with paredown.load(bundle) as model:
        assert len(model.detect(image)) >= 1
    facts = json.loads(site._page(unpack(bundle))["model.json"])
    assert facts["heads"]["kind"] == "v8" and facts["heads"]["bins"] == 6 and "anchors" not in facts
