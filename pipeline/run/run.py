"""A whole run: recipe and target in, validated bundle, figures, preview and report out.

Everything expensive is a stage in the store; what is written into `runs/RECIPE/TARGET/` is put together from
the stages' artefacts each time, so a run in which nothing changed takes a second or two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paredown.pipeline.device.executor import check_address
from paredown.pipeline.recipe.file import resolved_toml
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.report.budget import Limit, Violation, budget_limits, violations
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import Figure, write_figures
from paredown.pipeline.report.markdown import markdown
from paredown.pipeline.report.verdict import Verdict, decide
from paredown.pipeline.run.job import BUNDLE, PREVIEW, Job, Settings, Tick, images_only
from paredown.pipeline.run.start.beside import Beside
from paredown.pipeline.run.start.jobs import make_job
from paredown.pipeline.run.start.together import follow, lead, release
from paredown.pipeline.store.event import Event, EventLog, Tell, nobody
from paredown.pipeline.store.ledger import Ledger
from paredown.pipeline.store.stage import Around, Artefact, Stage, alone, plan, run_stage, stored
from paredown.pipeline.store.store import Shared, Store, write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import ParedownError, UsageError

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Group
    from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
    from paredown.pipeline.graph.graph import Graph

FIGURES, REPORT, RECIPE = "figures.json", "report.md", "recipe.toml"
STORE, LOG = ".store", "run.log"


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        folder: of the run.
        figures: measured here, and on the device where there is one.
        violations: of the budget.
        notes: one sentence each.
        checks: of the validation on a device.
        limits: of the budget, also those that are kept.
        verdict: whether the bundle may ship.
    """

    folder: Path
    figures: tuple[Figure, ...]
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    limits: tuple[Limit, ...] = ()
    verdict: Verdict | None = None

    @property
    def bundle(self) -> Path:
        """The file that goes to the device."""
        return self.folder / BUNDLE

    @property
    def passed(self) -> bool:
        """Whether nothing is over the budget, and no check on the device failed."""
        return not self.violations and not any(check.passed is False for check in self.checks)


class Run:
    """One recipe for one target.

    Args:
        name: of the recipe, the folder below `root`.
        recipe: resolved.
        target: the card.
        root: folder of all runs.
        smoke: handfuls of samples everywhere; every figure says so.
        device: where the result is proved, and what is slower there than before is taken back; see
            `targets.address`.
        device_limit: scores at most so many images, or pieces of text, there; None = all.
        tell: hears of events.
        tick: progress within a stage.
        around: a context for each stage where other runs are at work in the same store; this one then has no
            second process. None = it is alone.
        shared: where other machines have their artefacts; None = only this one's are there.

    Raises:
        UsageError: the target lacks a runtime that the recipe wants, or a key is set that this kind of recipe
            does not read.
        InputError: a file of the recipe is missing or broken.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        target: Target,
        root: Path,
        *,
        smoke: bool = False,
        device: str | None = None,
        device_limit: int | None = None,
        tell: Tell = nobody,
        tick: Tick = lambda done, total: None,
        around: Around | None = None,
        shared: Shared | None = None,
    ) -> None:
        """Checks recipe and card against each other, and opens the data; nothing is run."""
        if device is not None:
            check_address(device)
        there = {
            "lower": recipe.lower.on(target.runtimes),
            "quantize": recipe.quantize.on(target.weight_range),
        }
        recipe = recipe.model_copy(update=there)
        for wanted in recipe.lower.runtimes:
            target.runtime(wanted)
        self.folder, self.store = root / name / target.name, Store(root / STORE, shared)
        self.log = EventLog(self.folder / LOG, tell)
        tell = self.log
        self.name, self.target, self.tell = name, target, tell
        settings = Settings(name, recipe, target, self.store, smoke, device, device_limit, tell, tick)
        self.job: Job = make_job(settings)
        self._beside: Beside | None = None
        self._around, self._sharing = around, False

    def plan(self) -> tuple[Stage, ...]:
        """Every stage, in running order."""
        return plan(self.job.goals())

    def reach(self, goals: Sequence[Stage], ledger: Ledger | None = None) -> None:
        """Runs what these goals need, in order; what is in the ledger already has been run."""
        for stage in plan(goals):
            while self._beside and (other := self._beside.meanwhile(stage)):
                self._reach(other, ledger)
            if ledger is None or stage.name not in ledger.entries:
                self._reach(stage, ledger)

    def _reach(self, stage: Stage, ledger: Ledger | None) -> None:
        """Runs a stage, or takes it from the second process."""
        seconds = self._beside.take(stage) if self._beside else None
        if seconds is None:
            run_stage(self.store, stage, self.tell, ledger, self._prepare, self._around or alone)
        else:
            artefact = Artefact(stored(self.store, stage), stage.key, False, seconds, "missing")
            self.tell(Event(stage.name, "done", seconds))
            if ledger is not None:
                ledger.add(stage, artefact)
        if self._beside is not None:
            self._beside.finish(stage)
        if self._sharing:
            self._share(stage)

    def _prepare(self, stage: Stage) -> None:
        self.job.prepare(stage)
        lead(stage)

    def help(self) -> None:
        """Takes part in the trainings of this run that another process makes; see `start.together`."""

        def build(stage: Stage, folder: Path) -> None:
            self.job.prepare(stage)
            sources = {**stage.sources, **stage.reads}
            stage.build(folder, {role: stored(self.store, source) for role, source in sources.items()})

        follow(self.plan, build)

    def _share(self, stage: Stage) -> None:
        """Offers stages to the second process, now that it is known which are worth it."""
        movable = self.job.movable(stage)
        if movable:
            self._beside = self._beside or Beside(self.job.settings)
            self._beside.offer(movable, [each.key for each in self.plan() if self.store.get(each.key)])
            self.job.ahead()
        elif movable is not None:
            self._close_beside()

    def _close_beside(self) -> None:
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def execute(self) -> Result:
        """Runs what has to run, writes the run's folder, and checks the budget; the log says how it ended."""
        try:
            result = self._execute()
        except (ParedownError, KeyboardInterrupt) as error:
            self.log.line(f"ended: {str(error) or 'interrupted'}")
            raise
        finally:
            self._close_beside()
            self.job.close()
        self.log.line(result.verdict.line() if result.verdict else "done")
        release()
        return result

    def _execute(self) -> Result:
        ledger = Ledger.start(self.folder)
        self.log.begin()
        job, proof = self.job, None
        self._sharing = self._around is None
        if self._sharing and job.may_move():
            self._beside = Beside(job.settings)
        if job.device is None:
            job = job.settle(lambda goals: self.reach(goals, ledger))
        else:
            job, proof = job.prove(job.device, lambda goals: self.reach(goals, ledger))
        figures, notes = job.figures(), job.notes()
        checks: tuple[Check, ...] = ()
        judged = figures
        if proof is not None:
            figures, notes, checks = (*figures, *proof.figures), (*notes, *proof.notes), proof.checks
            # a part's score says nothing of what was lost on the whole
            judged = (*judged, *(f for f in proof.figures if proof.whole or f.stage != "score"))
        limits = budget_limits(job.recipe.budget.over(self.target.budget), judged, job.metric)
        missing = self._unproven() if proof is None else proof.missing
        verdict = decide(limits, checks, judged, job.metric, missing)
        files = job.files()
        for name, (stage, file) in files.items():
            if (made := job.path(stage) / file).exists():  # a plot needs a package
                write_atomic(self.folder / name, made.read_bytes())
        write_atomic(self.folder / RECIPE, resolved_toml(job.recipe).encode())
        write_figures(self.folder / FIGURES, figures)
        text = markdown(
            self.name, self.target, figures, limits, verdict, notes, job.sections(), PREVIEW in files
        )
        write_atomic(self.folder / REPORT, text.encode())
        self._write_page(job, figures, notes, checks, limits, verdict)
        return Result(self.folder, figures, violations(limits), notes, checks, limits, verdict)

    def _write_page(
        self, job: Job, figures: Sequence[Figure], notes: Sequence[str], checks: Sequence[Check],
        limits: Sequence[Limit], verdict: Verdict,
    ) -> None:  # fmt: skip
        """The report as a page, and the document that it is made from."""
        from paredown.pipeline.report.page.document import DOCUMENT, PAGE, document
        from paredown.pipeline.report.page.render import render

        device = f" --device {job.device}" if self.job.settings.device else ""
        about, versions = job.recipe.about, ", ".join(f"{n} {v}" for n, v in job.machine.versions)
        told = (
            ("intended use", about.use), ("test data", about.data), ("scored on", job.data_words()),
            ("licence of weights and data", about.licence), ("licence of the device code", "Apache-2.0"),
            ("app", job.recipe.app), ("network", Path(job.recipe.network).name), ("versions", versions),
        )  # fmt: skip
        made = document(
            self.name, self.target.name, self.target.summary, job.metric, figures, limits=limits,
            verdict=verdict, checks=checks, notes=notes, facts=job.page(),
            card=[(name, value or "not given (recipe, section [about])") for name, value in told],
            command=f"paredown run {RECIPE} --target {self.target.name}{device}",
            recipe=resolved_toml(job.recipe),
        )  # fmt: skip
        write_atomic(self.folder / DOCUMENT, (json.dumps(made, allow_nan=False) + "\n").encode())
        write_atomic(self.folder / PAGE, render(made))

    def _unproven(self) -> list[str]:
        """What a run without a device leaves open."""
        if self.target.reach.kind == "local":
            return []
        hint = "" if self.target.reach.kind == "none" else ", with --device ADDRESS"
        return [f"a validation on {self.target.name}{hint}"]

    def sense(self) -> tuple[Sensitivity, tuple[Group, ...], Graph]:
        """Runs the sensitivity test alone, and writes its table's JSON and its plot.

        Returns:
            What was measured, the network's groups of channels, and its graph.

        Raises:
            UsageError: the recipe is of a language model.
        """
        from paredown.pipeline.run.image.job import ImageJob
        from paredown.pipeline.run.image.prune_stages import PLOT, SENSE

        images_only(self.job.recipe, "sense")
        assert isinstance(self.job, ImageJob)
        pruning = self.job.sensing()
        self.reach([pruning.curves], Ledger.start(self.folder))
        for name in (SENSE, PLOT):
            if (made := self.job.path(pruning.curves) / name).exists():
                write_atomic(self.folder / name, made.read_bytes())
        return (pruning.sensitivity(), *pruning.groups())


def recipe_name(name_or_path: str) -> str:
    """The folder of a recipe's runs: its file's stem.

    Raises:
        UsageError: nothing is left of the name.
    """
    stem = Path(name_or_path).stem
    if not stem or stem.startswith("."):
        raise UsageError(f"`{name_or_path}` names no recipe")
    return stem
