"""SQuantizer as a stage of a run: a trained network in, a graph of whole numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.calibration.datasets import First
from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.recipe.task import Task
from paredown.pipeline.run.image.prune_stages import PruneStages
from paredown.pipeline.store.files import read_json, stored, write_graph, write_json
from paredown.pipeline.store.stage import Stage
from paredown.pipeline.store.store import Store
from paredown.targets.host.host import package_version

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paredown.calibration.datasets import Dataset
    from paredown.pipeline.compress.allocate.allocate import Allocation
    from paredown.pipeline.compress.squantize.qat_network import LayerPlan, LiveNetwork
    from paredown.pipeline.compress.training.recover import Recovered
    from paredown.pipeline.graph.graph import Graph

HISTORY = "history.json"
LATENT = "latent.safetensors"
CLIP_IMAGES = 64
ROUND_IMAGES = 512


@dataclass(frozen=True)
class SquantizeParams:
    """Everything that the pass depends on, beside the network and the data."""

    settings: Mapping[str, Any]
    images: int
    held_out_seed: int
    shape: tuple[int, ...]
    preprocess: str
    smoke: bool
    torch: str


class SquantizeStages:
    """Makes the stage.

    Args:
        recipe: resolved.
        task: of its app.
        store: where inputs of the stage are found when it runs.
        pruning: has the training data, and the pruned network where there is one.
        smoke: handfuls of samples.
        tick: progress.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        store: Store,
        pruning: PruneStages,
        smoke: bool,
        tick: Callable[[int, int], None],
    ) -> None:
        self.recipe, self.task, self.store = recipe, task, store
        self.pruning, self.smoke, self.tick = pruning, smoke, tick
        self.allocation: Allocation | None = None
        self.squantize = self._squantize()

    def history(self) -> dict[str, Any]:
        """How training went, and what became of each layer."""
        history: dict[str, Any] = read_json(stored(self.store, self.squantize) / HISTORY)
        return history

    def latent_file(self) -> Path:
        """The float weights behind the codes, with batch norm, for the user's own module."""
        return stored(self.store, self.squantize) / LATENT

    def state_bytes(self) -> int:
        """Bytes of the original network's float32 state dict."""
        state = self.task.network().state_dict()
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    def _network(self) -> nn.Module:
        return self.pruning.network() if self.recipe.prune.active else self.task.network()

    def _squantize(self) -> Stage:
        pruning, wanted = self.pruning, self.recipe.squantize
        before = pruning.trace if self.recipe.prune.active else pruning.original
        images = min(self.recipe.prune.images, len(pruning.data))
        params = SquantizeParams(
            wanted.settings(), images, self.recipe.recover.seed, pruning.shape, pruning.preprocess.hash,
            self.smoke, package_version("torch"),
        )  # fmt: skip

        def build(out: Path) -> None:
            from paredown.pipeline.compress.coupling.surgery import save_pruned
            from paredown.pipeline.compress.squantize.fold import fold
            from paredown.pipeline.compress.squantize.qat_network import unclipped

            checkpoint = self.store.root / "checkpoints" / f"{stage.key}.pt"
            live, result, measure = self._train(checkpoint)
            graph = fold(live, pruning.shape)
            write_graph(out, *graph.dump())
            write_json(out / "size.json", {"macs": graph.macs, "parameters": graph.parameters})
            save_pruned(live.network, out / LATENT)
            write_json(
                out / HISTORY,
                {
                    "measure": measure, **result.facts(),
                    "allocation": self.allocation.to_dict() if self.allocation else None,
                    "plans": {name: asdict(plan) for name, plan in live.plans.items()},
                    "int8_activations": list(unclipped(graph)) if (wanted.activation_bits or 8) < 8 else [],
                },
            )  # fmt: skip
            checkpoint.unlink(missing_ok=True)

        inputs = {"network": before.key, "data": pruning.data.fingerprint()}
        stage = Stage("squantize", 4, params, inputs, build)
        return stage

    def _train(self, checkpoint: Path) -> tuple[LiveNetwork, Recovered, str]:
        from paredown.pipeline.compress.squantize.gptq_init import round_weights
        from paredown.pipeline.compress.squantize.layer_plans import layer_plans, schedule
        from paredown.pipeline.compress.squantize.qat_network import LiveNetwork, check_clips
        from paredown.pipeline.compress.training.data import preprocessed
        from paredown.pipeline.compress.training.recover import Recovered
        from paredown.pipeline.compress.training.setup import Lesson
        from paredown.pipeline.graph.trace import trace

        pruning, wanted = self.pruning, self.recipe.squantize
        training, held_out = pruning.held_out()
        lesson = Lesson(
            wanted, self.task, pruning.graph(), training, held_out, pruning.truth, checkpoint, self.smoke,
            self.tick,
        )  # fmt: skip
        network = self._network()
        graph = trace(network, pruning.shape)
        bits = wanted.activation_bits
        check_clips(graph, bits or 8)
        plans = layer_plans(wanted, graph, network)
        rounding = None
        if wanted.rounding == "gptq":
            rounding = preprocessed(First(training, ROUND_IMAGES), self.task.preprocess)
        if wanted.bytes is not None or wanted.accuracy_drop is not None:
            self.allocation = self._choose_bits(network, graph, plans, held_out, rounding)
            plans = layer_plans(wanted, graph, network, self.allocation.widths)
        steps = schedule(wanted, lesson.steps)
        live = LiveNetwork(network, graph, plans, bits, steps, wanted.norm == "live")
        if rounding is not None:
            round_weights(live, rounding)
        if bits:
            live.start_clips(preprocessed(First(training, CLIP_IMAGES), self.task.preprocess))
        measure, evaluate = lesson.judge()
        if not wanted.epochs:
            value = evaluate(live.eval())
            return live, Recovered(live, (), value, value, 0, 0, False), measure
        result = lesson.teach(live, evaluate)
        return result.network, result, measure  # type: ignore[return-value]

    def _choose_bits(
        self,
        network: nn.Module,
        graph: Graph,
        plans: Mapping[str, LayerPlan],
        held_out: Dataset,
        rounding: Tensor | None,
    ) -> Allocation:
        """Bits per layer for the recipe's budget, by the held-out training images.

        Within bytes, layers are weighed by how far they move the outputs, where a metric of a few hundred
        images would see no difference at all. A tolerated drop is one of the metric.
        """
        from paredown.pipeline.compress.squantize.bits import CHOICES, choose_bits, measure_bits, packed_bytes
        from paredown.pipeline.compress.training.data import nearness, preprocessed, run_graph
        from paredown.pipeline.compress.training.setup import AGREEMENT

        wanted, pruning = self.recipe.squantize, self.pruning
        assert wanted.weight_bits is not None
        inputs = preprocessed(held_out, self.task.preprocess)
        choices = tuple(bits for bits in CHOICES if bits <= wanted.weight_bits)
        if wanted.bytes is not None:
            metric, score, resolution = AGREEMENT, nearness(self.task, run_graph(graph, inputs)), 0.0
        else:
            truth = pruning.truth(held_out, run_graph(pruning.graph(), inputs))
            metric, score, resolution = self.task.metric, pruning.score(truth), None
        found, sizes = measure_bits(
            network, graph, plans, inputs, score, metric, self.tick, choices, rounding
        )
        others = [n for n in graph if n.weight is not None and n.parameters.get("weight") not in plans]
        rest = sum(packed_bytes(node) for node in others)
        return choose_bits(
            found, sizes, rest, limit=wanted.bytes, tolerance=wanted.accuracy_drop, resolution=resolution
        )
