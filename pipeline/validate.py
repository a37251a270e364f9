"""Validation: does a bundle still do, on a device, what its figures say?

Hashes, then the test vectors code by code, then the score on the recipe's test images, compared with the
figures the bundle carries, then latency. This version reaches the machine it runs on; boards come with the
device transports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.budget import Violation, check_budget
from pipeline.bundle import Bundle, unpack
from pipeline.figures import Figure
from pipeline.recipe import Recipe, check_files
from pipeline.task import Task, load_task
from targets.card import load_card
from targets.errors import DeviceError, InputError
from targets.host import this_machine

#: Scores are computed from integer outputs: the same device code gives the same score, to float rounding.
SCORE_TOLERANCE = 1e-6


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
            f"cannot reach `{device}`: this version validates on the machine it runs on",
            hint="leave --device out, or give local:",
        )
    bundle = unpack(path)
    members = f"{len(bundle.members)} members"
    log(f"hashes: {members} are what the manifest says")
    checks = [Check("hashes", True, members)]
    recipe = Recipe.model_validate(bundle.manifest["recipe"])
    target = load_card(bundle.manifest["target"])
    figures: list[Figure] = []
    from pipeline.lower.runtimes import runtime

    runners = {
        entry["runtime"]: runtime(entry["runtime"]).load(
            bundle.members[entry["file"]], recipe.bench.threads, f"{bundle.path}:{entry['file']}"
        )
        for entry in bundle.manifest["models"]
    }
    machine = this_machine()

    def measured(stage: str, variant: str, metric: str, value: float, unit: str) -> None:
        figures.append(Figure(stage, variant, metric, value, unit, "measured", machine))

    for name, runner in runners.items():
        log(f"{name}: test vectors")
        apart = _vectors(bundle, runner)
        measured("parity", name, "parity_lsb", apart.max_lsb, "LSB")
        detail = f"{apart.differing} of {apart.values} codes differ, by up to {apart.max_lsb} LSB"
        checks.append(
            Check(f"{name} vectors", apart.max_lsb <= _recorded(bundle, name, "parity_lsb", 0), detail)
        )
    if score:
        task = _task(recipe)
        if isinstance(task, str):
            checks.append(Check("score", False, task))
        else:
            for name, runner in runners.items():
                log(f"{name}: score")
                scores, count, whole = _score(bundle, task, runner, name, limit, tick)
                for metric, value in scores.items():
                    measured("score", name, metric, value, "1")
                checks.append(_compare(bundle, name, task.metric, scores[task.metric], count, whole))
    if target.reach.kind == "local":
        log("latency")
        for name, times in _latency(bundle, runners, runs, tick).items():
            measured("bench", name, "latency_p50", float(np.percentile(times, 50)), "ms")
            measured("bench", name, "latency_p90", float(np.percentile(times, 90)), "ms")
    else:
        checks.append(Check("latency", True, f"not measured: this machine is no {target.name}"))
    for entry in bundle.manifest["models"]:
        measured("lower", entry["runtime"], "file_bytes", len(bundle.members[entry["file"]]), "B")
        measured("bundle", entry["runtime"], "bundle_bytes", Path(path).stat().st_size, "B")
    original = _recorded(bundle, "fp32", "map50", None)
    known = [_as_figure(f, machine) for f in bundle.manifest["figures"] if f["variant"] == "fp32"]
    metric = "map50" if original is not None else "top1"
    violations = check_budget(recipe.budget.over(target.budget), [*known, *figures], metric)
    return Validation(tuple(checks), tuple(figures), violations)


def _as_figure(fields: Mapping[str, Any], machine: Any) -> Figure:
    return Figure(**{**fields, "where": machine})


def _recorded(bundle: Bundle, variant: str, metric: str, default: Any) -> Any:
    for figure in bundle.manifest["figures"]:
        if (figure["variant"], figure["metric"]) == (variant, metric):
            return figure["value"]
    return default


def _vectors(bundle: Bundle, runner: Any) -> Any:
    from pipeline.lower.parity import Difference, difference
    from pipeline.vectors import unpacked

    inputs, expected = unpacked(bundle.json("vectors.json"), bundle.members["vectors.bin"])
    total = Difference()
    for index in range(len(inputs)):
        outputs = runner(inputs[index : index + 1])
        for ours, theirs in zip(expected, outputs, strict=True):
            total += difference(ours[index : index + 1], theirs)
    return total


def _task(recipe: Recipe) -> Task | str:
    """The recipe's task, or why there is nothing to score here."""
    try:
        check_files(recipe)
        return load_task(recipe)
    except InputError as error:
        return f"the recipe's files are not here ({error}); --no-score leaves it out"


def _score(
    bundle: Bundle, task: Task, runner: Any, name: str, limit: int | None, tick: Callable[[int, int], None]
) -> tuple[dict[str, float], int, bool]:
    from calibration.datasets import First

    entry = next(e for e in bundle.manifest["models"] if e["runtime"] == name)
    data = task.data("test")
    recorded_smoke = any(f["tag"] == "smoke" for f in bundle.manifest["figures"])
    count = len(data) if limit is None else min(limit, len(data))
    scores = task.score(_predict(entry, runner), First(data, count), tick)
    return scores, count, count == len(data) and not recorded_smoke


def _predict(entry: Mapping[str, Any], runner: Any) -> Any:
    from pipeline.lower.integer import Affine

    source = Affine(entry["input"]["scale"], entry["input"]["zero_point"])
    outputs = [Affine(o["scale"], o["zero_point"]) for o in entry["outputs"]]

    def predict(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(
            q.dequantize(codes) for q, codes in zip(outputs, runner(source.quantize(x)), strict=True)
        )

    return predict


def _compare(bundle: Bundle, name: str, metric: str, value: float, count: int, whole: bool) -> Check:
    recorded = _recorded(bundle, name, metric, None)
    if not whole or recorded is None:
        return Check(
            f"{name} score", True, f"{metric} {value:.4f} on {count} images; nothing to compare with"
        )
    apart = abs(value - recorded)
    detail = f"{metric} {value:.4f} on {count} images, recorded {recorded:.4f}"
    return Check(f"{name} score", apart <= SCORE_TOLERANCE, detail)


def _latency(
    bundle: Bundle, runners: Mapping[str, Any], runs: int, tick: Callable[[int, int], None]
) -> dict[str, Sequence[float]]:
    from pipeline.bench import interleaved
    from targets.vectors import test_inputs

    x = test_inputs(tuple(bundle.manifest["models"][0]["input"]["shape"]), 1)
    return dict(interleaved({name: (runner, x) for name, runner in runners.items()}, runs, tick))
