"""The stages of pruning: sense -> prune -> recover -> trace-pruned.

Everything is chosen by images of the training split that recovery does not train on; the test split is never
looked at. What comes out is a plain thinner network, a state dict and its trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paredown.calibration.datasets import Dataset, First
from paredown.pipeline.recipe.task import Task
from paredown.pipeline.run.image.read import graph_in, write_traced
from paredown.pipeline.run.image.split import TRAINING_IMAGES, TrainingSplit
from paredown.pipeline.run.job import Settings
from paredown.pipeline.run.params import TraceParams, processes
from paredown.pipeline.store.event import Event
from paredown.pipeline.store.files import read_json, write_json
from paredown.pipeline.store.stage import OPTIONAL, Inputs, Stage, stored
from paredown.pipeline.store.store import file_hash
from paredown.targets.cards.card import ChannelMultiple
from paredown.targets.host.host import package_version
from paredown.targets.host.tools import lacks

if TYPE_CHECKING:
    from torch import nn

    from paredown.pipeline.compress.allocate.allocate import Allocation
    from paredown.pipeline.compress.allocate.cost import Cost
    from paredown.pipeline.compress.coupling.flow import Group
    from paredown.pipeline.compress.sensitivity.meter import Meter
    from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity
    from paredown.pipeline.graph.graph import Graph

SMOKE_WIDTHS = 3
SENSE, PLAN, NETWORK, HISTORY, PLOT = (
    "sensitivity.json", "plan.json", "network.safetensors", "history.json", "sensitivity.png",
)  # fmt: skip


@dataclass(frozen=True)
class ChannelSenseParams:
    """What is measured, on how many images, and for which budget; without one, every point."""

    criterion: str
    images: int
    widths: int
    multiple: Mapping[str, int]
    seed: int
    preprocess: str
    torch: str
    budget: str | None = None
    limit: float | None = None
    runtime: str | None = None
    table: str | None = None
    machine: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ChannelPruneParams:
    """How the thinner network is made."""

    reconstruct: bool


@dataclass(frozen=True)
class RecoverParams:
    """How accuracy is won back, and how many weights become zero meanwhile."""

    settings: Mapping[str, Any]
    weight_sparsity: float
    images: int
    preprocess: str
    smoke: bool
    torch: str
    processes: int | None = field(default=None, metadata=OPTIONAL)


class PruneStages:
    """Makes the stages of pruning; keys are known before anything runs.

    Args:
        settings: of the run.
        task: of the recipe's app.
        training: its images.
        original: the stage that traces the original network.
        machine: whose latency a table holds.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        training: TrainingSplit,
        original: Stage,
        machine: Mapping[str, Any],
    ) -> None:
        self.recipe, self.store, self.target = settings.recipe, settings.store, settings.target
        self.smoke, self.tell, self.tick = settings.smoke, settings.tell, settings.tick
        self.task, self.training, self.original, self.machine = task, training, original, machine
        self.sense = self._sense(self.recipe.prune.budget)
        self.curves = self._sense(None)
        self.prune = self._prune()
        self.recover = self._recover()
        self.trace = self._trace()

    # -- reading what the stages made ------------------------------------------------------------------------

    def groups(self) -> tuple[tuple[Group, ...], Graph]:
        """The original's groups, and its graph."""
        from paredown.pipeline.compress.coupling.trial import couple_on_trial

        graph = graph_in(stored(self.store, self.original))
        return couple_on_trial(self.task.network(), graph), graph

    def sensitivity(self) -> Sensitivity:
        """What the stage of whole curves measured."""
        from paredown.pipeline.compress.sensitivity.sensitivity import Sensitivity

        return Sensitivity.from_dict(read_json(stored(self.store, self.curves) / SENSE)["sensitivity"])

    def plan(self) -> dict[str, Any]:
        """What the prune stage decided: `allocation` (None without a budget) and `kept`."""
        plan: dict[str, Any] = read_json(stored(self.store, self.prune) / PLAN)
        return plan

    def pruned(self) -> nn.Module:
        """The cut network, before recovery."""
        return self._network(self.prune)

    def network(self) -> nn.Module:
        """The recovered network."""
        return self._network(self.recover)

    def _network(self, stage: Stage) -> nn.Module:
        from paredown.pipeline.compress.coupling.surgery import load_pruned

        return load_pruned(self.task.network(), stored(self.store, stage) / NETWORK)

    def history(self) -> dict[str, Any]:
        """How recovery went."""
        history: dict[str, Any] = read_json(stored(self.store, self.recover) / HISTORY)
        return history

    # -- the stages ----------------------------------------------------------------------------------------

    def _sense(self, budget: tuple[str, float] | None) -> Stage:
        """Measures what a budget asks for, and allocates; without one, every point of every curve."""
        prune = self.recipe.prune
        kinds = self.target.channel_multiple.model_dump()
        name, limit = budget or (None, None)
        counted = (prune.runtime or self.recipe.lower.runtimes[0]) if name == "latency" else None
        table = Path(prune.latency_table) if counted and prune.latency_table else None
        params = ChannelSenseParams(
            prune.criterion, self.training.held_out_images, SMOKE_WIDTHS if self.smoke else prune.widths,
            {kind: prune.multiple or value for kind, value in kinds.items()},
            self.recipe.recover.seed, self.training.preprocess.hash, package_version("torch"),
            name, limit, counted, file_hash(table) if table else None, self.machine if counted else None,
        )  # fmt: skip

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.allocate.cost import group_widths
            from paredown.pipeline.compress.coupling.trial import couple_on_trial
            from paredown.pipeline.compress.sensitivity.chart import plot
            from paredown.pipeline.compress.sensitivity.experiment import Experiment
            from paredown.pipeline.compress.sensitivity.meter import Meter
            from paredown.pipeline.compress.sensitivity.ranking import ranking
            from paredown.pipeline.compress.training.data import preprocessed, run_graph

            graph = graph_in(inputs["trace"])
            groups = couple_on_trial(self.task.network(), graph)
            training, held_out = self.training.held_out()
            images = preprocessed(held_out, self.training.preprocess)
            outputs = run_graph(graph, images)
            truth, order = self.training.telling_first(self.training.truth(held_out, outputs), outputs)
            importance = self._importance(graph, groups, training)
            multiple = ChannelMultiple(**params.multiple)
            widths = {
                group.name: group_widths(graph, group, multiple, params.widths)
                for group in groups
                if not group.locked
            }
            asked = Experiment(
                graph, groups, ranking(importance), widths, images.numpy()[order], self.training.score(truth),
                self.task.metric, self.training.best_case(truth), self.tick,
            )  # fmt: skip
            meter = Meter(asked)
            scores = {name: [float(v) for v in values] for name, values in importance.items()}
            allocation = None
            if budget is None:
                meter.ask(meter.everything())
            else:
                cost = self._cost(graph, groups, budget[0], table, widths)
                allocation = _allocation(groups, meter, widths, scores, cost, budget, len(images)).to_dict()
            found = meter.found()
            made = {"sensitivity": found.to_dict(), "importance": scores, "allocation": allocation}
            write_json(out / SENSE, made)
            if missing := lacks("matplotlib", f"{PLOT}, the plot,"):
                self.tell(Event("sense", "running", detail=missing))
            else:
                plot(found, groups, graph, out / PLOT)

        return Stage(
            "sense", 4, params, {"trace": self.original, "data": self.training.data.fingerprint()}, build
        )

    def _importance(self, graph: Graph, groups: tuple[Group, ...], training: Dataset) -> dict[str, Any]:
        from paredown.pipeline.compress.sensitivity import ranking
        from paredown.pipeline.compress.training.data import labelled_batches

        if self.recipe.prune.criterion == "norm":
            return ranking.norm(graph, groups)
        if self.recipe.prune.criterion == "activation":
            return ranking.activation(graph, groups, self.training.inputs(training).split(32))
        found = labelled_batches(self.task, graph, First(training, TRAINING_IMAGES))
        return ranking.taylor(graph, groups, found, self.task.loss)

    def _prune(self) -> Stage:
        prune = self.recipe.prune

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.coupling.reconstruct import reconstruct
            from paredown.pipeline.compress.coupling.surgery import cut, save_pruned
            from paredown.pipeline.compress.coupling.trial import couple_on_trial

            graph, network = graph_in(inputs["trace"]), self.task.network()
            groups = couple_on_trial(network, graph)
            allocation, kept = _kept(groups, inputs.get("sensitivity"))
            smaller = cut(network, graph, groups, kept) if kept else network
            if kept:
                images = self.training.inputs(self.training.held_out()[0])
                if prune.reconstruct:
                    reconstruct(smaller, graph, groups, kept, images, self.recipe.recover.seed)
                else:
                    from paredown.pipeline.compress.training.bn_recalibration import recalibrate

                    recalibrate(smaller, images.split(32))
            save_pruned(smaller, out / NETWORK)
            write_json(out / PLAN, {"allocation": allocation, "kept": kept})

        inputs: dict[str, Stage | str] = {"trace": self.original, "weights": self.task.weights_hash()}
        if prune.budget is not None:
            inputs["sensitivity"] = self.sense
        return Stage("prune", 2, ChannelPruneParams(prune.reconstruct), inputs, build)

    def _cost(
        self,
        graph: Graph,
        groups: tuple[Group, ...],
        name: str,
        table: Path | None,
        choices: Mapping[str, Sequence[int]],
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
            self.training.held_out_images, self.training.preprocess.hash, self.smoke,
            package_version("torch"), processes(),
        )  # fmt: skip

        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.coupling.surgery import load_pruned, save_pruned
            from paredown.pipeline.compress.training.recovery import recovered
            from paredown.pipeline.compress.training.setup import TrainingSetup

            training, held_out = self.training.held_out()
            student = load_pruned(self.task.network(), inputs["network"] / NETWORK)
            checkpoint = self.store.root / "checkpoints" / f"{stage.key}.pt"
            wanted = self.recipe.recover
            setup = TrainingSetup(
                wanted, self.task, graph_in(inputs["trace"]), training, held_out, self.training.truth,
                checkpoint, self.smoke,
                self.tick,
            )  # fmt: skip
            sparsity, kept = self.recipe.prune.weight_sparsity, read_json(inputs["network"] / PLAN)["kept"]
            result, measure = recovered(setup, student, kept, sparsity, wanted.feature_weight)
            save_pruned(result.network, out / NETWORK)
            write_json(
                out / HISTORY,
                {
                    "measure": measure, **result.facts(),
                    "sparsity": [asdict(layer) for layer in result.sparsity],
                },
            )  # fmt: skip
            checkpoint.unlink(missing_ok=True)

        inputs: dict[str, Stage | str] = {"network": self.prune, "data": self.training.fingerprint}
        stage = Stage("recover", 4, params, inputs, build, {"trace": self.original})
        return stage

    def _trace(self) -> Stage:
        def build(out: Path, inputs: Inputs) -> None:
            from paredown.pipeline.compress.coupling.surgery import load_pruned
            from paredown.pipeline.graph.trace import trace

            network = load_pruned(self.task.network(), inputs["network"] / NETWORK)
            write_traced(out, trace(network, self.training.shape))

        params = TraceParams(self.training.shape, package_version("torch"))
        return Stage("trace-pruned", 2, params, {"network": self.recover}, build)


def _allocation(
    groups: Sequence[Group],
    meter: Meter,
    widths: Mapping[str, Sequence[int]],
    importance: Mapping[str, Sequence[float]],
    cost: Cost,
    budget: tuple[str, float],
    images: int,
) -> Allocation:
    """The widths for a budget, by as few points as it takes."""
    from paredown.pipeline.compress.allocate.lazy import allocate_lazily

    name, limit = budget
    wanted = {"tolerance": limit} if name == "accuracy_drop" else {"limit": limit}
    return allocate_lazily(
        groups, widths, meter.ask, cost, importance=importance, resolution=1 / images, **wanted
    )


def _kept(
    groups: Sequence[Group], sensed: Path | None
) -> tuple[dict[str, Any] | None, dict[str, tuple[int, ...]]]:
    """The allocation as JSON has it, and the units that stay; neither without a budget."""
    import numpy as np

    from paredown.pipeline.compress.sensitivity.ranking import keep, ranking

    if sensed is None:
        return None, {}
    found = read_json(sensed / SENSE)
    ranks = ranking({group: np.array(values) for group, values in found["importance"].items()})
    widths = found["allocation"]["widths"]
    return found["allocation"], keep(
        ranks, {g.name: widths[g.name] for g in groups if widths[g.name] < g.units}
    )
