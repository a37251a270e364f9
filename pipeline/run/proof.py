"""A run's result on a device: timed there, what is slower than before taken back, the bundle validated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.device.executor import SIMULATED, Executor, open_executor, stands_for
from paredown.pipeline.device.rollback import FLOAT, Veto, veto
from paredown.pipeline.device.validate import Validator, tag_of, time_figures
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import ORIGINAL, Figure
from paredown.pipeline.run.image.stages import SMOKE_RUNS, Stages
from paredown.pipeline.store.stage import Stage
from paredown.targets.cards.card import Target
from paredown.targets.devices.programs import Program, Timing
from paredown.targets.runners.litert import Tensor
from paredown.targets.runners.vectors import test_inputs

if TYPE_CHECKING:
    from paredown.pipeline.device.microcontroller import Footprint


@dataclass(frozen=True)
class Proof:
    """What the device said.

    Attributes:
        checks: of the validation.
        figures: of the device.
        notes: one sentence each.
    """

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


class Prover:
    """A device, connected for the last part of a run; a context manager.

    Args:
        stages: of the run; all but the bundle have run.
        target: its card.
        address: of the device.
        smoke: few runs.
        log: told one line per step.
        tick: progress within a step.
    """

    def __init__(
        self,
        stages: Stages,
        target: Target,
        address: str,
        smoke: bool,
        log: Callable[[str], None],
        tick: Callable[[int, int], None],
    ) -> None:
        self.stages, self.target, self.address = stages, target, address
        self.log, self.tick = log, tick
        self.smoke, self.runs = smoke, SMOKE_RUNS if smoke else stages.recipe.bench.runs
        self.vetoes: list[Veto] = []
        self.footprints: list[Footprint] = []
        self.timings: dict[str, Timing] = {}
        self._opened = contextlib.ExitStack()
        self.executor: Executor

    def __enter__(self) -> Self:
        """Connects."""
        self.executor = self._opened.enter_context(open_executor(self.address, self.target, self.log))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        self._opened.close()

    def roll_back(self) -> tuple[Stage, ...]:
        """Times every program side by side, and takes back what is slower than what it was made from.

        Returns:
            The stages that judge what is shipped instead, which must run.
        """
        programs = self._programs()
        if self.address == SIMULATED:
            from paredown.pipeline.device.microcontroller import footprint

            self.footprints = [footprint(self.target, programs[name]) for name in self.stages.runtimes]
            return ()
        if not stands_for(self.executor, self.target):
            return ()
        self.log("speed on the device: running")
        x = test_inputs(tuple(self.stages.integer_graph().input.shape), 1)
        self.timings = self.executor.time(programs, x, self.runs, True, self.tick)
        self.log("speed on the device: done")
        judging: list[Stage] = []
        for name in self.stages.runtimes:
            if found := veto(name, self.timings, self.executor.emulated):
                self.vetoes.append(found)
                judging += self.stages.roll_back(name, found.variant)
        return tuple(judging)

    def prove(self, bundle: Path, images: int | None) -> Proof:
        """Validates the bundle.

        Args:
            bundle: of the run.
            images: scores at most so many of the test images; None = all.
        """
        if self.smoke:
            images = min(self.stages.images, images or self.stages.images)
        validator = Validator(unpack(bundle), self.executor, self.log, self.tick, self.smoke)
        found = validator.validate(images, True, None)
        tag = tag_of(self.executor, self.smoke)
        machine = self.executor.machine
        rejected = {veto.runtime: f"{veto.runtime}-rejected" for veto in self.vetoes}
        shipped = {veto.runtime + veto.variant: veto.runtime for veto in self.vetoes}
        figures = [
            Figure("bench", variant, metric, value, unit, tag, machine)
            for name, timing in self.timings.items()
            for metric, value, unit in time_figures(timing, self.executor.emulated)
            for variant in {rejected.get(name, name), shipped.get(name, name)}
        ]
        of = f"{found.scored} of the test images" if images is not None else "all test images"
        passed = "validated" if found.passed else "NOT valid"
        notes = [veto.line() for veto in self.vetoes]
        notes.append(f"{passed} on {machine.name}, accuracy from its own outputs for {of}")
        if self.timings and self.executor.emulated:
            notes.append(f"{machine.name} is emulated: its milliseconds mean nothing, instructions are exact")
        if not stands_for(self.executor, self.target):
            notes.append(f"nothing was timed: this machine is no {self.target.name}")
        for found_there in self.footprints:
            figures += found_there.figures
            notes += found_there.notes
        return Proof(found.checks, (*found.figures, *figures), tuple(notes))

    def _programs(self) -> dict[str, Program]:
        """Every program that could be shipped: variant -> program."""
        stages = self.stages
        integer, threads = stages.integer_graph(), stages.recipe.bench.threads
        graph = stages.graph(stages.original)
        shape = tuple(integer.input.shape)
        codes = tuple(Tensor(tuple(integer[name].shape)) for name in integer.outputs)
        reals = tuple(Tensor((1, *graph[name].shape[1:]), "float32") for name in graph.outputs)
        found = {}
        for name in stages.runtimes:
            made = {"": stages.lower[name], FLOAT: stages.baseline[name]}
            if name in stages.originals:
                made[ORIGINAL] = stages.originals[name]
            for suffix, stage in made.items():
                dtype, outputs = ("float32", reals) if suffix == FLOAT else ("int8", codes)
                data, where = stages.program(stage), name + suffix
                found[where] = Program(name, data, Tensor(shape, dtype), outputs, threads, where)
        return found
