"""The stages of a run: what each makes, from what, with which parameters.

    trace -> (sense -> prune -> recover -> trace-pruned ->) (squantize ->) calibrate -> integer
    -> lower-RUNTIME -> parity-RUNTIME, score-VARIANT, bench -> bundle, preview

Where the network is pruned or squantized, the original one is quantized and lowered too, to be timed beside
it. A stage's heavy imports happen in its build, so that a run in which everything is reused imports none of
them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.datasets import First
from paredown.pipeline.lower.runtimes import float_predict, runtime
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Predict, Task
from paredown.pipeline.report.figures import ORIGINAL
from paredown.pipeline.run.image.prune_stages import PruneStages
from paredown.pipeline.run.image.squantize_stages import SquantizeStages
from paredown.pipeline.store.files import read_graph, set_threads, stored, write_graph, write_json
from paredown.pipeline.store.stage import Stage
from paredown.pipeline.store.store import Store
from paredown.targets.cards.card import Target
from paredown.targets.host.host import package_version, this_machine

#: Told how far a stage is: done, of how many.
Tick = Callable[[int, int], None]

PARITY_INPUTS = 32
SMOKE_IMAGES, SMOKE_INPUTS, SMOKE_RUNS = 4, 2, 3
FLOATS = ("fp32", "pruned", "squantized")
INSTEAD = "-instead"  # what judges a program that was rolled back to


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
    """The runtime, the version of the package that writes its files, and which layers may be int4 there."""

    runtime: str
    package: str
    version: str
    int4: tuple[str, ...] = ()


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
        target: for which channels are pruned.
        smoke: handfuls of samples everywhere.
        tick: progress of the stage that is running.
    """

    def __init__(
        self, recipe: Recipe, task: Task, store: Store, target: Target, smoke: bool, tick: Tick
    ) -> None:
        self.recipe, self.task, self.store = recipe, task, store
        self.smoke, self.tick = smoke, tick
        self.machine = this_machine().to_dict()
        self.preprocess = task.preprocess
        self.calibration, self.test = task.data("calibration"), task.data("test")
        self.original = self._trace()
        self.target = target
        self.trace = self.pruning.trace if recipe.prune.active else self.original
        if recipe.squantize.active:
            self.trace = self.squantizing.squantize
        changed = recipe.prune.active or recipe.squantize.active
        self.runtimes: tuple[str, ...] = tuple(recipe.lower.runtimes)
        self.baseline = {str(name): self._lower_float(name) for name in self.runtimes}
        self.calibrate = self._calibrate(self.trace)
        self.integer = self._integer(self.trace, self.calibrate)
        self.lower = {str(name): self._lower(name, self.integer) for name in self.runtimes}
        #: Runtime -> the integer graph of the program that is shipped; none where that is in float32.
        self.integers: dict[str, Stage] = dict.fromkeys(self.lower, self.integer)
        self.rejected: dict[str, Stage] = {}  # runtime -> a program that was slower on the device
        self.originals: dict[str, Stage] = {}  # of the network as it came, int8, where another is shipped
        self._whole: tuple[Stage, ...] = ()
        if changed:
            calibrate = self._calibrate(self.original, ORIGINAL)
            integer = self._integer(self.original, calibrate, ORIGINAL)
            self.originals = {str(name): self._lower(name, integer, ORIGINAL) for name in self.runtimes}
            self._whole = (calibrate, integer, *self.originals.values())
            self._original_integer = integer
        self.parity = {str(name): self._parity(name) for name in self.runtimes}
        stages = {"pruned": recipe.prune.active, "squantized": recipe.squantize.active}
        floats = ("fp32", *(name for name, active in stages.items() if active))
        self.scores = {name: self._score(name) for name in (*floats, "integer", *self.runtimes)}

    @functools.cached_property
    def pruning(self) -> PruneStages:
        """The stages of pruning, which open the training split."""
        return PruneStages(
            self.recipe,
            self.task,
            self.store,
            self.target,
            self.original,
            self.machine,
            self.smoke,
            self.tick,
        )

    @functools.cached_property
    def squantizing(self) -> SquantizeStages:
        """The stage that makes weights sparse and low-bit."""
        return SquantizeStages(self.recipe, self.task, self.store, self.pruning, self.smoke, self.tick)

    @property
    def images(self) -> int:
        """How many test images are scored."""
        return min(len(self.test), SMOKE_IMAGES) if self.smoke else len(self.test)

    # -- reading what earlier stages made ------------------------------------------------------------------

    def path(self, stage: Stage) -> Path:
        """The folder of a stage's artefact, which must have run."""
        return stored(self.store, stage)

    def graph(self, stage: Stage | None = None) -> Any:
        """The traced float network: that which is shipped, or that of another tracing stage."""
        from paredown.pipeline.graph.graph import Graph

        set_threads(self.path(self.original))
        return Graph.load(*read_graph(self.path(stage or self.trace)))

    def integer_graph(self, stage: Stage | None = None) -> Any:
        """The integer graph: that which is shipped, or that of another stage."""
        from paredown.pipeline.lower.integer import IntegerGraph

        set_threads(self.path(self.original))
        return IntegerGraph.load(*read_graph(self.path(stage or self.integer)))

    def program(self, stage: Stage) -> bytes:
        """The file that a lowering stage made."""
        return (self.path(stage) / "program").read_bytes()

    def predictor(self, variant: str) -> Predict:
        """A way of predicting: a float network by its variant, "integer", or a runtime's int8 program."""
        if variant in FLOATS:
            return _torch_predict(self.graph(self._maker(variant)))
        from paredown.pipeline.lower import reference

        if variant in self.lower and variant not in self.integers:  # float32, after a roll-back
            program = self.program(self.lower[variant])
            return runtime(variant).load(program, 1, variant)
        integer = self.integer_graph(self.integers.get(variant))
        source, outputs = integer.input.out, [integer[name].out for name in integer.outputs]
        if variant == "integer":
            return float_predict(source, outputs, lambda codes: reference.predict(integer, codes))
        program = self.program(self.lower[variant])
        return float_predict(source, outputs, runtime(variant).load(program, 1, variant))

    def roll_back(self, name: str, variant: str) -> tuple[Stage, ...]:
        """Ships another program of a runtime than the last one that was made.

        Args:
            name: of the runtime.
            variant: `ORIGINAL`, the network as it came in int8, or `-fp32`, the same in float32.

        Returns:
            The stages that judge it, which must run.
        """
        self.rejected[name] = self.lower[name]
        if variant == ORIGINAL:
            self.lower[name], self.integers[name] = self.originals[name], self._original_integer
            self.parity[name] = self._parity(name, INSTEAD)
        else:
            self.lower[name] = self.baseline[name]
            del self.integers[name], self.parity[name]
        self.scores[name] = self._score(name, INSTEAD)
        return (*([self.parity[name]] if name in self.parity else []), self.scores[name])

    def _maker(self, variant: str) -> Stage:
        """The stage that makes a variant."""
        if variant == "pruned":
            return self.pruning.trace
        makers = {"fp32": self.original, "squantized": self.trace, "integer": self.integer}
        return makers.get(variant) or self.lower[variant]

    # -- the stages ----------------------------------------------------------------------------------------

    def _trace(self) -> Stage:
        shape = (1, self.preprocess.channels, self.preprocess.height, self.preprocess.width)

        def build(out: Path) -> None:
            from paredown.pipeline.graph.trace import trace

            graph = trace(self.task.network(), shape)
            write_graph(out, *graph.dump())
            write_json(out / "size.json", {"macs": graph.macs, "parameters": graph.parameters})

        params = TraceParams(dict(self.task.network_id), shape, package_version("torch"))
        return Stage("trace", 4, params, {"weights": self.task.weights_hash()}, build)

    def _calibrate(self, source: Stage, suffix: str = "") -> Stage:
        limit = self.recipe.quantize.calibration_images
        images = min(len(self.calibration), SMOKE_IMAGES if self.smoke else limit)

        def build(out: Path) -> None:
            from paredown.calibration.run import calibrate

            graph = self.graph(source)

            def forward(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
                import torch

                return {name: value.numpy() for name, value in graph.run(torch.from_numpy(batch)).items()}

            observer = self.recipe.quantize.observer
            ranges = calibrate(forward, self.calibration, self.preprocess, observer, images, self.tick)
            (out / "ranges.json").write_text(ranges.to_json())

        params = CalibrateParams(self.recipe.quantize.observer, images, self.preprocess.hash)
        inputs = {"trace": source.key, "data": self.calibration.fingerprint()}
        return Stage(f"calibrate{suffix}", 1, params, inputs, build)

    def _integer(self, source: Stage, calibrated: Stage, suffix: str = "") -> Stage:
        params = IntegerParams(self.recipe.quantize.weights, self.preprocess.value_range)

        def build(out: Path) -> None:
            from paredown.calibration.run import Ranges
            from paredown.pipeline.bundle.ledger import check_codes
            from paredown.pipeline.lower.integer import quantize

            ranges = Ranges.from_json((self.path(calibrated) / "ranges.json").read_text())
            ranges.check(self.preprocess)
            graph = self.graph(source)
            integer = quantize(graph, ranges.ranges, input_range=params.input_range, weights=params.weights)
            check_codes(graph, integer)
            write_graph(out, *integer.dump())

        inputs = {"trace": source.key, "ranges": calibrated.key}
        return Stage(f"integer{suffix}", 2, params, inputs, build)

    def _lower(self, name: str, integer: Stage, suffix: str = "") -> Stage:
        params = _lower_params(name, self.target.runtime(name).int4)

        def build(out: Path) -> None:
            from paredown.pipeline.lower.integer import in_int4

            graph = in_int4(self.integer_graph(integer), params.int4)
            _write_program(out, runtime(name).lower_integer(graph))

        return Stage(f"lower-{name}{suffix}", 3, params, {"integer": integer.key}, build)

    def _lower_float(self, name: str) -> Stage:
        def build(out: Path) -> None:
            _write_program(out, runtime(name).lower_float(self.graph(self.original)))

        return Stage(f"lower-{name}-fp32", 3, _lower_params(name), {"trace": self.original.key}, build)

    def _parity(self, name: str, suffix: str = "") -> Stage:
        inputs = SMOKE_INPUTS if self.smoke else PARITY_INPUTS
        params = ParityParams(inputs, min(2, inputs), self.machine)

        def build(out: Path) -> None:
            from dataclasses import asdict

            from paredown.pipeline.lower.integer import in_int4
            from paredown.pipeline.lower.parity import check

            tools = runtime(name)
            integer = in_int4(self.integer_graph(self.integers[name]), self.target.runtime(name).int4)
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

        keys = {"integer": self.integers[name].key, "program": self.lower[name].key}
        keys["data"] = self.calibration.fingerprint()
        return Stage(f"parity-{name}{suffix}", 1, params, keys, build)

    def _parity_inputs(self, integer: Any, count: int) -> NDArray[np.int8]:
        """Half real images of the calibration split, half synthetic textures over all codes."""
        from paredown.targets.runners.vectors import test_inputs

        real = min(count // 2, len(self.calibration))
        scale = integer.input.out
        images = [
            self.preprocess.quantized(self.calibration[i].image, scale.scale, scale.zero_point)
            for i in range(real)
        ]
        return np.concatenate([np.stack(images), test_inputs(integer.input.shape, count - real)])

    def _score(self, variant: str, suffix: str = "") -> Stage:
        params = ScoreParams(
            variant, self.images, self.preprocess.hash, dict(self.task.network_id), self.machine
        )
        maker = self._maker(variant)

        def build(out: Path) -> None:
            data = First(self.test, self.images)
            write_json(out / "score.json", self.task.score(self.predictor(variant), data, self.tick))

        inputs = {"program": maker.key, "data": self.test.fingerprint()}
        return Stage(f"score-{variant}{suffix}", 2, params, inputs, build)

    def all(self) -> tuple[Stage, ...]:
        """Every stage but bench, bundle and preview, in an order in which they can run."""
        lowering = [*self._whole, *self.lower.values(), *self.baseline.values()]
        return (
            self.original,
            *(self.pruning.all() if self.recipe.prune.active else ()),
            *((self.squantizing.squantize,) if self.recipe.squantize.active else ()),
            self.calibrate,
            self.integer,
            *lowering,
            *self.parity.values(),
            *self.scores.values(),
        )


def _write_program(out: Path, lowered: Any) -> None:
    (out / "program").write_bytes(lowered.data)
    facts = {"subgraphs": lowered.subgraphs, "undelegated": list(lowered.undelegated)}
    write_json(out / "lowered.json", facts)


def _lower_params(name: str, int4: tuple[str, ...] = ()) -> LowerParams:
    package = runtime(name).package
    return LowerParams(name, package, package_version(package), int4)


def _torch_predict(graph: Any) -> Predict:
    import torch

    def predict(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        values = graph.run(torch.from_numpy(x))
        return tuple(values[name].numpy() for name in graph.outputs)

    return predict
