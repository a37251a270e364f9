"""What the tests of the data set readers share: small images, files, and random boxes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import strategies as st

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
NAMES = ("car", "dog", "tree")
W, H = 40, 20  # of an image

unit = st.floats(0.001, 0.999)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    cx, cy = draw(unit), draw(unit)
    w = draw(st.floats(0.0005, 2 * min(cx, 1 - cx)))
    h = draw(st.floats(0.0005, 2 * min(cy, 1 - cy)))
    return cx, cy, w, h


def put_image(path: Path, width: int = W, height: int = H, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
