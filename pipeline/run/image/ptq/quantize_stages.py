"""The stages from a float graph to the integer graph: equalize, calibrate, integer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.datasets import Dataset
from paredown.pipeline.recipe.task import Task
from paredown.pipeline.run.image.read import graph_in, write_traced
from paredown.pipeline.run.job import Settings
from paredown.pipeline.store.files import read_json, write_graph, write_json
from paredown.pipeline.store.stage import OPTIONAL, Inputs, Stage, stored
from paredown.pipeline.store.store import file_hash

if TYPE_CHECKING:
    from torch import Tensor

    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import IntegerGraph

SMOKE_IMAGES = 4
ROUND_IMAGES = 64  # that codes and biases are chosen on
RANGES, OBSERVERS, EQUALIZED = "ranges.json", "observers.json", "equalized.json"
STARVED = "starved.json"  # lines on parts of outputs
KEPT = "codes, scales and biases are those of"
HELD_OUT = 8  # one image of so many is no observer's, where observers are chosen


@dataclass(frozen=True)
class CalibrateParams:
    """How activation ranges are found.

    Attributes:
        input_range: where observers are chosen, as in `IntegerParams`.
        weights: likewise.
    """

    observer: str
    images: int
    preprocess: str
    input_range: tuple[float, float] | None = field(default=None, metadata=OPTIONAL)
    weights: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class EqualizeParams:
    """What channels are balanced on."""

    images: int
    preprocess: str


@dataclass(frozen=True)
class IntegerParams:
    """How weight scales are chosen, and what the input can be at all; of arrays calibration knows it.

    Attributes:
        rounding: how codes are chosen, where not the nearest.
        bias_correction: whether biases are corrected.
        images: calibration images for both.
        preprocess: hash of what they go through.
        weight_range: the largest weight code, where it is not 127.
    """

    weights: Literal["minmax", "mse"]
    input_range: tuple[float, float] | None
    rounding: str | None = field(default=None, metadata=OPTIONAL)
    bias_correction: bool | None = field(default=None, metadata=OPTIONAL)
    images: int | None = field(default=None, metadata=OPTIONAL)
    preprocess: str | None = field(default=None, metadata=OPTIONAL)
    weight_range: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class KeptParams:
    """How the codes of a file are read; raised where another graph is made of the same bytes."""

    reader: int = 1


class QuantizeStages:
    """The stages for one network.

    Args:
        settings: of the run.
        task: of the recipe's app.
        calibration: images.
        traced: the stage that traces what is quantized.
        suffix: of the stages' names.
        codes: the int8 file of the network, whose own codes are kept; None = they are chosen.

    Attributes:
        equalize: None where nothing is.
        calibrate: finds ranges; None where codes are kept.
        integer: makes the integer graph.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        calibration: Dataset,
        traced: Stage,
        suffix: str = "",
        codes: Path | None = None,
    ) -> None:
        """Makes the stages; keys are known before anything runs."""
        self.recipe, self.store = settings.recipe.quantize, settings.store
        self.smoke, self.tick = settings.smoke, settings.tick
        self.task, self.calibration, self.suffix = task, calibration, suffix
        self.preprocess = task.preprocess
        self.codes = codes
        self.equalize = self._equalize(traced) if self.recipe.equalize else None
        self.source = self.equalize or traced
        self.calibrate: Stage | None = None
        if codes is not None:
            self.integer = self._kept(codes)
            return
        self.calibrate = self._calibrate()
        self.integer = self._integer(self.calibrate)

    def notes(self) -> list[str]:
        """What was chosen, in plain sentences."""
        notes = []
        if self.equalize:
            changed = read_json(stored(self.store, self.equalize) / EQUALIZED)
            notes.append(f"equalized: {sum(changed.values()):,} channels of {len(changed)} layers")
        if self.codes is not None:
            return [f"{KEPT} {self.codes.name}; any key of [quantize] chooses new ones"]
        if self.recipe.observer == "auto" and self.calibrate is not None:
            facts = read_json(stored(self.store, self.calibrate) / OBSERVERS)
            counts = ", ".join(f"{name} {count}" for name, count in sorted(facts["counts"].items()))
            notes.append(
                f"observers of {sum(facts['counts'].values())} tensors: {counts}; divergence of the outputs "
                f"{facts['before']:.4g} with minmax, {facts['after']:.4g} as chosen, on {facts['images']} "
                "held-out calibration images"
            )
        notes += read_json(stored(self.store, self.integer) / STARVED)
        return notes

    def _images(self, most: int) -> int:
        return min(len(self.calibration), SMOKE_IMAGES if self.smoke else most)

    def _equalize(self, traced: Stage) -> Stage:
        images = self._images(self.recipe.calibration_images)

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.calibration.run import observe, spread
            from paredown.pipeline.run.image.ptq.equalize import Reach, equalize, pairs

            graph = folded_in(inputs["trace"])
            wanted = {graph[second].inputs[0] for _, second in pairs(graph)}
            chosen = spread(len(self.calibration), images)
            forward, found = _forward(graph, lambda name: name in wanted), dict[str, Reach]()
            if wanted:
                found = observe(forward, self.calibration, self.preprocess, Reach, chosen, self.tick)
            balanced, changed = equalize(graph, {name: reach.largest for name, reach in found.items()})
            write_traced(out, balanced)
            write_json(out / EQUALIZED, changed)

        params = EqualizeParams(images, self.preprocess.hash)
        inputs: dict[str, Stage | str] = {"trace": traced, "data": self.calibration.fingerprint()}
        return Stage(f"equalize{self.suffix}", 2, params, inputs, build)

    def _calibrate(self) -> Stage:
        images, observer = self._images(self.recipe.calibration_images), self.recipe.observer
        params = CalibrateParams(observer, images, self.preprocess.hash)
        if observer == "auto":
            more = (self.preprocess.value_range, self.recipe.weights)
            params = CalibrateParams(observer, images, self.preprocess.hash, *more)

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.calibration.run import calibrate

            graph = folded_in(inputs["trace"])
            if observer == "auto":
                self._choose(out, graph, images)
                return
            forward = _forward(graph)
            ranges = calibrate(forward, self.calibration, self.preprocess, observer, images, self.tick)
            (out / RANGES).write_text(ranges.to_json())

        inputs: dict[str, Stage | str] = {"trace": self.source, "data": self.calibration.fingerprint()}
        version = 3 if observer == "auto" else 2  # without the affine nodes that layers take in
        return Stage(f"calibrate{self.suffix}", version, params, inputs, build)

    def _choose(self, out: Path, graph: Graph, images: int) -> None:
        """Ranges by the observers that do best on images that none of them has seen, if there are enough."""
        from paredown.calibration.observers import Several
        from paredown.calibration.run import Ranges, observe, spread
        from paredown.pipeline.run.image.ptq.ranges import choose, images_for

        chosen = spread(len(self.calibration), images)
        held = chosen[HELD_OUT // 2 :: HELD_OUT] or chosen[-1:]
        seen = [index for index in chosen if index not in set(held)] or chosen
        found = observe(_forward(graph), self.calibration, self.preprocess, Several, seen, self.tick)
        each = {name: several.ranges() for name, several in found.items()}
        candidates = {name: {t: r[name] for t, r in each.items()} for name in next(iter(each.values()))}
        inputs = self._preprocessed(held[: images_for(graph, len(held))])
        source, first = graph.nodes[0].name, next(iter(candidates.values()))
        known = self.preprocess.value_range
        limits = known or first[source]
        choice = choose(
            graph, candidates, inputs, input_range=limits, weights=self.recipe.weights,
            divergence=self._divergence,
        )  # fmt: skip
        kept = choice.ranges if known else {**choice.ranges, source: limits}
        ranges = Ranges(self.preprocess.hash, "auto", len(chosen), kept)
        (out / RANGES).write_text(ranges.to_json())
        facts = {**asdict(choice), "counts": choice.counts}
        write_json(out / OBSERVERS, {name: facts[name] for name in facts if name != "ranges"})

    def _divergence(self, found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
        """The task's own distance of a network from its teacher."""
        ours, theirs = (tuple(each) if len(each) > 1 else each[0] for each in (found, truth))
        return float(self.task.distillation(ours, theirs))

    def _kept(self, codes: Path) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.lower.litert.reader.load import of_network

            write_graph(out, *of_network(codes, graph_in(inputs["trace"])).dump())
            write_json(out / STARVED, [])

        inputs: dict[str, Stage | str] = {"trace": self.source, "file": file_hash(codes)}
        return Stage(f"integer{self.suffix}", 3, KeptParams(), inputs, build)

    def _integer(self, calibrate: Stage) -> Stage:
        wanted = self.recipe
        params = IntegerParams(wanted.weights, self.preprocess.value_range)
        inputs: dict[str, Stage | str] = {"trace": self.source, "ranges": calibrate}
        if wanted.rounding != "nearest" or wanted.bias_correction:
            chosen = (wanted.rounding, wanted.bias_correction, self._images(ROUND_IMAGES))
            params = IntegerParams(params.weights, params.input_range, *chosen, self.preprocess.hash)
            inputs["data"] = self.calibration.fingerprint()
        params = replace(params, weight_range=wanted.weight_range)
        most = wanted.weight_range or 127

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.calibration.run import Ranges
            from paredown.pipeline.bundle.packed.ledger import check_codes
            from paredown.pipeline.lower.integer import quantize
            from paredown.pipeline.run.image.ptq.starved import starved

            ranges = Ranges.from_json((inputs["ranges"] / RANGES).read_text())
            ranges.check(self.preprocess)
            graph = folded_in(inputs["trace"])
            reach = params.input_range or ranges.ranges[graph.nodes[0].name]
            integer = quantize(graph, ranges.ranges, input_range=reach, weights=params.weights, most=most)
            if params.images:
                integer = self._improved(graph, integer, params)
            check_codes(graph, integer)
            write_graph(out, *integer.dump())
            write_json(out / STARVED, [part.line() for part in starved(integer, ranges.ranges)])

        return Stage(f"integer{self.suffix}", 5, params, inputs, build)

    def _improved(self, graph: Graph, integer: IntegerGraph, params: IntegerParams) -> IntegerGraph:
        """Better codes and biases, on calibration images that are spread evenly over the set."""
        from paredown.calibration.run import spread
        from paredown.pipeline.run.image.ptq.rounding import improve

        images = self._preprocessed(spread(len(self.calibration), params.images))
        codes, biases = params.rounding == "gptq", bool(params.bias_correction)
        most = params.weight_range or 127
        return improve(graph, integer, images, codes=codes, biases=biases, most=most)

    def _preprocessed(self, chosen: list[int]) -> Tensor:
        from paredown.pipeline.compress.training.data import ImageSubset, preprocessed

        return preprocessed(ImageSubset(self.calibration, chosen), self.preprocess)


def folded_in(folder: Path) -> Graph:
    """A traced graph, as it is quantized: layers take in the affine nodes beside them."""
    from paredown.pipeline.graph.fusion import fold_affine

    return fold_affine(graph_in(folder))


def _forward(
    graph: Graph, wanted: Callable[[str], bool] = lambda name: True
) -> Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.float32]]]:
    """A batch of one to the graph's tensors by name."""

    def forward(batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        import torch

        from paredown.pipeline.lower.predict.islands import not_numbers

        values = graph.run(torch.from_numpy(batch))
        not_numbers(graph, values)
        return {name: value.numpy() for name, value in values.items() if wanted(name)}

    return forward
