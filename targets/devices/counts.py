"""Instructions that an emulated board counted, by class, as the plugin wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low

from paredown.targets.errors import DeviceError

VARIABLE = "PAREDOWN_COUNT"


EMPTY, INFERENCE = 0, 2  # tags that begin a bracket; each ends with the next number


@dataclass(frozen=True)
class Counts:
    """A64 instructions of one inference. A simulated figure: how long they take is the device's business.

    Attributes:
        total: all of them.
        load_store: memory accesses, those of vector registers too.
        simd: vector and floating-point arithmetic.
        branch: branches and system instructions.
        integer: integer arithmetic.
        other: the rest.
    """

    total: int
    load_store: int
    simd: int
    branch: int
    integer: int
    other: int


def read_counts(text: str, where: object = "instruction counts") -> Counts:
    """The counts of one inference from what the plugin wrote.

    The median of the marked inferences less the median of the empty brackets: marks cost instructions
    themselves, and Python does now and then something of its own within a bracket.

    Args:
        text: lines of a tag and running totals by class, as instructions.c describes them.
        where: names it in errors.

    Raises:
        DeviceError: no inference was marked, or the lines are others.
    """
    brackets: dict[int, list[tuple[int, ...]]] = {EMPTY: [], INFERENCE: []}
    try:
        lines = [tuple(int(word) for word in line.split()) for line in text.splitlines()]
        for start, stop in zip(lines[::2], lines[1::2], strict=True):
            if stop[0] != start[0] + 1:
                raise ValueError("a mark is missing")
            brackets[start[0]].append(_less(stop[1:], start[1:]))
        return Counts(*_less(median_low(brackets[INFERENCE]), median_low(brackets[EMPTY])))
    except (ValueError, LookupError, TypeError) as error:
        raise DeviceError(
            "these are no counts of marked inferences", where=where,
            hint="run with --marks on a board that counts instructions",
        ) from error  # fmt: skip


def _less(counts: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(count - other for count, other in zip(counts, others, strict=True))
