"""`paredown bench`: latency over minutes, memory, and each operation's share, on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.device.bench.profile import Profile, profile
from paredown.pipeline.device.bench.sustained import Burst, Probe, ends, sustain, whole
from paredown.pipeline.device.executor import SIMULATED, Executor, OnDevice, open_executor
from paredown.pipeline.device.validate.programs import bundle_program, tag_of, time_figures
from paredown.pipeline.lower.litert.slices import divisible
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.targets.devices.programs import Program
from paredown.targets.errors import UsageError
from paredown.targets.runners.vectors import test_inputs

RUNS = 30
HOT = 1.1  # times as slow at the end as at the beginning


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        figures: latency, memory or instructions of every program.
        bursts: latency over time; none of an emulated device.
        profile: of the LiteRT program; None where the bundle has none.
        notes: one sentence each.
    """

    figures: tuple[Figure, ...]
    bursts: tuple[Burst, ...]
    profile: Profile | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        profile = self.profile
        return {
            "figures": [figure.to_dict() for figure in self.figures],
            "bursts": [burst.to_dict() for burst in self.bursts],
            "profile": None if profile is None else [row.to_dict() for row in profile.rows],
            "profile_unit": None if profile is None else profile.unit,
            "notes": list(self.notes),
        }

    def tables(self) -> list[Any]:
        """The profile, for a terminal."""
        from rich.table import Table

        found: list[Any] = []
        if self.profile is not None:
            table = Table("operation", "makes", self.profile.unit, "share", box=None, pad_edge=False)
            for row in self.profile.rows:
                table.add_row(row.operation, row.name, f"{row.cost:.3f}", f"{row.share:.1%}")
            found.append(table)
        return found


def bench(
    path: str | Path,
    device: str = "local:",
    minutes: float = 0.5,
    *,
    tell: Tell = nobody,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Bench:
    """Times a bundle's programs on a device.

    Args:
        path: the bundle.
        device: an address, see `targets.address`.
        minutes: how long latency is followed; not on an emulated device.
        tell: hears of each step.
        tick: progress within a step.

    Raises:
        InputError: the bundle is broken.
        UsageError: no such kind of address, or a microcontroller.
        DeviceError: the device cannot be reached, or failed on the way.
    """
    bundle = unpack(path)
    if device == SIMULATED:
        raise UsageError("nothing of a microcontroller is timed here", hint="`paredown validate` scores it")
    if bundle.manifest.language:
        from paredown.pipeline.device.language.validate import validate_language

        found_there = validate_language(bundle, device, score=False, tell=tell, tick=tick)
        return Bench(found_there.figures, (), None, tuple(check.detail for check in found_there.checks))
    programs = {str(model.runtime): bundle_program(bundle, model) for model in bundle.manifest.models}
    x = test_inputs(bundle.manifest.models[0].input.shape, 1)
    with open_executor(device, bundle.manifest.card, tell) as executor:
        tell(Event("latency", "running"))
        timings = executor.time(programs, x, RUNS, True, tick)
        found = None
        stateless = "litert" in programs and divisible(programs["litert"].data)
        if stateless:
            tell(Event("operations", "running"))
            found = profile(executor, programs["litert"], x, tick=tick)
        bursts: tuple[Burst, ...] = ()
        if not executor.emulated:
            tell(Event("minutes", "running"))
            bursts = sustain(executor, programs, x, minutes, _probe(executor), tick)
            # of the minutes, as the plot: a few runs right after loading are slower or faster than they
            timings = {
                name: replace(timing, times_ms=whole(bursts, name) or timing.times_ms)
                for name, timing in timings.items()
            }
        figures = [
            Figure("bench", name, metric, value, unit, tag_of(executor), executor.machine)
            for name, timing in timings.items()
            for metric, value, unit in time_figures(timing, executor.emulated)
        ]
    notes = _notes(executor, programs, bursts)
    if "litert" in programs and not stateless:
        notes += ("litert: it keeps a state from call to call, so its operations are not timed one by one",)
    return Bench(tuple(figures), bursts, found, notes)


def _probe(executor: Executor) -> Probe:
    """Asks a device behind a transport; of this machine nothing is asked."""
    if not isinstance(executor, OnDevice):
        return lambda: (None, None)

    def probe() -> tuple[float | None, float | None]:
        now = executor.look()
        return now.temperature_c, now.clock_mhz

    return probe


def _notes(executor: Executor, programs: dict[str, Program], bursts: tuple[Burst, ...]) -> tuple[str, ...]:
    if executor.emulated:
        name = executor.machine.name
        return (f"{name} is emulated: instructions are exact, milliseconds would mean nothing",)
    notes = []
    for name in programs:
        first, last = ends(bursts, name)
        if last > HOT * first:
            notes.append(
                f"{name}: {last / first:.2f} times as slow at the end as at the beginning "
                f"({last:.2f} against {first:.2f} ms): heat, a falling clock, or other work"
            )
    if bursts and all(burst.temperature_c is None for burst in bursts):
        notes.append("temperature and clock: not told")
    return tuple(notes)
