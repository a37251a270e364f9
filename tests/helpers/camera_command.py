"""The camera's commands in this process, and films made for its tests."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_project import Done, scene


def call(*arguments: object) -> Done:
    """Runs one of the camera's commands in this process."""
    from paredown.apps.cli.main import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        app([str(argument) for argument in arguments], prog_name="paredown")
    return Done(end.value.code or 0, out.getvalue(), err.getvalue())


def pictures(count: int, seed: int = 3) -> list[np.ndarray]:
    """A square and a disc that wander over noise, 72 x 96 pixels each."""
    image, _ = scene(np.random.default_rng(seed))
    return [np.roll(image, (index % 5, 2 * index), axis=(0, 1)) for index in range(count)]


def film(path: Path, images: list[np.ndarray], fps: float = 10.0, codec: str = "") -> Path:
    """Writes a video; the codec MPNG is lossless."""
    height, width = images[0].shape[:2]
    codec = codec or ("MJPG" if path.suffix == ".avi" else "mp4v")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    for image in images:
        writer.write(image)
    writer.release()
    return path


def film_length(path: Path) -> int:
    """How many pictures a video really has."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count
