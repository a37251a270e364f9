"""Validation: does a bundle still do, on a device, what its figures say?

Hashes, then the test vectors code by code, then the score on the recipe's test images from the device's own
outputs, compared with the figures the bundle carries, then latency, memory and the budget. An emulated
device's milliseconds and memory mean nothing and are no figures; everything else of it is marked simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import Dataset, First
from pipeline.budget import Violation, check_budget
from pipeline.bundle import Bundle, Model, unpack
from pipeline.executor import Executor, Predictor, open_executor
from pipeline.figures import SCORES, Figure, Tag, parse_figures
from pipeline.recipe_file import check_files
from pipeline.task import Task, load_task
from targets.card import RuntimeName
from targets.devices.programs import Program, Tensor, Timing
from targets.errors import InputError
from targets.vectors import test_inputs

#: Scores are computed from integer outputs: the same device code gives the same score, to float rounding.
SCORE_TOLERANCE = 1e-6
#: Keys of a recipe whose files scoring does not need.
UNNEEDED = ("weights", "data.train", "data.calibration")


@dataclass(frozen=True)
class Check:
    """One line of a validation: what was checked, how it went, and the words for it."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Validation:
    """Everything a validation found."""

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    violations: tuple[Violation, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed and the budget is kept."""
        return all(check.passed for check in self.checks) and not self.violations


def validate(
    path: str | Path,
    device: str = "local:",
    *,
    limit: int | None = None,
    score: bool = True,
    runs: int = 30,
    log: Callable[[str], None] = lambda line: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Validation:
    """Validates a bundle on a device.

    Args:
        path: the bundle.
        device: an address, see `targets.devices.address`; `local:` is this machine.
        limit: score at most this many test images; a partial score is reported, not compared.
        score: whether to score at all.
        runs: timed inferences per runtime.
        log: told one line per step.
        tick: progress within a step.

    Raises:
        InputError: the bundle or the recipe's data is broken.
        UsageError: no such kind of address.
        DeviceError: the device cannot be reached, or failed on the way.
    """
    bundle = unpack(path)
    log(f"hashes: {len(bundle.members)} members are what the manifest says")
    with open_executor(device, log) as executor:
        return _Validator(bundle, executor, log, tick).validate(limit, score, runs)


class _Validator:
    """One validation: what is known so far, and what it is measured with."""

    def __init__(
        self, bundle: Bundle, executor: Executor, log: Callable[[str], None], tick: Callable[[int, int], None]
    ) -> None:
        self.bundle, self.executor, self.log, self.tick = bundle, executor, log, tick
        self.recorded = parse_figures(bundle.manifest.figures, bundle.path)
        self.checks = [Check("hashes", True, f"{len(bundle.members)} members")]
        self.figures: list[Figure] = []
        self.tag: Tag = "simulated" if executor.emulated else "measured"

    def validate(self, limit: int | None, score: bool, runs: int) -> Validation:
        manifest = self.bundle.manifest
        programs = {model.runtime: bundle_program(self.bundle, model) for model in manifest.models}
        for model in manifest.models:
            name, program = str(model.runtime), programs[model.runtime]
            self._figure("lower", name, "file_bytes", len(program.data), "B")
            self._figure("bundle", name, "bundle_bytes", self.bundle.path.stat().st_size, "B")
            self.checks.append(_size(self.recorded, name, len(program.data)))
            self.log(f"{name}: test vectors")
            self._vectors(model, program)
        if score:
            self._score(programs, limit)
        budget = manifest.recipe.budget.over(manifest.card.budget)
        timed = {str(name): program for name, program in programs.items()}
        self._latency(timed, runs, memory=budget.memory_mib is not None)
        original = [figure for figure in self.recorded if figure.variant == "fp32"]
        scored = {figure.metric for figure in original}
        metric = next((name for name in SCORES if name in scored), SCORES[0])
        if limit is not None and limit < manifest.test.images:  # a part's score says nothing of the whole's
            original = []
        violations = check_budget(budget, [*original, *self.figures], metric)
        return Validation(tuple(self.checks), tuple(self.figures), violations)

    def _figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> None:
        self.figures.append(Figure(stage, variant, metric, value, unit, self.tag, self.executor.machine))

    def _vectors(self, model: Model, program: Program) -> None:
        """The bundle's test inputs, code by code."""
        from pipeline.lower.parity import Difference, difference
        from pipeline.vectors import unpacked

        bundle = self.bundle
        try:
            inputs, expected = unpacked(bundle.json("vectors.json"), bundle.read("vectors.bin"))
            if inputs.shape[1:] != model.input.shape[1:]:
                raise ValueError(f"inputs of shape {inputs.shape[1:]}")
            if [e.shape[1:] for e in expected] != [o.shape[1:] for o in model.outputs]:
                raise ValueError("outputs of other shapes")
        except (KeyError, TypeError, ValueError) as error:
            what = f"the test vectors do not fit {model.file}: {error}"
            raise InputError(what, where=bundle.path) from error
        apart = Difference()
        for index, found in enumerate(self.executor.run(program, inputs, self.tick)):
            for ours, theirs in zip(expected, found, strict=True):
                apart += difference(ours[index : index + 1], theirs)
        name = program.runtime
        self._figure("parity", name, "parity_lsb", apart.max_lsb, "LSB")
        allowed = _recorded(self.recorded, name, "parity_lsb") or 0
        detail = f"{apart.differing} of {apart.values} codes differ, by up to {apart.max_lsb} LSB"
        self.checks.append(Check(f"{name} vectors", apart.max_lsb <= allowed, detail))

    def _score(self, programs: Mapping[RuntimeName, Program], limit: int | None) -> None:
        """Scores every runtime from what came back, and compares where the very same images were scored."""
        task = _task(self.bundle)
        if isinstance(task, str):
            self.checks.append(Check("score", False, f"{task}; --no-score leaves it out"))
            return
        data = task.data("test")
        count = len(data) if limit is None else min(limit, len(data))
        for model in self.bundle.manifest.models:
            name, program = str(model.runtime), programs[model.runtime]
            self.log(f"{name}: score")
            images = First(data, count)
            predict = _predictor(self.executor, model, program, images, task)
            scores = task.score(predict, images, self.tick)
            self.checks.append(self._compared(name, task.metric, scores, data, count))
            for metric, value in scores.items():
                self._figure("score", name, metric, value, "1")

    def _compared(
        self, name: str, metric: str, scores: Mapping[str, float], data: Dataset, count: int
    ) -> Check:
        check, said = f"{name} score", f"{metric} {scores[metric]:.4f} on {count} images"
        known = self.bundle.manifest.test
        if data.fingerprint() != known.fingerprint:
            return Check(check, False, f"{said}; the test data have changed since this bundle was made")
        values = {each: _recorded(self.recorded, name, each) for each in scores}
        if count != known.images or None in values.values():
            return Check(check, True, f"{said}; nothing to compare with")
        apart = [m for m, v in values.items() if v is None or abs(scores[m] - v) > SCORE_TOLERANCE]
        told = [f"recorded {values[metric]:.4f}"]
        told += [f"{m} {scores[m]:.4f}, recorded {values[m]:.4f}" for m in apart if m != metric]
        return Check(check, not apart, ", ".join([said, *told]))

    def _latency(self, programs: Mapping[str, Program], runs: int, memory: bool) -> None:
        """Latency and memory, where they are the target's; instructions, where an emulator counts them."""
        manifest, executor = self.bundle.manifest, self.executor
        if executor.local and manifest.card.reach.kind != "local":
            detail = f"not measured: this machine is no {manifest.target}; {manifest.card.reach.text}"
            self.checks.append(Check("latency", True, detail))
            return
        self.log("latency")
        x = test_inputs(manifest.models[0].input.shape, 1)
        for variant, timing in executor.time(programs, x, runs, memory, self.tick).items():
            for stage_figure in time_figures(timing, executor.emulated):
                self._figure("bench", variant, *stage_figure)
        if executor.emulated:
            detail = f"not measured: {executor.machine.name} is emulated, its milliseconds mean nothing"
            self.checks.append(Check("latency", True, detail))


def bundle_program(bundle: Bundle, model: Model) -> Program:
    """A model of a bundle, ready to be run.

    Raises:
        InputError: the bundle lacks it.
    """
    outputs = tuple(Tensor(tuple(output.shape)) for output in model.outputs)
    threads, where = bundle.manifest.recipe.bench.threads, f"{bundle.path}:{model.file}"
    data = bundle.read(model.file)
    return Program(str(model.runtime), data, Tensor(tuple(model.input.shape)), outputs, threads, where)


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


def _task(bundle: Bundle) -> Task | str:
    """The recipe's task, or why there is nothing to score here."""
    manifest = bundle.manifest
    try:
        check_files(manifest.recipe, UNNEEDED)
        task = load_task(manifest.recipe)
    except InputError as error:
        return f"the recipe's files are not here ({error})"
    if task.preprocess.hash != manifest.preprocess_hash or dict(task.network_id) != dict(manifest.network):
        return "the recipe's network is not the one that this bundle was made from"
    return task


def _predictor(executor: Executor, model: Model, program: Program, data: Dataset, task: Task) -> Predictor:
    from pipeline.lower.integer import Affine

    source = Affine(model.input.scale, model.input.zero_point)
    outputs = tuple(Affine(output.scale, output.zero_point) for output in model.outputs)
    return Predictor(executor, program, source, outputs, data, task.preprocess)
