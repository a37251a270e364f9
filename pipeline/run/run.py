"""A whole run: recipe and target in, validated bundle, figures, preview and report out.

Everything expensive is a stage in the store; what is written into `runs/RECIPE/TARGET/` is put together from
the stages' artefacts each time, so a run in which nothing changed takes a second or two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.device.executor import SIMULATED
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.recipe.file import check_files, resolved_toml
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Task, load_task
from paredown.pipeline.report.budget import Violation, check_budget
from paredown.pipeline.report.figures import ORIGINAL, Figure, write_figures
from paredown.pipeline.report.markdown import markdown
from paredown.pipeline.run.image.manifest import contents, device_files, plain
from paredown.pipeline.run.image.prune_stages import PLAN, PLOT, SENSE
from paredown.pipeline.run.image.prune_summary import prune_report
from paredown.pipeline.run.image.squantize_stages import LATENT
from paredown.pipeline.run.image.stages import SMOKE_RUNS, Stages
from paredown.pipeline.run.image.summary import BUNDLE, LEDGER, Results
from paredown.pipeline.store.files import write_json
from paredown.pipeline.store.stage import Ledger, Stage, run_stage
from paredown.pipeline.store.store import Store, file_hash, write_atomic
from paredown.targets.cards.card import Target
from paredown.targets.errors import UsageError
from paredown.targets.host.host import package_versions, this_machine

if TYPE_CHECKING:
    from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
    from paredown.pipeline.report.checks import Check
    from paredown.pipeline.run.image.squantize_summary import Facts
    from paredown.pipeline.run.proof import Proof

FIGURES, PREVIEW, REPORT, RECIPE = "figures.json", "preview.png", "report.md", "recipe.toml"
PRUNED = "pruned.safetensors"
STORE = ".store"


@dataclass(frozen=True)
class BenchParams:
    """How latency is measured, and on what."""

    runs: int
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
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class PreviewParams:
    """What draws the preview."""

    runtime: str


@dataclass(frozen=True)
class Result:
    """What a run made."""

    folder: Path
    figures: tuple[Figure, ...]
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...] = ()


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
        device_limit: scores at most so many images there; None = all.
        log: told one line per stage.
        tick: progress within a stage.

    Raises:
        UsageError: the target lacks a runtime that the recipe wants.
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
        log: Callable[[str], None] = lambda line: None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Checks recipe and card against each other, and opens the data; nothing is run."""
        recipe = recipe.model_copy(update={"lower": recipe.lower.on(target.runtimes)})
        for wanted in recipe.lower.runtimes:
            target.runtime(wanted)
        if target.export_only or any(there.io == "float32" for there in target.runtimes.values()):
            raise UsageError(
                "files are made for it, and nothing here runs them", where=f"target {target.name}",
                hint=f"`paredown export RECIPE --target {target.name}`",
            )  # fmt: skip
        if target.microcontroller and device is None:
            device = SIMULATED
        check_files(recipe)
        self.name, self.recipe, self.target, self.smoke = name, recipe, target, smoke
        self.device, self.device_limit = device, device_limit
        self.log, self.tick = log, tick
        self.folder = root / name / target.name
        self.store = Store(root / STORE)
        self.machine = this_machine()
        self.task: Task = load_task(recipe)
        self.stages = Stages(recipe, self.task, self.store, target, smoke, tick)
        self.results = Results(recipe, self.stages, target, smoke)
        self.bench = self._bench() if target.reach.kind == "local" and not device else None
        self.bundle = self._bundle()
        self.results.bench, self.results.bundle = self.bench, self.bundle
        self.results.proved = device is not None
        self.preview = self._preview()

    def plan(self) -> tuple[Stage, ...]:
        """Every stage, in running order."""
        bench = (self.bench,) if self.bench else ()
        return (*self.stages.all(), *bench, self.bundle, self.preview)

    def execute(self) -> Result:
        """Runs what has to run, writes the run's folder, and checks the budget."""
        ledger = Ledger.start(self.folder)
        checks: tuple[Check, ...] = ()
        if self.device is None:
            for stage in self.plan():
                run_stage(self.store, stage, self.log, ledger)
            judged = figures = self.results.figures()
            notes = self.results.notes()
        else:
            proof = self._prove(self.device, ledger)
            checks = proof.checks
            figures = (*self.results.figures(), *proof.figures)
            # a part's score says nothing of what was lost on the whole
            part = self.device_limit is not None and self.device_limit < self.stages.images
            judged = tuple(f for f in figures if not (part and f.stage == "score" and f in proof.figures))
            notes = (*self.results.notes(), *proof.notes)
        violations = check_budget(self.recipe.budget.over(self.target.budget), judged, self.task.metric)
        for stage, name in ((self.bundle, BUNDLE), (self.preview, PREVIEW)):
            write_atomic(self.folder / name, (self.stages.path(stage) / name).read_bytes())
        if self.recipe.prune.active:
            self._write_pruning()
        if self.recipe.squantize.active:
            write_atomic(self.folder / LATENT, self.stages.squantizing.latent_file().read_bytes())
        write_atomic(self.folder / RECIPE, resolved_toml(self.recipe).encode())
        write_figures(self.folder / FIGURES, figures)
        sections = {"Pruning": prune_report(self.stages.pruning) if self.recipe.prune.active else []}
        if self.recipe.squantize.active:
            sections["Sparse and low-bit weights"] = self.results.squantized.report(self.results.times)
        text = markdown(self.name, self.target, figures, [v.line() for v in violations], notes, sections)
        write_atomic(self.folder / REPORT, text.encode())
        return Result(self.folder, figures, violations, notes, checks)

    def _prove(self, device: str, ledger: Ledger) -> Proof:
        """Everything, with the device: what is slower there than before is taken back, the rest proved."""
        from paredown.pipeline.run.proof import Prover

        for stage in self.stages.all():
            run_stage(self.store, stage, self.log, ledger)
        with Prover(self.stages, self.target, device, self.smoke, self.log, self.tick) as prover:
            for judging in prover.roll_back():
                run_stage(self.store, judging, self.log, ledger)
            self.bundle, self.preview = self._bundle(), self._preview()
            self.results.bundle = self.bundle
            for stage in (self.bundle, self.preview):
                run_stage(self.store, stage, self.log, ledger)
            return prover.prove(self.stages.path(self.bundle) / BUNDLE, self.device_limit)

    def sense(self) -> Sensitivity:
        """Runs the sensitivity test alone, and writes its table's JSON and its plot."""
        ledger = Ledger.start(self.folder)
        for stage in (self.stages.original, self.stages.pruning.sense):
            run_stage(self.store, stage, self.log, ledger)
        self._write_sensitivity()
        return self.stages.pruning.sensitivity()

    def _write_sensitivity(self) -> None:
        found = self.stages.path(self.stages.pruning.sense)
        for name in (SENSE, PLOT):
            write_atomic(self.folder / name, (found / name).read_bytes())

    def _write_pruning(self) -> None:
        """The thinner network for the user's own use, and how it came about."""
        pruning = self.stages.pruning
        if self.recipe.prune.budget:
            self._write_sensitivity()
        write_atomic(self.folder / PLAN, (self.stages.path(pruning.prune) / PLAN).read_bytes())
        write_atomic(self.folder / PRUNED, pruning.network_file().read_bytes())

    # -- the last stages -----------------------------------------------------------------------------------

    def _bench(self) -> Stage:
        runs = SMOKE_RUNS if self.smoke else self.recipe.bench.runs
        threads = self.recipe.bench.threads
        stages = {name: self.stages.lower[name] for name in self.stages.runtimes}
        stages |= {f"{name}-fp32": self.stages.baseline[name] for name in self.stages.runtimes}
        stages |= {f"{name}{ORIGINAL}": stage for name, stage in self.stages.originals.items()}

        def build(out: Path) -> None:
            import numpy as np

            from paredown.pipeline.device.timing import Eager, interleaved, peak_memory

            image = self.stages.preprocess(self.stages.calibration[0].image)[None]
            codes = self.stages.integer_graph().input.out.quantize(image)
            runners: dict[str, Any] = {"fp32": (Eager(self.task.network(), threads), image)}
            if self.recipe.prune.active:
                runners["pruned"] = (Eager(self.stages.pruning.network(), threads), image)
            programs: dict[str, Any] = {}
            for variant, stage in stages.items():
                name = variant.removesuffix("-fp32").removesuffix(ORIGINAL)
                x = image if variant.endswith("-fp32") else codes
                runners[variant] = (runtime(name).load(self.stages.program(stage), threads, variant), x)
                programs[variant] = (name, self.stages.path(stage) / "program", x)
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

        params = BenchParams(runs, threads, self.stages.machine)
        inputs = {"trace": self.stages.original.key} | {name: stage.key for name, stage in stages.items()}
        return Stage("bench", 3, params, inputs, build)

    def _bundle(self) -> Stage:
        device = {name: file_hash(path) for name, path in sorted(device_files(self.task).items())}
        packages = dict(package_versions(("zstandard", "numpy", "paredown")))
        params = BundleParams(
            self.name, plain(self.target), plain(self.recipe), self.results.tag, device, packages,
            self.machine.to_dict(),
        )  # fmt: skip
        inputs = {stage.name: stage.key for stage in self.stages.integers.values()}
        for group in (self.stages.lower, self.stages.baseline, self.stages.parity, self.stages.scores):
            inputs |= {stage.name: stage.key for stage in group.values()}

        def build(out: Path) -> None:
            from paredown.pipeline.bundle.archive import pack

            packed = contents(self.name, self.recipe, self.target, self.task, self.stages, self.results)
            (out / BUNDLE).write_bytes(pack(*packed))
            if self.recipe.squantize.active:
                write_json(out / LEDGER, self._ledger(out / BUNDLE).to_dict())

        return Stage("bundle", 5, params, inputs, build)

    def _ledger(self, bundle: Path) -> Facts:
        """What sparse low-bit codes are worth in this bundle."""
        from paredown.pipeline.bundle.archive import unpack, wire_bytes
        from paredown.pipeline.bundle.ledger import ledger
        from paredown.pipeline.bundle.packing import pack_program
        from paredown.pipeline.run.image.squantize_summary import Facts

        stages, squantizing = self.stages, self.stages.squantizing
        integer = stages.integer_graph()
        trained = [name for name, stage in stages.integers.items() if stage is stages.integer]
        programs = {name: stages.program(stages.lower[name]) for name in trained}
        layers = integer.weights, integer.layer_parameters
        wire = {name: len(pack_program(program, *layers)) for name, program in programs.items()}
        together = sum(wire_bytes(unpack(bundle).manifest).values())
        rows = ledger(stages.graph(), integer)
        sizes = {name: len(program) for name, program in programs.items()}
        pays = {str(name): runtime.pays for name, runtime in self.target.runtimes.items()}
        buys = {name: (pays[name].zeros.buys, pays[name].low_bits.buys) for name in programs}
        return Facts(rows, squantizing.history(), squantizing.state_bytes(), sizes, wire, together, buys)

    def _preview(self) -> Stage:
        name = self.stages.runtimes[-1]
        inputs = {"program": self.stages.lower[name].key, "data": self.stages.test.fingerprint()}

        def build(out: Path) -> None:
            self.task.preview(self.stages.predictor(name), self.stages.test, out / PREVIEW)

        return Stage("preview", 1, PreviewParams(name), inputs, build)


def recipe_name(name_or_path: str) -> str:
    """The folder of a recipe's runs: its file's stem.

    Raises:
        UsageError: nothing is left of the name.
    """
    stem = Path(name_or_path).stem
    if not stem or stem.startswith("."):
        raise UsageError(f"`{name_or_path}` names no recipe")
    return stem
