"""Validation: does a bundle still do, on a device, what its figures say?

Hashes, then the test vectors code by code, then the score on the recipe's test images from the device's own
outputs, compared with the figures the bundle carries, then latency, memory and the budget. An emulated
device's milliseconds and memory mean nothing and are no figures; everything else of it is marked simulated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.array_input import AnyInput, input_from_dict
from paredown.calibration.datasets import Dataset, First
from paredown.calibration.sample.records import MEMBER, open_sample
from paredown.pipeline.bundle.archive import Bundle, unpack
from paredown.pipeline.bundle.manifest import Manifest, Model
from paredown.pipeline.bundle.places import relocated, same_files
from paredown.pipeline.device.executor import Executor, Predictor, open_executor, stands_for
from paredown.pipeline.recipe.file import check_files, load_recipe
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import (
    APPS,
    Metric,
    Packed,
    Scores,
    Task,
    check_no_code,
    load_scorer,
    load_task,
)
from paredown.pipeline.report.budget import budget_limits, violations
from paredown.pipeline.report.checks import Check, Validation
from paredown.pipeline.report.figures import CLASS, SCORES, Figure, Tag, parse_figures
from paredown.pipeline.report.verdict import decide
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.targets.cards.card import RuntimeName
from paredown.targets.devices.programs import Outputs, Program, Timing
from paredown.targets.errors import InputError, ParedownError
from paredown.targets.host.host import this_machine
from paredown.targets.runners.litert import TensorInfo
from paredown.targets.runners.vectors import test_inputs

Codes = NDArray[np.int8]
Floats = NDArray[np.float32]

#: Scores are computed from integer outputs: the same device code gives the same score, to float rounding.
SCORE_TOLERANCE = 1e-6
#: Float kernels add in an order of their own: of the largest output.
FLOAT_TOLERANCE = 1e-3
#: What a run writes beside its bundle.
RUN_RECIPE = "recipe.toml"
#: Keys of a recipe whose files scoring does not need.
UNNEEDED = ("weights", "data.train", "data.calibration")
DATA_HINT = "--data FOLDER says where the recipe's files lie"


def validate(
    path: str | Path,
    device: str = "local:",
    *,
    limit: int | None = None,
    score: bool = True,
    runs: int = 30,
    recipe: Recipe | None = None,
    data: Path | None = None,
    tell: Tell = nobody,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Validation:
    """Validates a bundle on a device.

    Args:
        path: the bundle.
        device: an address, see `targets.address`; `local:` is this machine.
        limit: score at most this many test images; a partial score is reported, not compared.
        score: whether to score at all.
        runs: timed inferences per runtime; of a language model, tokens that it writes.
        recipe: that the bundle was made with, whose code may be executed; None = the bundle's own, which may
            name none.
        data: the folder where the recipe's files lie; None = those of the run beside the bundle.
        tell: hears of each step.
        tick: progress within a step.

    Raises:
        InputError: the bundle or the recipe's data is broken.
        UsageError: no such kind of address.
        DeviceError: the device cannot be reached, or failed on the way.
    """
    bundle = unpack(path)
    tell(Event("hashes", "running"))
    if bundle.manifest.language:
        from paredown.pipeline.device.language.validate import validate_language

        return validate_language(
            bundle, device, limit=limit, score=score, answer=runs, recipe=recipe or recipe_here(bundle, data),
            tell=tell, tick=tick,
        )  # fmt: skip
    with open_executor(device, bundle.manifest.card, tell) as executor:
        known, own = recipe or recipe_here(bundle, data), data is not None
        return Validator(bundle, executor, tell, tick, recipe=known, own=own).validate(limit, score, runs)


def recipe_here(bundle: Bundle, data: Path | None) -> Recipe | str:
    """A bundle's recipe with the files of this machine.

    Args:
        bundle: whose recipe names no folder, and may name no code.
        data: where the files lie; None = where the recipe of the run says that lies beside the bundle, else
            below the working folder.

    Returns:
        Or why it is not used.

    Raises:
        InputError: there is no such folder.
    """
    recipe = bundle.manifest.recipe
    if data is not None and not data.is_dir():
        raise InputError("no such folder", where=data, hint="--data names the folder of the recipe's files")
    try:
        check_no_code(recipe)
        placed = relocated(recipe, data or Path.cwd())
        check_no_code(placed)  # what a name is shows only where the file lies
    except InputError as error:
        return str(error)
    beside = bundle.path.with_name(RUN_RECIPE)
    if data is None and beside.exists():
        with contextlib.suppress(ParedownError):
            known = load_recipe(beside)
            check_no_code(known)
            if same_files(known, recipe):
                return known
    return placed


class Validator:
    """One validation: what is known so far, and what it is measured with.

    Args:
        bundle: opened.
        executor: runs its programs.
        tell: hears of each step.
        tick: progress within a step.
        smoke: every figure says so.
        recipe: with the files of this machine, its code trusted; or why there is none.
        own: whether the test data may be others than those of the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        executor: Executor,
        tell: Tell,
        tick: Callable[[int, int], None],
        smoke: bool = False,
        *,
        recipe: Recipe | str,
        own: bool = False,
    ) -> None:
        self.recipe, self.own = recipe, own
        self.bundle, self.executor, self.tell, self.tick = bundle, executor, tell, tick
        self.recorded = parse_figures(bundle.manifest.figures, bundle.path)
        self.checks = [Check("hashes", True, f"{len(bundle.members)} members")]
        self.figures: list[Figure] = []
        self.scored = 0
        self.missing: tuple[str, ...] = ()
        self.tag = tag_of(executor, smoke)

    def validate(self, limit: int | None, score: bool, runs: int | None) -> Validation:
        """Everything.

        Args:
            limit: score at most this many test images.
            score: whether to score at all.
            runs: timed inferences per runtime; None = that was done elsewhere.
        """
        manifest = self.bundle.manifest
        programs = {model.runtime: bundle_program(self.bundle, model) for model in manifest.models}
        for model in manifest.models:
            name, program = str(model.runtime), programs[model.runtime]
            sizes = {"file_bytes": len(program.data), "bundle_bytes": self.bundle.path.stat().st_size}
            for metric, size in sizes.items():  # a file's size is no matter of where it runs
                stage = "lower" if metric == "file_bytes" else "bundle"
                self.figures.append(Figure(stage, name, metric, size, "B", "measured", this_machine()))
            self.checks.append(_size(self.recorded, name, len(program.data)))
            self.tell(Event(f"{name} test vectors", "running"))
            self._vectors(model, program)
        if score:
            self._score(programs, limit)
        budget = manifest.recipe.budget.over(manifest.card.budget)
        timed = {str(name): program for name, program in programs.items()}
        if runs is not None:
            self._latency(timed, runs, memory=budget.memory_mib is not None)
        original = [figure for figure in self.recorded if figure.variant == "fp32"]
        judged = _metric(manifest, {figure.metric for figure in original})
        if limit is not None and limit < manifest.test.images:  # a part's score says nothing of the whole's
            original = []
        machine = self.executor.machine  # which knows its versions only now
        figures = [replace(f, where=machine) if f.where.name == machine.name else f for f in self.figures]
        allowed = [f for f in self.recorded if f.metric == "parity_allowed" and f.tag != "smoke"]
        whole = [*original, *allowed, *(figure for figure in figures if figure.stage != "sample")]
        limits = budget_limits(budget, whole, judged)
        missing = self.missing if score else ("a score: it was left out",)
        if self.missing:
            original = []
        verdict = decide(limits, self.checks, whole, judged, missing)
        checks = tuple(self.checks)
        return Validation(checks, tuple(figures), violations(limits), self.scored, limits, verdict)

    def _figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> None:
        self.figures.append(Figure(stage, variant, metric, value, unit, self.tag, self.executor.machine))

    def _vectors(self, model: Model, program: Program) -> None:
        """The bundle's test inputs, code by code."""
        from paredown.pipeline.bundle.vectors import unpacked

        bundle, name = self.bundle, model.vectors
        try:
            facts, real = bundle.json(f"{name}.json"), bundle.members.get(f"{name}.in", b"")
            inputs, expected = unpacked(facts, bundle.read(f"{name}.bin"), real)
            if inputs.shape[1:] != model.input.shape[1:]:
                raise ValueError(f"inputs of shape {inputs.shape[1:]}")
            if [e.shape[1:] for e in expected] != [o.shape[1:] for o in model.outputs]:
                raise ValueError("outputs of other shapes")
        except (KeyError, TypeError, ValueError) as error:
            what = f"the test vectors do not fit {model.file}: {error}"
            raise InputError(what, where=bundle.path) from error
        found = self.executor.run(program, inputs, self.tick)
        judge = self._codes_apart if model.dtype == "int8" else self._floats_apart
        if not self.executor.exact:
            judge, expected = self._reference_apart, []
        elif _reference_kernels(facts, found):
            detail = f"outputs of {len(inputs)} inputs are those of the runtime's reference kernels"
            self.checks.append(Check(f"{program.runtime} vectors", True, detail))
            return
        self.checks.append(judge(program, inputs, expected, found))

    def _codes_apart(
        self, program: Program, inputs: Codes, expected: Sequence[Codes], found: Outputs
    ) -> Check:
        """Compares codes; where too many differ, the first operation that does is looked for."""
        from paredown.pipeline.lower.parity import Difference, difference

        apart = Difference()
        for index, sample in enumerate(found):
            for ours, theirs in zip(expected, sample, strict=True):
                apart += difference(ours[index : index + 1], theirs)
        name = program.runtime
        self._figure("parity", name, "parity_lsb", apart.max_lsb, "LSB")
        known = (_recorded(self.recorded, name, metric) or 0 for metric in ("parity_lsb", "parity_allowed"))
        passed = apart.max_lsb <= max(known)
        detail = f"{apart.differing} of {apart.values} codes differ, by up to {apart.max_lsb} LSB"
        if not passed and name == "litert" and not self.executor.local:
            detail += f"; {self._ladder(program, inputs)}"
        return Check(f"{name} vectors", passed, detail)

    def _ladder(self, program: Program, inputs: Codes) -> str:
        """The first operation in which the device differs from this machine."""
        from paredown.pipeline.device.executor import Here
        from paredown.pipeline.lower.litert.slices import exposed, first_difference

        part = exposed(program.data)
        every = replace(program, data=part.data, outputs=part.outputs)
        ours, theirs = (where.run(every, inputs[:1], self.tick)[0] for where in (Here(), self.executor))
        first = first_difference(part.names, ours, theirs)
        return f"first at {first}" if first else "this machine differs in the same way: another model?"

    def _reference_apart(
        self, program: Program, inputs: Codes, expected: Sequence[Codes], found: Outputs
    ) -> Check:
        """Compares with TFLite's reference kernels, where the interpreter's kernels are those."""
        from paredown.targets.runners.litert import Runner

        runner = Runner(program.data, 1, program.where, reference=True)
        pairs = zip(inputs, found, strict=True)
        equal = all(np.array_equal(a, b) for x, y in pairs for a, b in zip(runner(x[None]), y, strict=True))
        words = "equal" if equal else "DIFFER from"
        detail = f"outputs of {len(inputs)} inputs {words} those of TFLite's reference kernels"
        return Check(f"{program.runtime} vectors", equal, detail)

    def _floats_apart(
        self, program: Program, inputs: Floats, expected: Sequence[Floats], found: Outputs
    ) -> Check:
        """Compares real numbers with the tolerance that sums in another order need."""
        worst = 0.0
        for output, wanted in enumerate(expected):
            given = np.concatenate([sample[output] for sample in found])
            worst = max(worst, float(np.abs(given - wanted).max() / max(np.abs(wanted).max(), 1e-9)))
        self._figure("parity", program.runtime, "parity_relative", worst, "1")
        detail = f"float32, apart by {worst:.1e} of the largest output at most"
        return Check(f"{program.runtime} vectors", worst <= FLOAT_TOLERANCE, detail)

    def _score(self, programs: Mapping[RuntimeName, Program], limit: int | None) -> None:
        """Scores every runtime from what came back, and compares where the very same images were scored."""
        if not self.bundle.manifest.test.images:
            self.checks.append(Check("score", None, "none: the bundle names no labelled images"))
            return
        task = _task(self.bundle, self.recipe)
        if isinstance(task, str) and not self.own and self._has_sample:
            total, hint = (
                self.bundle.manifest.test.images,
                "" if isinstance(self.recipe, str) else f"; {DATA_HINT}",
            )
            self.missing = (f"a score on all {total} test images: {task}{hint}",)
            self._score_sample(programs, limit)
            return
        if isinstance(task, str):
            hint = "" if isinstance(self.recipe, str) else f"{DATA_HINT}; "
            self.checks.append(Check("score", False, f"{task}; {hint}--no-score leaves the score out"))
            return
        data = task.data("test")
        self.scored = count = len(data) if limit is None else min(limit, len(data))
        for model in self.bundle.manifest.models:
            name, program = str(model.runtime), programs[model.runtime]
            self.tell(Event(f"{name} score", "running"))
            images = First(data, count)
            predict = _predictor(self.executor, model, program, images, task.preprocess)
            scores = task.score(predict, images, self.tick)
            self.checks.append(self._compared(name, task.metric, scores, data, count))
            for metric, value in scores.items():
                self._figure("score", name, metric, value, "1")
            if isinstance(scores, Scores):
                for each in scores.details().get("classes", ()):
                    self._figure("classes", name, CLASS + each["name"], each["score"], "1")

    @property
    def _has_sample(self) -> bool:
        return MEMBER in self.bundle.members and self.bundle.manifest.app in APPS

    def _score_sample(self, programs: Mapping[RuntimeName, Program], limit: int | None) -> None:
        """Scores every runtime on the labelled sample that the bundle holds: the recipe's files are not here.

        Nothing of the network is read for it, and no code of the bundle runs here.
        """
        bundle, manifest, where = self.bundle, self.bundle.manifest, str(self.bundle.path)
        names = tuple(bundle.read("labels.txt").decode().splitlines())
        preprocess = input_from_dict(manifest.preprocess)
        try:
            scorer = load_scorer(manifest.app, Packed(bundle.json("app.json"), names, preprocess))
            assert scorer is not None  # the app is one of ours
            data = open_sample(bundle.members, names, where, scorer.with_arrays)
            images = First(data, len(data) if limit is None else limit)
            self.scored = len(images)
            for model in manifest.models:
                name, program = str(model.runtime), programs[model.runtime]
                self.tell(Event(f"{name} score", "running"))
                scores = scorer.score(_predictor(self.executor, model, program, images, preprocess), images,
                                      self.tick)  # fmt: skip
                for metric, value in scores.items():
                    self._figure("sample", name, metric, value, "1")
                known = {} if len(images) < len(data) else data.listed.scores.get(name, {})
                self.checks.append(self._on_sample(model, scores, known, scorer.metric))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"the labelled sample does not fit the bundle: {type(error).__name__}: {error}"
            raise InputError(what, where=where) from error

    def _on_sample(
        self, model: Model, scores: Mapping[str, float], known: Mapping[str, float], metric: str
    ) -> Check:
        said = f"{metric} {scores[metric]:.4f} on {self.scored} images that the bundle holds"
        check = f"{model.runtime} sample"
        if metric not in known or not self.executor.exact:
            return Check(check, None, f"{said}; nothing to compare with")
        apart = [m for m, v in scores.items() if m in known and abs(v - known[m]) > SCORE_TOLERANCE]
        said += f", recorded {known[metric]:.4f}"
        if apart and model.dtype == "float32":  # whose kernels add in an order of their own
            return Check(check, None, said)
        told = [f"{m} {scores[m]:.4f}, recorded {known[m]:.4f}" for m in apart if m != metric]
        return Check(check, not apart, "; ".join([said, *told]))

    def _compared(
        self, name: str, metric: str, scores: Mapping[str, float], data: Dataset, count: int
    ) -> Check:
        check, said = f"{name} score", f"{metric} {scores[metric]:.4f} on {count} images"
        known = self.bundle.manifest.test
        if data.fingerprint() != known.fingerprint:
            if self.own:
                return Check(check, None, f"{said}; these are other test data than the bundle's")
            return Check(check, False, f"{said}; the test data have changed since this bundle was made")
        classes = [each for each in scores if each.startswith(CLASS)]
        known_classes = {each.metric for each in self.recorded if each.variant == name}
        if classes and not known_classes.intersection(classes):
            return Check(check, True, f"{said}; recorded by the rule of an earlier version")
        values = {each: _recorded(self.recorded, name, each) for each in scores}
        if count != known.images or None in values.values() or not self.executor.exact:
            part = count != len(data) and f"{count} of {len(data)} test images: no proof"
            return Check(check, None if part else True, f"{said}; {part or 'nothing to compare with'}")
        apart = [m for m, v in values.items() if v is None or abs(scores[m] - v) > SCORE_TOLERANCE]
        told = [f"recorded {values[metric]:.4f}"]
        told += [f"{m} {scores[m]:.4f}, recorded {values[m]:.4f}" for m in apart if m != metric]
        return Check(check, not apart, ", ".join([said, *told]))

    def _latency(self, programs: Mapping[str, Program], runs: int, memory: bool) -> None:
        """Latency and memory, where they are the target's; instructions, where an emulator counts them."""
        manifest, executor = self.bundle.manifest, self.executor
        if not stands_for(executor, manifest.card):
            detail = f"not measured: this machine is no {manifest.target}; {manifest.card.reach.text}"
            self.checks.append(Check("latency", None, detail))
            return
        self.tell(Event("latency", "running"))
        x = test_inputs(manifest.models[0].input.shape, 1)
        for variant, timing in executor.time(programs, x, runs, memory, self.tick).items():
            for stage_figure in time_figures(timing, executor.emulated):
                self._figure("bench", variant, *stage_figure)
        if executor.emulated:
            detail = f"not measured: {executor.machine.name} is emulated, its milliseconds mean nothing"
            self.checks.append(Check("latency", None, detail))


def _reference_kernels(facts: Mapping[str, Any], found: Outputs) -> bool:
    """Whether a finished program gave the very codes of its runtime's reference kernels."""
    from paredown.pipeline.bundle.vectors import digest

    if "also" not in facts:
        return False
    return bool(facts["also"] == digest([np.concatenate(each) for each in zip(*found, strict=True)]))


def _metric(manifest: Manifest, scored: Collection[str]) -> Metric:
    """What the budget speaks of; bundles of format 3 do not say it, and have one of the known ones."""
    if manifest.metric is not None:
        return Metric(manifest.metric.name, manifest.metric.less_is_better)
    return Metric(next((name for name in SCORES if name in scored), SCORES[0]))


def bundle_program(bundle: Bundle, model: Model) -> Program:
    """A model of a bundle, ready to be run.

    Raises:
        InputError: the bundle lacks it, or it is no program of its runtime.
    """
    from paredown.pipeline.lower.executorch.verify.plan import check_program

    outputs = tuple(TensorInfo(tuple(output.shape), model.dtype) for output in model.outputs)
    source = TensorInfo(tuple(model.input.shape), model.dtype)
    threads, where = bundle.manifest.recipe.bench.threads, f"{bundle.path}:{model.file}"
    data = bundle.read(model.file)
    if str(model.runtime) == "executorch":  # here, so that boards get none that was not looked at
        check_program(data, where)
    return Program(str(model.runtime), data, source, outputs, threads, where)


def tag_of(executor: Executor, smoke: bool = False) -> Tag:
    """What figures of an executor are."""
    if smoke:
        return "smoke"
    return "simulated" if executor.emulated else "measured"


def time_figures(timing: Timing, emulated: bool) -> list[tuple[str, float, str]]:
    """Metric, value and unit of what was timed; of an emulated device only what it counted."""
    if emulated:
        counts = timing.instructions or {}
        return [("instructions", float(counts["total"]), "1")] if counts else []
    found = [("latency_p50", timing.percentile(50), "ms"), ("latency_p90", timing.percentile(90), "ms")]
    if timing.memory_mib is not None:
        found.append(("memory_peak", timing.memory_mib, "MiB"))
    return found


def _recorded(figures: Sequence[Figure], variant: str, metric: str) -> float | None:
    """What the bundle says; nothing where it was made by a smoke run, which says nothing of a whole one."""
    for figure in figures:
        if (figure.variant, figure.metric) == (variant, metric) and figure.tag != "smoke":
            return figure.value
    return None


def _size(recorded: Sequence[Figure], name: str, size: int) -> Check:
    value = _recorded(recorded, name, "file_bytes")
    said = "nothing to compare with" if value is None else f"recorded {value:,.0f}"
    return Check(f"{name} size", value is None or value == size, f"{size:,} bytes, {said}")


def _task(bundle: Bundle, recipe: Recipe | str) -> Task | str:
    """The recipe's task, or why there is nothing to score here."""
    manifest = bundle.manifest
    if isinstance(recipe, str):
        return recipe
    try:
        check_files(recipe, UNNEEDED)
        task = load_task(recipe)
    except InputError as error:
        return f"the recipe's files are not here ({error})"
    if task.preprocess.hash != manifest.preprocess_hash or dict(task.network_id) != dict(manifest.network):
        return "the recipe's network is not the one that this bundle was made from"
    return task


def _predictor(
    executor: Executor, model: Model, program: Program, data: Dataset, preprocess: AnyInput
) -> Predictor:
    from paredown.pipeline.lower.integer import Affine

    source = Affine(model.input.scale, model.input.zero_point)
    outputs = tuple(Affine(output.scale, output.zero_point) for output in model.outputs)
    return Predictor(executor, program, source, outputs, data, preprocess)
