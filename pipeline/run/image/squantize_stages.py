"""SQuantizer as a stage of a run: a trained network in, a graph of whole numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.pipeline.graph.alike import distinct
from paredown.pipeline.recipe.task import Task
from paredown.pipeline.run.image.prune_stages import NETWORK, PruneStages
from paredown.pipeline.run.image.read import graph_in, write_traced
from paredown.pipeline.run.image.split import TrainingSplit
from paredown.pipeline.run.job import Settings
from paredown.pipeline.run.params import processes
from paredown.pipeline.store.files import read_json, write_json
from paredown.pipeline.store.stage import OPTIONAL, Inputs, Stage, stored
from paredown.targets.host.host import package_version

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paredown.calibration.datasets import Dataset
    from paredown.pipeline.compress.allocate.allocate import Allocation
    from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
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
    weight_range: int | None = field(default=None, metadata=OPTIONAL)
    processes: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class _Trained:
    """What a pass gives: the network in codes, how it went, by which measure, and chosen bits if any."""

    live: QatNetwork
    result: Recovered
    measure: str
    allocation: Allocation | None


class SquantizeStages:
    """Makes the stage.

    Args:
        settings: of the run.
        task: of the recipe's app.
        training: its images.
        original: the stage that traces the original network.
        pruning: the stages that make the pruned one; None where nothing is pruned.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        training: TrainingSplit,
        original: Stage,
        pruning: PruneStages | None,
    ) -> None:
        self.recipe, self.store = settings.recipe, settings.store
        self.smoke, self.tick = settings.smoke, settings.tick
        self.task, self.training, self.original, self.pruning = task, training, original, pruning
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

    def _squantize(self) -> Stage:
        training, wanted = self.training, self.recipe.squantize
        before = self.pruning.trace if self.pruning else self.original
        params = SquantizeParams(
            wanted.settings(), training.held_out_images, self.recipe.recover.seed, training.shape,
            training.preprocess.hash, self.smoke, package_version("torch"), self.recipe.quantize.weight_range,
            processes(),
        )  # fmt: skip

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.coupling.surgery import load_pruned, save_pruned
            from paredown.pipeline.compress.squantize.fold import fold

            network = self.task.network()
            if "recovered" in inputs:
                network = load_pruned(network, inputs["recovered"] / NETWORK)
            checkpoint = self.store.root / "checkpoints" / f"{stage.key}.pt"
            trained = self._train(network, graph_in(inputs.get("original", inputs["network"])), checkpoint)
            live, result, allocation = trained.live, trained.result, trained.allocation
            graph = fold(live, training.shape)
            write_traced(out, graph)
            save_pruned(live.network, out / LATENT)
            write_json(
                out / HISTORY,
                {
                    "measure": trained.measure, **result.facts(),
                    "allocation": allocation.to_dict() if allocation else None,
                    "plans": {name: _told(plan) for name, plan in live.plans.items()},
                    "activations": live.grids(),
                    "int8_activations": list(live.kept) if (wanted.activation_bits or 8) < 8 else [],
                },
            )  # fmt: skip
            checkpoint.unlink(missing_ok=True)

        inputs: dict[str, Stage | str] = {"network": before, "data": training.fingerprint}
        reads = {"original": self.original, "recovered": self.pruning.recover} if self.pruning else {}
        # 5: activations of few bits anywhere, not behind a ReLU alone; 6: dead channels are zero. Where
        # neither is there the result is as it was.
        version = 6 if wanted.per == "channel" else 5 if (wanted.activation_bits or 8) < 8 else 4
        stage = Stage("squantize", version, params, inputs, build, reads)
        return stage

    def _train(self, network: nn.Module, original: Graph, checkpoint: Path) -> _Trained:
        """The pass over a network, pruned or not, taught by the original."""
        from paredown.pipeline.compress.grids.grid import TOP
        from paredown.pipeline.compress.squantize.clip_places import check_clips
        from paredown.pipeline.compress.squantize.gptq_init import round_weights
        from paredown.pipeline.compress.squantize.layer_plans import layer_plans, schedule
        from paredown.pipeline.compress.squantize.qat_network import QatNetwork
        from paredown.pipeline.compress.training.recover import Recovered
        from paredown.pipeline.compress.training.setup import TrainingSetup
        from paredown.pipeline.graph.trace import trace

        split, wanted = self.training, self.recipe.squantize
        training, held_out = split.held_out()
        setup = TrainingSetup(
            wanted, self.task, original, training, held_out, split.truth, checkpoint, self.smoke, self.tick
        )
        graph = trace(network, split.shape)
        bits, most = wanted.activation_bits, self.recipe.quantize.weight_range or TOP
        plans = layer_plans(wanted, graph, network, most=most)
        check_clips(graph, bits or 8, plans)
        rounding = split.inputs(training, ROUND_IMAGES) if wanted.rounding == "gptq" else None
        allocation = None
        if wanted.bytes is not None or wanted.accuracy_drop is not None:
            allocation = self._choose_bits(network, graph, original, plans, held_out, rounding)
            plans = layer_plans(wanted, graph, network, allocation.widths, most)
        steps = schedule(wanted, setup.steps)
        live = QatNetwork(network, graph, plans, bits, steps, wanted.norm == "live")
        if rounding is not None:
            round_weights(live, rounding)
        if bits:
            live.start_clips(split.inputs(training, CLIP_IMAGES))
        measure, evaluate = setup.evaluation()
        if not wanted.epochs:
            value = evaluate(live.eval())
            return _Trained(live, Recovered(live, (), value, value, 0, 0, False), measure, allocation)
        result = setup.train(live, evaluate)
        trained: QatNetwork = result.network  # type: ignore[assignment]
        return _Trained(trained, result, measure, allocation)

    def _choose_bits(
        self,
        network: nn.Module,
        graph: Graph,
        original: Graph,
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

        wanted, split = self.recipe.squantize, self.training
        assert wanted.weight_bits is not None
        inputs = preprocessed(held_out, self.task.preprocess)
        choices = tuple(bits for bits in CHOICES if bits <= wanted.weight_bits)
        if wanted.bytes is not None:
            metric, score, resolution = AGREEMENT, nearness(self.task, run_graph(graph, inputs)), 0.0
        else:
            truth = split.truth(held_out, run_graph(original, inputs))
            metric, score, resolution = self.task.metric, split.score(truth), None
        found, sizes = measure_bits(
            network, graph, plans, inputs, score, metric, self.tick, choices, rounding
        )
        others = [n for n in distinct(graph) if n.parameters.get("weight") not in plans]
        rest = sum(packed_bytes(node) for node in others)
        return choose_bits(
            found, sizes, rest, limit=wanted.bytes, tolerance=wanted.accuracy_drop, resolution=resolution
        )


def _told(plan: LayerPlan) -> dict[str, Any]:
    """A plan as the history has it; the largest code only where it is not 127."""
    told = asdict(plan)
    if told["config"]["top"] == 127:
        del told["config"]["top"]
    return told
