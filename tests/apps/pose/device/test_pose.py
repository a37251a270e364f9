"""A run of a small pose network, and the code in its bundle on a machine that has nothing of ours."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
from task_board import board_of, figures_of, line_of, on_board, proven, run_of
from task_projects import JOINTS, WHOLE, figures, make_pose

import paredown
from paredown.apps.pose.device.pose import Pose
from paredown.targets.errors import InputError

PROGRAM = "pose.device.pose"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sys.modules.pop("pose_net", None)
    return run_of(make_pose(tmp_path_factory.mktemp("figures"), steps=100))


@pytest.fixture(scope="module")
def board(run, tmp_path_factory):
    return board_of(run, tmp_path_factory.mktemp("board"))


def test_a_run_scores_and_proves_a_pose_network(run):
    figures = figures_of(run)
    assert figures["fp32", "pck"] > 0.7 and figures["litert", "pck"] == figures["integer", "pck"]
    assert figures["litert", "parity_lsb"] == 0 and "PCK@0.2" in (run / "report.md").read_text()


def test_the_board_finds_the_joints_of_a_box_in_pixels_of_the_image(run, board, tmp_path):
    ((image, joints, box),) = figures(1, seed=99)
    wide = np.zeros((200, 300, 3), np.uint8)
    wide[100:180, 150:246] = image  # the figure somewhere in a large picture
    cv2.imwrite(str(tmp_path / "x.png"), wide)
    left, top, width, height = box[0] + 150, box[1] + 100, box[2], box[3]
    done = on_board(board, PROGRAM, tmp_path / "x.png", left, top, width, height)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["keypoints"]
    assert [each["name"] for each in found] == list(JOINTS)
    apart = [np.hypot(f["x"] - 150 - x, f["y"] - 100 - y) for f, (x, y, _) in zip(found, joints, strict=True)]
    assert np.median(apart) < 0.1 * max(width, height)
    with paredown.load(run / "bundle.paredown") as model:
        again = model.keypoints(wide, (left, top, width, height))
        assert model.labels == JOINTS and [each.label for each in again] == list(JOINTS)
        for one, other in zip(found, again, strict=True):
            assert (one["x"], one["y"]) == pytest.approx((other.x, other.y), abs=0.01)
            assert one["confidence"] == pytest.approx(other.confidence, abs=1e-4)
        assert len(model.keypoints(tmp_path / "x.png")) == 4  # the whole image
        with pytest.raises(paredown.UsageError, match="a box without area"):
            model.keypoints(wide, (0, 0, 0, 5))


def test_what_goes_wrong_is_one_line(board, tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4, 3), np.uint8))
    usage = "usage: python -m paredown.apps.pose.device.pose IMAGE [LEFT TOP WIDTH HEIGHT]"
    for arguments, code, expected in (
        ((), 2, usage),
        ((tmp_path / "x.png", 1, 2), 2, usage),
        ((tmp_path / "x.png", 1, 2, "a", 4), 2, usage),
        ((tmp_path / "x.png", 1, 2, 0, 4), 2, "a box without area"),
        ((tmp_path / "x.png", "nan", 2, 3, 4), 2, "a box without area"),
        ((tmp_path / "none.png",), 4, "cannot read this image"),
    ):
        done = on_board(board, PROGRAM, *arguments)
        assert done.returncode == code and expected in line_of(done)


def test_a_damaged_file_is_refused_before_anything_runs(run, tmp_path):
    board = board_of(run, tmp_path)
    (board / "app.json").write_text("{}")
    with pytest.raises(InputError, match=r"app\.json: damaged"):
        Pose(board)


@pytest.mark.slow
def test_a_pose_network_is_pruned_squantized_and_proven_on_both_runtimes(tmp_path):
    sys.modules.pop("pose_net", None)
    figures = proven(make_pose(tmp_path, WHOLE), "pck")
    assert figures["fp32", "pck"] > 0.9 and figures["litert", "pck"] > 0.85
