"""The job of an image network, as stages: what each makes, from what, with which parameters.

    trace -> (sense -> prune -> recover -> trace-pruned ->) (squantize ->) calibrate -> integer
    -> lower-RUNTIME -> parity-RUNTIME, score-VARIANT, bench -> bundle, preview, examples

Where the network is pruned or squantized, the original one is quantized and lowered too, to be timed beside
it. What is slower on the device than what it was made from is rolled back: that is another job, whose stages
are the same but for what ships. A stage's heavy imports happen in its build, so that a run in which
everything is reused imports none of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.calibration.datasets import Dataset, Kept
from paredown.pipeline.device.executor import SIMULATED
from paredown.pipeline.device.rollback import FEWEST, FLOAT, slower_than_float
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.recipe.file import check_files
from paredown.pipeline.recipe.task import (
    Predict,
    Task,
    codes_of,
    load_task,
    metric_of,
    notes_of,
)
from paredown.pipeline.report.figures import ORIGINAL, Figure
from paredown.pipeline.run.image.judge.bench import bench_stage
from paredown.pipeline.run.image.judge.parity import parity_stage
from paredown.pipeline.run.image.judge.pictures import examples_stage, preview_stage
from paredown.pipeline.run.image.judge.score import score_stage
from paredown.pipeline.run.image.packed.bundle import bundle_stage
from paredown.pipeline.run.image.packed.sample import sample_stage
from paredown.pipeline.run.image.prune_stages import NETWORK, PLAN, PLOT, SENSE, PruneStages
from paredown.pipeline.run.image.ptq.quantize_stages import SMOKE_IMAGES, QuantizeStages
from paredown.pipeline.run.image.read import (
    graph_in,
    integer_in,
    predictor,
    write_lowered,
    write_traced,
)
from paredown.pipeline.run.image.split import TrainingSplit
from paredown.pipeline.run.image.squantize_stages import LATENT, SquantizeStages
from paredown.pipeline.run.job import BUNDLE, PREVIEW, Job, Proof, Settings
from paredown.pipeline.run.params import LowerParams, TraceParams
from paredown.pipeline.store.files import PARALLEL_MACS, read_json, set_threads
from paredown.pipeline.store.stage import Inputs, Stage
from paredown.targets.errors import UsageError
from paredown.targets.host.host import package_version, this_machine

if TYPE_CHECKING:
    from paredown.pipeline.device.timing import Peaks
    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import IntegerGraph

WORTH_MACS = 5e9  # of all images that are scored; a second process takes seconds to start
LIGHT = 1000  # multiply-accumulates of a light network for a pixel of its input
INSTEAD = "-instead"  # what judges a program that was rolled back to
PRUNED = "pruned.safetensors"


class ImageJob(Job):
    """Makes the stages; keys are known before anything runs.

    Args:
        settings: of the run.
        ships: runtime -> variant that ships instead of the last one that was made: `ORIGINAL`, the network
            as it came in int8, or `FLOAT`, the same in float32.
        exported: whether only files are made, which nothing here runs.
        timed: the stage that timed everything on this machine, before something was taken back.

    Attributes:
        task: of the recipe's app.
        original: the stage that traces the network as it came.
        trace: that of what ships.
        lower: runtime -> the program that ships.
        integers: runtime -> the integer graph of that program; none where it is in float32.
        baseline: runtime -> the original network in float32.
        originals: runtime -> the original network in int8, where another is made of it.
        rejected: runtime -> a program that was slower on the device.
        training: the data that is trained on; None where nothing is.
        scores: variant -> what scores it.
        references: key of an integer graph -> its outputs, for the parity of all runtimes: see `check`.
        peaks: what tells the memory of programs; None until it is started.

    Raises:
        UsageError: the target lacks a runtime that the recipe wants, or nothing runs on it here.
        InputError: a file of the recipe is missing or broken.
    """

    kind = "image"

    def __init__(
        self,
        settings: Settings,
        ships: Mapping[str, str] | None = None,
        exported: bool = False,
        timed: Stage | None = None,
    ) -> None:
        """Opens the data sets, which checks their labels."""
        if not exported:
            check_target(settings.target)
        super().__init__(settings)
        check_files(self.recipe)
        self.ships = dict(ships or {})
        self.references: dict[str, dict[int, Any]] = {}
        self.peaks: Peaks | None = None
        self.task: Task = load_task(self.recipe)
        self.metric = metric_of(self.task)
        self.preprocess = self.task.preprocess
        self.calibration, self.test = Kept(self.task.data("calibration")), Kept(self.scored())
        prune, squantize = self.recipe.prune.active, self.recipe.squantize.active
        self.original = self._trace()
        self.pruning: PruneStages | None = None
        self.squantizing: SquantizeStages | None = None
        self.trace = self.original
        self.training: Dataset | None = None
        if prune or squantize:
            self._compress(prune, squantize)
        self.baseline = {name: self._lower_float(name) for name in self.runtimes}
        self.quantizing = self._quantize(self.trace)
        self.integer = self.quantizing.integer
        latest = {name: self._lower(name, self.integer) for name in self.runtimes}
        self.originals: dict[str, Stage] = {}
        whole = self.integer
        if prune or squantize:
            whole = self._quantize(self.original, ORIGINAL).integer
            self.originals = {name: self._lower(name, whole, ORIGINAL) for name in self.runtimes}
        self.lower, self.integers = dict(latest), dict.fromkeys(self.runtimes, self.integer)
        self.rejected = {name: latest[name] for name in self.ships}
        for name, variant in self.ships.items():
            if variant == ORIGINAL:
                self.lower[name], self.integers[name] = self.originals[name], whole
            else:
                self.lower[name] = self.baseline[name]
                del self.integers[name]
        self.parity = {name: parity_stage(self, name) for name in self.integers}
        floats = ("fp32", *(n for n, active in (("pruned", prune), ("squantized", squantize)) if active))
        self.scores = {name: score_stage(self, name) for name in (*floats, "integer", *self.runtimes)}
        here = self.target.reach.kind == "local" and self.device is None
        self.bench = timed or (bench_stage(self) if here else None)
        self.sample = sample_stage(self)
        self.bundle, self.preview = bundle_stage(self), preview_stage(self)
        self.examples = examples_stage(self)

    def scored(self) -> Dataset:
        """The images that are scored."""
        return self.task.data("test")

    def _compress(self, prune: bool, squantize: bool) -> None:
        split = TrainingSplit(self.recipe, self.task, self.smoke)
        self.training = split.data
        if prune:
            machine = self.machine.identity()
            self.pruning = PruneStages(self.settings, self.task, split, self.original, machine)
            self.trace = self.pruning.trace
        if squantize:
            self.squantizing = SquantizeStages(self.settings, self.task, split, self.original, self.pruning)
            self.trace = self.squantizing.squantize

    def sensing(self) -> PruneStages:
        """The stages of pruning, also where the recipe prunes nothing."""
        if self.pruning is not None:
            return self.pruning
        split = TrainingSplit(self.recipe, self.task, self.smoke)
        return PruneStages(self.settings, self.task, split, self.original, self.machine.identity())

    @property
    def device(self) -> str | None:
        """The address of the device that proves the result; a microcontroller is simulated."""
        return self.settings.device or (SIMULATED if self.target.microcontroller else None)

    @property
    def images(self) -> int:
        """How many test images are scored."""
        return min(len(self.test), SMOKE_IMAGES) if self.smoke else len(self.test)

    # -- the job ---------------------------------------------------------------------------------------------

    def programs(self) -> tuple[Stage, ...]:
        """Everything but the bundle, the preview and times."""
        first = (*self.rejected.values(), *self.originals.values(), *self.lower.values())
        return (*first, *self.baseline.values(), *self.parity.values(), *self.scores.values())

    def goals(self) -> tuple[Stage, ...]:
        """See `Job`."""
        shown = [stage for stage in (self.bench, self.bundle, self.preview, self.examples) if stage]
        return (*self.programs(), *shown)

    def prepare(self, stage: Stage) -> None:
        """Sets torch's threads, which float sums hang on, as the size of the network wants them."""
        if stage is not self.original:
            set_threads(self.path(self.original))

    def movable(self, stage: Stage) -> Sequence[Stage] | None:
        """Scores, once it is known that they take seconds, and no network that wants all cores itself."""
        if stage is not self.original:
            return None
        macs = read_json(self.path(stage) / "size.json")["macs"]
        if not self._has_room() or macs >= PARALLEL_MACS or macs * self.images < WORTH_MACS:
            return ()
        return [each for each in self.scores.values() if self.store.get(each.key) is None]

    def may_move(self) -> bool:
        """As `movable`, of a network that is light for its input."""
        if not self._has_room() or self.store.get(self.original.key) is not None:
            return False
        return LIGHT * math.prod(self.preprocess.input_shape[2:]) * self.images >= WORTH_MACS

    def _has_room(self) -> bool:
        return self.training is None and len(os.sched_getaffinity(0)) >= 2

    def ahead(self) -> None:
        """Starts what tells the memory of programs, which imports the runtimes first."""
        if self.bench is not None and self.store.get(self.bench.key) is None:
            from paredown.pipeline.device.timing import Peaks

            self.peaks = self.peaks or Peaks(self.runtimes)

    def close(self) -> None:
        """See `Job`."""
        if self.peaks is not None:
            self.peaks.close()
            self.peaks = None

    def warm(self) -> None:
        """See `Job`."""
        from paredown.pipeline.lower import reference  # noqa: F401  torch, and every operation

        for name in self.runtimes:
            runtime(name).warm()

    @property
    def allows_float(self) -> bool:
        """Whether a program in float32 may ship where int8 is slower: not against a limit of bytes."""
        wanted = self.recipe.lower.allow_float
        return self.recipe.budget.over(self.target.budget).bundle_kib is None if wanted is None else wanted

    def settle(self, reach: Callable[[Sequence[Stage]], None]) -> Job:
        """See `Job`; on this machine a runtime on which int8 is slower ships float32."""
        if (
            self.bench is not None
            and self.allows_float
            and not self.smoke
            and self.recipe.bench.runs >= FEWEST
        ):
            reach((*self.programs(), self.bench))
            if slow := slower_than_float(self.summary.measured, self.runtimes):
                ships = {each.runtime: each.variant for each in slow}
                job = type(self)(self.settings, ships, timed=self.bench)
                reach(job.goals())
                return job
        return super().settle(reach)

    def prove(self, device: str, reach: Callable[[Sequence[Stage]], None]) -> tuple[Job, Proof]:
        """See `Job`; what is slower on the device than what it was made from is rolled back."""
        from paredown.pipeline.run.proof import Prover

        reach(self.programs())
        limit = self.settings.limit
        with Prover(self, device) as prover:
            ships = prover.roll_back()
            job = ImageJob(self.settings, ships) if ships else self
            reach(job.goals())
            return job, prover.prove(job, limit)

    def figures(self) -> tuple[Figure, ...]:
        """See `Job`."""
        return self.summary.figures()

    def notes(self) -> tuple[str, ...]:
        """See `Job`."""
        return self.summary.notes()

    @property
    def summary(self) -> Any:
        """What the artefacts say."""
        from paredown.pipeline.run.image.summary.summary import Summary

        return Summary(self)

    def files(self) -> dict[str, tuple[Stage, str]]:
        """See `Job`."""
        found = {BUNDLE: (self.bundle, BUNDLE), PREVIEW: (self.preview, PREVIEW)}
        found |= {f"model{runtime(name).suffix}": (stage, "program") for name, stage in self.lower.items()}
        if self.pruning is not None:
            if self.recipe.prune.budget:
                found |= {name: (self.pruning.sense, name) for name in (SENSE, PLOT)}
            found |= {PLAN: (self.pruning.prune, PLAN), PRUNED: (self.pruning.recover, NETWORK)}
        if self.squantizing is not None:
            found[LATENT] = (self.squantizing.squantize, LATENT)
        return found

    def sections(self) -> dict[str, list[str]]:
        """See `Job`."""
        return self.summary.sections()

    def page(self) -> dict[str, Any]:
        """See `Job`."""
        from paredown.pipeline.run.image.summary.page import page_facts

        return page_facts(self)

    def data_words(self) -> str:
        """See `Job`."""
        classes = len(self.test.names)
        return f"{self.images} test images of {classes} classes, data.format = {self.recipe.data.format!r}"

    # -- what artefacts hold ---------------------------------------------------------------------------------

    def graph(self, stage: Stage | None = None) -> Graph:
        """The traced float network: that which is shipped, or that of another tracing stage."""
        self.prepare(self.integer)
        return graph_in(self.path(stage or self.trace))

    def integer_graph(self, stage: Stage | None = None) -> IntegerGraph:
        """The integer graph: the last one that was made, or that of another stage."""
        self.prepare(self.integer)
        return integer_in(self.path(stage or self.integer))

    def predictor(self, variant: str) -> Predict:
        """A way of predicting: a float network by its variant, "integer", or a runtime's program."""
        self.prepare(self.integer)
        integer = self.integers.get(variant)
        return predictor(variant, self.path(self.maker(variant)), self.path(integer) if integer else None)

    def maker(self, variant: str) -> Stage:
        """The stage that makes a variant."""
        if variant == "pruned":
            assert self.pruning is not None
            return self.pruning.trace
        makers = {"fp32": self.original, "squantized": self.trace, "integer": self.integer}
        return makers.get(variant) or self.lower[variant]

    def read(self, name: str) -> dict[str, Stage]:
        """What is read of a runtime's program beside itself: its scales."""
        return {"graph": self.integers[name]} if name in self.integers else {}

    def instead(self, name: str) -> str:
        """What ends the name of a stage that judges a program; not empty where that was rolled back."""
        return INSTEAD if name in self.ships else ""

    # -- the stages ------------------------------------------------------------------------------------------

    def _trace(self) -> Stage:
        shape = self.preprocess.input_shape

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.graph.trace import check_trace, trace
            from paredown.pipeline.lower.predict.islands import refused

            network = self.task.network()
            graph = trace(network, shape)
            check_trace(network, graph)
            refused(graph, {name: self.target.runtime(name) for name in self.runtimes})
            write_traced(out, graph, notes_of(self.task))

        params = TraceParams(shape, package_version("torch"), dict(self.task.network_id))
        return Stage("trace", 5, params, {"weights": self.task.weights_hash()}, build)

    def _quantize(self, traced: Stage, suffix: str = "") -> QuantizeStages:
        codes = codes_of(self.task) if traced is self.original else None
        return QuantizeStages(self.settings, self.task, self.calibration, traced, suffix, codes)

    def int4(self, name: str) -> tuple[str, ...]:
        """Kinds of layers whose weights may be int4 on a runtime; none of a recipe that makes no such codes.

        So the programs of cards that differ in this alone are made, and scored, once.
        """
        return self.target.runtime(name).int4 if self.recipe.squantize.active else ()

    def _lower(self, name: str, integer: Stage, suffix: str = "") -> Stage:
        int4 = self.int4(name)

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.lower.integer import in_int4

            graph = in_int4(integer_in(inputs["integer"]), int4)
            write_lowered(out, runtime(name).lower_integer(graph))

        params = _lower_params(name, int4)
        return Stage(f"lower-{name}{suffix}", _lower_version(name), params, {"integer": integer}, build)

    def _lower_float(self, name: str) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            write_lowered(out, runtime(name).lower_float(graph_in(inputs["trace"])))

        inputs: dict[str, Stage | str] = {"trace": self.original}
        return Stage(f"lower-{name}{FLOAT}", _lower_version(name), _lower_params(name), inputs, build)


def check_target(target: Any) -> None:
    """Refuses a target for which files are made that nothing here runs.

    Raises:
        UsageError: it is one.
    """
    if target.export_only or any(there.io == "float32" for there in target.runtimes.values()):
        raise UsageError(
            f"target {target.name} is export-only",
            hint=f'use "paredown export RECIPE --target {target.name}"',
        )


def _lower_version(name: str) -> int:
    """Since 4 ExecuTorch's programs are ours, OpenVINO's in its fastest form, ONNX Runtime's sums exact."""
    return 4 if name in ("executorch", "openvino", "onnxruntime") else 3


def _lower_params(name: str, int4: tuple[str, ...] = ()) -> LowerParams:
    package = runtime(name).package
    cpu = this_machine().cpu if name == "onnxruntime" else None  # its scales are those with exact sums here
    return LowerParams(name, package_version(package), package, int4, cpu=cpu)
