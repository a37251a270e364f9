"""The speed veto: a rewrite that is slower on the device than what it was made from is taken back.

Fewer channels and fewer bits are meant to be faster, and are not everywhere: a Cortex-A72 executes more
instructions in int8 than in float32 on some networks. What ships is decided per runtime, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paredown.pipeline.report.figures import NOISE, ORIGINAL
from paredown.targets.devices.programs import Timing

FLOAT = "-fp32"


@dataclass(frozen=True)
class Veto:
    """A program that is not shipped.

    Attributes:
        runtime: of the program.
        variant: what is shipped instead, `ORIGINAL` or `FLOAT`.
        cost: of the rejected program.
        instead: of the other.
        unit: `ms` or `million instructions`.
    """

    runtime: str
    variant: str
    cost: float
    instead: float
    unit: str

    def line(self) -> str:
        """One sentence for notes and report."""
        what = "the network as it came, in int8," if self.variant == ORIGINAL else "the network in float32"
        return (
            f"{self.runtime}: rolled back: {what} is faster on this device than what was made of it "
            f"({self.instead:.2f} against {self.cost:.2f} {self.unit}), and ships instead"
        )


def veto(runtime: str, timings: Mapping[str, Timing], emulated: bool) -> Veto | None:
    """Whether the last program of a runtime is slower than one that it came from.

    Args:
        runtime: its name; the program that would be shipped has it as its variant.
        timings: variant -> what was measured in one go on the device.
        emulated: whether instructions count instead of time.
    """
    unit, noise = ("million instructions", 1.0) if emulated else ("ms", NOISE)  # counts are exact

    def cost(variant: str) -> float:
        timing = timings[runtime + variant]
        return timing.million_instructions if emulated else timing.percentile(50)

    shipped, best = cost(""), ""
    for variant in (ORIGINAL, FLOAT):  # from the last rewrite back to the first
        if runtime + variant in timings and cost(best) > noise * cost(variant):
            best = variant
    return Veto(runtime, best, shipped, cost(best), unit) if best else None
