"""The job that judges a candidate: scored on held-out training images, never on the test images.

These are the images that pruning and SQuantizer choose by, which no training sees. So every stage before the
scores is the very stage of the run that ships, and is reused there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paredown.calibration.datasets import Dataset
from paredown.calibration.readers.records import Sample
from paredown.pipeline.run.image.job import ImageJob
from paredown.pipeline.run.image.read import integer_in
from paredown.pipeline.run.image.split import TrainingSplit
from paredown.pipeline.run.job import program_in
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import OPTIONAL, Inputs, Stage

TIMES = "times.json"


@dataclass(frozen=True)
class TimeParams:
    """Where programs are timed, and how."""

    device: str
    runs: int
    threads: int
    machine: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)


class HeldOut:
    """The held-out training images; those without labels have what the original network says.

    Args:
        job: that scores them.
        split: they are a part of.
    """

    def __init__(self, job: ImageJob, split: TrainingSplit) -> None:
        self._job, self._split, self._data = job, split, split.held_out()[1]
        self._truth: Dataset | None = None
        self.names = self._data.names

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        if self._truth is None:
            from paredown.pipeline.compress.training.data import preprocessed, run_graph

            inputs = preprocessed(self._data, self._split.preprocess)
            outputs = run_graph(self._job.graph(self._job.original), inputs)
            self._truth = self._split.truth(self._data, outputs)
        return self._truth[index]

    def fingerprint(self) -> str:
        """Of the images, and of the network that may say what is in them."""
        made = f"{self._data.fingerprint()} seen by {self._split.task.weights_hash()}"
        return hashlib.sha256(made.encode()).hexdigest()


class JudgingJob(ImageJob):
    """An image job whose score is on held-out training images."""

    def scored(self) -> Dataset:
        """See `ImageJob`."""
        return HeldOut(self, TrainingSplit(self.recipe, self.task, self.smoke))

    def timing(self, device: str) -> Stage:
        """The stage that times what ships, or has an emulated board count its instructions.

        Args:
            device: its address.
        """
        local = device.startswith("local")
        params = TimeParams(
            device, self.recipe.bench.runs, self.recipe.bench.threads,
            self.machine.identity() if local else None,
        )  # fmt: skip

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.device.executor import open_executor
            from paredown.pipeline.device.validate.programs import time_figures
            from paredown.targets.devices.programs import Program
            from paredown.targets.runners.litert import TensorInfo
            from paredown.targets.runners.vectors import test_inputs

            integer = integer_in(inputs["integer"])
            shape = tuple(integer.input.shape)
            outputs = tuple(TensorInfo(tuple(integer[name].shape)) for name in integer.outputs)
            programs = {
                name: Program(name, program_in(inputs[name]), TensorInfo(shape, "int8"), outputs,
                              params.threads, name)
                for name in self.runtimes
            }  # fmt: skip
            with open_executor(device, self.target, self.tell, own=True) as executor:
                x = test_inputs(shape, 1)
                timed = executor.time(programs, x, params.runs, False, self.tick)
                found = {
                    name: {metric: value for metric, value, _ in time_figures(timing, executor.emulated)}
                    for name, timing in timed.items()
                }
            write_json(out / TIMES, found)

        lowered: dict[str, Stage | str] = {name: self.lower[name] for name in self.runtimes}
        name = "time-programs" if local else "time-on-device"
        return Stage(name, 1, params, lowered, build, {"integer": self.integer})
