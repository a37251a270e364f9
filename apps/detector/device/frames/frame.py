"""One picture, and what gives pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Clock = Callable[[], float]
Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture.

    Attributes:
        image: uint8 (H, W, 3), B, G, R; one source may give several sizes.
        index: how many the source gave before.
        taken: seconds, by our clock, when it had been read.
        at: seconds of the scene since the source's first picture: a file's own time, or our clock's.
    """

    image: np.ndarray
    index: int
    taken: float
    at: float


class Source(Protocol):
    """What gives pictures.

    Attributes:
        name: as the user gave it, passwords left out.
        live: whether pictures come whether or not they are read.
        fps: pictures per second of the scene, where it is known.
        skipped: pictures so far that could not be read.
    """

    @property
    def skipped(self) -> int:
        """See above."""

    @property
    def name(self) -> str:
        """See above."""

    @property
    def live(self) -> bool:
        """See above."""

    @property
    def fps(self) -> float | None:
        """See above."""

    def read(self) -> Frame | None:
        """The next picture; None at the end.

        Raises:
            InputError: a file is damaged.
            DeviceError: a live source is lost for good.
        """

    def close(self) -> None:
        """Lets go; may be called while another thread reads, which then gets None."""
