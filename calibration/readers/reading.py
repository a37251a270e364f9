"""How the labels of a data set are read, and what is noticed meanwhile: nothing is left out silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from paredown.targets.errors import InputError

TOLD = 10  # label errors that are told in full

Orientation = Literal["upright", "stored"]


@dataclass(eq=False)
class Reading:
    """One reading of a data set.

    Attributes:
        clip: whether boxes that reach outside the image are cut at its edge; else they are errors.
        orientation: of the images: as EXIF says, or as the pixels are stored.
        clipped: boxes that were cut.
        left_out: what was left out, in words that follow a number, with how often.
        skipped: suffix of files that are no images -> how many.
        turned: images that EXIF turns.
        faults: what is wrong with the labels.
    """

    clip: bool = False
    orientation: Orientation = "upright"
    clipped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    faults: list[InputError] = field(default_factory=list)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps an error of one label, so that the next ones are looked at, too."""
        try:
            yield
        except InputError as error:
            self.faults.append(error)

    def check(self) -> None:
        """Tells what is wrong, all at once.

        Raises:
            InputError: something is; the first ten are told in full.
        """
        if len(self.faults) == 1:
            raise self.faults[0]
        if self.faults:
            told = " | ".join(str(fault) for fault in self.faults[:TOLD])
            more = f" | and {len(self.faults) - TOLD} more" if len(self.faults) > TOLD else ""
            raise InputError(f"{len(self.faults)} errors in the labels: {told}{more}")
