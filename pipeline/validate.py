"""Validation: does a bundle still do, on a device, what its figures say?

Hashes, then the test vectors code by code, then the score on the recipe's test images, compared with the
figures the bundle carries, then latency. This version reaches the machine it runs on; boards come with the
device transports.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.datasets import First
from pipeline.budget import Violation, check_budget
from pipeline.bundle import Bundle, Model, unpack
from pipeline.figures import SCORES, Figure, parse_figures
from pipeline.lower.runtimes import float_predict, runtime
from pipeline.recipe_file import check_files
from pipeline.task import Predict, Task, load_task
from targets.errors import DeviceError, InputError
from targets.host import this_machine

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
        device: an address; `local:` is this machine.
        limit: score at most this many test images; a partial score is reported, not compared.
        score: whether to score at all.
        runs: timed inferences per runtime.
        log: told one line per step.
        tick: progress within a step.

    Raises:
        InputError: the bundle or the recipe's data is broken.
        DeviceError: this version cannot reach the device, or the bundle was made for another one.
    """
    if device not in {"local", "local:"}:
        raise DeviceError(
            f"cannot reach `{device}`: this version validates on the machine it runs on, device transports "
            "come later",
            hint="leave --device out, or give local:",
        )
    bundle = unpack(path)
    manifest, machine = bundle.manifest, this_machine()
    members = f"{len(bundle.members)} members"
    log(f"hashes: {members} are what the manifest says")
    checks = [Check("hashes", True, members)]
    recorded = parse_figures(manifest.figures, bundle.path)
    figures: list[Figure] = []

    def measured(stage: str, variant: str, metric: str, value: float, unit: str) -> None:
        figures.append(Figure(stage, variant, metric, value, unit, "measured", machine))

    runners: dict[str, Any] = {}
    for model in manifest.models:
        name, program = model.runtime, bundle.read(model.file)
        runners[name] = runtime(name).load(program, manifest.recipe.bench.threads, f"{path}:{model.file}")
        measured("lower", name, "file_bytes", len(program), "B")
        measured("bundle", name, "bundle_bytes", bundle.path.stat().st_size, "B")
        checks.append(_size(recorded, name, len(program)))
        log(f"{name}: test vectors")
        apart = _vectors(bundle, model, runners[name])
        measured("parity", name, "parity_lsb", apart.max_lsb, "LSB")
        detail = f"{apart.differing} of {apart.values} codes differ, by up to {apart.max_lsb} LSB"
        allowed = _recorded(recorded, name, "parity_lsb") or 0
        checks.append(Check(f"{name} vectors", apart.max_lsb <= allowed, detail))
    if score:
        task = _task(bundle)
        if isinstance(task, str):
            checks.append(Check("score", False, f"{task}; --no-score leaves it out"))
        else:
            for model in manifest.models:
                log(f"{model.runtime}: score")
                found, scores = _score(bundle, recorded, task, model, runners[model.runtime], limit, tick)
                checks.append(found)
                for metric, value in scores.items():
                    measured("score", model.runtime, metric, value, "1")
    budget = manifest.recipe.budget.over(manifest.card.budget)
    if manifest.card.reach.kind == "local":
        log("latency")
        for variant, times in _latency(bundle, runners, runs, tick).items():
            measured("bench", variant, "latency_p50", float(np.percentile(times, 50)), "ms")
            measured("bench", variant, "latency_p90", float(np.percentile(times, 90)), "ms")
        if budget.memory_mib is not None:
            for variant, peak in _memory(bundle).items():
                measured("bench", variant, "memory_peak", peak, "MiB")
    else:
        detail = f"not measured: this machine is no {manifest.target}, and {manifest.card.reach.text}"
        checks.append(Check("latency", True, detail))
    original = [figure for figure in recorded if figure.variant == "fp32"]
    scored = {figure.metric for figure in original}
    metric = next((name for name in SCORES if name in scored), SCORES[0])
    if limit is not None and limit < manifest.test.images:  # a part's score says nothing of the whole's drop
        original = []
    violations = check_budget(budget, [*original, *figures], metric)
    return Validation(tuple(checks), tuple(figures), violations)


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


def _vectors(bundle: Bundle, model: Model, runner: Any) -> Any:
    from pipeline.lower.parity import Difference, difference
    from pipeline.vectors import unpacked

    try:
        inputs, expected = unpacked(bundle.json("vectors.json"), bundle.read("vectors.bin"))
        if inputs.shape[1:] != model.input.shape[1:]:
            raise ValueError(f"inputs of shape {inputs.shape[1:]}")
        if [e.shape[1:] for e in expected] != [o.shape[1:] for o in model.outputs]:
            raise ValueError("outputs of other shapes")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the test vectors do not fit {model.file}: {error}", where=bundle.path) from error
    total = Difference()
    for index in range(len(inputs)):
        outputs = runner(inputs[index : index + 1])
        for ours, theirs in zip(expected, outputs, strict=True):
            total += difference(ours[index : index + 1], theirs)
    return total


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


def _score(
    bundle: Bundle, recorded: Sequence[Figure], task: Task, model: Model, runner: Any, limit: int | None,
    tick: Callable[[int, int], None],
) -> tuple[Check, dict[str, float]]:  # fmt: skip
    """Scores a runtime, and compares where the very same images were scored when the bundle was made."""
    data = task.data("test")
    count = len(data) if limit is None else min(limit, len(data))
    scores = task.score(_predict(model, runner), First(data, count), tick)
    name, said = f"{model.runtime} score", f"{task.metric} {scores[task.metric]:.4f} on {count} images"
    if data.fingerprint() != bundle.manifest.test.fingerprint:
        return Check(name, False, f"{said}; the test data have changed since this bundle was made"), scores
    values = {metric: _recorded(recorded, model.runtime, metric) for metric in scores}
    if count != bundle.manifest.test.images or None in values.values():
        return Check(name, True, f"{said}; nothing to compare with"), scores
    apart = [m for m, value in values.items() if value is None or abs(scores[m] - value) > SCORE_TOLERANCE]
    told = [f"recorded {values[task.metric]:.4f}"]
    told += [f"{m} {scores[m]:.4f}, recorded {values[m]:.4f}" for m in apart if m != task.metric]
    return Check(name, not apart, ", ".join([said, *told])), scores


def _predict(model: Model, runner: Any) -> Predict:
    from pipeline.lower.integer import Affine

    outputs = [Affine(output.scale, output.zero_point) for output in model.outputs]
    return float_predict(Affine(model.input.scale, model.input.zero_point), outputs, runner)


def _memory(bundle: Bundle) -> dict[str, float]:
    """Peak memory of each program, in MiB, in a process of its own."""
    from pipeline.bench import peak_memory

    with tempfile.TemporaryDirectory() as folder:
        programs: dict[str, Any] = {}
        for model in bundle.manifest.models:
            path = Path(folder) / Path(model.file).name
            path.write_bytes(bundle.read(model.file))
            programs[model.runtime] = (model.runtime, path, np.zeros(model.input.shape, np.int8))
        return peak_memory(programs)


def _latency(
    bundle: Bundle, runners: Mapping[str, Any], runs: int, tick: Callable[[int, int], None]
) -> dict[str, Sequence[float]]:
    from pipeline.bench import interleaved
    from targets.vectors import test_inputs

    x = test_inputs(bundle.manifest.models[0].input.shape, 1)
    return dict(interleaved({name: (runner, x) for name, runner in runners.items()}, runs, tick))
