"""Validation: does a bundle still do, on a device, what its figures say?

Hashes, then the test vectors code by code, then the score on the recipe's test images from the device's own
outputs, compared with the figures the bundle carries, then latency, memory and the budget. An emulated
device's milliseconds and memory mean nothing and are no figures; everything else of it is marked simulated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from paredown.pipeline.bundle.archive import Bundle, unpack
from paredown.pipeline.bundle.manifest import Manifest
from paredown.pipeline.bundle.places import relocated, same_files
from paredown.pipeline.device.executor import Executor, open_executor, stands_for
from paredown.pipeline.device.validate.findings import Findings
from paredown.pipeline.device.validate.programs import bundle_program, tag_of, time_figures
from paredown.pipeline.device.validate.scores import Scoring
from paredown.pipeline.device.validate.vectors import check_vectors
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Metric, check_no_code
from paredown.pipeline.report.budget import budget_limits, violations
from paredown.pipeline.report.checks import Check, Validation
from paredown.pipeline.report.figures import SCORES, Figure, parse_figures
from paredown.pipeline.report.verdict import decide
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.targets.devices.programs import Program
from paredown.targets.errors import InputError, ParedownError
from paredown.targets.host.host import this_machine
from paredown.targets.runners.vectors import test_inputs

#: What a run writes beside its bundle.
RUN_RECIPE = "recipe.toml"


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
        recorded = parse_figures(bundle.manifest.figures, bundle.path)
        self.found = Findings(bundle, executor, tell, tick, tag_of(executor, smoke), recorded)
        self.found.checks.append(Check("hashes", True, f"{len(bundle.members)} members"))
        self.scoring = Scoring(self.found, recipe, own)

    def validate(self, limit: int | None, score: bool, runs: int | None) -> Validation:
        """Everything.

        Args:
            limit: score at most this many test images.
            score: whether to score at all.
            runs: timed inferences per runtime; None = that was done elsewhere.
        """
        found, manifest = self.found, self.found.bundle.manifest
        programs = {model.runtime: bundle_program(found.bundle, model) for model in manifest.models}
        for model in manifest.models:
            name, program = str(model.runtime), programs[model.runtime]
            sizes = {"file_bytes": len(program.data), "bundle_bytes": found.bundle.path.stat().st_size}
            for metric, size in sizes.items():  # a file's size is no matter of where it runs
                stage = "lower" if metric == "file_bytes" else "bundle"
                found.figures.append(Figure(stage, name, metric, size, "B", "measured", this_machine()))
            found.checks.append(_size(found.known(name, "file_bytes"), name, len(program.data)))
            found.tell(Event(f"{name} test vectors", "running"))
            check_vectors(found, model, program)
        if score:
            self.scoring.score(programs, limit)
        budget = manifest.recipe.budget.over(manifest.card.budget)
        timed = {str(name): program for name, program in programs.items()}
        if runs is not None:
            self._latency(timed, runs, memory=budget.memory_mib is not None)
        original = [figure for figure in found.recorded if figure.variant == "fp32"]
        judged = _metric(manifest, {figure.metric for figure in original})
        if limit is not None and limit < manifest.test.images:  # a part's score says nothing of the whole's
            original = []
        machine = found.executor.machine  # which knows its versions only now
        figures = [replace(f, where=machine) if f.where.name == machine.name else f for f in found.figures]
        allowed = [f for f in found.recorded if f.metric == "parity_allowed" and f.tag != "smoke"]
        whole = [*original, *allowed, *(figure for figure in figures if figure.stage != "sample")]
        limits = budget_limits(budget, whole, judged)
        missing = self.scoring.missing if score else ("a score: it was left out",)
        if self.scoring.missing:
            original = []
        verdict = decide(limits, found.checks, whole, judged, missing)
        checks = tuple(found.checks)
        return Validation(checks, tuple(figures), violations(limits), self.scoring.scored, limits, verdict)

    def _latency(self, programs: Mapping[str, Program], runs: int, memory: bool) -> None:
        """Latency and memory, where they are the target's; instructions, where an emulator counts them."""
        found, manifest, executor = self.found, self.found.bundle.manifest, self.found.executor
        if not stands_for(executor, manifest.card):
            detail = f"not measured: this machine is no {manifest.target}; {manifest.card.reach.text}"
            found.checks.append(Check("latency", None, detail))
            return
        found.tell(Event("latency", "running"))
        x = test_inputs(manifest.models[0].input.shape, 1)
        for variant, timing in executor.time(programs, x, runs, memory, found.tick).items():
            for stage_figure in time_figures(timing, executor.emulated):
                found.figure("bench", variant, *stage_figure)
        if executor.emulated:
            detail = f"not measured: {executor.machine.name} is emulated, its milliseconds mean nothing"
            found.checks.append(Check("latency", None, detail))


def _metric(manifest: Manifest, scored: Collection[str]) -> Metric:
    """What the budget speaks of; bundles of format 3 do not say it, and have one of the known ones."""
    if manifest.metric is not None:
        return Metric(manifest.metric.name, manifest.metric.less_is_better)
    return Metric(next((name for name in SCORES if name in scored), SCORES[0]))


def _size(known: float | None, name: str, size: int) -> Check:
    said = "nothing to compare with" if known is None else f"recorded {known:,.0f}"
    return Check(f"{name} size", known is None or known == size, f"{size:,} bytes, {said}")
