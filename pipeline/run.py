"""A whole run: recipe and target in, validated bundle, figures, preview and report out.

Everything expensive is a stage in the store; what is written into `runs/RECIPE/TARGET/` is put together from
the stages' artefacts each time, so a run in which nothing changed takes a second or two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.artefacts import read_json, write_json
from pipeline.budget import Violation, check_budget
from pipeline.figures import Figure, Tag, write_figures
from pipeline.lower.runtimes import runtime
from pipeline.prune.stages import PLAN, PLOT, SENSE
from pipeline.prune.summary import prune_figures, prune_notes, prune_report
from pipeline.recipe import Recipe
from pipeline.recipe_file import check_files, resolved_toml
from pipeline.report import markdown
from pipeline.stage import Ledger, Stage, run_stage
from pipeline.stages import SMOKE_RUNS, UNPRUNED, Stages
from pipeline.store import Store, file_hash, write_atomic
from pipeline.task import Task, load_task
from targets.card import Target
from targets.errors import UsageError
from targets.host import package_versions, this_machine

if TYPE_CHECKING:
    from pipeline.prune.sensitivity import Sensitivity

BUNDLE, FIGURES, PREVIEW, REPORT, RECIPE = (
    "bundle.paredown", "figures.json", "preview.png", "report.md", "recipe.toml",
)  # fmt: skip
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


class Run:
    """One recipe for one target.

    Args:
        name: of the recipe, the folder below `root`.
        recipe: resolved.
        target: the card.
        root: folder of all runs.
        smoke: handfuls of samples everywhere; every figure says so.
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
        log: Callable[[str], None] = lambda line: None,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Checks recipe and card against each other, and opens the data; nothing is run."""
        for wanted in recipe.lower.runtimes:
            target.runtime(wanted)
        check_files(recipe)
        self.name, self.recipe, self.target, self.smoke = name, recipe, target, smoke
        self.log, self.tick = log, tick
        self.folder = root / name / target.name
        self.store = Store(root / STORE)
        self.machine = this_machine()
        self.task: Task = load_task(recipe)
        self.stages = Stages(recipe, self.task, self.store, target, smoke, tick)
        self.bench = self._bench() if target.reach.kind == "local" else None
        self.bundle = self._bundle()
        self.preview = self._preview()

    def plan(self) -> tuple[Stage, ...]:
        """Every stage, in running order."""
        bench = (self.bench,) if self.bench else ()
        return (*self.stages.all(), *bench, self.bundle, self.preview)

    def execute(self) -> Result:
        """Runs what has to run, writes the run's folder, and checks the budget."""
        ledger = Ledger.start(self.folder)
        for stage in self.plan():
            run_stage(self.store, stage, self.log, ledger)
        figures = self.figures()
        violations = check_budget(self.recipe.budget.over(self.target.budget), figures, self.task.metric)
        notes = self._notes()
        for stage, name in ((self.bundle, BUNDLE), (self.preview, PREVIEW)):
            write_atomic(self.folder / name, (self.stages.path(stage) / name).read_bytes())
        if self.recipe.prune.active:
            self._write_pruning()
        write_atomic(self.folder / RECIPE, resolved_toml(self.recipe).encode())
        write_figures(self.folder / FIGURES, figures)
        pruning = prune_report(self.stages.pruning) if self.recipe.prune.active else []
        text = markdown(self.name, self.target, figures, [v.line() for v in violations], notes, pruning)
        write_atomic(self.folder / REPORT, text.encode())
        return Result(self.folder, figures, violations, notes)

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
        stages |= {f"{name}{UNPRUNED}": stage for name, stage in self.stages.unpruned.items()}

        def build(out: Path) -> None:
            import numpy as np

            from pipeline.bench import Eager, interleaved, peak_memory

            image = self.stages.preprocess(self.stages.calibration[0].image)[None]
            codes = self.stages.integer_graph().input.out.quantize(image)
            runners: dict[str, Any] = {"fp32": (Eager(self.task.network(), threads), image)}
            if self.stages.unpruned:
                runners["pruned"] = (Eager(self.stages.pruning.network(), threads), image)
            programs: dict[str, Any] = {}
            for variant, stage in stages.items():
                name = variant.removesuffix("-fp32").removesuffix(UNPRUNED)
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
        device = {name: file_hash(path) for name, path in sorted(self._device_files().items())}
        packages = dict(package_versions(("zstandard", "numpy", "paredown")))
        params = BundleParams(
            self.name, _plain(self.target), _plain(self.recipe), self._tag(), device, packages,
            self.machine.to_dict(),
        )  # fmt: skip
        inputs = {"integer": self.stages.integer.key}
        for group in (self.stages.lower, self.stages.baseline, self.stages.parity, self.stages.scores):
            inputs |= {stage.name: stage.key for stage in group.values()}

        def build(out: Path) -> None:
            from pipeline.bundle import pack

            (out / BUNDLE).write_bytes(pack(*self._contents()))

        return Stage("bundle", 2, params, inputs, build)

    def _contents(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Manifest and members of the bundle."""
        from pipeline.vectors import expected

        integer = self.stages.integer_graph()
        members = dict(self.task.bundle_members())
        members |= {name: path.read_bytes() for name, path in self._device_files().items()}
        members["vectors.json"], members["vectors.bin"] = expected(integer)
        models = []
        for name in self.stages.runtimes:
            file = f"model{runtime(name).suffix}"
            members[file] = self.stages.program(self.stages.lower[name])
            models.append(
                {
                    "runtime": name, "file": file, "dtype": "int8", "layout": "nchw",
                    "input": _affine(integer.input),
                    "outputs": [_affine(integer[name]) for name in integer.outputs],
                }
            )  # fmt: skip
        manifest = {
            "name": self.name, "target": self.target.name, "card": _plain(self.target),
            "app": self.recipe.app, "network": dict(self.task.network_id), "models": models,
            "preprocess": self.stages.preprocess.to_dict(), "preprocess_hash": self.stages.preprocess.hash,
            "recipe": _plain(self.recipe),
            "test": {"images": self.stages.images, "fingerprint": self.stages.test.fingerprint()},
            "figures": [figure.to_dict() for figure in self._stage_figures()],
            "versions": dict(self.machine.versions),
            "licences": {"device code": "Apache-2.0", "weights and labels": "those of the recipe's files"},
        }  # fmt: skip
        return manifest, members

    def _device_files(self) -> dict[str, Path]:
        """The app's device code, and the rooms below that it imports."""
        root = Path(__file__).parents[1]
        shared = (
            "apps/__init__.py", "calibration/__init__.py", "calibration/preprocess.py", "targets/__init__.py",
            "targets/errors.py", "targets/quiet.py", "targets/vectors.py", "targets/runners/__init__.py",
            "targets/runners/litert.py", "targets/runners/unpacked.py",
        )  # fmt: skip
        files = {name: root / name for name in shared}
        return files | self.task.device_files()

    def _preview(self) -> Stage:
        name = self.stages.runtimes[-1]
        inputs = {"program": self.stages.lower[name].key, "data": self.stages.test.fingerprint()}

        def build(out: Path) -> None:
            self.task.preview(self.stages.predictor(name), self.stages.test, out / PREVIEW)

        return Stage("preview", 1, PreviewParams(name), inputs, build)

    # -- figures -------------------------------------------------------------------------------------------

    def _tag(self) -> Tag:
        return "smoke" if self.smoke else "measured"

    def _figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> Figure:
        return Figure(stage, variant, metric, value, unit, self._tag(), self.machine)

    def _stage_figures(self) -> list[Figure]:
        """Every figure that is the same on each run: scores, parity, sizes."""
        stages, figures = self.stages, []
        for metric, value in read_json(stages.path(stages.original) / "size.json").items():
            figures.append(self._figure("trace", "fp32", metric, value, "1"))
        if self.recipe.prune.active:
            figures += [self._figure(*row) for row in prune_figures(stages.pruning)]
        for variant, stage in stages.scores.items():
            for metric, value in read_json(stages.path(stage) / "score.json").items():
                figures.append(self._figure("score", variant, metric, value, "1"))
        for name in stages.runtimes:
            parity = read_json(stages.path(stages.parity[name]) / "parity.json")
            outputs = parity["outputs"]
            figures.append(self._figure("parity", name, "parity_lsb", outputs["max_lsb"], "LSB"))
            share = outputs["differing"] / outputs["values"]
            figures.append(self._figure("parity", name, "parity_share", share, "1"))
            figures.append(self._figure("parity", name, "parity_inputs", parity["inputs"], "1"))
            for kind, apart in parity["kinds"].items():
                share = apart["differing"] / apart["values"]
                figures.append(self._figure("parity", name, f"parity_share_{kind}", share, "1"))
                figures.append(self._figure("parity", name, f"parity_lsb_{kind}", apart["max_lsb"], "LSB"))
            programs = {name: stages.lower[name], f"{name}-fp32": stages.baseline[name]}
            if name in stages.unpruned:
                programs[f"{name}{UNPRUNED}"] = stages.unpruned[name]
            for variant, stage in programs.items():
                size = (stages.path(stage) / "program").stat().st_size
                facts = read_json(stages.path(stage) / "lowered.json")
                figures.append(self._figure("lower", variant, "file_bytes", size, "B"))
                figures.append(self._figure("lower", variant, "subgraphs", facts["subgraphs"], "1"))
                undelegated = len(facts["undelegated"])
                figures.append(self._figure("lower", variant, "undelegated_ops", undelegated, "1"))
        return figures

    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the run, timings and bundle sizes included."""
        figures = self._stage_figures()
        bundle = (self.stages.path(self.bundle) / BUNDLE).stat().st_size
        figures += [
            self._figure("bundle", name, "bundle_bytes", bundle, "B") for name in self.stages.runtimes
        ]
        if self.bench:
            for variant, values in read_json(self.stages.path(self.bench) / "bench.json").items():
                for metric, value in values.items():
                    unit = "MiB" if metric == "memory_peak" else "ms"
                    figures.append(self._figure("bench", variant, metric, value, unit))
        return tuple(figures)

    def _notes(self) -> tuple[str, ...]:
        """Plain sentences that belong beside the table."""
        notes = prune_notes(self.stages.pruning) if self.recipe.prune.active else []
        for name in self.stages.runtimes:
            parity = read_json(self.stages.path(self.stages.parity[name]) / "parity.json")
            if parity["first"]:
                notes.append(f"{name} differs from the integer graph, first at {parity['first']}")
            facts = read_json(self.stages.path(self.stages.lower[name]) / "lowered.json")
            if facts["undelegated"]:
                notes.append(f"{name} runs outside the delegate: {', '.join(facts['undelegated'])}")
        if self.bench:
            times = read_json(self.stages.path(self.bench) / "bench.json")
            notes += slower_than(times, "-fp32", "float32")
            notes += against_unpruned(times)
        else:
            notes.append(
                f"not validated on a device: scores and parity are from this machine, no latency for "
                f"{self.target.name} is known"
            )
        return tuple(notes)


def slower_than(times: Mapping[str, Mapping[str, float]], suffix: str, what: str) -> list[str]:
    """A plain sentence for every runtime on which the shipped program takes longer than another of its kind.

    Args:
        times: variant -> what was measured of it.
        suffix: of the variants to compare with, as "-fp32" in "litert-fp32".
        what: they are, in words.
    """
    notes = []
    for name, measured in times.items():
        before = times.get(f"{name}{suffix}", {}).get("latency_p50")
        now = measured["latency_p50"]
        if before is not None and now > before:
            notes.append(
                f"{name}: int8 is slower than {what} on this machine ({now:.2f} against {before:.2f} ms)"
            )
    return notes


def against_unpruned(times: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A plain sentence per runtime: the time of the shipped program as a share of the unpruned network's."""
    notes = []
    for name, measured in times.items():
        if whole := times.get(f"{name}{UNPRUNED}"):
            now, before = measured["latency_p50"], whole["latency_p50"]
            slower = ": slower" if now > before else ""
            notes.append(
                f"{name}: takes {now / before:.2f} of the unpruned network's time in int8, measured "
                f"({now:.2f} against {before:.2f} ms){slower}"
            )
    return notes


def recipe_name(name_or_path: str) -> str:
    """The folder of a recipe's runs: its file's stem.

    Raises:
        UsageError: nothing is left of the name.
    """
    stem = Path(name_or_path).stem
    if not stem or stem.startswith("."):
        raise UsageError(f"`{name_or_path}` names no recipe")
    return stem


def _plain(schema: BaseModel) -> dict[str, Any]:
    return schema.model_dump(mode="json", exclude_none=True)


def _affine(node: Any) -> dict[str, Any]:
    return {
        "name": node.name, "shape": list(node.shape),
        "scale": node.out.scale, "zero_point": node.out.zero_point,
    }  # fmt: skip
