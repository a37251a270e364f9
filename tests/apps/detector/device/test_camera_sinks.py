"""Outputs of the camera app that cannot be written: full disks, the source itself, closed terminals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
from camera_command import call, film, film_length, pictures
from tiny_project import ROOT

from paredown.apps.detector.device.camera import ended_by_signals
from paredown.apps.detector.device.frames import holding
from paredown.apps.detector.device.frames.holding import held
from paredown.apps.detector.device.sinks.outputs import Lasting, Lines, writes_over
from paredown.targets.errors import DeviceError, InputError

SEEN: Any = SimpleNamespace()


class Failing:
    """An output that fails when it is told to."""

    picture = False

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.got: list[dict[str, Any]] = []

    def write(self, seen: Any, document: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.got.append(document)

    def close(self, summary: dict[str, Any]) -> None: ...


def test_an_output_of_a_live_source_is_tried_again() -> None:
    now, told, inner = [0.0], [], Failing()
    lasting = Lasting(inner, told.append, lambda: now[0])
    lasting.write(SEEN, {"frame": 0})
    inner.error = InputError("cannot write this image: No space left on device", where="a.png")
    for frame in range(1, 6):
        lasting.write(SEEN, {"frame": frame})
    assert told == ["a.png: cannot write this image: No space left on device; trying again every 10 s"]
    inner.error = None
    lasting.write(SEEN, {"frame": 6})  # too early
    now[0] = 10.5
    lasting.write(SEEN, {"frame": 7})
    assert [document["frame"] for document in inner.got] == [0, 7]
    assert told[1].endswith("works again, 6 pictures were left out")
    lasting.close({})
    inner.error = OSError(28, "No space left on device")
    lasting.write(SEEN, {"frame": 8})
    with pytest.raises(OSError, match="No space left"):
        lasting.close({})
    inner.error = BrokenPipeError()
    now[0] = 100.0
    with pytest.raises(BrokenPipeError):
        lasting.write(SEEN, {"frame": 9})


def test_a_line_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    """A disk that takes seven bytes more, then none, and then all."""
    room = [10**6]
    write = os.write

    def limited(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(file, data[: room[0]])
        room[0] -= count
        return count

    with (tmp_path / "out").open("w") as stream:
        lines = Lines(stream)
        monkeypatch.setattr(os, "write", limited)
        lines.write(SEEN, {"frame": 0})
        room[0] = 7
        for frame in (1, 2, 3):
            with pytest.raises(OSError, match="No space"):
                lines.write(SEEN, {"frame": frame})
        room[0] = 10**6
        lines.write(SEEN, {"frame": 4})
        lines.close({"frames": 5})
    found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert found == [{"frame": 0}, {"frame": 1}, {"frame": 4}, {"summary": {"frames": 5}}]


def test_a_programs_own_stream_is_written_too() -> None:
    stream = io.StringIO()
    Lines(stream).write(SEEN, {"frame": 0})
    assert stream.getvalue() == '{"frame": 0}\n'


def test_what_is_read_is_not_written_over(tiny, tmp_path) -> None:
    source = film(tmp_path / "a.mp4", pictures(4))
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for name in ("a.mp4", "link.mp4"):
        done = call("camera", tiny.bundle, "--source", source, "--save", tmp_path / name)
        assert done.code == 2 and f"--save: {tmp_path / name} would be written over" in done.line()
    assert source.read_bytes() == before
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), pictures(1)[0])
    assert writes_over(folder / "a.png", str(folder)) and not writes_over(folder / "new.png", str(folder))
    assert not writes_over(source, "rtsp://camera/1")


def test_a_full_disk_is_an_exit_code(tiny, tmp_path) -> None:
    source = film(tmp_path / "a.mp4", pictures(4))
    code = "import sys; from paredown.apps.cli.main import app; app(sys.argv[1:])"
    for more in (["--json"], []):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-c", code, "camera", str(tiny.bundle), "--source", str(source), *more],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert done.returncode == 4
        assert "paredown: standard output: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_closed_terminal_completes_everything(tiny, tmp_path) -> None:
    source = film(tmp_path / "in.mp4", pictures(400))
    code = "import sys; from paredown.apps.cli.main import app; app(sys.argv[1:])"
    asked = ("--source", source, "--realtime", "--json", "--save", tmp_path / "out.mp4")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "camera", *map(str, (tiny.bundle, *asked))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    first = process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    documents = [json.loads(line) for line in (first + out).splitlines()]
    frames = documents[-1]["summary"]["frames"]
    assert frames == film_length(tmp_path / "out.mp4") == len(documents) - 1 < 400


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals(lambda: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    """The lock is kept elsewhere, and still holds; where there is no place at all, the driver decides."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(holding.tempfile, "gettempdir", lambda: str(tmp_path))
    with held("/dev/video97", "one"), pytest.raises(DeviceError, match="in use by one"), held("97", "two"):
        pass
    monkeypatch.setattr(holding.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with held("/dev/video97", "one"), held("97", "two"):
        pass
