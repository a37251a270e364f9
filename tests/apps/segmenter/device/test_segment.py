"""A run of a small segmenter, and the code in its bundle on a machine that has nothing of ours."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
from task_board import board_of, figures_of, line_of, on_board, proven, run_of
from task_projects import SHAPES, WHOLE, make_segmentation, shapes
from tiny_project import predict_of

import paredown
from paredown.apps.segmenter.device.class_map import class_map
from paredown.apps.segmenter.device.segment import Segmenter
from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError

PROGRAM = "segmenter.device.segment"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    sys.modules.pop("unet", None)
    return make_segmentation(tmp_path_factory.mktemp("shapes"), steps=60)


@pytest.fixture(scope="module")
def run(recipe):
    return run_of(recipe)


@pytest.fixture(scope="module")
def board(run, tmp_path_factory):
    return board_of(run, tmp_path_factory.mktemp("board"))


def test_a_run_scores_and_proves_a_segmenter(run):
    figures = figures_of(run)
    assert figures["fp32", "miou"] > 0.6 and figures["litert", "miou"] == figures["integer", "miou"]
    assert abs(figures["integer", "miou"] - figures["fp32", "miou"]) < 0.05
    assert figures["litert", "parity_lsb"] == 0 and figures["litert", "pixel_accuracy"] > 0.9
    assert "mIoU" in (run / "report.md").read_text()


def test_the_board_says_what_the_host_says(recipe, run, board, tmp_path):
    ((image, _),) = shapes(1, seed=99, size=(60, 90))
    cv2.imwrite(str(tmp_path / "x.png"), image)
    done = on_board(board, PROGRAM, tmp_path / "x.png", tmp_path / "map.png")
    assert done.returncode == 0, done.stderr
    task, predict = load_task(load_recipe(recipe)), predict_of(unpack(run / "bundle.paredown"))
    logits = predict(task.preprocess(image)[None])[0][0]
    expected = class_map(logits, (60, 90), task.preprocess.geometry(60, 90))
    assert np.array_equal(cv2.imread(str(tmp_path / "map.png"), cv2.IMREAD_UNCHANGED), expected)
    listed = {each["class"]: each["share"] for each in json.loads(done.stdout)["classes"]}
    for index, name in enumerate(SHAPES):
        assert listed.get(name, 0) == pytest.approx((expected == index).mean(), abs=1e-4)
    with paredown.load(run / "bundle.paredown") as model:
        assert model.labels == SHAPES and np.array_equal(model.segment(image), expected)
        assert np.array_equal(model.segment(tmp_path / "x.png"), expected)
        with pytest.raises(paredown.UsageError, match=r"apps.segmenter has no classify\(\); use segment\(\)"):
            model.classify(image)


def test_what_goes_wrong_is_one_line(board, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4, 3), np.uint8))
    for arguments, code, expected in (
        ((), 2, "usage: python -m paredown.apps.segmenter.device.segment IMAGE [MAP]"),
        ((tmp_path / "none.png",), 4, "cannot read this image"),
        ((tmp_path / "x.png", tmp_path / "none" / "m.png"), 4, "cannot write this image"),
        ((tmp_path / "x.png", tmp_path / "m.txt"), 4, "cannot write this image"),
    ):
        done = on_board(board, PROGRAM, *arguments)
        assert done.returncode == code and expected in line_of(done)


def test_a_damaged_file_is_refused_before_anything_runs(run, tmp_path):
    board = board_of(run, tmp_path)
    assert Segmenter(board).names == list(SHAPES)
    (board / "labels.txt").write_text("another\n")
    with pytest.raises(InputError, match="labels.txt: damaged"):
        Segmenter(board)


@pytest.mark.slow
def test_a_segmenter_is_pruned_squantized_and_proven_on_both_runtimes(tmp_path):
    sys.modules.pop("unet", None)
    figures = proven(make_segmentation(tmp_path, WHOLE), "miou")
    assert figures["fp32", "miou"] > 0.9 and figures["litert", "miou"] > 0.85
