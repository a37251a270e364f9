"""The newcomer's way: own photos in, weights at any moment and a recipe that runs out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from blood_cells import NAMES, blood_cells
from safetensors import safe_open
from tiny_project import call

from paredown.apps.api.training.networks import box_sizes, choose_size, shaped_cfg, small_boxes, start_from
from paredown.apps.api.training.outcome import Files, Keeper
from paredown.apps.detector.network import Yolo
from paredown.calibration.datasets import open_dataset
from paredown.pipeline.recipe.file import load_recipe
from paredown.targets.errors import InputError

NOWHERE = (
    "<name>WBC</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>5</ymax>"
    "</bndbox>"
)
QUICK = ("--epochs", "2", "--batch", "4", "--warmup", "1", "--threads", "1", "--size", "96")


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """A tiny VOC set of three classes."""
    return blood_cells(tmp_path_factory.mktemp("cells"), {"train": 8, "val": 3})


def test_anchors_and_input_size_suit_the_boxes(cells):
    data = open_dataset("voc", cells / "ImageSets/Main/train.txt", names=NAMES)
    size, said = choose_size(data)
    assert size % 32 == 0 and 160 <= size <= 256 and f"input {size}x{size}" in said
    sides = np.sort((box_sizes(data) * 32).min(axis=1))
    assert f"shorter side below {sides[len(sides) // 10]:.0f} pixels" in small_boxes(data, 32)
    assert f"; {size} would be chosen without --size" in small_boxes(data, 32)
    assert small_boxes(data, size) == ""
    cfg, told = shaped_cfg("yolov2-nano", data, size, "stretch")
    assert cfg.classes == 3 and (cfg.net.width, cfg.net.height) == (size, size)
    smallest = np.array(cfg.region.anchors).prod(1).min() * 16**2
    assert smallest == pytest.approx((box_sizes(data) * size).prod(1).min(), rel=2.0)
    assert float(told.split("mean IoU ")[1].split()[0]) > 0.7
    network = Yolo.from_cfg(cfg)
    assert network.head.cls.out_channels == 3 * len(cfg.region.anchors)


def test_layers_that_fit_are_taken_and_the_rest_named(cells, tmp_path):
    from paredown.apps.detector import digits

    data = open_dataset("voc", cells / "ImageSets/Main/train.txt", names=NAMES)
    network = Yolo.from_cfg(shaped_cfg("yolov2-nano", data, 96, "stretch")[0])
    shipped = Path(digits.__file__).with_name("digits.safetensors")
    assert start_from(network, shipped) == "digits.safetensors: 23 of 24 weight tensors taken; new: head.cls"
    with safe_open(shipped, "pt") as file:
        name = next(name for name in file.keys() if name.endswith("conv.weight"))
        assert network.state_dict()[name].equal(file.get_tensor(name))
    other = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"far.weight": network.state_dict()[name].clone()}, other)
    with pytest.raises(InputError, match="no layer of these weights fits the network"):
        start_from(network, other)


def test_a_set_of_three_classes_is_trained_and_its_recipe_reads(cells, tmp_path):
    files = Files(tmp_path / "net.safetensors")
    done = call("train", cells, "--out", files.out, *QUICK)
    assert done.code == 0 and done.out == ""
    for words in ("3 classes: Platelets, RBC, WBC", "anchors by k-means", "map50", "next: paredown run"):
        assert words in done.err
    told = next(line for line in done.err.splitlines() if line.startswith("best: epoch "))
    assert all(f"{name} 0." in told for name in NAMES), told
    recipe = load_recipe(str(files.recipe), (), ())
    assert recipe.app == "apps.detector" and Path(recipe.weights) == files.out
    assert files.names.read_text().split() == list(NAMES) and not files.checkpoint.exists()
    assert cv2.imread(str(files.plot)).shape[2] == 3
    with safe_open(files.out, "pt") as file:
        facts = file.metadata()
    trained = json.loads(facts["paredown"])
    assert trained["names"] == list(NAMES) and trained["preprocess"]["width"] == 96
    from paredown.apps.detector.task import DetectorTask

    task = DetectorTask(recipe)
    assert task.network().classes == 3 and len(task.data("test")) == 3


def test_the_best_epoch_says_its_classes_and_which_are_never_found(tmp_path):
    keeper = Keeper(Files(tmp_path / "x.safetensors"), {}, True, "map50")
    assert keeper.best() == []
    rows = [
        {"epoch": 1, "loss": 3.0, "map50": 0.45, "class_score_red": 0.9, "class_score_tiny": 0.0},
        {"epoch": 2, "loss": 2.0},
        {"epoch": 3, "loss": 1.0, "map50": 0.4, "class_score_red": 0.7, "class_score_tiny": 0.1},
    ]
    keeper._history = rows
    best, never = keeper.best()
    assert best == "best: epoch 1, validation map50 0.4500; tiny 0.000, red 0.900"
    assert never.startswith("hardly found at all: tiny; more --epochs")
    many = {f"class_score_{n}": n / 20 for n in range(1, 15)}
    keeper._history = [{"epoch": 4, "map50": 0.5, **many}]
    (only,) = keeper.best()
    assert only.endswith("10 0.500, 4 better ones") and "; 1 0.050, 2 0.100, " in only


@pytest.mark.slow
def test_a_killed_training_leaves_weights_and_goes_on(cells, tmp_path):
    """Killed as hard as can be, after its first epoch; it ends where an unbroken one does."""
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    command = [sys.executable, "-m", "paredown.apps.cli", "train", str(cells), *QUICK, "--out"]
    subprocess.run([*command, whole], check=True, capture_output=True)
    process = subprocess.Popen([*command, broken], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 1"):
            process.kill()
    process.wait()
    assert broken.exists()  # with or without a checkpoint, by when it was hit
    subprocess.run([*command, broken], check=True, capture_output=True)
    assert not Files(broken).checkpoint.exists()
    assert Files(broken).last.read_bytes() == Files(whole).last.read_bytes()


def test_a_classifier_is_trained_on_folders(tmp_path):
    random = np.random.default_rng(0)
    for channel, kind in enumerate(("blue", "green", "red")):
        for number in range(8):
            image = random.integers(0, 80, (36, 40, 3)).astype(np.uint8)
            image[..., channel] += 120
            file = tmp_path / "set" / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), image)
    files = Files(tmp_path / "net.safetensors")
    options = ("--epochs", "4", "--batch", "6", "--threads", "1", "--warmup", "1", "--patience", "0")
    done = call("train", tmp_path / "set", "--out", files.out, *options)
    assert done.code == 0, done.err
    assert "3 classes: blue, green, red" in done.err and "top1" in done.err
    from paredown.apps.classifier.task import ClassifierTask

    task = ClassifierTask(load_recipe(str(files.recipe), (), ()))
    data = task.data("test")
    network = task.network()

    def predict(x):
        import torch

        with torch.no_grad():
            return (network(torch.from_numpy(x)).numpy(),)

    told = [line.split(", top1 ")[1] for line in done.err.splitlines() if ", top1 " in line]
    best = max(float(line.split(",")[0]) for line in told)
    assert task.score(predict, data)["top1"] == pytest.approx(best, abs=1e-4)


@pytest.mark.slow
def test_the_newcomers_way_from_photos_to_a_validated_bundle(tmp_path):
    """Train, run, validate: every class has its score, the data are counted, a bad class does not ship."""
    cells = blood_cells(tmp_path / "cells", {"train": 32, "val": 8})
    out = tmp_path / "net.safetensors"
    options = ("--epochs", "12", "--batch", "8", "--warmup", "4", "--threads", "1")
    assert call("train", cells, "--out", out, *options).code == 0
    changes = ("bench.runs=2", "budget.accuracy_drop=1.0")
    words = [word for change in changes for word in ("--set", change)]
    done = call("run", out.with_suffix(".toml"), "--runs", tmp_path / "runs", "--json", *words)
    assert done.code in (0, 3), done.err  # what is small and quick may find one class never
    told = json.loads(done.out)
    scores = {
        f["metric"]: f["value"] for f in told["figures"] if f["variant"] == "litert" and f["stage"] == "score"
    }
    classes = [scores[f"class_score_{name}"] for name in NAMES]
    assert scores["map50"] == pytest.approx(np.mean(classes)) and scores["map50"] > 0.3
    counts = {
        f["metric"]: f["value"] for f in told["figures"] if f["stage"] == "data" and f["variant"] == "test"
    }
    assert counts["images"] == counts["labelled"] == 8 and counts["objects_RBC"] > 8
    assert any(note.startswith("data.test: 8 images, 8 labelled; ") for note in told["notes"])
    bundle = tmp_path / "runs/net/host/bundle.paredown"
    checked = call("validate", bundle, "--limit", "4")
    assert checked.code in (0, 3) and "map50" in checked.out, checked.err
    for file in (cells / "Annotations").glob("val_*.xml"):  # white cells where there are none
        file.write_text(re.sub(r"<name>WBC</name>.*?</bndbox>", NOWHERE, file.read_text()))
    words += ["--set", "budget.least_class_score=0.05"]
    done = call("run", out.with_suffix(".toml"), "--runs", tmp_path / "runs", "--json", *words)
    told = json.loads(done.out)
    assert done.code == 3 and told["verdict"]["word"] == "DO NOT SHIP"
    assert any("least_class_score of class 'WBC'" in reason for reason in told["verdict"]["reasons"])
    shown = call("report", tmp_path / "runs/net/host", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert shown.code == 0 and "DO NOT SHIP" in page and all(name in page for name in NAMES)
