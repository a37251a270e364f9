"""A whole run of a small classifier, and the code in its bundle on a machine that has nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from classifier_project import NAMES, make_project
from tiny_project import call, predict_of

from paredown.apps.classifier.device.classify import Classifier, softmax
from paredown.apps.classifier.sheet import RIGHT, UNKNOWN, WRONG, Entry, contact_sheet
from paredown.pipeline.bundle.archive import extract, unpack
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.task import load_task
from paredown.targets.errors import InputError

BOARD = """
import runpy, sys
folder = sys.argv.pop(1)
absent = "torch torchvision executorch paredown.pipeline pydantic typer rich zstandard"
for name in absent.split():
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, folder)
runpy.run_module("paredown.apps.classifier.device.classify", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    recipe = make_project(folder)
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield recipe
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        sys.modules.pop("colour_net", None)


@pytest.fixture(scope="module")
def run(project) -> Path:
    done = call("run", project, "--runs", project.parent / "runs")
    assert done.code == 0, done.err
    return project.parent / "runs" / "colours" / "host"


@pytest.fixture(scope="module")
def board(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    extract(unpack(run / "bundle.paredown"), folder)
    return folder


def classify(board: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Runs the device's command in isolation: no PYTHONPATH, no working folder on the path, no torch."""
    command = [sys.executable, "-I", "-c", BOARD, str(board), *map(str, arguments)]
    return subprocess.run(command, cwd=board, capture_output=True, text=True)


def test_a_run_scores_and_proves_a_classifier(run):
    figures = {
        (f["variant"], f["metric"]): f["value"] for f in json.loads((run / "figures.json").read_text())
    }
    assert figures["fp32", "top1"] == figures["integer", "top1"] == figures["litert", "top1"] == 1.0
    assert figures["litert", "parity_lsb"] == 0
    assert "top-1" in (run / "report.md").read_text()
    assert cv2.imread(str(run / "preview.png")).shape[2] == 3


def test_the_board_says_what_the_host_says(project, run, board, tmp_path):
    task = load_task(load_recipe(project))
    data = task.data("test")
    bundle = unpack(run / "bundle.paredown")
    predict = predict_of(bundle)
    for index in range(3):
        image = data[index].image
        cv2.imwrite(str(tmp_path / "x.png"), image)
        done = classify(board, tmp_path / "x.png")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["classes"]
        shares = softmax(predict(task.preprocess(image)[None])[0][0])
        order = np.argsort(-shares)
        assert [entry["class"] for entry in found] == [NAMES[i] for i in order] and order[0] == index % 3
        np.testing.assert_allclose([e["probability"] for e in found], shares[order], atol=6e-5)


def test_what_goes_wrong_is_one_line(board, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    for arguments, code, expected in (
        ((), 2, "usage: python -m paredown.apps.classifier.device.classify IMAGE"),
        ((tmp_path / "none.png",), 4, "cannot read this image"),
        ((tmp_path / "cut.png",), 4, "cannot read this image"),
    ):
        done = classify(board, *arguments)
        lines = [line for line in done.stderr.splitlines() if "WARN" not in line]  # OpenCV's own
        assert done.returncode == code and len(lines) == 1 and expected in lines[0] and done.stdout == ""


@pytest.mark.parametrize("name", ["model.tflite", "labels.txt", "app.json"])
def test_a_damaged_file_is_refused_before_anything_runs(run, tmp_path, name):
    extract(unpack(run / "bundle.paredown"), tmp_path)
    assert Classifier(tmp_path).names == list(NAMES)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: damaged"):
        Classifier(tmp_path)


def test_the_sheet_frames_right_and_wrong_pictures():
    image = np.full((20, 30, 3), 128, np.uint8)
    entries = [Entry(image, "cat", "cat"), Entry(image, "cat", "x" * 60), Entry(image, "äöü", None)]
    sheet = contact_sheet(entries)
    wide = sheet.shape[1] // 3
    for column, colour in enumerate((RIGHT, WRONG, UNKNOWN)):
        assert tuple(sheet[8, column * wide + wide // 2]) == colour
    assert contact_sheet(entries[:1]).shape[1] < sheet.shape[1]
    assert contact_sheet(entries * 5).shape[0] > 2 * sheet.shape[0]
