"""The job of an image network, as stages: what each makes, from what, with which parameters.

    trace -> (sense -> prune -> recover -> trace-pruned ->) (squantize ->) calibrate -> integer
    -> lower-RUNTIME -> parity-RUNTIME, score-VARIANT, bench -> bundle, preview, examples

Where the network is pruned or squantized, the original one is quantized and lowered too, to be timed beside
it. What is slower on the device than what it was made from is rolled back: that is another job, whose stages
are the same but for what ships. A stage's heavy imports happen in its build, so that a run in which
everything is reused imports none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.datasets import Dataset, First, Kept
from paredown.pipeline.device.executor import SIMULATED
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.recipe.file import check_files
from paredown.pipeline.recipe.task import (
    Predict,
    Task,
    codes_of,
    doubts_of,
    drawn_by,
    load_task,
    metric_of,
    notes_of,
    pictured_by,
)
from paredown.pipeline.report.drop import read_details, write_scores
from paredown.pipeline.report.figures import ORIGINAL, Figure
from paredown.pipeline.run.image.prune_stages import NETWORK, PLAN, PLOT, SENSE, PruneStages
from paredown.pipeline.run.image.quantize_stages import SMOKE_IMAGES, QuantizeStages
from paredown.pipeline.run.image.read import (
    all_integers,
    graph_in,
    in_batches,
    integer_in,
    predictor,
    write_lowered,
    write_traced,
)
from paredown.pipeline.run.image.split import TrainingSplit
from paredown.pipeline.run.image.squantize_stages import LATENT, SquantizeStages
from paredown.pipeline.run.job import BUNDLE, PREVIEW, Job, Proof, Settings, program_in
from paredown.pipeline.run.params import BenchParams, LowerParams, ScoreParams, TraceParams
from paredown.pipeline.store.files import PARALLEL_MACS, read_json, set_threads, write_json
from paredown.pipeline.store.stage import Inputs, Stage
from paredown.targets.errors import UsageError
from paredown.targets.host.host import package_version

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import IntegerGraph

PARITY_INPUTS = 32
WORTH_MACS = 5e9  # of all images that are scored; a second process takes seconds to start
SMOKE_INPUTS, SMOKE_RUNS = 2, 3
FEWEST = 10  # timed inferences, below which nothing is taken back
FLOAT = "-fp32"
INSTEAD = "-instead"  # what judges a program that was rolled back to
PRUNED = "pruned.safetensors"
DOUBTS = "doubts.json"  # of the original's score


@dataclass(frozen=True)
class ParityParams:
    """How many inputs are compared, and on what."""

    inputs: int
    probes: int
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class PreviewParams:
    """What draws the preview."""

    runtime: str


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
        self._references: dict[str, dict[int, Any]] = {}  # of an integer graph, for all runtimes: see `check`
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
        self.parity = {name: self._parity(name) for name in self.integers}
        floats = ("fp32", *(n for n, active in (("pruned", prune), ("squantized", squantize)) if active))
        self.scores = {name: self._score(name) for name in (*floats, "integer", *self.runtimes)}
        here = self.target.reach.kind == "local" and self.device is None
        self.bench = timed or (self._bench() if here else None)
        self.sample = self._sample()
        self.bundle, self.preview, self.examples = self._bundle(), self._preview(), self._examples()

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

    def movable(self, stage: Stage) -> Sequence[Stage]:
        """Scores, once it is known that they take seconds, and no network that wants all cores itself."""
        if stage is not self.original or self.training is not None or len(os.sched_getaffinity(0)) < 2:
            return ()
        macs = read_json(self.path(stage) / "size.json")["macs"]
        if macs >= PARALLEL_MACS or macs * self.images < WORTH_MACS:
            return ()
        return [each for each in self.scores.values() if self.store.get(each.key) is None]

    @property
    def allows_float(self) -> bool:
        """Whether a program in float32 may ship where int8 is slower."""
        return self.recipe.lower.allow_float is not False

    def settle(self, reach: Callable[[Sequence[Stage]], None]) -> Job:
        """See `Job`; on this machine a runtime on which int8 is slower ships float32."""
        from paredown.pipeline.device.rollback import slower_than_float

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
        return predictor(variant, self.path(self._maker(variant)), self.path(integer) if integer else None)

    def _maker(self, variant: str) -> Stage:
        """The stage that makes a variant."""
        if variant == "pruned":
            assert self.pruning is not None
            return self.pruning.trace
        makers = {"fp32": self.original, "squantized": self.trace, "integer": self.integer}
        return makers.get(variant) or self.lower[variant]

    def _read(self, name: str) -> dict[str, Stage]:
        """What is read of a runtime's program beside itself: its scales."""
        return {"graph": self.integers[name]} if name in self.integers else {}

    def _instead(self, name: str) -> str:
        return INSTEAD if name in self.ships else ""

    # -- the stages ------------------------------------------------------------------------------------------

    def _trace(self) -> Stage:
        shape = self.preprocess.input_shape

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.graph.trace import trace
            from paredown.pipeline.lower.predict.islands import refused

            graph = trace(self.task.network(), shape)
            refused(graph, {name: self.target.runtime(name) for name in self.runtimes})
            write_traced(out, graph, notes_of(self.task))

        params = TraceParams(shape, package_version("torch"), dict(self.task.network_id))
        return Stage("trace", 4, params, {"weights": self.task.weights_hash()}, build)

    def _quantize(self, traced: Stage, suffix: str = "") -> QuantizeStages:
        codes = codes_of(self.task) if traced is self.original else None
        return QuantizeStages(self.settings, self.task, self.calibration, traced, suffix, codes)

    def _int4(self, name: str) -> tuple[str, ...]:
        """Kinds of layers whose weights may be int4 on a runtime; none of a recipe that makes no such codes.

        So the programs of cards that differ in this alone are made, and scored, once.
        """
        return self.target.runtime(name).int4 if self.recipe.squantize.active else ()

    def _lower(self, name: str, integer: Stage, suffix: str = "") -> Stage:
        int4 = self._int4(name)

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

    def _parity(self, name: str) -> Stage:
        count = SMOKE_INPUTS if self.smoke else PARITY_INPUTS
        params = ParityParams(count, min(2, count), self.machine.identity())

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.lower.integer import in_int4
            from paredown.pipeline.lower.parity import check
            from paredown.pipeline.lower.predict.islands import facts, islands, tried

            tools = runtime(name)
            integer = in_int4(integer_in(inputs["integer"]), self._int4(name))
            done = 0

            def tick() -> None:
                nonlocal done
                done += 1
                self.tick(done, count)

            result = check(
                integer,
                tools.load(program_in(inputs["program"]), 1, name),
                lambda graph: tools.load(tools.lower_integer(graph).data, 1, name),
                self._parity_inputs(integer, count),
                params.probes,
                tick,
                tools.tolerance,
                self._references.setdefault(self.integers[name].key, {}),
            )
            told = result.to_dict()
            # a list, for the running order: what is written sorts its keys
            told["layers"] = [
                {"name": layer, "kind": integer[layer].kind, **apart}
                for layer, apart in told["layers"].items()
            ]
            for node in islands(integer):
                feeds = [integer[each] for each in node.inputs]
                micro = self.target.runtime(name).edition == "micro"
                told["islands"][node.name] |= facts(node, feeds, tried(name, node, feeds, micro))
            write_json(out / "parity.json", told)

        inputs: dict[str, Stage | str] = {"integer": self.integers[name], "program": self.lower[name]}
        inputs["data"] = self.calibration.fingerprint()
        called = f"parity-{name}{self._instead(name)}"
        return Stage(called, 2, params, inputs, build)  # 2: with layers for the report

    def _parity_inputs(self, integer: IntegerGraph, count: int) -> NDArray[np.int8]:
        """Half real images of the calibration split, half synthetic textures over all codes."""
        from paredown.targets.runners.vectors import test_inputs

        real = min(count // 2, len(self.calibration))
        scale = integer.input.out
        images = [
            self.preprocess.quantized(self.calibration[i].image, scale.scale, scale.zero_point)
            for i in range(real)
        ]
        return np.concatenate([np.stack(images), test_inputs(integer.input.shape, count - real)])

    def _score(self, variant: str) -> Stage:
        params = ScoreParams(
            variant, self.machine.identity(), self.images, self.preprocess.hash, dict(self.task.network_id),
            rule=getattr(self.task, "score_rule", None),
        )  # fmt: skip

        def build(out: Path, inputs: Inputs) -> None:
            predict = predictor(variant, inputs["program"], inputs.get("graph"))
            if variant == "integer" and all_integers(inputs["program"]):
                predict = in_batches(predict, First(self.test, self.images), self.preprocess)
            scores = self.task.score(predict, First(self.test, self.images), self.tick)
            write_scores(out, scores)
            if variant == "fp32" and not self.smoke:
                write_json(out / DOUBTS, doubts_of(self.task, predict, scores))

        inputs: dict[str, Stage | str] = {"program": self._maker(variant), "data": self.test.fingerprint()}
        name = f"score-{variant}{self._instead(variant)}"
        return Stage(name, 4, params, inputs, build, self._read(variant))  # 4: with details for the report

    def _bench(self) -> Stage:
        runs = SMOKE_RUNS if self.smoke else self.recipe.bench.runs
        threads = self.recipe.bench.threads
        stages = {**self.lower, **{f"{name}{FLOAT}": stage for name, stage in self.baseline.items()}}
        stages |= {f"{name}{ORIGINAL}": stage for name, stage in self.originals.items()}

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.coupling.surgery import load_pruned
            from paredown.pipeline.device.timing import Eager, interleaved, peak_memory
            from paredown.pipeline.lower.predict.islands import island_times, islands

            image = self.preprocess(self.calibration[0].image)[None]
            integer = integer_in(inputs["integer"])
            codes = integer.input.out.quantize(image)
            runners: dict[str, Any] = {"fp32": (Eager(self.task.network(), threads), image)}
            if "recovered" in inputs:
                pruned = load_pruned(self.task.network(), inputs["recovered"] / NETWORK)
                runners["pruned"] = (Eager(pruned, threads), image)
            programs: dict[str, Any] = {}
            for variant in stages:
                name = variant.removesuffix(FLOAT).removesuffix(ORIGINAL)
                x = image if variant.endswith(FLOAT) else codes
                runners[variant] = (runtime(name).load(program_in(inputs[variant]), threads, variant), x)
                programs[variant] = (name, inputs[variant] / "program", x)
            memory = peak_memory(programs)
            times = interleaved(runners, runs, self.tick)
            figures = {
                name: {
                    "latency_p50": float(np.percentile(values, 50)),
                    "latency_p90": float(np.percentile(values, 90)),
                    **({"memory_peak": memory[name]} if name in memory else {}),
                }
                for name, values in times.items()
            }
            write_json(out / "bench.json", figures)
            from paredown.pipeline.run.image.summary.summary import ISLANDS, TIMES

            write_json(out / TIMES, {name: np.round(values, 4).tolist() for name, values in times.items()})

            costs = {name: island_times(name, integer, runs) for name in self.runtimes if islands(integer)}
            write_json(out / ISLANDS, costs)

        params = BenchParams(threads, self.machine.identity(), runs)
        reads = {"integer": self.integer} | ({"recovered": self.pruning.recover} if self.pruning else {})
        return Stage("bench", 4, params, {"trace": self.original, **stages}, build, reads)

    def _sample(self) -> Stage | None:
        """The labelled sample that a bundle holds; None where it is not wanted, or scored by code."""
        from paredown.pipeline.run.image.packed.sample import sample_stage

        return sample_stage(self)

    def _bundle(self) -> Stage:
        made = (self.integers, self.lower, self.baseline, self.parity, self.scores)
        told = (self.originals, self.rejected)  # their sizes stand in the manifest
        inputs = {stage.name: stage for group in (*made, *told) for stage in group.values()}
        if self.sample is not None:
            inputs[self.sample.name] = self.sample

        def build(out: Path, folders: Inputs) -> None:
            from paredown.pipeline.bundle.archive import pack
            from paredown.pipeline.run.image.packed.manifest import byte_ledger, contents

            (out / BUNDLE).write_bytes(pack(*contents(self)))
            if self.squantizing is not None:
                from paredown.pipeline.run.image.summary.summary import LEDGER

                write_json(out / LEDGER, byte_ledger(self, out / BUNDLE).to_dict())

        reads = {"trace": self.original, "integer": self.integer, "traced": self.trace}
        if self.pruning is not None:
            reads |= {"prune": self.pruning.prune, "recover": self.pruning.recover}
        params = self.bundle_params(self.task, machine=True)
        return Stage("bundle", 8, params, inputs, build, {n: s for n, s in reads.items() if s is not None})

    def _preview(self) -> Stage:
        name = self.runtimes[-1]

        def build(out: Path, inputs: Inputs) -> None:
            self.task.preview(
                predictor(name, inputs["program"], inputs.get("graph")), self.test, out / PREVIEW
            )

        inputs: dict[str, Stage | str] = {"program": self.lower[name], "data": self.test.fingerprint()}
        return Stage("preview", 1, PreviewParams(name), inputs, build, self._read(name))

    def _examples(self) -> Stage | None:
        """The worst test images; None of a task that draws none."""
        drawn, pictured, name = drawn_by(self.task), pictured_by(self.task), self.runtimes[-1]
        if drawn is None and pictured is None:
            return None

        def pictures(inputs: Inputs) -> Any:
            from paredown.pipeline.run.image.summary.examples import by_details, by_outputs

            if drawn is not None:
                return by_details(drawn)
            assert pictured is not None
            both = (
                predictor("fp32", inputs["original"], None),
                predictor(name, inputs["program"], inputs.get("graph")),
            )
            return by_outputs(pictured, both, self.preprocess)

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.run.image.summary.examples import examples
            from paredown.pipeline.run.image.summary.summary import EXAMPLES

            old, new = (read_details(inputs[each]).get("images", ()) for each in ("before", "after"))
            write_json(out / EXAMPLES, examples(old, new, self.test, pictures(inputs), name))

        inputs: dict[str, Stage | str] = {"before": self.scores["fp32"], "after": self.scores[name]}
        reads: dict[str, Stage] = {}
        if drawn is None:
            inputs |= {"original": self.original, "program": self.lower[name]}
            reads = self._read(name)
        inputs["data"] = self.test.fingerprint()
        return Stage("examples", 1, PreviewParams(name), inputs, build, reads)


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
    """That of the stages that lower: ExecuTorch's programs are those of our own writer since 4."""
    return 4 if name == "executorch" else 3


def _lower_params(name: str, int4: tuple[str, ...] = ()) -> LowerParams:
    package = runtime(name).package
    return LowerParams(name, package_version(package), package, int4)
