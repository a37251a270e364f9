"""The code in a bundle, on a machine that has nothing of ours, no torch, and only that folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_project import predict_of

from paredown.apps.detector.task import DetectorTask
from paredown.pipeline.bundle.archive import extract, unpack
from paredown.pipeline.recipe.file import load_recipe

BOARD = """
import runpy, sys
folder = sys.argv.pop(1)
absent = ("torch", "torchvision", "executorch", "paredown.pipeline", "pydantic", "typer", "rich", "zstandard")
for name in absent:
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, folder)
code = 0
try:
    runpy.run_module("paredown.apps.detector.device.detect", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
ours = [m for n, m in sys.modules.items() if n.split(".")[0] in ("apps", "calibration", "targets") and m]
assert all((m.__file__ or "").startswith(folder) for m in ours), ours
sys.exit(code)
"""


@pytest.fixture(scope="module")
def board(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    extract(unpack(tiny.bundle), folder)
    return folder


def detect(board: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Runs the device's command in isolation: no PYTHONPATH, no working folder on the path, no torch."""
    return subprocess.run(
        [sys.executable, "-I", "-c", BOARD, str(board), *map(str, arguments)],
        cwd=board,
        capture_output=True,
        text=True,
    )


def test_it_finds_what_the_host_finds(tiny, board, tmp_path):
    image = tiny.folder / "images" / "test" / "0.png"
    done = detect(board, image, tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["detections"]

    bundle = unpack(tiny.bundle)
    task = DetectorTask(load_recipe(tiny.recipe))
    pixels = cv2.imread(str(image))
    expected = task.detections(predict_of(bundle), pixels, 0.5)
    assert len(found) == len(expected) > 3
    assert [task.names.index(d["class"]) for d in found] == expected.classes.tolist()
    np.testing.assert_allclose([d["score"] for d in found], expected.scores, atol=6e-5)
    np.testing.assert_allclose([d["box"] for d in found], expected.boxes, atol=6e-5)
    drawn = cv2.imread(str(tmp_path / "out.png"))
    assert drawn.shape == pixels.shape and (drawn != pixels).any()


def test_the_command_of_the_readme(tiny, board):
    image = tiny.folder / "images" / "test" / "1.png"
    module = [sys.executable, "-m", "paredown.apps.detector.device.detect", str(image)]
    done = subprocess.run(module, cwd=board, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == str(image)


def test_what_goes_wrong_is_one_line(tiny, board, tmp_path):
    image = tiny.folder / "images" / "test" / "0.png"
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:50])
    for arguments, code, expected in (
        ((), 2, "usage: python -m"),
        ((image, "a.png", "b.png"), 2, "usage: python -m"),
        ((tmp_path / "none.png",), 4, "cannot read this image"),
        ((tmp_path / "cut.png",), 4, "cannot read this image"),
        ((image, tmp_path / "out.words"), 4, "cannot write this image"),
        ((image, tmp_path / "no" / "such" / "out.png"), 4, "cannot write this image"),
    ):
        done = detect(board, *arguments)
        lines = [line for line in done.stderr.splitlines() if "WARN" not in line]  # OpenCV's own
        assert done.returncode == code, done.stderr
        assert len(lines) == 1 and expected in lines[0] and done.stdout == ""


@pytest.mark.parametrize("name", ["model.tflite", "labels.txt", "app.json", "manifest.json"])
def test_a_damaged_or_missing_file_is_refused_before_anything_runs(tiny, tmp_path, name):
    from paredown.apps.detector.device.detect import Detector
    from paredown.targets.errors import InputError

    extract(unpack(tiny.bundle), tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    if name != "manifest.json":
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: damaged"):
            Detector(tmp_path)
    for broken in (b"", b"[]", b'{"models": [1]}', b'{"models": []}'):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(InputError, match="no unpacked bundle|damaged"):
            Detector(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match="no unpacked bundle"):
        Detector(tmp_path)
