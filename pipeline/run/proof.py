"""A run's result on a device: timed there, what is slower than before taken back, the bundle validated."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Self

from paredown.pipeline.device.executor import SIMULATED, Executor, open_executor, stands_for
from paredown.pipeline.device.rollback import FLOAT, Veto, fastest, veto
from paredown.pipeline.device.validate.programs import tag_of, time_figures
from paredown.pipeline.device.validate.validate import Validator
from paredown.pipeline.report.figures import ORIGINAL, Figure
from paredown.pipeline.run.job import Proof
from paredown.pipeline.store.event import Event
from paredown.pipeline.store.files import read_json
from paredown.targets.devices.programs import Program, Timing
from paredown.targets.runners.litert import TensorInfo
from paredown.targets.runners.vectors import test_inputs

if TYPE_CHECKING:
    from paredown.pipeline.device.microcontroller import Footprint
    from paredown.pipeline.run.image.job import ImageJob

SMOKE_RUNS = 3


class Prover:
    """A device, connected for the last part of a run; a context manager.

    Args:
        job: all of whose programs have been made.
        address: of the device.
    """

    def __init__(self, job: ImageJob, address: str) -> None:
        """Connects when it is entered."""
        self.job, self.target, self.address = job, job.target, address
        self.tell, self.tick, self.smoke = job.tell, job.tick, job.smoke
        self.runs = SMOKE_RUNS if job.smoke else job.recipe.bench.runs
        self.vetoes: list[Veto] = []
        self.footprints: list[Footprint] = []
        self.timings: dict[str, Timing] = {}
        self._opened = contextlib.ExitStack()
        self.executor: Executor

    def __enter__(self) -> Self:
        """Connects."""
        self.executor = self._opened.enter_context(
            open_executor(self.address, self.target, self.tell, own=True)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        self._opened.close()

    def roll_back(self) -> dict[str, str]:
        """Times every program side by side, and finds those that are slower than what they were made from.

        Returns:
            Runtime -> variant that ships instead, `ORIGINAL` or `FLOAT`.
        """
        programs = self._programs()
        if self.address == SIMULATED:
            from paredown.pipeline.device.microcontroller import footprint

            self.footprints = [footprint(self.target, programs[name]) for name in self.job.runtimes]
            return {}
        if not stands_for(self.executor, self.target):
            return {}
        self.tell(Event("speed on the device", "running"))
        x = test_inputs(tuple(self.job.integer_graph().input.shape), 1)
        self.timings = self.executor.time(programs, x, self.runs, True, self.tick)
        self.tell(Event("speed on the device", "done"))
        for name in self.job.runtimes:
            if found := veto(name, self.timings, self.executor.emulated, self.job.allows_float):
                self.vetoes.append(found)
        return {veto.runtime: veto.variant for veto in self.vetoes}

    def prove(self, job: ImageJob, images: int | None) -> Proof:
        """Validates the bundle of a job.

        Args:
            job: that ships what `roll_back` left; its goals have been reached.
            images: scores at most so many of the test images; None = all.
        """
        whole = images is None or images >= job.images
        if self.smoke:
            images = min(job.images, images or job.images)
        validator = Validator(
            job.packed(), self.executor, self.tell, self.tick, self.smoke, recipe=job.recipe
        )
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
        if not whole and not self.smoke:  # the table shows those of the device, beside scores of all images
            scores = {
                name: read_json(job.path(job.scores[name]) / "score.json")[job.metric.name]
                for name in job.runtimes
            }
            told = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
            of += f"; here, on all {job.images}, {job.metric.name} is: {told}"
        passed = "validated" if found.passed else "NOT valid"
        notes = [veto.line() for veto in self.vetoes]
        if self.timings and not self.executor.emulated:
            medians = {name: timing.percentile(50) for name, timing in self.timings.items()}
            notes += fastest(medians, self.job.runtimes)
        notes.append(f"{passed} on {machine.name}, accuracy from its own outputs for {of}")
        if self.timings and self.executor.emulated:
            notes.append(f"{machine.name} is emulated: its milliseconds mean nothing, instructions are exact")
        if not stands_for(self.executor, self.target):
            notes.append(f"nothing was timed: this machine is no {self.target.name}")
        missing = [] if whole else [f"a score of all {job.images} test images on {machine.name}"]
        if not self.timings or self.executor.emulated:
            missing.append(f"a time on a real {self.target.name}")
        for found_there in self.footprints:
            figures += found_there.figures
            notes += found_there.notes
        return Proof(found.checks, (*found.figures, *figures), tuple(notes), whole, tuple(missing))

    def _programs(self) -> dict[str, Program]:
        """Every program that could be shipped: variant -> program."""
        job = self.job
        integer, threads = job.integer_graph(), job.recipe.bench.threads
        graph = job.graph(job.original)
        shape = tuple(integer.input.shape)
        codes = tuple(TensorInfo(tuple(integer[name].shape)) for name in integer.outputs)
        reals = tuple(TensorInfo((1, *graph[name].shape[1:]), "float32") for name in graph.outputs)
        found = {}
        for name in job.runtimes:
            made = {"": job.lower[name], FLOAT: job.baseline[name]}
            if name in job.originals:
                made[ORIGINAL] = job.originals[name]
            for suffix, stage in made.items():
                dtype, outputs = ("float32", reals) if suffix == FLOAT else ("int8", codes)
                data, where = job.program(stage), name + suffix
                found[where] = Program(name, data, TensorInfo(shape, dtype), outputs, threads, where)
        return found
