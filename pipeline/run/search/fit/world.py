"""What `paredown fit` measures with: candidates as jobs, through the stage store."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.run.image.packed.sample import sample_bytes
from paredown.pipeline.run.image.prune_stages import NETWORK
from paredown.pipeline.run.image.read import graph_in
from paredown.pipeline.run.job import BUNDLE, Settings
from paredown.pipeline.run.search.fit.held_out import TIMES, JudgingJob
from paredown.pipeline.run.search.fit.strategy import Candidate, Measured
from paredown.pipeline.run.search.sharing import Sharing
from paredown.pipeline.store.event import Event, Tell
from paredown.pipeline.store.files import read_json, set_threads
from paredown.pipeline.store.stage import Stage, plan, run_stage
from paredown.pipeline.store.store import Store
from paredown.targets.cards.card import ChannelMultiple, Target

if TYPE_CHECKING:
    from torch import nn

    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.recipe.schema import Squantize

COSTS = {"latency_ms": ("latency_p50", 1.0), "instructions_m": ("instructions", 1e-6)}


def recipe_for(recipe: Recipe, candidate: Candidate) -> Recipe:
    """A recipe that makes a candidate: its own settings of how to prune and train, and our choice."""
    prune = recipe.prune.model_copy(
        update={
            "macs": candidate.share, "latency": None, "bytes": None, "accuracy_drop": None,
            "weight_sparsity": 0.0,
        }
    )  # fmt: skip
    squantize = recipe.squantize.model_copy(
        update={
            "weight_bits": candidate.bits, "bytes": None, "accuracy_drop": None,
            **({} if candidate.bits is None else {"sparsity": candidate.zeros, "sigma": None}),
            **({} if candidate.bits is None else {"epochs": candidate.epochs * recipe.squantize.epochs}),
        }
    )  # fmt: skip
    recover = recipe.recover
    if candidate.share is not None:
        recover = recover.model_copy(update={"epochs": candidate.epochs * recover.epochs})
    return recipe.model_copy(update={"prune": prune, "squantize": squantize, "recover": recover})


class StoreWorld:
    """See `strategy.World`.

    Args:
        name: of the runs.
        recipe: resolved for the target.
        target: the card.
        store: of artefacts.
        limit: "latency_ms" or "instructions_m"; None where no time is asked for.
        device: that times; None likewise.
        seconds: for training; None = as long as it takes.
        smoke: handfuls of samples.
        tell: hears of events.
        tick: progress within a stage.

    Attributes:
        built: stages.
        reused: stages.
        slack: KiB that bundles were larger than predicted.
        sharing: with others that work in the same store.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        target: Target,
        store: Store,
        *,
        limit: str | None,
        device: str | None,
        seconds: float | None,
        smoke: bool,
        tell: Tell,
        tick: Any,
    ) -> None:
        self._name, self._recipe, self._target, self._store = name, recipe, target, store
        self.sharing = Sharing(store.root)
        self._limit, self._device, self._smoke = limit, device, smoke
        self._tell, self._tick = tell, tick
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        self._rate = 0.0  # seconds for the recipe's epochs, of the slowest candidate
        self._base: tuple[float, int, int] | None = None  # KiB; bytes of programs and of codes
        self._sizes: dict[Candidate, float] = {}
        self._there: set[str] = set()  # keys of stages that were reached
        self._untrained: dict[float | None, tuple[nn.Module, Graph]] = {}
        self.slack = 0.0
        self.built = self.reused = 0

    def floor(self) -> float:
        """See `World`."""
        from paredown.pipeline.compress.allocate.cost import counted, group_widths
        from paredown.pipeline.compress.coupling.trial import couple_on_trial

        job = self._job(Candidate())
        self._reach(job, [job.original])
        graph = job.graph(job.original)
        groups = couple_on_trial(job.task.network(), graph)
        kinds = self._target.channel_multiple.model_dump()
        prune = self._recipe.prune
        multiple = ChannelMultiple(**{kind: prune.multiple or value for kind, value in kinds.items()})
        least = {group.name: min(group_widths(graph, group, multiple, prune.widths)) for group in groups}
        return min(1.0, math.ceil(counted(graph, groups, "macs").share(least) * 1e4) / 1e4)

    def cost(self, share: float) -> float:
        """See `World`."""
        found = self._cost(self._job(Candidate(share)))
        assert found is not None
        return found

    def kib(self, candidate: Candidate) -> float:
        """See `World`; the bundle of int8 alone with other codes in it."""
        whole, _, codes = self._base_sizes()
        if candidate not in self._sizes:
            self._sizes[candidate] = whole + (self._codes(candidate) - codes) / 1024
        return self._sizes[candidate] + (self.slack if candidate.trains else 0.0)

    def judge(self, candidate: Candidate) -> Measured:
        """See `World`."""
        job, began, built = self._job(candidate), time.monotonic(), self.built
        scored = [job.scores[name] for name in ("fp32", *job.runtimes)]
        self._reach(job, scored)
        if candidate.epochs and self.built > built:
            self._rate = max(self._rate, (time.monotonic() - began) / candidate.epochs)
        values = [read_json(job.path(stage) / "score.json")[job.metric.name] for stage in scored]
        drop = max(job.metric.drop(values[0], value) for value in values[1:])
        if candidate.trains:
            whole, programs, _ = self._base_sizes()
            size = whole + (_packed(job) - programs) / 1024 + self.slack
        else:
            size = self._base_sizes()[0]
        return Measured(candidate, drop, self._cost(job), size)

    def bundle(self, candidate: Candidate) -> float:
        """KiB of a candidate's bundle, made."""
        job = self._job(candidate)
        self._reach(job, [job.bundle])
        return (job.path(job.bundle) / BUNDLE).stat().st_size / 1024 + self._sample

    def time_left(self, candidate: Candidate) -> bool:
        """See `World`."""
        return time.monotonic() + self._rate * candidate.epochs < self._end

    # -- how -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _sample(self) -> float:
        """KiB of the test images that the chosen one's bundle will hold; candidates' bundles hold none."""
        job = JudgingJob(self._settings(self._recipe))
        return sample_bytes(job, job.task.data("test")) / 1024

    def _job(self, candidate: Candidate) -> JudgingJob:
        recipe = recipe_for(self._recipe, candidate)
        data = recipe.data.model_copy(update={"sample": 0})
        return JudgingJob(self._settings(recipe.model_copy(update={"data": data})))

    def _settings(self, recipe: Recipe) -> Settings:
        return Settings(
            self._name, recipe, self._target, self._store, self._smoke, None, None, self.heard, self._tick
        )

    def heard(self, event: Event) -> None:
        """Counts, and passes on."""
        self.built += event.state == "done"
        self.reused += event.state == "reused"
        self._tell(event)

    def _reach(self, job: JudgingJob, goals: Sequence[Stage]) -> None:
        for stage in plan(goals):
            if stage.key in self._there:  # every candidate needs it: nobody has to hear that again and again
                self.reused += 1
                continue
            run_stage(self._store, stage, self.heard, None, job.prepare, self.sharing.around)
            self._there.add(stage.key)

    def _cost(self, job: JudgingJob) -> float | None:
        """That of the slowest program that would ship."""
        if self._limit is None or self._device is None:
            return None
        stage = job.timing(self._device)
        self._reach(job, [stage])
        metric, scale = COSTS[self._limit]
        return max(each[metric] * scale for each in read_json(job.path(stage) / TIMES).values())

    def _base_sizes(self) -> tuple[float, int, int]:
        if self._base is None:
            plain = Candidate()
            whole = self.bundle(plain)
            self._base = whole, _packed(self._job(plain)), self._codes(plain)
        return self._base

    def _codes(self, candidate: Candidate) -> int:
        """Bytes of a candidate's weight codes, packed, before any training."""
        from paredown.pipeline.bundle.packed.packing import pack_codes
        from paredown.pipeline.graph.alike import distinct

        network, graph = self._network(candidate.share)
        if candidate.bits is not None:
            wanted = recipe_for(self._recipe, candidate).squantize
            graph = _squantized(wanted, network, graph, self._recipe.quantize.weight_range)
        return len(pack_codes(*(_int8(node) for node in distinct(graph) if node.weight is not None)))

    def _network(self, share: float | None) -> tuple[nn.Module, Graph]:
        """The original network, or one with this share of its MACs, untrained."""
        if share not in self._untrained:
            job = self._job(Candidate(share))
            self._reach(job, [job.original if job.pruning is None else job.pruning.prune])
            set_threads(job.path(job.original))
            graph, network = graph_in(job.path(job.original)), job.task.network()
            if job.pruning is not None:
                from paredown.pipeline.compress.coupling.surgery import load_pruned
                from paredown.pipeline.graph.trace import trace

                network = load_pruned(network, job.path(job.pruning.prune) / NETWORK)
                graph = trace(network, job.preprocess.input_shape)
            self._untrained[share] = network, graph
        return self._untrained[share]


def _squantized(wanted: Squantize, network: nn.Module, graph: Graph, most: int | None) -> Graph:
    """A network on SQuantizer's grid, untrained."""
    from paredown.pipeline.compress.grids.grid import TOP
    from paredown.pipeline.compress.squantize.fold import fold
    from paredown.pipeline.compress.squantize.layer_plans import layer_plans, schedule
    from paredown.pipeline.compress.squantize.qat_network import QatNetwork

    plans = layer_plans(wanted, graph, network, most=most or TOP)
    live = QatNetwork(network, graph, plans, None, schedule(wanted, 1), wanted.norm == "live")
    return fold(live, tuple(graph.nodes[0].shape))


def _int8(node: Any) -> Any:
    """A layer's codes: its own, or the nearest of one scale per output channel."""
    weight = node.weight.double().numpy()
    across = (-1, *[1] * (weight.ndim - 1))
    if node.scale is not None:
        scale = node.scale.double().numpy().reshape(across)
    else:
        scale = np.abs(weight.reshape(len(weight), -1)).max(1).reshape(across) / 127
    return np.round(weight / np.where(scale > 0, scale, 1.0)).clip(-127, 127).astype(np.int8)


def _packed(job: JudgingJob) -> int:
    """Bytes of a job's programs as a bundle holds them."""
    from paredown.pipeline.bundle.packed.packing import pack_programs

    graph = job.integer_graph()
    programs = {name: job.program(job.lower[name]) for name in job.runtimes}
    return len(pack_programs(programs, graph.weights, graph.layer_parameters))
