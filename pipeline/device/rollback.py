"""The speed veto: a rewrite that is slower on the device than what it was made from is taken back.

Fewer channels and fewer bits are meant to be faster, and are not everywhere: a Cortex-A72 executes more
instructions in int8 than in float32 on some networks. What ships is decided per runtime, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paredown.pipeline.report.figures import NOISE, ORIGINAL
from paredown.targets.devices.programs import Timing

FLOAT = "-fp32"
FEWEST = 10  # timed inferences, below which nothing is taken back
WORTH = 1.1  # times slower than float32, which takes four times the bytes; medians of two runs differ by 1.05


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


def fastest(times: Mapping[str, float], runtimes: Sequence[str]) -> list[str]:
    """A sentence on the fastest of several programs, int8 against the best float32 of all runtimes.

    Args:
        times: variant -> milliseconds, measured side by side on one machine.
        runtimes: that a program was made for.
    """
    whole = {name: times[name] for name in runtimes if name in times}
    floats = {name: times[name + FLOAT] for name in runtimes if name + FLOAT in times}
    if len(whole) < 2 or not floats:
        return []
    best, real = min(whole, key=whole.__getitem__), min(floats, key=floats.__getitem__)
    if whole[best] > NOISE * floats[real]:
        return [
            f"fastest on this machine: {real} in float32, {floats[real]:.2f} ms; the best int8 takes "
            f"{whole[best] / floats[real]:.2f} times as long ({best}, {whole[best]:.2f} ms)"
        ]
    own = f"; {floats[best] / whole[best]:.2f} times as fast as its own float32" if best in floats else ""
    return [
        f"fastest on this machine: {best} in int8, {whole[best]:.2f} ms, {floats[real] / whole[best]:.2f} "
        f"times as fast as the best float32 ({real}, {floats[real]:.2f} ms){own}"
    ]


def slower_than_float(times: Mapping[str, Mapping[str, float]], runtimes: Sequence[str]) -> list[Veto]:
    """The runtimes on which int8 is slower than float32 here, by a tenth and by more than the times vary.

    Args:
        times: variant -> metric -> what was measured side by side.
        runtimes: that a program was made for.
    """
    found = []
    for name in runtimes:
        int8, real = times[name]["latency_p50"], times[name + FLOAT]
        if int8 > max(real["latency_p90"], WORTH * real["latency_p50"]):
            found.append(Veto(name, FLOAT, int8, real["latency_p50"], "ms"))
    return found


def veto(
    runtime: str, timings: Mapping[str, Timing], emulated: bool, allow_float: bool = True
) -> Veto | None:
    """Whether the last program of a runtime is slower than one that it came from.

    Args:
        runtime: its name; the program that would be shipped has it as its variant.
        timings: variant -> what was measured in one go on the device.
        emulated: whether instructions count instead of time.
        allow_float: whether one in float32 may ship.
    """
    unit = "million instructions" if emulated else "ms"
    if not emulated and len(timings[runtime].times_ms) < FEWEST:
        return None

    def cost(variant: str) -> float:
        timing = timings[runtime + variant]
        return timing.million_instructions if emulated else timing.percentile(50)

    shipped, best = cost(""), ""
    # from the last rewrite back to the first; counts are exact
    for variant, least in ((ORIGINAL, 1.0 if emulated else NOISE), (FLOAT, WORTH))[: 2 if allow_float else 1]:
        if runtime + variant in timings and cost(best) > least * cost(variant):
            best = variant
    return Veto(runtime, best, shipped, cost(best), unit) if best else None
