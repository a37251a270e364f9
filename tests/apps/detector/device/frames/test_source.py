"""Sources: files as they are and broken, streams that are lost and come back, who holds a camera."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from camera_command import film, pictures

from paredown.apps.detector.device.frames import source as module
from paredown.apps.detector.device.frames.handover import Handover, Reader
from paredown.apps.detector.device.frames.holding import held
from paredown.apps.detector.device.frames.source import (
    Frame,
    Paced,
    Stream,
    hidden_password,
    how_far,
    is_live,
    open_source,
)
from paredown.targets.errors import DeviceError, InputError, UsageError


def read_all(source) -> list[Frame]:
    found = []
    while (frame := source.read()) is not None:
        found.append(frame)
    return found


def test_a_folder_is_read_by_name(tmp_path):
    for name, image in zip(("b.png", "a.png", "notes.txt", "c.PNG"), pictures(4), strict=True):
        cv2.imwrite(str(tmp_path / "x.png"), image)
        (tmp_path / "x.png").rename(tmp_path / name)
    source = open_source(str(tmp_path))
    frames = read_all(source)
    assert not source.live and [frame.index for frame in frames] == [0, 1, 2]
    for frame, picture in zip(frames, [pictures(4)[i] for i in (1, 0, 3)], strict=True):
        np.testing.assert_array_equal(frame.image, picture)
    assert len(read_all(open_source(str(tmp_path / "a.png")))) == 1


def test_a_video_is_read_to_its_end_by_its_own_time(tmp_path):
    source = open_source(str(film(tmp_path / "a.mp4", pictures(12), fps=25)))
    frames = read_all(source)
    assert len(frames) == 12 and source.fps == 25 and not source.live
    np.testing.assert_allclose([frame.at for frame in frames], np.arange(12) / 25)
    # what is decoded is what was written, to the codec's loss; its neighbours are farther away
    errors = [np.abs(frames[5].image.astype(int) - picture).mean() for picture in pictures(12)]
    assert int(np.argmin(errors)) == 5


def test_the_size_may_change_on_the_way(tmp_path):
    """Motion JPEG is images one behind the other; OpenCV scales those of another size to the first one's."""
    small, large = pictures(1)[0], cv2.resize(pictures(1)[0], (192, 144))
    data = b"".join(cv2.imencode(".jpg", image)[1].tobytes() for image in [small] * 5 + [large] * 5)
    (tmp_path / "a.mjpeg").write_bytes(data)
    frames = read_all(open_source(str(tmp_path / "a.mjpeg")))
    assert [frame.image.shape for frame in frames] == [(72, 96, 3)] * 10
    assert all(np.abs(frame.image.astype(int) - small).mean() < 20 for frame in frames)

    for name, image in (("a.png", small), ("b.png", large)):
        cv2.imwrite(str(tmp_path / name), image)
    assert [frame.image.shape for frame in read_all(open_source(str(tmp_path)))] == [small.shape, large.shape]


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"\x89PNG and then nothing")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "none.mp4").touch()
    whole = film(tmp_path / "whole.mp4", pictures(20)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name, expected in (
        ("empty", "no image in this folder"),
        ("noise.mp4", "no picture can be read"),
        ("none.mp4", "no picture can be read"),
        ("cut.mp4", "no picture can be read"),  # an mp4's index is at its end
        ("missing.mp4", "no such file or folder"),
    ):
        with pytest.raises(InputError, match=f"{name}: {expected}"):
            open_source(str(tmp_path / name))
    with pytest.raises(InputError, match="a.png: cannot read this image"):
        open_source(str(tmp_path / "bad")).read()
    with pytest.raises(UsageError, match="gopher://x.*rtsp"):
        open_source("gopher://x")


def test_a_video_that_ends_early_is_told(tmp_path):
    path, told = film(tmp_path / "a.avi", pictures(40)), []
    data = path.read_bytes()
    start = len(data) // 2
    path.write_bytes(data[:start] + bytes(len(data) - start))  # the index still promises all
    frames = read_all(open_source(str(path), log=told.append))
    if len(frames) == 40:
        pytest.fail("the damage was not seen")
    assert len(told) == 1 and f"of 40 pictures {len(frames)} could be read" in told[0]


def test_an_absent_and_a_busy_camera():
    with pytest.raises(DeviceError, match=r"^97: no such camera \(/dev/video97\); "):
        open_source("97")
    with pytest.raises(DeviceError, match="/dev/null: this camera gives no picture; .*fuser /dev/null"):
        Stream("/dev/null", connect=lambda address: Script([]))
    with pytest.raises(DeviceError, match="this stream gives no picture") as error:
        Stream("rtsp://me:secret@camera/1", connect=lambda address: Script([]))
    assert "secret" not in str(error.value) and "me:***@camera/1" in str(error.value)


def test_what_is_live():
    assert all(map(is_live, ("0", "12", "/dev/video3", "rtsp://host/a", "http://host:81/stream")))
    assert not any(map(is_live, ("a.mp4", "./0", "folder/", "C:video.mp4")))
    assert hidden_password("rtsp://host/a@b") == "rtsp://host/a@b"


class Script:
    """A capture that gives these pictures and then nothing; the clock may move with each."""

    def __init__(self, images, tick=lambda: None):
        self.images, self.tick, self.released = list(images), tick, False

    def read(self):
        self.tick()
        return (True, self.images.pop(0)) if self.images else (False, None)

    def get(self, _):
        return 0.0

    def release(self):
        self.released = True


def test_a_lost_stream_is_opened_again(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.004)
    images = pictures(7)
    captures = [
        Script(images[:3]),
        Script([]),
        Script([]),
        Script(images[3:6]),
        Script([]),
        Script(images[6:]),
    ]
    opened, told = list(captures), []
    stream = Stream("rtsp://host/a", log=told.append, connect=lambda address: captures.pop(0))
    frames = [stream.read() for _ in range(7)]
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    assert [frame.index for frame in frames] == list(range(7)) and stream.lost == 2
    assert [line.split(": ")[1][:5] for line in told] == ["lost,", "back "] * 2
    assert all(capture.released for capture in opened[:-1])  # a camera that is not let go stays busy
    stream.close()
    assert stream.read() is None and opened[-1].released


def test_pauses_grow_to_a_limit(monkeypatch):
    pauses = []
    captures = iter([Script(pictures(1))])
    stream = Stream("rtsp://host/a", patience=60.0, clock=lambda: sum(pauses), connect=lambda _: next(
        captures, Script([])))  # fmt: skip

    class Waits(threading.Event):
        def wait(self, seconds=None):
            pauses.append(seconds)
            return False

    monkeypatch.setattr(stream, "_closed", Waits())
    stream.read()
    with pytest.raises(DeviceError, match="rtsp://host/a: lost, and not back after"):
        stream.read()
    assert pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0] and 60 < sum(pauses) <= 70


def test_a_source_that_flaps_is_tried_less_and_less(monkeypatch):
    """One picture after each opening: as a camera's snapshot URL. Ten steady seconds begin anew."""
    now, pauses, told = [0.0], [], []

    def steady():
        now[0] += 20.0 if len(pauses) == 8 else 0.1

    stream = Stream(
        "http://host/shot.jpg", clock=lambda: now[0], log=told.append,
        connect=lambda _: Script(pictures(1), steady),
    )  # fmt: skip

    class Waits(threading.Event):
        def wait(self, seconds=None):
            pauses.append(seconds)
            now[0] += seconds
            return False

    monkeypatch.setattr(stream, "_closed", Waits())
    for _ in range(11):
        assert stream.read() is not None
    assert pauses[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert pauses[8:] == [0.5, 1.0]


def test_a_camera_that_cannot_be_opened_is_tried_again(monkeypatch):
    """Picamera and programs raise where OpenCV's captures give no picture."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    ways = iter([Script(pictures(1)), DeviceError("no such camera"), Script(pictures(1))])

    def connect(_):
        if isinstance(way := next(ways), DeviceError):
            raise way
        return way

    stream = Stream("picamera", connect=connect)
    assert stream.read() is not None and stream.read() is not None


def test_how_far_a_stream_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = how_far(f"rtsp://me:secret@127.0.0.1:{port}/a")
        assert said == f"`127.0.0.1` takes connections on port {port}: are path and password right?"
    assert how_far(f"rtsp://127.0.0.1:{port}/a") == f"`127.0.0.1`, port {port}: Connection refused"
    assert how_far("rtsp://no.such.host.invalid/a") == "no address is known of `no.such.host.invalid`"
    assert how_far("http://h:99999/a") == "its port is no number from 0 to 65535"


def test_closing_ends_the_waiting(monkeypatch):
    captures = iter([Script(pictures(1))])
    stream = Stream("rtsp://host/a", connect=lambda address: next(captures, Script([])))
    stream.read()
    threading.Timer(0.05, stream.close).start()
    assert stream.read() is None


def test_a_reader_passes_everything_of_a_file_and_its_error(tmp_path):
    for index, image in enumerate(pictures(9)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    with Reader(open_source(str(tmp_path))) as frames:
        assert [frames.get().index for _ in range(9)] == list(range(9))
        assert frames.get() is None and frames.dropped == 0
    (tmp_path / "4.png").write_bytes(b"broken")
    with Reader(open_source(str(tmp_path))) as frames:
        assert [frames.get().index for _ in range(8)] == list(range(8))  # one bad one is left out
        assert frames.get() is None
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    with Reader(open_source(str(tmp_path))) as frames:
        with pytest.raises(InputError, match="0.png"):
            frames.get()


def frame(index: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), index, float(index), float(index))


def test_only_the_latest_is_kept_and_never_put_waits():
    handover = Handover(1, drop=True)
    for index in range(1000):
        assert handover.put(frame(index))
    assert handover.get().index == 999 and handover.dropped == 999
    handover.end()
    assert handover.get() is None and not handover.put(frame(0))


def test_a_full_handover_of_a_file_lets_its_reader_wait():
    handover, done = Handover(2, drop=False), threading.Event()

    def put():
        for index in range(50):
            handover.put(frame(index))
        done.set()

    threading.Thread(target=put, daemon=True).start()
    assert not done.wait(0.05)
    assert [handover.get().index for _ in range(50)] == list(range(50))
    assert done.wait(10) and handover.dropped == 0


def test_a_file_can_be_played_as_a_camera_would(tmp_path):
    source = Paced(open_source(str(film(tmp_path / "a.mp4", pictures(5), fps=200))))
    assert source.live and len(read_all(source)) == 5
    (tmp_path / "slow").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "slow" / f"{name}.png"), pictures(1)[0])
    folder = open_source(str(tmp_path / "slow"))
    folder.fps = 0.001
    waiting = Paced(folder)
    assert waiting.read().index == 0
    threading.Timer(0.05, waiting.close).start()
    assert waiting.read() is None  # and not in a thousand seconds


def test_a_camera_is_held_by_one_and_the_others_are_told_by_whom(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    link = tmp_path / "by-id"
    link.symlink_to("/dev/video0")
    with held("0", "door"):
        for name in ("0", "/dev/video0", "00"):
            with pytest.raises(DeviceError, match=rf"^{name}: in use by door \(process \d+\)"):
                with held(name, "other"):
                    pytest.fail("held twice")
        with held("1", "other"), held("rtsp://a:b@host/1", "third"):
            pass
    with held("0", "other"):
        pass
    names = [path.name for path in Path(tmp_path).rglob("*.lock")]
    assert len(names) == 3 and not any("b@" in name for name in names)
