"""The job of a language model, as stages: what each makes, from what, with which parameters.

    prune -> balance -> sense -> quantize -> distil -> lower-RUNTIME -> score-VARIANT -> bundle

Weights become codes once: both runtimes hold the same. `prune`, `balance`, `sense` and `distil` are there
where the recipe asks for them. Scores of programs come from feeding them token by token, as a chat does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.bundle.places import portable
from paredown.pipeline.recipe.file import check_files
from paredown.pipeline.recipe.language_task import LanguageTask, load_language_task
from paredown.pipeline.recipe.schema import Language, Recipe
from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.drop import write_scores
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.run.job import BUNDLE, Job, Proof, Settings, plain, program_in
from paredown.pipeline.run.language.summary import COUNTS, HISTORY, LITERTLM, MIB, PLAN, Summary
from paredown.pipeline.run.params import BenchParams, LowerParams, ScoreParams
from paredown.pipeline.store.files import read_json, write_json
from paredown.pipeline.store.stage import Inputs, Stage, plan
from paredown.targets.cards.card import Target
from paredown.targets.errors import InputError, UsageError
from paredown.targets.host.host import package_version

if TYPE_CHECKING:
    from torch import nn

SUFFIX = {"executorch": "pte", "litert": "tflite"}
LOWERINGS = {"executorch": 4, "litert": 2}  # versions of the stages
PERPLEXITY = Metric("perplexity", less_is_better=True)
CODES, FLOATS = "codes.safetensors", "floats.safetensors"
PRUNED, FACTORS, SENSE = "ffn.safetensors", "channels.safetensors", "sensitivity.json"
SMOKE = {"calibration_tokens": 64, "test_tokens": 64, "window": 32, "rounding": "nearest"}
SMOKE_STEPS = 2
QUANTIZE_KEYS = (
    "weight_bits", "embedding_bits", "rounding", "calibration_tokens", "window", "sparsity", "weights_mib",
)  # fmt: skip
RESIDUAL = "residual.safetensors"
DISTIL_KEYS = ("distil_steps", "distil_lr", "distil_tokens", "distil_learns")


@dataclass(frozen=True)
class FfnPruneParams:
    """How wide feed-forward layers stay."""

    network: Mapping[str, Any]
    ffn: float
    multiple: int
    tokens: int
    window: int
    torch: str


@dataclass(frozen=True)
class BalanceParams:
    """What channels are balanced on."""

    network: Mapping[str, Any]
    tokens: int
    window: int
    torch: str


@dataclass(frozen=True)
class BitSenseParams:
    """Whose bits have a choice, how they are rounded, and on how many tokens it is judged."""

    bits: Mapping[str, int]
    blocks: Mapping[str, int]
    rounding: str
    sparsity: float
    tokens: int
    window: int
    torch: str


@dataclass(frozen=True)
class QuantizeParams:
    """How weights become codes."""

    network: Mapping[str, Any]
    language: Mapping[str, Any]
    blocks: Mapping[str, int]
    torch: str


@dataclass(frozen=True)
class DistilParams:
    """How codes are trained."""

    settings: Mapping[str, Any]
    torch: str


def smoked(recipe: Recipe) -> Recipe:
    """The recipe on a handful of tokens."""
    steps = min(recipe.language.distil_steps, SMOKE_STEPS)
    changed = recipe.language.model_copy(update={**SMOKE, "distil_steps": steps})
    return recipe.model_copy(update={"language": changed})


class LanguageJob(Job):
    """Makes the stages; keys are known before anything runs.

    Args:
        settings: of the run.

    Attributes:
        task: of the recipe's app.
        prune: what makes feed-forward layers thinner; None where none is asked for.
        balance: what finds channels' factors; None where nothing is balanced.
        sense: what measures what bits cost; None where bits are not mixed.
        quantize: what finds the codes.
        distil: what trains them; None where they are not trained.
        lower: runtime -> what writes its program.
        package: what writes a file for LiteRT-LM; None where none is asked for.
        scores: variant -> what scores it: fp32, pruned, the codes in torch, each program.

    Raises:
        UsageError: the target cannot run language models.
        InputError: a file of the recipe is missing or broken, or the model does not fit the target's memory.
    """

    kind = "language"

    def __init__(self, settings: Settings) -> None:
        """Opens the texts, and checks recipe, card and memory against each other."""
        check_target(settings.target)
        super().__init__(settings)
        if self.recipe.language.litertlm:
            from paredown.pipeline.lower.language.litertlm import check_installed

            if "litert" not in self.recipe.lower.runtimes:
                raise UsageError("litertlm without litert among the runtimes", where="recipe, [language]")
            check_installed()
        check_files(self.recipe)
        if self.smoke:
            self.recipe = smoked(self.recipe)
        language = self.language = self.recipe.language
        self.task: LanguageTask = load_language_task(self.recipe)
        self.metric = PERPLEXITY
        self._check_memory()
        multiple = self.target.channel_multiple.linear
        self.prune = self._prune(language.ffn, multiple) if language.ffn is not None else None
        self.balance = self._balance() if language.balances else None
        self.sense = self._sense() if language.weights_mib else None
        self.quantize = self._quantize()
        self.distil = self._distil() if language.distil_steps else None
        self.lower = {name: self._lower(name) for name in self.runtimes}
        self.package = self._package() if language.litertlm else None
        self.scores = {"fp32": self._score("fp32", None)}
        if self.prune:
            self.scores["pruned"] = self._score("pruned", self.prune)
        self.scores["codes"] = self._score("codes", self.codes)
        self.scores |= {name: self._score(name, self.lower[name]) for name in self.runtimes}
        self.bundle = self._bundle()
        here = self.target.reach.kind == "local" and self.device is None
        self.bench = self._bench() if here else None

    # -- the job ---------------------------------------------------------------------------------------------

    def made(self) -> tuple[Stage, ...]:
        """Every stage that a bundle is made from."""
        packages = (self.package,) if self.package else ()
        return plan((*self.lower.values(), *packages, *self.scores.values()))

    def goals(self) -> tuple[Stage, ...]:
        """See `Job`."""
        return (*self.made(), self.bundle, *([self.bench] if self.bench else []))

    def prove(self, device: str, reach: Callable[[Sequence[Stage]], None]) -> tuple[Job, Proof]:
        """See `Job`."""
        from paredown.pipeline.device.language.validate import validate_language

        reach(self.goals())
        limit = self.settings.limit
        found = validate_language(
            self.packed(), device, limit=limit, smoke=self.smoke, recipe=self.recipe, tell=self.tell,
            tick=self.tick,
        )  # fmt: skip
        note = f"validated on {device}, perplexity from what it computed itself"
        whole = limit is None or limit >= len(self.task.pieces("test"))
        return self, Proof(found.checks, found.figures, (note,), whole)

    def figures(self) -> tuple[Figure, ...]:
        """See `Job`."""
        return Summary(self).figures()

    def notes(self) -> tuple[str, ...]:
        """See `Job`."""
        return Summary(self).notes()

    def files(self) -> dict[str, tuple[Stage, str]]:
        """See `Job`."""
        return {BUNDLE: (self.bundle, BUNDLE)} | (
            {LITERTLM: (self.package, LITERTLM)} if self.package else {}
        )

    @property
    def codes(self) -> Stage:
        """The stage whose codes the programs hold."""
        return self.distil or self.quantize

    def _plain(self, inputs: Inputs) -> nn.Module:
        """The network in full precision, pruned and balanced where the recipe says so."""
        network: nn.Module = self.task.network()
        if "prune" in inputs:
            from paredown.pipeline.compress.blockwise.ffn_pruning import read_thinner

            read_thinner(inputs["prune"] / PRUNED, network)
        if "balance" in inputs:
            from paredown.pipeline.compress.blockwise.channels import read_factors

            read_factors(inputs["balance"] / FACTORS, self.task, network)
        return network

    def _network(self, inputs: Inputs, role: str) -> nn.Module:
        """The network with the codes of this role, and the floats that were learned with them."""
        from paredown.pipeline.compress.blockwise.codes import put_residual, read_codes, read_residual
        from paredown.pipeline.compress.blockwise.modules import put

        network, folder = self._plain(inputs), inputs[role]
        put(network, read_codes(folder / CODES), activation_bits=8)
        if (folder / RESIDUAL).exists():
            put_residual(network, read_residual(folder / RESIDUAL))
        if (folder / FLOATS).exists():
            from safetensors.torch import load_file

            network.load_state_dict(load_file(folder / FLOATS), strict=False)
        return network

    # -- one of each -----------------------------------------------------------------------------------------

    def _sources(self) -> dict[str, str]:
        return {"weights": self.task.weights_hash(), "calibration": self.task.fingerprint("calibration")}

    def _inputs(self) -> dict[str, Stage | str]:
        """What stages that look at the network, pruned or not, and at the calibration texts start from."""
        return {**self._sources(), **self._changed()}

    def _pruned(self) -> dict[str, Stage]:
        return {"prune": self.prune} if self.prune else {}

    def _changed(self) -> dict[str, Stage]:
        """What the plain network is read from beside its weights."""
        return self._pruned() | ({"balance": self.balance} if self.balance else {})

    def _prune(self, share: float, multiple: int) -> Stage:
        language, task = self.language, self.task
        multiple = math.lcm(multiple, language.block or 1)  # a row of `down` is cut into whole blocks

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.blockwise.ffn_pruning import write_thinner

            write_json(out / PLAN, write_thinner(out / PRUNED, task, share, multiple))

        params = FfnPruneParams(
            task.network_id, share, multiple, language.calibration_tokens, language.window,
            package_version("torch"),
        )  # fmt: skip
        return Stage("prune", 1, params, {**self._sources()}, build)

    def _balance(self) -> Stage:
        language = self.language

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.blockwise.channels import write_factors

            write_factors(out / FACTORS, self.task, self._plain(inputs))

        params = BalanceParams(
            self.task.network_id, language.calibration_tokens, language.window, package_version("torch")
        )
        return Stage("balance", 1, params, {**self._sources(), **self._pruned()}, build)

    def _sense(self) -> Stage:
        language = self.language

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.blockwise.codes import recipe_bits
            from paredown.pipeline.compress.blockwise.mixed_bits import measure_loss

            network = self._plain(inputs)
            bits = recipe_bits(self.task, network, language)
            plain = language.model_copy(update={"residual_tokens": 0})  # one measurement is for all
            write_json(out / SENSE, measure_loss(self.task, network, bits, plain, self.tick))

        bits = {"linear": int(language.weight_bits), "embedding": int(language.embedding_bits)}
        params = BitSenseParams(
            bits, blocks_of(language), language.rounding, language.sparsity, language.calibration_tokens,
            language.window, package_version("torch"),
        )  # fmt: skip
        return Stage("sense", 2, params, self._inputs(), build)

    def _quantize(self) -> Stage:
        language, sense, residual = self.language, self.sense, self.language.residual_tokens
        wanted = language.model_dump(include=set(QUANTIZE_KEYS))
        wanted |= {"residual_tokens": residual} if residual else {}

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.blockwise.codes import (
                count,
                find_codes,
                recipe_bits,
                write_codes,
                write_residual,
            )
            from paredown.pipeline.compress.blockwise.mixed_bits import mixed

            network = self._plain(inputs)
            bits = recipe_bits(self.task, network, language)
            if "sense" in inputs:
                bits = mixed(self.task, network, read_json(inputs["sense"] / SENSE), bits, language)
            codes, found = find_codes(self.task, network, language, bits, self.tick)
            write_codes(out / CODES, codes)
            if found:
                write_residual(out / RESIDUAL, found)
            write_json(out / COUNTS, count(codes, found))

        params = QuantizeParams(self.task.network_id, wanted, blocks_of(language), package_version("torch"))
        parts: dict[str, Stage | str] = {"sense": sense} if sense else {}
        parts |= {"train": self.task.fingerprint("train")} if residual else {}
        return Stage("quantize", 2, params, self._inputs() | parts, build)

    def _distil(self) -> Stage:
        language, quantize = self.language, self.quantize

        def build(out: Path, inputs: Inputs) -> None:
            from safetensors.torch import save_file

            from paredown.pipeline.compress.blockwise.codes import (
                count,
                read_codes,
                read_residual,
                write_codes,
                write_residual,
            )
            from paredown.pipeline.compress.blockwise.qat_training import train

            checkpoint = self.store.root / "checkpoints" / f"{stage.key}.pt"
            start = read_codes(inputs["codes"] / CODES)
            path = inputs["codes"] / RESIDUAL
            residual = read_residual(path) if path.exists() else None
            codes, found = train(
                self.task, self._plain(inputs), start, language, checkpoint, self.tick, residual
            )
            write_codes(out / CODES, codes)
            if residual:
                write_residual(out / RESIDUAL, residual)
            write_json(out / COUNTS, count(codes, residual))
            save_file(dict(found.floats), out / FLOATS)
            history = {"baseline": found.baseline, "best": found.best, "best_step": found.best_step}
            write_json(out / HISTORY, history | {"history": [dict(row) for row in found.history]})
            checkpoint.unlink(missing_ok=True)

        wanted = language.model_dump(include=set(DISTIL_KEYS))
        params = DistilParams(wanted, package_version("torch"))
        inputs: dict[str, Stage | str] = {"codes": quantize, "train": self.task.fingerprint("train")}
        stage = Stage("distil", 1, params, inputs, build, self._changed())
        return stage

    def _lower(self, name: str) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            (out / "program").write_bytes(self.task.lower(self._network(inputs, "codes"), name))

        package = {"executorch": "executorch", "litert": "litert-torch"}[name]
        params = self._lower_params(name, package)
        return Stage(f"lower-{name}", LOWERINGS[name], params, {"codes": self.codes}, build, self._changed())

    def _package(self) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            (out / LITERTLM).write_bytes(self.task.litertlm(self._network(inputs, "codes")))

        params = self._lower_params("litertlm", "litert-lm-builder")
        return Stage("litertlm", 1, params, {"codes": self.codes}, build, self._changed())

    def _lower_params(self, runtime: str, package: str) -> LowerParams:
        language = self.language
        return LowerParams(runtime, package_version(package), context=language.context, chunk=language.chunk)

    def _score(self, variant: str, source: Stage | None) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            if variant in self.runtimes:
                predict = self.task.open(program_in(inputs["source"]), variant, self.recipe.bench.threads)
            elif variant == "fp32":
                predict = self.task.predict(self.task.network())
            elif variant == "pruned":
                predict = self.task.predict(self._plain({"prune": inputs["source"]}))
            else:
                predict = self.task.predict(self._network(inputs, "source"))
            write_scores(out, self.task.score(predict, self.tick))

        language: Language = self.language
        params = ScoreParams(
            variant, self.machine.identity(), window=language.window, tokens=language.test_tokens
        )
        inputs: dict[str, Stage | str] = {
            "test": self.task.fingerprint("test"), "weights": self.task.weights_hash(),
        }  # fmt: skip
        inputs |= {"source": source} if source is not None else {}
        reads = self._changed() if source is not None and source is not self.prune else {}
        return Stage(f"score-{variant}", 2, params, inputs, build, reads)

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

    def _bench(self) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.device.language.speed import measure_here

            path, threads = inputs["bundle"] / BUNDLE, self.recipe.bench.threads
            write_json(out / "bench.json", measure_here(path, self.smoke, self.tick, threads))

        params = BenchParams(self.recipe.bench.threads, self.machine.identity())
        return Stage("bench", 1, params, {"bundle": self.bundle}, build)

    def _bundle(self) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.bundle.archive import pack
            from paredown.pipeline.bundle.packed.sbom import SBOM, bundle_sbom

            code = self.device_code(self.task)
            members = dict(self.task.bundle_members()) | {n: p.read_bytes() for n, p in code.items()}
            models = []
            for name in self.runtimes:
                file = f"model.{SUFFIX[name]}"
                members[file] = program_in(inputs[f"lower-{name}"])
                models.append({
                    "runtime": name, "file": file, "context": self.language.context,
                    "chunk": self.language.chunk, "vocabulary": self.task.vocabulary,
                })  # fmt: skip
            test = self.task.pieces("test")
            manifest = {
                "name": self.settings.name, "target": self.target.name, "card": plain(self.target),
                "app": self.recipe.app, "network": dict(self.task.network_id), "language": models,
                "preprocess": {}, "preprocess_hash": "", "recipe": plain(portable(self.recipe)),
                "metric": asdict(self.metric),
                "test": {"images": len(test), "fingerprint": self.task.fingerprint("test")},
                "figures": [figure.to_dict() for figure in Summary(self).stage_figures()],
                "versions": dict(self.machine.versions),
                "licences": {"device code": "Apache-2.0", "weights": "that of the recipe's files"},
            }  # fmt: skip
            members[SBOM] = bundle_sbom(manifest, members)
            (out / BUNDLE).write_bytes(pack(manifest, members))

        params = self.bundle_params(self.task, machine=False)
        return Stage("bundle", 3, params, {stage.name: stage for stage in self.made()}, build)


def blocks_of(language: Language) -> dict[str, int]:
    """Weights that share a scale, of each kind of matrix; 0 = a whole row."""
    return {"linear": language.block_of(True), "embedding": language.block_of(False)}


def check_target(target: Target) -> None:
    """Refuses a target that cannot run language models.

    Raises:
        UsageError: it cannot.
    """
    if target.microcontroller or target.export_only or target.arch == "wasm32":
        raise UsageError(
            "language models need a target with an operating system", where=f"target {target.name}"
        )
