"""The stages of a language model's run.

    prune -> sense -> quantize -> distil -> lower-RUNTIME -> score-VARIANT -> bundle

Weights become codes once: both runtimes hold the same. `prune`, `sense` and `distil` are there where the
recipe asks for them. Scores of programs come from feeding them token by token, as a chat does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.recipe.language_task import LanguageTask
from paredown.pipeline.recipe.schema import Language, Recipe
from paredown.pipeline.store.files import read_json, stored, write_json
from paredown.pipeline.store.stage import Stage
from paredown.pipeline.store.store import Store
from paredown.targets.host.host import package_version, this_machine

if TYPE_CHECKING:
    from torch import nn

LITERTLM = "model.litertlm"
CODES, COUNTS, FLOATS = "codes.safetensors", "codes.json", "floats.safetensors"
PRUNED, PLAN, SENSE, HISTORY = "ffn.safetensors", "ffn.json", "sensitivity.json", "history.json"
SMOKE = {"calibration_tokens": 64, "test_tokens": 64, "window": 32, "rounding": "nearest"}
SMOKE_STEPS = 2
QUANTIZE_KEYS = (
    "weight_bits", "embedding_bits", "rounding", "calibration_tokens", "window", "sparsity", "weights_mib",
)  # fmt: skip
DISTIL_KEYS = ("distil_steps", "distil_lr", "distil_tokens", "distil_learns")
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class PruneParams:
    """How wide feed-forward layers stay."""

    network: Mapping[str, Any]
    ffn: float
    multiple: int
    tokens: int
    window: int
    torch: str


@dataclass(frozen=True)
class SenseParams:
    """Whose bits have a choice, and on how many tokens it is judged."""

    bits: Mapping[str, int]
    block: int
    tokens: int
    window: int
    torch: str


@dataclass(frozen=True)
class QuantizeParams:
    """How weights become codes."""

    network: Mapping[str, Any]
    language: Mapping[str, Any]
    block: int
    torch: str


@dataclass(frozen=True)
class DistilParams:
    """How codes are trained."""

    settings: Mapping[str, Any]
    torch: str


@dataclass(frozen=True)
class LowerParams:
    """The runtime, the version of what writes its files, and what its memory holds."""

    runtime: str
    version: str
    context: int
    chunk: int


@dataclass(frozen=True)
class ScoreParams:
    """What is scored, how, and where."""

    variant: str
    window: int
    tokens: int
    machine: Mapping[str, Any]


def smoked(recipe: Recipe) -> Recipe:
    """The recipe on a handful of tokens."""
    steps = min(recipe.language.distil_steps, SMOKE_STEPS)
    changed = recipe.language.model_copy(update={**SMOKE, "distil_steps": steps})
    return recipe.model_copy(update={"language": changed})


class LanguageStages:
    """Makes the stages of one run; keys are known before anything runs.

    Args:
        recipe: resolved.
        task: of the recipe's app.
        store: where inputs of a stage are found when it runs.
        multiple: of channels that the target wants in a linear layer.
        tick: progress of the stage that is running.

    Attributes:
        prune: what makes feed-forward layers thinner; None where none is asked for.
        sense: what measures what bits cost; None where bits are not mixed.
        quantize: what finds the codes.
        distil: what trains them; None where they are not trained.
        lower: runtime -> what writes its program.
        package: what writes a file for LiteRT-LM; None where none is asked for.
        scores: variant -> what scores it: fp32, pruned, the codes in torch, each program.
    """

    def __init__(self, recipe: Recipe, task: LanguageTask, store: Store, multiple: int, tick: Tick) -> None:
        self.recipe, self.language, self.task, self.store = recipe, recipe.language, task, store
        self.tick = tick
        self.machine = this_machine().to_dict()
        self.runtimes = tuple(str(name) for name in recipe.lower.runtimes)
        language: Language = self.language
        self.prune = self._prune(language.ffn, multiple) if language.ffn is not None else None
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

    def all(self) -> tuple[Stage, ...]:
        """In running order."""
        codes = (self.prune, self.sense, self.quantize, self.distil)
        stages = (*codes, *self.lower.values(), self.package, *self.scores.values())
        return tuple(stage for stage in stages if stage is not None)

    @property
    def codes(self) -> Stage:
        """The stage whose codes the programs hold."""
        return self.distil or self.quantize

    def path(self, stage: Stage) -> Path:
        """The folder of a stage's artefact, which must have run."""
        return stored(self.store, stage)

    def program(self, runtime: str) -> bytes:
        """What a runtime reads."""
        return (self.path(self.lower[runtime]) / "program").read_bytes()

    def facts(self) -> Mapping[str, Any]:
        """What was counted of the codes: bytes, bits, weights."""
        found: dict[str, Any] = read_json(self.path(self.codes) / COUNTS)
        return found

    def history(self) -> Mapping[str, Any] | None:
        """What training the codes gave; None where they are not trained."""
        return read_json(self.path(self.distil) / HISTORY) if self.distil else None

    def widths(self) -> Mapping[str, Any] | None:
        """Channels of the feed-forward layers before and after pruning, and what each layer lost."""
        return read_json(self.path(self.prune) / PLAN) if self.prune else None

    def score(self, variant: str) -> dict[str, float]:
        """Metric to value."""
        found: dict[str, float] = read_json(self.path(self.scores[variant]) / "score.json")
        return found

    def plain(self) -> nn.Module:
        """The network in full precision, pruned where the recipe says so."""
        network: nn.Module = self.task.network()
        if self.prune:
            from paredown.pipeline.compress.blockwise.ffn_network import read_thinner

            read_thinner(self.path(self.prune) / PRUNED, network)
        return network

    def network(self) -> nn.Module:
        """The network with its codes, and the floats that were learned with them."""
        from paredown.pipeline.compress.blockwise.codes import read_codes
        from paredown.pipeline.compress.blockwise.modules import put

        network, folder = self.plain(), self.path(self.codes)
        put(network, read_codes(folder / CODES), activation_bits=8)
        if (folder / FLOATS).exists():
            from safetensors.torch import load_file

            network.load_state_dict(load_file(folder / FLOATS), strict=False)
        return network

    # -- one of each -----------------------------------------------------------------------------------------

    def _sources(self) -> dict[str, str]:
        return {"weights": self.task.weights_hash(), "calibration": self.task.fingerprint("calibration")}

    def _inputs(self) -> dict[str, str]:
        """What stages that look at the network, pruned or not, and at the calibration texts start from."""
        return self._sources() | ({"prune": self.prune.key} if self.prune else {})

    def _prune(self, share: float, multiple: int) -> Stage:
        language, task = self.language, self.task
        multiple = math.lcm(multiple, language.block or 1)  # a row of `down` is cut into whole blocks

        def build(out: Path) -> None:
            from paredown.pipeline.compress.blockwise.ffn_network import write_thinner

            write_json(out / PLAN, write_thinner(out / PRUNED, task, share, multiple))

        params = PruneParams(
            task.network_id, share, multiple, language.calibration_tokens, language.window,
            package_version("torch"),
        )  # fmt: skip
        return Stage("prune", 1, params, self._sources(), build)

    def _sense(self) -> Stage:
        language = self.language

        def build(out: Path) -> None:
            from paredown.pipeline.compress.blockwise.codes import recipe_bits
            from paredown.pipeline.compress.blockwise.mixed_bits import measure_loss

            network = self.plain()
            bits = recipe_bits(self.task, network, language)
            write_json(out / SENSE, measure_loss(self.task, network, bits, language.block, self.tick))

        bits = {"linear": int(language.weight_bits), "embedding": int(language.embedding_bits)}
        params = SenseParams(
            bits, language.block, language.calibration_tokens, language.window, package_version("torch")
        )
        return Stage("sense", 1, params, self._inputs(), build)

    def _quantize(self) -> Stage:
        language, sense = self.language, self.sense
        wanted = language.model_dump(include=set(QUANTIZE_KEYS))

        def build(out: Path) -> None:
            from paredown.pipeline.compress.blockwise.codes import count, find_codes, recipe_bits, write_codes
            from paredown.pipeline.compress.blockwise.mixed_bits import mix

            network = self.plain()
            bits = recipe_bits(self.task, network, language)
            if sense is not None and language.weights_mib is not None:
                bits = mix(read_json(self.path(sense) / SENSE), bits, language.weights_mib)
            found = find_codes(self.task, network, language, bits, language.block, self.tick)
            write_codes(out / CODES, found)
            write_json(out / COUNTS, count(found))

        params = QuantizeParams(self.task.network_id, wanted, language.block, package_version("torch"))
        inputs = self._inputs() | ({"sense": sense.key} if sense else {})
        return Stage("quantize", 2, params, inputs, build)

    def _distil(self) -> Stage:
        language, quantize = self.language, self.quantize

        def build(out: Path) -> None:
            from safetensors.torch import save_file

            from paredown.pipeline.compress.blockwise.codes import count, read_codes, write_codes
            from paredown.pipeline.compress.blockwise.qat_training import train

            checkpoint = self.store.root / "checkpoints" / f"{stage.key}.pt"
            start = read_codes(self.path(quantize) / CODES)
            codes, found = train(self.task, self.plain(), start, language, checkpoint, self.tick)
            write_codes(out / CODES, codes)
            write_json(out / COUNTS, count(codes))
            save_file(dict(found.floats), out / FLOATS)
            history = {"baseline": found.baseline, "best": found.best, "best_step": found.best_step}
            write_json(out / HISTORY, history | {"history": [dict(row) for row in found.history]})
            checkpoint.unlink(missing_ok=True)

        wanted = language.model_dump(include=set(DISTIL_KEYS))
        params = DistilParams(wanted, package_version("torch"))
        inputs = {"codes": quantize.key, "train": self.task.fingerprint("train")}
        stage = Stage("distil", 1, params, inputs, build)
        return stage

    def _lower(self, name: str) -> Stage:
        def build(out: Path) -> None:
            (out / "program").write_bytes(self.task.lower(self.network(), name))

        package = {"executorch": "executorch", "litert": "litert-torch"}[name]
        params = LowerParams(name, package_version(package), self.language.context, self.language.chunk)
        return Stage(f"lower-{name}", 2, params, {"codes": self.codes.key}, build)

    def _package(self) -> Stage:
        def build(out: Path) -> None:
            (out / LITERTLM).write_bytes(self.task.litertlm(self.network()))

        version = package_version("litert-lm-builder")
        params = LowerParams("litertlm", version, self.language.context, self.language.chunk)
        return Stage("litertlm", 1, params, {"codes": self.codes.key}, build)

    def _score(self, variant: str, source: Stage | None) -> Stage:
        def build(out: Path) -> None:
            if source is not None and source in self.lower.values():
                predict = self.task.open(self.program(variant), variant, self.recipe.bench.threads)
            elif source is None:
                predict = self.task.predict(self.task.network())
            else:
                predict = self.task.predict(self.plain() if source is self.prune else self.network())
            write_json(out / "score.json", self.task.score(predict, self.tick))

        language: Language = self.language
        params = ScoreParams(variant, language.window, language.test_tokens, self.machine)
        inputs = {"test": self.task.fingerprint("test"), "weights": self.task.weights_hash()}
        inputs |= {"source": source.key} if source is not None else {}
        return Stage(f"score-{variant}", 1, params, inputs, build)
