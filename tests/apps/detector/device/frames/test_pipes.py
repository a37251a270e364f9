"""Cameras that OpenCV does not open: a Raspberry Pi's (a fake of its module), GStreamer's own test source."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_command import pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs

from paredown.apps.detector.device.frames.pipes import Piped, jpeg_end, kind_of, open_picamera
from paredown.apps.detector.device.frames.source import Stream, is_live, open_source
from paredown.targets.errors import DeviceError, UsageError


def jpegs(count=3) -> list[bytes]:
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures(count)]


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def written(tmp_path: Path, data: bytes) -> list[str]:
    path = tmp_path / "data"
    path.write_bytes(data)
    return ["cat", str(path)]


class Picamera2:
    """What we use of Picamera2, as its manual has it."""

    opened: list[str]

    def __init__(self, number):
        self.number = number
        self.opened = []

    @staticmethod
    def global_camera_info():
        return [{"Num": 0, "Model": "imx708"}]

    def create_video_configuration(self, main):
        return main

    def configure(self, wanted):
        assert wanted == {"format": "RGB888", "size": (1280, 720)}
        self.size = wanted["size"]

    def start(self):
        self.opened.append("start")

    def capture_array(self, name):
        assert name == "main" and self.opened == ["start"]
        return np.full((self.size[1], self.size[0], 3), (9, 8, 7), np.uint8)

    def close(self):
        self.opened.append("close")


@pytest.fixture
def board(monkeypatch):
    module = types.ModuleType("picamera2")
    module.Picamera2 = Picamera2
    monkeypatch.setitem(sys.modules, "picamera2", module)


def test_a_raspberry_pi_camera_through_picamera2(board):
    source = open_source("picamera")
    frame = source.read()
    assert source.live and frame.image.shape == (720, 1280, 3) and frame.image[0, 0].tolist() == [9, 8, 7]
    with pytest.raises(DeviceError, match=r"^picamera:1: no such camera; is the cable in"):
        open_source("picamera:1")


def test_a_camera_that_another_program_holds(board, monkeypatch):
    def busy(self):
        raise RuntimeError("Failed to acquire camera: Device or resource busy")

    monkeypatch.setattr(Picamera2, "start", busy)
    said = (
        "does not start: Failed to acquire camera: Device or resource busy; "
        "`rpicam-hello --list-cameras` lists the cameras that the system has$"
    )
    with pytest.raises(DeviceError, match=said):
        open_source("picamera")


def test_without_picamera2_rpicam_vid_gives_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", None)
    (tmp_path / "film").write_bytes(b"".join(jpegs(4)))
    program = tmp_path / "rpicam-vid"
    program.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {tmp_path}/said\ncat {tmp_path}/film\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    source = open_source("picamera:2")
    np.testing.assert_array_equal(source.read().image, decoded(jpegs(4)[0]))
    assert (tmp_path / "said").read_text().split()[:7] == "-n -t 0 --camera 2 --codec mjpeg".split()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(DeviceError, match="neither Picamera2 nor rpicam-vid is here; sudo apt-get install"):
        open_picamera(0)


def test_gstreamers_own_test_source():
    needs("gst-launch-1.0", "gstreamer1.0-tools")
    source = open_source(
        "gst:videotestsrc pattern=blue num-buffers=3 ! video/x-raw,width=64,height=48,framerate=30/1"
    )
    frame = source.read()
    assert isinstance(source, Stream) and source.fps == 30 and frame.image.shape == (48, 64, 3)
    np.testing.assert_allclose(frame.image.reshape(-1, 3).mean(0), (255, 0, 0), atol=4)  # B, G, R
    source.close()
    with pytest.raises(DeviceError, match=r"gst:nosuchsrc: gives no picture: .*nosuchsrc"):
        open_source("gst:nosuchsrc")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_motion_jpeg_comes_in_pieces(chunk):
    """An image is whole at its last byte, wherever its data were cut; one within another does not end it."""
    inner, outer = jpegs(2)
    thumbnail = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner if len(inner) < 60000 else b""
    image = outer[:2] + thumbnail + outer[2:]
    for length in range(0, len(image), chunk * 50 + 1):
        assert jpeg_end(image[:length]) == 0
    assert jpeg_end(image) == jpeg_end(image + inner) == len(image)


def test_a_program_that_writes_jpeg_and_one_that_ends(tmp_path):
    capture = Piped(written(tmp_path, b"".join(jpegs(3))))
    for data in jpegs(3):
        got, image = capture.read()
        assert got
        np.testing.assert_array_equal(image, decoded(data))
    assert capture.read() == (False, None)
    capture.release()
    assert capture.read() == (False, None)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_what_is_no_picture_is_none(tmp_path_factory, data, headed):
    start = b"YUV4MPEG2 W4 H4 F30:1\n" if headed else b""
    capture = Piped(written(tmp_path_factory.mktemp("junk"), start + data))
    try:
        while capture.read()[0]:
            pass
    except cv2.error:  # pragma: no cover
        pytest.fail("the decoder was given what is no picture")
    finally:
        capture.release()


def test_a_silent_program_is_lost_and_ended():
    capture = Piped(["sleep", "60"], silent_s=0.2)
    assert capture.read() == (False, None)
    capture.release()
    assert capture._process.returncode is not None


@pytest.mark.parametrize(
    ("text", "kind"),
    [("picamera", "picamera"), ("picamera:1", "picamera"), ("gst:v4l2src", "gst"), ("pipe:cat x", "pipe"),
     ("0", ""), ("rtsp://host/a", ""), ("tcp://host:1", ""), ("film.mp4", ""), ("pipe", "!"), ("gst:", "!"),
     ("picamera:x", "!"), ("gst: ", "!")],
)  # fmt: skip
def test_which_words_name_them(text, kind):
    if kind == "!":
        with pytest.raises(UsageError, match="--source"):
            is_live(text)
    else:
        assert kind_of(text) == kind
        assert not kind or is_live(text)


def test_a_program_that_is_not_there_and_words_that_do_not_end():
    with pytest.raises(DeviceError, match="cannot start no-such-program: No such file"):
        open_source("pipe:no-such-program")
    with pytest.raises(UsageError, match="No closing quotation"):
        open_source("pipe:cat 'x")
    with pytest.raises(DeviceError, match="pipe:false: gives no picture; it has to write motion JPEG or Y4M"):
        open_source("pipe:false")
