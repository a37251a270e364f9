"""The apps deployed to an emulated Raspberry Pi over ssh, where they must see what this machine sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pymavlink
import pytest
from camera_command import call, film, pictures
from mavlink_peer import Autopilot
from needs import needs
from ports import free_port

from paredown.pipeline.device.deploy.deploy import deploy
from paredown.targets.devices.service.service import Service
from paredown.targets.devices.shell.shell import ShellDevice
from paredown.targets.devices.transports.ssh import SshTransport
from paredown.targets.emulated.board import EmulatedBoard, start
from paredown.targets.emulated.sysroot import PLATFORMS, SITE_PACKAGES, SUITE, _unpack
from paredown.targets.errors import DeviceError
from paredown.targets.host.cache import cache_folder, made_once

pytestmark = pytest.mark.slow

OPENCV = "opencv-python-headless"
COUNT = 6
PATIENT = "--trust-latency 60 --trust-attitude 5 --trust-position 5 --trust-link 60".split()  # emulated


def opencv_wheel() -> Path:
    """OpenCV for the board, of the version that is installed here; 40 MB, once."""
    version = metadata.version(OPENCV)

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        command += [word for name in PLATFORMS for word in ("--platform", name)]
        command += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
        subprocess.run([*command, "--abi", "abi3", f"{OPENCV}=={version}"], check=True)

    folder = made_once(cache_folder() / "wheels" / f"{OPENCV}-{version}-arm64", make)
    return next(folder.glob("*.whl"))


def bring_pymavlink(root: Path) -> None:
    """Pymavlink is Python alone; `ssl`, which it imports, needs a library that every real board has."""
    package = Path(pymavlink.__file__).parent
    foreign = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(package, root / SITE_PACKAGES / package.name, ignore=foreign)
    system = made_once(cache_folder() / "libssl3-arm64", lambda folder: _unpack(folder, ("libssl3",), SUITE))
    shutil.copytree(system / "usr/lib", root / "usr/lib", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def board() -> Iterator[EmulatedBoard]:
    needs("qemu-aarch64", "qemu-user")
    needs("proot", "proot")
    with start("raspberry-pi-5") as running:
        yield running


@pytest.fixture(scope="module")
def with_opencv(board) -> EmulatedBoard:
    with zipfile.ZipFile(opencv_wheel()) as wheel:
        wheel.extractall(board.root / SITE_PACKAGES)
    return board


def clip(path: Path, count: int) -> Path:
    """A film of the very same pixels on every processor: lossless, and as large as the network's input."""
    return film(path, [np.ascontiguousarray(image[:64, :64]) for image in pictures(count)], codec="MPNG")


def connected(board: EmulatedBoard) -> ShellDevice:
    return ShellDevice(SshTransport(board, f"ssh://{board.user}@{board.host}"), emulated=True)


def test_a_board_without_opencv_is_told_what_it_lacks(tiny, board):
    with connected(board) as device:
        there = Service(device, "early")
        if (board.root / SITE_PACKAGES / "cv2").exists():
            pytest.fail("this test must come before the one that brings OpenCV")
        expected = "no cv2 for /usr/bin/python3; there: python3 -m pip install opencv-python-headless"
        with pytest.raises(DeviceError, match=expected):
            deploy(tiny.bundle, device, name="early", arguments=("--source", "0"))
        assert not there.status()["running"]


def test_it_sees_there_what_it_sees_here(tiny, with_opencv, tmp_path):
    source = clip(tmp_path / "clip.avi", COUNT)
    shutil.copy(source, with_opencv.root / "home/pi/clip.avi")
    with connected(with_opencv) as device:
        made = deploy(tiny.bundle, device, arguments=("--source", "/home/pi/clip.avi", "--json"))
        assert made.differing == 0 and made.codes > 100
    with connected(with_opencv) as device:  # another connection
        found, status = documents(device, "camera", follow=True)
        assert status["ended"]["status"] == 0
    here = call("camera", tiny.bundle, "--source", source, "--json")
    expected = [json.loads(line)["detections"] for line in here.out.splitlines()[:-1]]
    assert [document["detections"] for document in found] == expected
    assert len(expected) == COUNT and min(map(len, expected)) > 3


def test_it_goes_on_without_us_and_ends_when_told(tiny, with_opencv, tmp_path):
    shutil.copy(clip(tmp_path / "long.avi", 600), with_opencv.root / "home/pi/long.avi")
    asked = ("--source", "/home/pi/long.avi", "--realtime", "--json")
    with connected(with_opencv) as device:
        deploy(tiny.bundle, device, name="hall", arguments=asked)
    with connected(with_opencv) as device:
        ended = Service(device, "hall").stop(grace_s=60.0)
        found, _ = documents(device, "hall", follow=False)
    assert ended["was_running"] and not ended["running"] and ended["ended"]["status"] == 0
    assert 0 < len(found) < 600


def test_a_drone_app_there_tells_an_autopilot_here(tiny, with_opencv, tmp_path):
    """What leaves the board as MAVLink is what its own lines say that it sent."""
    shutil.copy(clip(tmp_path / "flight.avi", COUNT), with_opencv.root / "home/pi/flight.avi")
    port = free_port()
    asked = ("--source", "/home/pi/flight.avi", "--fov", "60", "--mavlink", f"udp:127.0.0.1:{port}", "--json")
    asked += ("--tiles", "off", "--trust-sightings", "1", "--min-confidence", "0.3", *PATIENT)
    with Autopilot(port) as autopilot, connected(with_opencv) as device:
        with pytest.raises(DeviceError, match="no pymavlink for .*; there: .* install pymavlink"):
            deploy(tiny.bundle, device, "drone", arguments=asked)
        bring_pymavlink(with_opencv.root)
        deploy(tiny.bundle, device, "drone", arguments=asked)
        found, status = documents(device, "drone", follow=True)
        assert status["ended"]["status"] == 0
        said = [document["drone"]["target"] for document in found if "sent" in document["drone"]]
        landing = autopilot.waits_for("LANDING_TARGET", len(said))
    assert len(said) == len(landing) > 0


def documents(device: ShellDevice, name: str, follow: bool) -> tuple[list[dict], dict]:
    """What an app there said of its pictures, and how it is."""
    said: list[str] = []
    there = Service(device, name)
    there.logs(said.append, lines=10_000, follow=follow)
    found = [json.loads(line) for line in said if line.startswith('{"frame"')]
    return found, there.status()
