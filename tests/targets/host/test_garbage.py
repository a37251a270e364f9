"""Looking for circles of garbage less often still finds them."""

from __future__ import annotations

import gc
import weakref

import pytest

from paredown.targets.host.garbage import look_less_often

pytestmark = pytest.mark.unit


class Circle:
    def __init__(self) -> None:
        self.me = self


def test_circles_are_found_all_the_same() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        look_less_often()
        assert gc.get_threshold()[0] > 700
        seen = weakref.ref(Circle())
        kept = [[] for _ in range(gc.get_threshold()[0] + 1)]  # so many new objects make Python look
        assert seen() is None and kept
    finally:
        gc.set_threshold(*before)
