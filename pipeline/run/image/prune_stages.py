"""The stages of pruning: sense -> prune -> recover -> trace-pruned.

Everything is chosen by images of the training split that recovery does not train on; the test split is never
looked at. What comes out is a plain thinner network, a state dict and its trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paredown.calibration.datasets import Dataset, First
from paredown.pipeline.recipe.schema import EMBEDDED, Recipe
from paredown.pipeline.recipe.task import Outputs, Task
from paredown.pipeline.store.files import read_graph, read_json, set_threads, stored, write_graph, write_json
from paredown.pipeline.store.stage import Stage
from paredown.pipeline.store.store import Store, file_hash
from paredown.targets.cards.card import ChannelMultiple, Target
from paredown.targets.errors import InputError
from paredown.targets.host.host import package_version

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paredown.pipeline.compress.allocate.cost import Cost
    from paredown.pipeline.compress.coupling.flow import Group
    from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
    from paredown.pipeline.graph.graph import Graph

HELD_OUT_SHARE = 0.25  # of the training images at most
TRAINING_BATCHES = 8  # of ranking and reconstruction, 32 images each
SMOKE_HELD_OUT, SMOKE_TRAIN, SMOKE_WIDTHS = 4, 16, 3
SENSE, PLAN, NETWORK, HISTORY, PLOT = (
    "sensitivity.json", "plan.json", "network.safetensors", "history.json", "sensitivity.png",
)  # fmt: skip


@dataclass(frozen=True)
class SenseParams:
    """What is measured, on how many images."""

    criterion: str
    images: int
    widths: int
    hopeless: float
    flat: float
    multiple: Mapping[str, int]
    seed: int
    preprocess: str
    torch: str


@dataclass(frozen=True)
class PruneParams:
    """The budget, and how the thinner network is made."""

    budget: str | None
    limit: float | None
    runtime: str | None
    table: str | None
    reconstruct: bool
    machine: Mapping[str, Any] | None


@dataclass(frozen=True)
class RecoverParams:
    """How accuracy is won back, and how many weights become zero meanwhile."""

    settings: Mapping[str, Any]
    weight_sparsity: float
    images: int
    preprocess: str
    smoke: bool
    torch: str


@dataclass(frozen=True)
class TraceParams:
    """What traces the pruned network."""

    shape: tuple[int, ...]
    torch: str


class PruneStages:
    """Makes the stages of pruning; keys are known before anything runs.

    Args:
        recipe: resolved.
        task: of its app.
        store: where inputs of a stage are found when it runs.
        target: whose channel multiples and latency count.
        original: the stage that traces the original network.
        machine: whose latency a table holds.
        smoke: handfuls of samples everywhere.
        tick: progress of the stage that is running.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        store: Store,
        target: Target,
        original: Stage,
        machine: Mapping[str, Any],
        smoke: bool,
        tick: Callable[[int, int], None],
    ) -> None:
        self.recipe, self.task, self.store, self.target = recipe, task, store, target
        self.original, self.machine, self.smoke, self.tick = original, machine, smoke, tick
        split_name = "train" if recipe.data.train or recipe.data.format == EMBEDDED else "calibration"
        data = task.data(split_name)
        self.data: Dataset = First(data, SMOKE_TRAIN) if smoke else data
        self.preprocess = task.preprocess
        self.shape = (1, self.preprocess.channels, self.preprocess.height, self.preprocess.width)
        self.sense = self._sense()
        self.prune = self._prune()
        self.recover = self._recover()
        self.trace = self._trace()

    def all(self) -> tuple[Stage, ...]:
        """The stages, in running order."""
        sense = (self.sense,) if self.recipe.prune.budget else ()
        return (*sense, self.prune, self.recover, self.trace)

    # -- reading what earlier stages made ------------------------------------------------------------------

    def graph(self) -> Graph:
        """The traced original, with the names of its parameters."""
        from paredown.pipeline.graph.graph import Graph

        folder = stored(self.store, self.original)
        set_threads(folder)
        return Graph.load(*read_graph(folder))

    def groups(self) -> tuple[tuple[Group, ...], Graph]:
        """The original's groups, and its graph."""
        from paredown.pipeline.compress.coupling.coupling import couple

        graph = self.graph()
        return couple(graph), graph

    def sensitivity(self) -> Sensitivity:
        """What the sense stage measured."""
        from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity

        return Sensitivity.from_dict(read_json(stored(self.store, self.sense) / SENSE)["sensitivity"])

    def plan(self) -> dict[str, Any]:
        """What the prune stage decided: `allocation` (None without a budget) and `kept`."""
        plan: dict[str, Any] = read_json(stored(self.store, self.prune) / PLAN)
        return plan

    def history(self) -> dict[str, Any]:
        """How recovery went."""
        history: dict[str, Any] = read_json(stored(self.store, self.recover) / HISTORY)
        return history

    def network_file(self) -> Path:
        """The recovered network's weights."""
        return stored(self.store, self.recover) / NETWORK

    def pruned(self) -> nn.Module:
        """The cut network, before recovery."""
        from paredown.pipeline.compress.coupling.surgery import load_pruned

        return load_pruned(self.task.network(), stored(self.store, self.prune) / NETWORK)

    def network(self) -> nn.Module:
        """The recovered network."""
        from paredown.pipeline.compress.coupling.surgery import load_pruned

        return load_pruned(self.task.network(), self.network_file())

    # -- data ----------------------------------------------------------------------------------------------

    def held_out(self) -> tuple[Dataset, Dataset]:
        """The images to train on, and those held out."""
        from paredown.pipeline.compress.training.data import split

        most = SMOKE_HELD_OUT if self.smoke else self.recipe.prune.images
        return split(self.data, HELD_OUT_SHARE, self.recipe.recover.seed, most)

    def truth(self, held_out: Dataset, outputs: Outputs) -> Dataset:
        """The held-out images with labels: their own, else what the original network says.

        Raises:
            InputError: they show one class only, by which nothing can be told apart.
        """
        truth = self.task.pseudo_labelled(outputs, held_out)
        seen = {int(c) for i in range(len(truth)) for c in truth[i].classes}
        if len(seen) < 2 <= len(truth.names):
            shown = f"only class {truth.names[seen.pop()]!r}" if seen else "no object at all"
            raise InputError(
                f"the {len(truth)} held-out training images show {shown}: a score on them says nothing",
                where="recipe, key data.train",
                hint="shuffle or extend the training images, or hold out more with prune.images",
            )
        return truth

    def score(self, truth: Dataset) -> Callable[[Outputs], tuple[float, float, float]]:
        """The metric with its interval, on these images."""

        def metric(outputs: Outputs) -> tuple[float, float, float]:
            value = self.task.score_outputs(outputs, truth)[self.task.metric]
            return (value, *self.task.interval(outputs, truth))

        return metric

    def _training_inputs(self, training: Dataset) -> Tensor:
        from paredown.pipeline.compress.training.data import preprocessed

        return preprocessed(First(training, 32 * TRAINING_BATCHES), self.preprocess)

    # -- the stages ----------------------------------------------------------------------------------------

    def _sense(self) -> Stage:
        prune = self.recipe.prune
        kinds = self.target.channel_multiple.model_dump()
        params = SenseParams(
            prune.criterion, min(prune.images, len(self.data)), SMOKE_WIDTHS if self.smoke else prune.widths,
            prune.hopeless, prune.flat, {kind: prune.multiple or value for kind, value in kinds.items()},
            self.recipe.recover.seed, self.preprocess.hash, package_version("torch"),
        )  # fmt: skip

        def build(out: Path) -> None:
            from paredown.pipeline.compress.allocate.cost import group_widths
            from paredown.pipeline.compress.coupling.coupling import couple
            from paredown.pipeline.compress.sensitivity.chart import plot
            from paredown.pipeline.compress.sensitivity.ranking import ranking
            from paredown.pipeline.compress.sensitivity.sensitivity import measure
            from paredown.pipeline.compress.training.data import preprocessed, run_graph

            graph = self.graph()
            groups = couple(graph)
            training, held_out = self.held_out()
            inputs = preprocessed(held_out, self.preprocess)
            truth = self.truth(held_out, run_graph(graph, inputs))
            importance = self._importance(graph, groups, training)
            multiple = ChannelMultiple(**params.multiple)
            widths = {
                group.name: group_widths(graph, group, multiple, params.widths)
                for group in groups
                if not group.locked
            }
            found = measure(
                graph, groups, ranking(importance), widths, inputs.numpy(), self.score(truth),
                self.task.metric, hopeless=params.hopeless, flat=params.flat, tick=self.tick,
            )  # fmt: skip
            scores = {name: [float(v) for v in values] for name, values in importance.items()}
            write_json(out / SENSE, {"sensitivity": found.to_dict(), "importance": scores})
            plot(found, groups, graph, out / PLOT, hopeless=params.hopeless)

        inputs = {"trace": self.original.key, "data": self.data.fingerprint()}
        return Stage("sense", 2, params, inputs, build)

    def _importance(self, graph: Graph, groups: tuple[Group, ...], training: Dataset) -> dict[str, Any]:
        from paredown.pipeline.compress.sensitivity import ranking
        from paredown.pipeline.compress.training.data import labelled_batches

        if self.recipe.prune.criterion == "norm":
            return ranking.norm(graph, groups)
        if self.recipe.prune.criterion == "activation":
            return ranking.activation(graph, groups, self._training_inputs(training).split(32))
        found = labelled_batches(self.task, graph, First(training, 32 * TRAINING_BATCHES))
        return ranking.taylor(graph, groups, found, self.task.loss)

    def _prune(self) -> Stage:
        prune = self.recipe.prune
        name, limit = prune.budget or (None, None)
        counted = (prune.runtime or self.recipe.lower.runtimes[0]) if name == "latency" else None
        table = Path(prune.latency_table) if counted and prune.latency_table else None
        params = PruneParams(
            name, limit, counted, file_hash(table) if table else None, prune.reconstruct,
            self.machine if counted else None,
        )  # fmt: skip

        def build(out: Path) -> None:
            from paredown.pipeline.compress.coupling.coupling import couple
            from paredown.pipeline.compress.coupling.reconstruct import reconstruct
            from paredown.pipeline.compress.coupling.surgery import cut, save_pruned

            graph, network = self.graph(), self.task.network()
            groups = couple(graph)
            allocation, kept = self._allocate(graph, groups, table)
            smaller = cut(network, graph, groups, kept) if kept else network
            if kept:
                inputs = self._training_inputs(self.held_out()[0])
                if prune.reconstruct:
                    reconstruct(smaller, graph, groups, kept, inputs, self.recipe.recover.seed)
                else:
                    from paredown.pipeline.compress.training.bn_recalibration import recalibrate

                    recalibrate(smaller, inputs.split(32))
            save_pruned(smaller, out / NETWORK)
            write_json(out / PLAN, {"allocation": allocation, "kept": kept})

        inputs = {"trace": self.original.key, "weights": self.task.weights_hash()}
        if name is not None:
            inputs["sensitivity"] = self.sense.key
        return Stage("prune", 1, params, inputs, build)

    def _allocate(
        self, graph: Graph, groups: tuple[Group, ...], table: Path | None
    ) -> tuple[dict[str, Any] | None, dict[str, tuple[int, ...]]]:
        """The allocation as JSON has it, and the units that stay; neither without a budget."""
        from paredown.pipeline.compress.allocate.allocate import allocate, predicted_losses
        from paredown.pipeline.compress.sensitivity.ranking import keep, ranking

        budget = self.recipe.prune.budget
        if budget is None:
            return None, {}
        import numpy as np

        scores = read_json(stored(self.store, self.sense) / SENSE)["importance"]
        sensitivity = self.sensitivity()
        losses = predicted_losses(sensitivity)
        name, limit = budget
        choices = {group: tuple(found) for group, found in losses.items()}
        cost = self._cost(graph, groups, name, table, choices)
        wanted = {"tolerance": limit} if name == "accuracy_drop" else {"limit": limit}
        found = allocate(groups, losses, cost, importance=scores, resolution=1 / sensitivity.images, **wanted)
        ranks = ranking({group: np.array(values) for group, values in scores.items()})
        thinner = {g.name: found.widths[g.name] for g in groups if found.widths[g.name] < g.units}
        return found.to_dict(), keep(ranks, thinner)

    def _cost(
        self,
        graph: Graph,
        groups: tuple[Group, ...],
        name: str,
        table: Path | None,
        choices: Mapping[str, tuple[int, ...]],
    ) -> Cost:
        from paredown.pipeline.compress.allocate.cost import counted
        from paredown.pipeline.device.latency.latency import latency, table_for

        if name != "latency":
            kind: Literal["macs", "bytes"] = "bytes" if name == "bytes" else "macs"
            return counted(graph, groups, kind)
        runtime = self.recipe.prune.runtime or self.recipe.lower.runtimes[0]
        times = table_for(self.target, runtime, self.store.root, file=table, tick=self.tick)
        return latency(graph, groups, times, choices)

    def _recover(self) -> Stage:
        params = RecoverParams(
            self.recipe.recover.settings(), self.recipe.prune.weight_sparsity,
            min(self.recipe.prune.images, len(self.data)), self.preprocess.hash, self.smoke,
            package_version("torch"),
        )  # fmt: skip

        def build(out: Path) -> None:
            from paredown.pipeline.compress.coupling.surgery import save_pruned
            from paredown.pipeline.compress.training.recovery import recovered
            from paredown.pipeline.compress.training.setup import Lesson

            training, held_out = self.held_out()
            student = self.pruned()
            checkpoint = self.store.root / "checkpoints" / f"{stage.key}.pt"
            wanted = self.recipe.recover
            lesson = Lesson(
                wanted, self.task, self.graph(), training, held_out, self.truth, checkpoint, self.smoke,
                self.tick,
            )  # fmt: skip
            sparsity = self.recipe.prune.weight_sparsity
            result, measure = recovered(lesson, student, self.plan()["kept"], sparsity, wanted.feature_weight)
            save_pruned(result.network, out / NETWORK)
            write_json(
                out / HISTORY,
                {
                    "measure": measure, **result.facts(),
                    "sparsity": [asdict(layer) for layer in result.sparsity],
                },
            )  # fmt: skip
            checkpoint.unlink(missing_ok=True)

        inputs = {"network": self.prune.key, "data": self.data.fingerprint()}
        stage = Stage("recover", 4, params, inputs, build)
        return stage

    def _trace(self) -> Stage:
        def build(out: Path) -> None:
            from paredown.pipeline.graph.trace import trace

            graph = trace(self.network(), self.shape)
            write_graph(out, *graph.dump())
            write_json(out / "size.json", {"macs": graph.macs, "parameters": graph.parameters})

        params = TraceParams(self.shape, package_version("torch"))
        return Stage("trace-pruned", 2, params, {"network": self.recover.key}, build)
