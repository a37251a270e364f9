"""Recordings: their times, a full disk, and what is left of one whose writer is killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from camera_command import pictures
from needs import missing, needs
from tiny_project import ROOT

from paredown.apps.detector.device.sinks.recording import Recording, Video
from paredown.targets.errors import InputError, UsageError

SIZE = (96, 72)


def times(path: Path) -> list[float]:
    """Seconds of each picture since the first, as PyAV has them."""
    with av.open(str(path)) as container:
        found = [frame.time for frame in container.decode(video=0)]
    return [time - found[0] for time in found]


def seen(image: np.ndarray, at: float) -> Any:
    return SimpleNamespace(picture=image, frame=SimpleNamespace(at=at))


@pytest.mark.parametrize(("name", "resolution"), [("a.mp4", 1 / 60_000), ("a.mkv", 1e-3)])
def test_pictures_keep_their_own_times(tmp_path, name, resolution):
    chance = random.Random(1)
    wanted = [sum(chance.choices((0.01, 0.04, 0.3), k=index)) for index in range(40)]
    wanted = sorted({round(time, 4) for time in wanted})
    recording = Recording(tmp_path / name, SIZE, 25)
    for time, image in zip(wanted, pictures(len(wanted)), strict=True):
        recording.write(image, time)
    recording.close()
    assert times(tmp_path / name) == pytest.approx(wanted, abs=resolution)


def test_an_avi_has_one_pace(tmp_path):
    recording = Recording(tmp_path / "a.avi", SIZE, 10)
    for index, image in enumerate(pictures(20)):
        recording.write(image, index / 10)
    recording.close()
    assert times(tmp_path / "a.avi") == pytest.approx([index / 10 for index in range(20)])


def test_the_pictures_are_those_that_were_given(tmp_path):
    images = pictures(6)
    recording = Recording(tmp_path / "a.mp4", SIZE, 10)
    for index, image in enumerate(images):
        recording.write(image, index / 10)
    recording.close()
    with av.open(str(tmp_path / "a.mp4")) as container:
        found = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    for index, image in enumerate(found):
        errors = [np.abs(image.astype(int) - each).mean() for each in images]
        assert int(np.argmin(errors)) == index


WRITER = """
import os, sys, time
from pathlib import Path
import numpy as np
from paredown.apps.detector.device.sinks.recording import Recording
recording = Recording(Path(sys.argv[1]), (320, 240), 20)
chance = np.random.default_rng(0)
for index in range(200):
    recording.write(chance.integers(0, 255, (240, 320, 3), dtype=np.uint8), index / 20)
print("written", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_recording_plays_up_to_its_last_second_after_sigkill(tmp_path, name):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / name], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert times(tmp_path / name)[-1] >= 199 / 20 - 1.0


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=800k none "$1" || exit 9
"$2" -c "$3" "$1/a.mp4"
cp "$1/a.mp4" "$4"
"""


def test_a_full_disk_is_said_and_what_came_before_plays(tmp_path):
    """In a namespace of its own, where a file system of 800 kB can be mounted."""
    (tmp_path / "disk").mkdir()
    namespace = [needs("unshare", "util-linux"), "--user", "--map-root-user", "--mount"]
    arguments = [tmp_path / "disk", sys.executable, WRITER, tmp_path / "kept.mp4"]
    done = subprocess.run(
        [*namespace, "sh", "-c", ON_A_SMALL_DISK, "sh", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode == 9 or "unshare" in done.stderr:
        missing(f"no file system can be mounted in a namespace of our own: {done.stderr.strip()}")
    assert "a.mp4: cannot write this video: No space left on device" in done.stderr
    assert done.stdout == ""
    assert len(times(tmp_path / "kept.mp4")) >= 5


def test_a_live_recording_writes_nothing_over_and_goes_on_in_another_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"of yesterday")
    video = Video(tmp_path / "a.mp4", 20, live=True)
    images = pictures(8)
    for index in range(4):
        video.write(seen(images[index], index / 20), {})
    assert video._recording is not None
    video._recording._file.error = OSError(28, "No space left on device")
    with pytest.raises(InputError, match="a-2.mp4: cannot write this video: No space left on device"):
        video.write(seen(images[4], 4 / 20), {})
    for index in range(5, 8):
        video.write(seen(images[index], index / 20), {})
    video.close({})
    assert (tmp_path / "a.mp4").read_bytes() == b"of yesterday"
    assert len(times(tmp_path / "a-3.mp4")) == 3


def test_a_source_that_was_away_leaves_one_second_of_stillness(tmp_path):
    video = Video(tmp_path / "a.mp4", 10, live=True)
    for at, image in zip((5.0, 5.1, 65.0, 65.1), pictures(4), strict=True):
        video.write(seen(image, at), {})
    video.close({})
    assert times(tmp_path / "a.mp4") == pytest.approx([0, 0.1, 1.1, 1.2], abs=1e-3)


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="a.words: cannot write this video; name it .mp4, .mkv, .avi"):
        Video(tmp_path / "a.words", 10)
    with pytest.raises(InputError, match="there is no such folder"):
        Video(tmp_path / "no" / "a.mp4", 10)
    with pytest.raises(InputError, match="its folder takes no files"):
        Video(Path("/proc/a.mp4"), 10)
    (tmp_path / "b.mp4").mkdir()
    with pytest.raises(InputError, match="b.mp4: cannot write this video: Is a directory"):
        Video(tmp_path / "b.mp4", 10).write(seen(pictures(1)[0], 0.0), {})


def test_without_pyav_it_is_told_before_anything_is_watched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match="--save: PyAV cannot be loaded here: .*; `pip install av`"):
        Video(tmp_path / "a.mp4", 10)
