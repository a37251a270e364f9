"""What lowering makes, and what loading it gives; the same for every runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class Lowered:
    """A lowered program.

    Attributes:
        data: the file's bytes.
        subgraphs: how many delegate calls an inference makes; one is the aim.
        undelegated: names of compute operations left outside the delegate; none is the aim.
    """

    data: bytes
    subgraphs: int
    undelegated: tuple[str, ...]


class Runner(Protocol):
    """A loaded program."""

    def __call__(self, x: NDArray[Any], /) -> tuple[NDArray[Any], ...]:
        """Runs one input, (1, channels, height, width), in the program's own dtype; outputs NCHW."""

    def bound(self, x: NDArray[Any], /) -> Callable[[], object]:
        """A call with its input in place, for timing."""
