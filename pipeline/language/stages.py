"""The stages of a language model's run.

    quantize-RUNTIME -> lower-RUNTIME -> score-VARIANT -> bundle

Weights become codes once for every way in which a runtime stores them: ExecuTorch takes a scale per block,
LiteRT one per output channel. Scores of programs come from feeding them token by token, as a chat does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts import read_json, stored, write_json
from pipeline.language.task import LanguageTask
from pipeline.recipe import Language, Recipe
from pipeline.stage import Stage
from pipeline.store import Store
from targets.host import package_version, this_machine

CODES = "codes.safetensors"
SMOKE = {"calibration_tokens": 64, "test_tokens": 64, "window": 32, "rounding": "nearest"}
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class QuantizeParams:
    """How weights become codes."""

    network: Mapping[str, Any]
    language: Mapping[str, Any]
    block: int
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
    return recipe.model_copy(update={"language": recipe.language.model_copy(update=SMOKE)})


class LanguageStages:
    """Makes the stages of one run; keys are known before anything runs.

    Args:
        recipe: resolved.
        task: of the recipe's app.
        store: where inputs of a stage are found when it runs.
        tick: progress of the stage that is running.

    Attributes:
        quantize: runtime -> what finds its codes; the same stage where both store them alike.
        lower: runtime -> what writes its program.
        scores: variant -> what scores it: fp32, quantized networks in torch, programs.
    """

    def __init__(self, recipe: Recipe, task: LanguageTask, store: Store, tick: Tick) -> None:
        """Opens the texts."""
        self.recipe, self.language, self.task, self.store, self.tick = (
            recipe,
            recipe.language,
            task,
            store,
            tick,
        )
        self.machine = this_machine().to_dict()
        self.runtimes = tuple(str(name) for name in recipe.lower.runtimes)
        ways = {name: self.language.block if name == "executorch" else 0 for name in self.runtimes}
        made = {block: self._quantize(block) for block in dict.fromkeys(ways.values())}
        self.quantize = {name: made[block] for name, block in ways.items()}
        self.lower = {name: self._lower(name) for name in self.runtimes}
        self.scores = {"fp32": self._score("fp32", None)}
        self.scores |= {
            f"{name}-codes": self._score(f"{name}-codes", self.quantize[name]) for name in self.runtimes
        }
        self.scores |= {name: self._score(name, self.lower[name]) for name in self.runtimes}

    def all(self) -> tuple[Stage, ...]:
        """In running order."""
        quantize = tuple({stage.key: stage for stage in self.quantize.values()}.values())
        return (*quantize, *self.lower.values(), *self.scores.values())

    def path(self, stage: Stage) -> Path:
        """The folder of a stage's artefact, which must have run."""
        return stored(self.store, stage)

    def program(self, runtime: str) -> bytes:
        """What a runtime reads."""
        return (self.path(self.lower[runtime]) / "program").read_bytes()

    def facts(self, runtime: str) -> Mapping[str, Any]:
        """What was counted of a runtime's codes: bytes, bits, weights."""
        found: dict[str, Any] = read_json(self.path(self.quantize[runtime]) / "codes.json")
        return found

    def score(self, variant: str) -> dict[str, float]:
        """Metric to value."""
        found: dict[str, float] = read_json(self.path(self.scores[variant]) / "score.json")
        return found

    def network(self, quantize: Stage | None) -> Any:
        """The trained network, with the codes that a stage found."""
        network = self.task.network()
        if quantize is not None:
            from pipeline.blocks.modules import put
            from pipeline.language.codes import read_codes

            put(network, read_codes(self.path(quantize) / CODES), activation_bits=8)
        return network

    # -- one of each -----------------------------------------------------------------------------------------

    def _quantize(self, block: int) -> Stage:
        language, name = self.language, "quantize-blocks" if block else "quantize-rows"
        wanted = language.model_dump(exclude={"context", "chunk", "test_tokens", "block"})

        def build(out: Path) -> None:
            from pipeline.language.codes import count, find_codes, write_codes

            found = find_codes(self.task, language, block, self.tick)
            write_codes(out / CODES, found)
            write_json(out / "codes.json", count(found))

        params = QuantizeParams(self.task.network_id, wanted, block, package_version("torch"))
        inputs = {"weights": self.task.weights_hash(), "calibration": self.task.fingerprint("calibration")}
        return Stage(name, 1, params, inputs, build)

    def _lower(self, name: str) -> Stage:
        def build(out: Path) -> None:
            network = self.network(self.quantize[name])
            (out / "program").write_bytes(self.task.lower(network, name))

        package = {"executorch": "executorch", "litert": "litert-torch"}[name]
        params = LowerParams(name, package_version(package), self.language.context, self.language.chunk)
        return Stage(f"lower-{name}", 1, params, {"codes": self.quantize[name].key}, build)

    def _score(self, variant: str, source: Stage | None) -> Stage:
        def build(out: Path) -> None:
            if source is not None and source in self.lower.values():
                predict = self.task.open(self.program(variant), variant, self.recipe.bench.threads)
            else:
                predict = self.task.predict(self.network(source))
            write_json(out / "score.json", self.task.score(predict, self.tick))

        language: Language = self.language
        params = ScoreParams(variant, language.window, language.test_tokens, self.machine)
        inputs = {"test": self.task.fingerprint("test"), "weights": self.task.weights_hash()}
        inputs |= {"source": source.key} if source is not None else {}
        return Stage(f"score-{variant}", 1, params, inputs, build)
