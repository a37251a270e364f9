"""A job: what a recipe asks for, as stages; of two kinds, for images and for language models.

`Run` plans and runs a job's goals; a job knows its stages, what they say, and how a device proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from paredown.pipeline.recipe.file import default_recipe, recipe_keys, value_of
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.drop import Drop, drops, read_details
from paredown.pipeline.report.figures import CLASS, Figure, Tag
from paredown.pipeline.run.params import BundleParams
from paredown.pipeline.store.event import Tell, nobody
from paredown.pipeline.store.stage import Stage, stored
from paredown.pipeline.store.store import Store, file_hash
from paredown.targets.cards.card import Schema, Target
from paredown.targets.errors import UsageError
from paredown.targets.host.host import EXTRA_RUNTIMES, Machine, having, package_versions, this_machine
from paredown.targets.own_code import own_code

if TYPE_CHECKING:
    from paredown.pipeline.bundle.archive import Bundle

Kind = Literal["image", "language"]
WORDS: Mapping[Kind, str] = {"image": "image networks", "language": "language models"}
BUNDLE, PREVIEW = "bundle.paredown", "preview.png"
#: Told how far a stage is: done, of how many.
Tick = Callable[[int, int], None]
#: What an app's code on the device imports of ours.
SHARED = (
    "__init__.py", "apps/__init__.py", "calibration/__init__.py", "calibration/pictures.py",
    "calibration/preprocess.py",
    "targets/__init__.py", "targets/errors.py", "targets/runners/__init__.py", "targets/runners/expand.py",
    "targets/runners/litert.py", "targets/runners/prove.py", "targets/runners/quiet.py",
    "targets/runners/unpacked.py", "targets/runners/vectors.py",
)  # fmt: skip
#: Sections and keys that only one kind of job reads; what is not named here is read by both.
ONLY: Mapping[str, Kind] = {
    "preprocess": "image", "prune": "image", "recover": "image", "squantize": "image", "quantize": "image",
    "bench.runs": "image", "language": "language", "budget.least_class_score": "image",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Attributes:
        name: of the recipe.
        recipe: resolved.
        target: the card.
        store: of artefacts.
        smoke: handfuls of samples everywhere; every figure says so.
        device: address of the device that proves the result; None = nothing but this machine.
        limit: test images or pieces of text that are scored there at most; None = all.
        tell: hears of events.
        tick: progress within a stage.
    """

    name: str
    recipe: Recipe
    target: Target
    store: Store
    smoke: bool = False
    device: str | None = None
    limit: int | None = None
    tell: Tell = nobody
    tick: Tick = field(default=lambda done, total: None)


@dataclass(frozen=True)
class Proof:
    """What a device said.

    Attributes:
        checks: of the validation.
        figures: of the device.
        notes: one sentence each.
        whole: whether its scores are of all test data, and so may be judged.
        missing: what it leaves to be proven.
    """

    checks: tuple[Check, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    whole: bool = True
    missing: tuple[str, ...] = ()


class HasFiles(Protocol):
    """The part of a task that a bundle needs."""

    def device_files(self) -> dict[str, Path]:
        """Source files that run on the device: path in the bundle to file here."""


class Job:
    """What both kinds of jobs share.

    Attributes:
        kind: of the job.
        metric: that budgets and tables speak of.
        runtimes: names, in the order of the report.
        scores: the stages that score, by variant.
        bundle: the stage that packs.
        bench: the stage that times on this machine; None where the target is another.
    """

    kind: Kind
    metric: Metric
    scores: dict[str, Stage]
    bundle: Stage
    bench: Stage | None

    def __init__(self, settings: Settings) -> None:
        """Checks the recipe's keys; nothing is run.

        Raises:
            UsageError: a key is set that this kind of job does not read.
        """
        self.settings, self.recipe, self.target = settings, settings.recipe, settings.target
        self.store, self.smoke = settings.store, settings.smoke
        self.tell, self.tick = settings.tell, settings.tick
        self.tag: Tag = "smoke" if settings.smoke else "measured"
        self.runtimes: tuple[str, ...] = tuple(str(name) for name in settings.recipe.lower.runtimes)
        self.machine: Machine = this_machine()
        for name in EXTRA_RUNTIMES:  # others' keys must not know whether they are there
            self.machine = having(self.machine, name) if name in self.runtimes else self.machine
        check_keys(settings.recipe)

    # -- what a kind of job defines ------------------------------------------------------------------------

    def goals(self) -> tuple[Stage, ...]:
        """The stages that a run is for; what they need follows."""
        raise NotImplementedError

    def prepare(self, stage: Stage) -> None:
        """Called before a stage is built, and not where it is reused."""

    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the run, once its goals are reached."""
        raise NotImplementedError

    def notes(self) -> tuple[str, ...]:
        """Plain sentences that belong beside the table."""
        raise NotImplementedError

    def files(self) -> dict[str, tuple[Stage, str]]:
        """Name in the run's folder -> stage, and file of its artefact."""
        raise NotImplementedError

    def sections(self) -> dict[str, list[str]]:
        """Head -> lines of a section of the report."""
        return {}

    def movable(self, stage: Stage) -> Sequence[Stage] | None:
        """Stages that are worth a second process, now that this one is done; None where it does not tell."""
        return None

    def may_move(self) -> bool:
        """Whether it is likely that something will be, before anything is done."""
        return False

    def ahead(self) -> None:
        """Starts what other stages will need, where a second process is at work."""

    def close(self) -> None:
        """Ends what this job has started."""

    def warm(self) -> None:
        """Imports what scores need."""

    def settle(self, reach: Callable[[Sequence[Stage]], None]) -> Job:
        """Runs what there is to run, where no device proves it.

        Args:
            reach: runs goals.

        Returns:
            The job that ships, which is another one where something was taken back.
        """
        reach(self.goals())
        return self

    def page(self) -> dict[str, Any]:
        """What the report's page shows beside figures, see `pipeline.report.page.document.NOTHING`."""
        return {}

    def data_words(self) -> str:
        """What the test data are, in words, without where they lie."""
        return f"data.format = {self.recipe.data.format!r}"

    def prove(self, device: str, reach: Callable[[Sequence[Stage]], None]) -> tuple[Job, Proof]:
        """Runs what there is to run, and proves the bundle on a device.

        Args:
            device: its address.
            reach: runs goals.

        Returns:
            The job whose bundle was proved, which is another one where something was rolled back.
        """
        raise NotImplementedError

    @property
    def device(self) -> str | None:
        """The address of the device that proves the result; None where only this machine is asked."""
        return self.settings.device

    # -- what artefacts hold -------------------------------------------------------------------------------

    def path(self, stage: Stage) -> Path:
        """The folder of a stage's artefact, which must have run."""
        return stored(self.store, stage)

    def program(self, stage: Stage) -> bytes:
        """The file that a lowering stage made."""
        return program_in(self.path(stage))

    def figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> Figure:
        """A figure of this machine."""
        return Figure(stage, variant, metric, value, unit, self.tag, self.machine)

    def drops(self) -> list[Drop]:
        """How much worse each variant is than the original network."""
        return drops(self.metric, {variant: self.path(stage) for variant, stage in self.scores.items()})

    def class_figures(self) -> list[Figure]:
        """The score of each class, of the original network and of what ships."""
        return [
            self.figure("classes", variant, CLASS + each["name"], each["score"], "1")
            for variant in ("fp32", *self.runtimes)
            for each in read_details(self.path(self.scores[variant])).get("classes", ())
        ]

    def drop_notes(self) -> list[str]:
        """The drop of what ships; a smoke run's handful of samples says nothing of it."""
        return [] if self.smoke else [drop.line() for drop in self.drops() if drop.variant in self.runtimes]

    def packed(self) -> Bundle:
        """The bundle, opened."""
        from paredown.pipeline.bundle.archive import unpack

        return unpack(self.path(self.bundle) / BUNDLE)

    def bundle_sizes(self) -> list[Figure]:
        """Bytes of the bundle, for each runtime."""
        size = (self.path(self.bundle) / BUNDLE).stat().st_size
        return [self.figure("bundle", name, "bundle_bytes", size, "B") for name in self.runtimes]

    # -- what is packed --------------------------------------------------------------------------------------

    def device_code(self, task: HasFiles) -> dict[str, Path]:
        """The app's device code and the files of ours that it imports: name in the bundle -> file here."""
        return own_code(SHARED) | task.device_files()

    def bundle_params(self, task: HasFiles, machine: bool) -> BundleParams:
        """What decides a bundle beside its inputs."""
        code = {name: file_hash(path) for name, path in sorted(self.device_code(task).items())}
        return BundleParams(
            self.settings.name, plain(self.target), plain(self.recipe), self.tag, code,
            dict(package_versions(("zstandard", "numpy", "paredown"))),
            self.machine.identity() if machine else None,
        )  # fmt: skip


def plain(model: Schema) -> dict[str, Any]:
    """A checked table as JSON has it."""
    return model.model_dump(mode="json", exclude_none=True)


def program_in(folder: Path) -> bytes:
    """The program of a lowering stage's artefact."""
    return (folder / "program").read_bytes()


# -- which kind ----------------------------------------------------------------------------------------------


def kind_of(recipe: Recipe) -> Kind:
    """Which job a recipe is for."""
    return "language" if recipe.data.textual else "image"


def images_only(recipe: Recipe, command: str) -> None:
    """Refuses a recipe of a language model.

    Raises:
        UsageError: it is one.
    """
    if kind_of(recipe) != "image":
        raise UsageError(
            f"`paredown {command}` is for image networks; this recipe is of a language model",
            hint="`paredown run`, `validate`, `bench` and `chat` take language models",
        )


def check_keys(recipe: Recipe) -> None:
    """Refuses keys that the recipe's kind of job does not read and that are not at their defaults.

    Raises:
        UsageError: the line names the first, and what it is for.
    """
    kind, default = kind_of(recipe), default_recipe()
    for key in recipe_keys():
        name = ".".join(key)
        reader = ONLY.get(name) or ONLY.get(key[0])
        if reader in (None, kind) or value_of(recipe, key) == value_of(default, key):
            continue
        raise UsageError(
            f"key `{name}` is for {WORDS[reader]}; this recipe is of {WORDS[kind]}",
            where="recipe", hint="leave it out",
        )  # fmt: skip
