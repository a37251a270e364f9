"""Files as sources: the order of names, odd and damaged ones, the container's own times."""

from __future__ import annotations

import functools
import http.server
import os
import random
import threading
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from camera_command import film, pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.frames.files import natural
from paredown.apps.detector.device.frames.source import open_source
from paredown.targets.errors import DeviceError


def read_all(source):
    found = []
    while (frame := source.read()) is not None:
        found.append(frame)
    return found


def variable(path: Path, codec: str, steps: list[float], **options: str) -> Path:
    """A video whose pictures come after these seconds, one after the other."""
    base = Fraction(1, 60_000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.codec_context.time_base = base
        at = 0.0
        for step, image in zip(steps, pictures(len(steps)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = round(at / base), base
            at += step
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "mpeg4", {}), ("a.mkv", "mpeg4", {}), ("b.mp4", "libx264", {"bf": "3"}),
     ("b.ts", "libx264", {"bf": "2"})],
)  # fmt: skip
def test_times_are_the_containers(tmp_path, name, codec, options):
    """Pictures of a variable pace, and such as are stored in another order than shown."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    chance = random.Random(3)
    steps = [chance.choice((0.02, 0.04, 0.1, 0.5)) for _ in range(30)]
    path = variable(tmp_path / name, codec, steps, **options)
    with av.open(str(path)) as container:
        wanted = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    frames = read_all(open_source(str(path)))
    assert [frame.at for frame in frames] == pytest.approx([at - wanted[0] for at in wanted], abs=2e-3)
    assert len({round(b - a, 3) for a, b in zip(wanted, wanted[1:], strict=False)}) > 2


def test_without_times_the_pace_has_to_do(tmp_path):
    (tmp_path / "a.mjpeg").write_bytes(b"".join(cv2.imencode(".jpg", i)[1].tobytes() for i in pictures(5)))
    at = [frame.at for frame in read_all(open_source(str(tmp_path / "a.mjpeg")))]
    assert at == pytest.approx(np.arange(5) / 25)


def test_frame_2_comes_before_frame_10(tmp_path):
    for number, image in zip((1, 2, 9, 10, 11, 100), pictures(6), strict=True):
        cv2.imwrite(str(tmp_path / f"frame_{number}.png"), image)
    frames = read_all(open_source(str(tmp_path)))
    for frame, image in zip(frames, pictures(6), strict=True):
        np.testing.assert_array_equal(frame.image, image)


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=2, max_size=8), st.sampled_from(("", "a", "x-")))
@settings(max_examples=25, deadline=None)
def test_names_are_ordered_as_their_numbers(numbers, start):
    names = [Path(f"{start}{number}.png") for number in numbers]
    assert sorted(names, key=natural) == [Path(f"{start}{number}.png") for number in sorted(numbers)]


def test_numbers_with_zeros_before_them_and_names_without_any():
    names = ["b.png", "a.png", "a01.png", "a1.png", "a001.png", "10.png", "9.png"]
    found = [path.name for path in sorted(map(Path, names), key=natural)]
    assert found[:2] == ["9.png", "10.png"] and found.index("a1.png") < found.index("b.png")
    assert sorted(found) == sorted(names)


def test_bad_pictures_are_left_out_and_counted(tmp_path):
    for index, image in enumerate(pictures(30)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    bad = range(3, 27, 2)
    for index in bad:
        (tmp_path / f"{index}.png").write_bytes(b"\x89PNG and then nothing")
    told: list[str] = []
    source = open_source(str(tmp_path), log=told.append)
    assert len(read_all(source)) == 30 - len(bad)
    assert source.skipped == len(bad) == 12
    assert len(told) == 11 and told[0].endswith(
        "3.png: cannot read this image (truncated or damaged?); left out"
    )
    assert told[-1].endswith("12 images could not be read and were left out")


def test_names_that_are_not_utf8(tmp_path):
    """OpenCV ends the process with a segmentation fault, of images and of videos."""
    folder = tmp_path / os.fsdecode(b"f\xe9")
    folder.mkdir()
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", pictures(1)[0])[1].tobytes())
    (tmp_path / "a.png").rename(folder / os.fsdecode(b"b\xff.png"))
    film(tmp_path / "a.mp4", pictures(5)).rename(folder / os.fsdecode(b"v\xff.mp4"))
    assert len(read_all(open_source(str(folder)))) == 1
    assert len(read_all(open_source(str(folder / os.fsdecode(b"v\xff.mp4"))))) == 5


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path):
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_file_behind_a_url_ends(tmp_path, served, name):
    film(tmp_path / name, pictures(12))
    source = open_source(f"{served}/{name}")
    frames = read_all(source)
    assert not source.live and len(frames) == 12
    assert [frame.at for frame in frames] == pytest.approx(np.arange(12) / 10)


def test_a_file_behind_a_url_that_breaks_off_is_an_error(tmp_path, served):
    path = film(tmp_path / "a.avi", pictures(60))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = open_source(f"{served}/a.avi")
    if source.live:
        source.close()
        pytest.skip("this FFmpeg does not believe the count of a file that is cut")
    with pytest.raises(DeviceError, match="broke off: of 60 pictures"):
        read_all(source)
