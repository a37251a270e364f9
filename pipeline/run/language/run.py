"""A whole run of a language model: recipe and target in, bundle, figures and report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.recipe.file import check_files, resolved_toml
from paredown.pipeline.recipe.language_task import LanguageTask, load_language_task
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.report.budget import check_budget
from paredown.pipeline.report.figures import Figure, Tag, write_figures
from paredown.pipeline.report.markdown import markdown
from paredown.pipeline.run.image.manifest import SHARED, plain
from paredown.pipeline.run.image.summary import BUNDLE
from paredown.pipeline.run.language.stages import LITERTLM, LanguageStages, smoked
from paredown.pipeline.run.run import FIGURES, RECIPE, REPORT, STORE, Result
from paredown.pipeline.store.files import read_json, write_json
from paredown.pipeline.store.stage import Ledger, Stage, run_stage
from paredown.pipeline.store.store import Store, file_hash, write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import InputError, UsageError
from paredown.targets.host.host import package_versions, this_machine
from paredown.targets.own_code import own_code

if TYPE_CHECKING:
    from paredown.pipeline.report.checks import Check, Validation

MIB = 2**20
SUFFIX = {"executorch": "pte", "litert": "tflite"}


@dataclass(frozen=True)
class BenchParams:
    """How speed is measured, and on what."""

    threads: int
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class BundleParams:
    """What goes into a bundle beside the models."""

    name: str
    card: Mapping[str, Any]
    recipe: Mapping[str, Any]
    tag: str
    app: Mapping[str, str]
    packages: Mapping[str, str]


class LanguageRun:
    """One recipe of a language model for one target; see `pipeline.run.run.Run`, whose place it takes.

    Raises:
        UsageError: the target lacks a runtime that the recipe wants, or cannot run language models.
        InputError: a file of the recipe is missing or broken, or the model does not fit the target's memory.
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
        log: Callable[[str], None] = lambda line: None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        recipe = recipe.model_copy(update={"lower": recipe.lower.on(target.runtimes)})
        for wanted in recipe.lower.runtimes:
            target.runtime(wanted)
        if target.microcontroller or target.export_only or target.arch == "wasm32":
            raise UsageError(
                "language models need a target with an operating system", where=f"target {target.name}"
            )
        if recipe.prune.active or recipe.squantize.active:
            raise UsageError("[prune] and [squantize] are for networks of images", hint="see [language]")
        if recipe.language.litertlm:
            from paredown.pipeline.lower.language.litertlm import check_installed

            if "litert" not in recipe.lower.runtimes:
                raise UsageError("litertlm without litert among the runtimes", where="recipe, [language]")
            check_installed()
        check_files(recipe)
        self.recipe = smoked(recipe) if smoke else recipe
        self.name, self.target, self.smoke, self.log, self.tick = name, target, smoke, log, tick
        self.folder, self.store = root / name / target.name, Store(root / STORE)
        self.device, self.device_limit = device, device_limit
        self.tag: Tag = "smoke" if smoke else "measured"
        self.machine = this_machine()
        self.task: LanguageTask = load_language_task(self.recipe)
        self._check_memory()
        multiple = target.channel_multiple.linear
        self.stages = LanguageStages(self.recipe, self.task, self.store, multiple, tick)
        self.bundle = self._bundle()
        self.bench = self._bench(self.bundle) if target.reach.kind == "local" and not device else None

    def plan(self) -> tuple[Stage, ...]:
        """Every stage, in running order."""
        return (*self.stages.all(), self.bundle, *([self.bench] if self.bench else []))

    def execute(self) -> Result:
        """Runs what has to run, writes the run's folder, and checks the budget."""
        ledger = Ledger.start(self.folder)
        for stage in self.plan():
            run_stage(self.store, stage, self.log, ledger)
        checks: tuple[Check, ...] = ()
        figures = (*self.figures(), *self._sizes(), *self._speeds())
        if self.device is not None:
            proved = self._prove(self.device)
            figures, checks = (*figures, *proved.figures), proved.checks
        violations = check_budget(self.recipe.budget.over(self.target.budget), figures, "perplexity")
        write_atomic(self.folder / BUNDLE, (self.stages.path(self.bundle) / BUNDLE).read_bytes())
        if self.stages.package:
            made = self.stages.path(self.stages.package) / LITERTLM
            write_atomic(self.folder / LITERTLM, made.read_bytes())
        write_atomic(self.folder / RECIPE, resolved_toml(self.recipe).encode())
        write_figures(self.folder / FIGURES, figures)
        notes = self._notes()
        lines = [violation.line() for violation in violations]
        text = markdown(self.name, self.target, figures, lines, notes, preview=False)
        write_atomic(self.folder / REPORT, text.encode())
        return Result(self.folder, figures, violations, notes, checks)

    def _prove(self, device: str) -> Validation:
        from paredown.pipeline.bundle.archive import unpack
        from paredown.pipeline.device.language.validate import validate_language

        made = unpack(self.stages.path(self.bundle) / BUNDLE)
        limit = self.device_limit
        return validate_language(made, device, limit=limit, smoke=self.smoke, log=self.log, tick=self.tick)

    # -- figures ---------------------------------------------------------------------------------------------

    def figures(self) -> list[Figure]:
        """What is the same on each run: scores and sizes."""
        found = [
            self._figure("score", variant, metric, value, "1")
            for variant in self.stages.scores
            for metric, value in self.stages.score(variant).items()
        ]
        for name in self.stages.runtimes:
            found.append(self._figure("lower", name, "file_bytes", len(self.stages.program(name)), "B"))
        found.append(self._figure("quantize", "codes", "weight_bytes", self.stages.facts()["bytes"], "B"))
        return found

    def _figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> Figure:
        return Figure(stage, variant, metric, value, unit, self.tag, self.machine)

    def _sizes(self) -> list[Figure]:
        size = (self.stages.path(self.bundle) / BUNDLE).stat().st_size
        found = [self._figure("bundle", name, "bundle_bytes", size, "B") for name in self.stages.runtimes]
        if self.stages.package:
            size = (self.stages.path(self.stages.package) / LITERTLM).stat().st_size
            found.append(self._figure("litertlm", "litertlm", "file_bytes", size, "B"))
        return found

    def _speeds(self) -> list[Figure]:
        from paredown.pipeline.device.language.speed import figures

        if self.bench is None:
            return []
        measured = read_json(self.stages.path(self.bench) / "bench.json")
        return [f for name, facts in measured.items() for f in figures(name, facts, self.tag, self.machine)]

    def _notes(self) -> tuple[str, ...]:
        notes = []
        before = self.stages.score("fp32")["perplexity"]
        for name in self.stages.runtimes:
            after = self.stages.score(name)["perplexity"]
            notes.append(f"{name}: perplexity {after / before - 1:+.1%} against float32")
        notes += self._changes(before)
        if self.device is not None:
            notes.append(f"validated on {self.device}, perplexity from what it computed itself")
        elif self.bench is None:
            notes.append(f"not validated on a device: no speed for {self.target.name} is known")
        return tuple(notes)

    def _changes(self, before: float) -> list[str]:
        """What pruning, mixed bits, zeros and training did to the network."""
        notes, language = [], self.recipe.language
        if widths := self.stages.widths():
            after = self.stages.score("pruned")["perplexity"] / before - 1
            notes.append(
                f"pruned: feed-forward layers {widths['before']:,} -> {widths['after']:,} channels, "
                f"perplexity {after:+.1%} in float32"
            )
        counted = self.stages.facts()
        if language.weights_mib is not None:
            matrices, size = counted["matrices"], counted["bytes"] / MIB
            notes.append(
                f"{matrices.get('8', 0)} of {sum(matrices.values())} matrices have 8 bits, "
                f"{size:,.2f} of {language.weights_mib:,.2f} MiB"
            )
        if language.sparsity:
            share = counted["zeros"] / counted["weights"]
            for name in self.stages.runtimes:
                pays = self.target.runtime(name).pays.zeros
                notes.append(
                    f"{name}: {share:.0%} of the codes are zero, which buys {pays.buys}: {pays.note}"
                )
        if told := self.stages.history():
            notes.append(
                f"training moved the divergence on text held out from {-told['baseline']:.4f} "
                f"to {-told['best']:.4f} nats, best after step {told['best_step']}"
            )
        return notes

    # -- the last stages -------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """Refuses, before any work, what the target's memory cannot hold.

        Raises:
            InputError: by how much.
        """
        room = self.target.memory_mib or self.machine.memory_mib
        needed = self.task.device_bytes(self.recipe.language) / MIB
        if room and needed > room:
            raise InputError(
                f"weights and a context of {self.recipe.language.context} tokens need {needed:,.1f} MiB, "
                f"it has {room:,} MiB", where=f"target {self.target.name}",
                hint="--set language.context=..., fewer bits, or a smaller model",
            )  # fmt: skip

    def _bench(self, bundle: Stage) -> Stage:
        def build(out: Path) -> None:
            from paredown.pipeline.device.language.speed import measure_here

            path, threads = self.stages.path(bundle) / BUNDLE, self.recipe.bench.threads
            write_json(out / "bench.json", measure_here(path, self.smoke, self.tick, threads))

        params = BenchParams(self.recipe.bench.threads, self.machine.to_dict())
        return Stage("bench", 1, params, {"bundle": bundle.key}, build)

    def _bundle(self) -> Stage:
        files = own_code(SHARED) | self.task.device_files()
        params = BundleParams(
            self.name, plain(self.target), plain(self.recipe), self.tag,
            {name: file_hash(path) for name, path in sorted(files.items())},
            dict(package_versions(("zstandard", "numpy", "paredown"))),
        )  # fmt: skip
        inputs = {stage.name: stage.key for stage in self.stages.all()}

        def build(out: Path) -> None:
            from paredown.pipeline.bundle.archive import pack

            members = dict(self.task.bundle_members()) | {n: p.read_bytes() for n, p in files.items()}
            models = []
            for name in self.stages.runtimes:
                file = f"model.{SUFFIX[name]}"
                members[file] = self.stages.program(name)
                models.append({
                    "runtime": name, "file": file, "context": self.recipe.language.context,
                    "chunk": self.recipe.language.chunk, "vocabulary": self.task.vocabulary,
                })  # fmt: skip
            test = self.task.pieces("test")
            manifest = {
                "name": self.name, "target": self.target.name, "card": plain(self.target),
                "app": self.recipe.app, "network": dict(self.task.network_id), "language": models,
                "preprocess": {}, "preprocess_hash": "", "recipe": plain(self.recipe),
                "test": {"images": len(test), "fingerprint": self.task.fingerprint("test")},
                "figures": [figure.to_dict() for figure in self.figures()],
                "versions": dict(self.machine.versions),
                "licences": {"device code": "Apache-2.0", "weights": "that of the recipe's files"},
            }  # fmt: skip
            (out / BUNDLE).write_bytes(pack(manifest, members))

        return Stage("bundle", 1, params, inputs, build)
