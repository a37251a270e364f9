"""The commands deploy, stop and logs, on this machine as a device."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_command import call


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.zeros((72, 96, 3), np.uint8))
    return folder


def test_deploy_tails_and_the_log_and_stop_find_it(tiny, home, pictures):
    done = call("deploy", tiny.bundle, "--device", "local:", "--", "--source", pictures, "--json")
    assert done.code == 0, done.err
    assert " runs on local:" in done.out and "paredown stop --device local: --name camera" in done.out
    documents = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    assert documents[-1]["summary"]["frames"] == 3  # the tail ends with the app
    logged = call("logs", "--device", "local:", "--lines", 2)
    assert [json.loads(line) for line in logged.out.splitlines()] == documents[-2:]
    stopped = call("stop", "--device", "local:")
    assert (stopped.code, stopped.out) == (0, "camera was not running\n")
    told = json.loads(call("stop", "--device", "local:", "--json").out)
    assert told["running"] is False and told["ended"]["status"] == 0


@pytest.mark.parametrize(
    ("asked", "code", "expected"),
    [
        (("deploy", "{bundle}", "--device", "local:"), 2, "--app camera: the following arguments"),
        (("deploy", "none", "--device", "local:", "--", "--source", "0"), 4, "none: cannot read this bundle"),
        (("deploy", "x", "--device", "local:", "--", "--source", "rtsp://a:b@c"), 2, "give --source @FILE"),
        (("deploy", "{bundle}", "--device", "nowhere", "--", "--source", "0"), 2, "no address of a device"),
        (("deploy", "{bundle}", "--device", "local:", "--app", "drone", "--", "--source", "0", "--fov", "60"),
         2, "--app drone: the following arguments are required: --mavlink"),
        (("deploy", "{bundle}", "--device", "local:", "--app", "tv"), 2, "--app: no app is called `tv`"),
        (("stop", "--device", "local:"), 5, "local: no app called camera was deployed here"),
        (("logs", "--device", "local:", "--name", "A b"), 2, "`A b` is no name of an app"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line(tiny, home, asked, code, expected):
    done = call(*(word.format(bundle=tiny.bundle) for word in asked))
    assert done.code == code and expected in done.line()
