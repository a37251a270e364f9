"""The stages of a run: what each makes, from what, with which parameters.

    trace -> calibrate -> integer -> lower-RUNTIME -> parity-RUNTIME, score-VARIANT, bench -> bundle, preview

A stage's heavy imports happen in its build, so that a run in which everything is reused imports none of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.datasets import First
from pipeline.lower.runtimes import float_predict, runtime
from pipeline.recipe import Recipe
from pipeline.stage import Stage
from pipeline.store import Store
from pipeline.task import Predict, Task
from targets.errors import InputError
from targets.host import package_versions, this_machine

#: Told how far a stage is: done, of how many.
Tick = Callable[[int, int], None]

PARITY_INPUTS = 32
SMOKE_IMAGES, SMOKE_INPUTS, SMOKE_RUNS = 4, 2, 3
PARALLEL_MACS = 1_000_000_000  # of one inference; below this torch runs on one thread


@dataclass(frozen=True)
class TraceParams:
    """What the network is, beside its weights."""

    network: Mapping[str, Any]
    shape: tuple[int, ...]
    torch: str


@dataclass(frozen=True)
class CalibrateParams:
    """How activation ranges are found."""

    observer: str
    images: int
    preprocess: str


@dataclass(frozen=True)
class IntegerParams:
    """How weight scales are chosen, and what the input can be at all."""

    weights: Literal["minmax", "mse"]
    input_range: tuple[float, float]


@dataclass(frozen=True)
class LowerParams:
    """The runtime and the version of the package that writes its files."""

    runtime: str
    package: str
    version: str


@dataclass(frozen=True)
class ParityParams:
    """How many inputs are compared, and on what."""

    inputs: int
    probes: int
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class ScoreParams:
    """What is scored, and on what: a score belongs to the machine and the versions that computed it."""

    variant: str
    images: int
    preprocess: str
    app: Mapping[str, Any]
    machine: Mapping[str, Any]


class Stages:
    """Makes the stages of one run; keys are known before anything runs.

    Args:
        recipe: resolved.
        task: of the recipe's app.
        store: where inputs of a stage are found when it runs.
        smoke: handfuls of samples everywhere.
        tick: progress of the stage that is running.
    """

    def __init__(self, recipe: Recipe, task: Task, store: Store, smoke: bool, tick: Tick) -> None:
        """Opens the data sets, which checks their labels."""
        self.recipe, self.task, self.store = recipe, task, store
        self.smoke, self.tick = smoke, tick
        self.machine = this_machine().to_dict()
        self.preprocess = task.preprocess
        self.calibration, self.test = task.data("calibration"), task.data("test")
        self.trace = self._trace()
        self.calibrate = self._calibrate()
        self.integer = self._integer()
        self.runtimes: tuple[str, ...] = tuple(recipe.lower.runtimes)
        self.lower = {str(name): self._lower(name) for name in self.runtimes}
        self.baseline = {str(name): self._lower_float(name) for name in self.runtimes}
        self.parity = {str(name): self._parity(name) for name in self.runtimes}
        self.scores = {name: self._score(name) for name in ("fp32", "integer", *self.runtimes)}

    @property
    def images(self) -> int:
        """How many test images are scored."""
        return min(len(self.test), SMOKE_IMAGES) if self.smoke else len(self.test)

    # -- reading what earlier stages made ------------------------------------------------------------------

    def path(self, stage: Stage) -> Path:
        """The folder of a stage's artefact, which must have run."""
        path = self.store.get(stage.key)
        if path is None:
            raise InputError(
                f"the artefact of stage {stage.name} was removed or damaged meanwhile",
                where=self.store.root,
                hint="run the same command again",
            )
        return path

    def graph(self) -> Any:
        """The traced float network."""
        from pipeline.graph import Graph

        self._set_threads()
        return Graph.load(*read_graph(self.path(self.trace)))

    def integer_graph(self) -> Any:
        """The integer graph."""
        from pipeline.lower.integer import IntegerGraph

        self._set_threads()
        return IntegerGraph.load(*read_graph(self.path(self.integer)))

    def _set_threads(self) -> None:
        """One thread for a small network: on a shared machine, waiting for each other costs far more."""
        import torch

        small = read_json(self.path(self.trace) / "size.json")["macs"] < PARALLEL_MACS
        torch.set_num_threads(1 if small else len(os.sched_getaffinity(0)))

    def program(self, stage: Stage) -> bytes:
        """The file that a lowering stage made."""
        return (self.path(stage) / "program").read_bytes()

    def predictor(self, variant: str) -> Predict:
        """A way of predicting: "fp32", "integer", or a runtime's name for its int8 program."""
        if variant == "fp32":
            return _torch_predict(self.graph())
        from pipeline.lower import reference

        integer = self.integer_graph()
        source, outputs = integer.input.out, [integer[name].out for name in integer.outputs]
        if variant == "integer":
            return float_predict(source, outputs, lambda codes: reference.predict(integer, codes))
        program = self.program(self.lower[variant])
        return float_predict(source, outputs, runtime(variant).load(program, 1, variant))

    # -- the stages ----------------------------------------------------------------------------------------

    def _trace(self) -> Stage:
        shape = (1, self.preprocess.channels, self.preprocess.height, self.preprocess.width)

        def build(out: Path) -> None:
            from pipeline.trace import trace

            graph = trace(self.task.network(), shape)
            write_graph(out, *graph.dump())
            write_json(out / "size.json", {"macs": graph.macs, "parameters": graph.parameters})

        params = TraceParams(dict(self.task.network_id), shape, _version("torch"))
        return Stage("trace", 2, params, {"weights": self.task.weights_hash()}, build)

    def _calibrate(self) -> Stage:
        limit = self.recipe.quantize.calibration_images
        images = min(len(self.calibration), SMOKE_IMAGES if self.smoke else limit)

        def build(out: Path) -> None:
            from calibration.run import calibrate

            graph = self.graph()

            def forward(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
                import torch

                return {name: value.numpy() for name, value in graph.run(torch.from_numpy(batch)).items()}

            observer = self.recipe.quantize.observer
            ranges = calibrate(forward, self.calibration, self.preprocess, observer, images, self.tick)
            (out / "ranges.json").write_text(ranges.to_json())

        params = CalibrateParams(self.recipe.quantize.observer, images, self.preprocess.hash)
        inputs = {"trace": self.trace.key, "data": self.calibration.fingerprint()}
        return Stage("calibrate", 1, params, inputs, build)

    def _integer(self) -> Stage:
        params = IntegerParams(self.recipe.quantize.weights, self.preprocess.value_range)

        def build(out: Path) -> None:
            from calibration.run import Ranges
            from pipeline.lower.integer import quantize

            ranges = Ranges.from_json((self.path(self.calibrate) / "ranges.json").read_text())
            ranges.check(self.preprocess)
            integer = quantize(
                self.graph(), ranges.ranges, input_range=params.input_range, weights=params.weights
            )
            write_graph(out, *integer.dump())

        inputs = {"trace": self.trace.key, "ranges": self.calibrate.key}
        return Stage("integer", 2, params, inputs, build)

    def _lower(self, name: str) -> Stage:
        def build(out: Path) -> None:
            _write_program(out, runtime(name).lower_integer(self.integer_graph()))

        return Stage(f"lower-{name}", 2, _lower_params(name), {"integer": self.integer.key}, build)

    def _lower_float(self, name: str) -> Stage:
        def build(out: Path) -> None:
            _write_program(out, runtime(name).lower_float(self.graph()))

        return Stage(f"lower-{name}-fp32", 2, _lower_params(name), {"trace": self.trace.key}, build)

    def _parity(self, name: str) -> Stage:
        inputs = SMOKE_INPUTS if self.smoke else PARITY_INPUTS
        params = ParityParams(inputs, min(2, inputs), self.machine)

        def build(out: Path) -> None:
            from dataclasses import asdict

            from pipeline.lower.parity import check

            tools, integer = runtime(name), self.integer_graph()
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                self.tick(done, inputs)

            result = check(
                integer,
                tools.load(self.program(self.lower[name]), 1, name),
                lambda graph: tools.load(tools.lower_integer(graph).data, 1, name),
                self._parity_inputs(integer, inputs),
                params.probes,
                tick,
            )
            write_json(out / "parity.json", asdict(result))

        keys = {"integer": self.integer.key, "program": self.lower[name].key}
        return Stage(f"parity-{name}", 1, params, keys | {"data": self.calibration.fingerprint()}, build)

    def _parity_inputs(self, integer: Any, count: int) -> NDArray[np.int8]:
        """Half real images of the calibration split, half synthetic textures over all codes."""
        from targets.vectors import test_inputs

        real = min(count // 2, len(self.calibration))
        scale = integer.input.out
        images = [
            self.preprocess.quantized(self.calibration[i].image, scale.scale, scale.zero_point)
            for i in range(real)
        ]
        return np.concatenate([np.stack(images), test_inputs(integer.input.shape, count - real)])

    def _score(self, variant: str) -> Stage:
        params = ScoreParams(
            variant, self.images, self.preprocess.hash, dict(self.task.network_id), self.machine
        )
        maker = {"fp32": self.trace, "integer": self.integer}.get(variant) or self.lower[variant]

        def build(out: Path) -> None:
            data = First(self.test, self.images)
            write_json(out / "score.json", self.task.score(self.predictor(variant), data, self.tick))

        inputs = {"program": maker.key, "data": self.test.fingerprint()}
        return Stage(f"score-{variant}", 2, params, inputs, build)

    def all(self) -> tuple[Stage, ...]:
        """Every stage but bench, bundle and preview, in an order in which they can run."""
        lowering = [*self.lower.values(), *self.baseline.values()]
        return (
            self.trace,
            self.calibrate,
            self.integer,
            *lowering,
            *self.parity.values(),
            *self.scores.values(),
        )


def write_json(path: Path, value: object) -> None:
    """Writes canonical, readable JSON."""
    path.write_text(json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text())


def write_graph(out: Path, structure: bytes, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes a dumped graph."""
    from safetensors.numpy import save_file

    (out / "graph.json").write_bytes(structure)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, out / "arrays.safetensors")


def read_graph(folder: Path) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Reads a dumped graph."""
    from safetensors.numpy import load_file

    return (folder / "graph.json").read_bytes(), load_file(folder / "arrays.safetensors")


def _write_program(out: Path, lowered: Any) -> None:
    (out / "program").write_bytes(lowered.data)
    facts = {"subgraphs": lowered.subgraphs, "undelegated": list(lowered.undelegated)}
    write_json(out / "lowered.json", facts)


def _lower_params(name: str) -> LowerParams:
    package = runtime(name).package
    return LowerParams(name, package, _version(package))


def _version(package: str) -> str:
    return dict(package_versions((package,))).get(package, "not installed")


def _torch_predict(graph: Any) -> Predict:
    import torch

    def predict(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        values = graph.run(torch.from_numpy(x))
        return tuple(values[name].numpy() for name in graph.outputs)

    return predict
