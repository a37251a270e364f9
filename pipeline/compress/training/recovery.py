"""Recovery after pruning: which weights go meanwhile, and where features are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Flow
from paredown.pipeline.compress.coupling.thin_graph import Thinner
from paredown.pipeline.compress.training.features import FeatureTap
from paredown.pipeline.compress.training.recover import Recovered
from paredown.pipeline.compress.training.setup import TrainingSetup
from paredown.pipeline.compress.training.sparsify import SparsitySchedule, prunable, prune_weights
from paredown.pipeline.graph.graph import Graph


def recovered(
    setup: TrainingSetup,
    student: nn.Module,
    kept: Mapping[str, Sequence[int]],
    weight_sparsity: float,
    feature_weight: float,
) -> tuple[Recovered, str]:
    """Recovers a cut network, and says what it was judged by.

    Args:
        setup: data, losses and configuration of the training.
        student: the cut network.
        kept: what the cut kept, of `couple(setup.graph)`.
        weight_sparsity: share of weights that become zero meanwhile; at once where nothing is trained.
        feature_weight: of the distance from the original's features.
    """
    graph, (measure, evaluate) = setup.graph, setup.evaluation()
    weights = prunable(graph)
    if not setup.wanted.epochs:
        zeros = prune_weights(student, weight_sparsity, weights) if weight_sparsity else ()
        value = evaluate(student)
        return Recovered(student, (), value, value, 0, 0, False, zeros), measure
    schedule = SparsitySchedule(weight_sparsity, weights) if weight_sparsity else None
    taps = _taps(graph, kept, setup.task.features())
    return setup.train(student, evaluate, taps, feature_weight, schedule), measure


def _taps(graph: Graph, kept: Mapping[str, Sequence[int]], paths: Sequence[str]) -> tuple[FeatureTap, ...]:
    """Where the student's features are compared, with the channels of the original that it still has."""
    if not paths:
        return ()
    thinner = Thinner(Flow(graph), couple(graph), kept)
    names = {node.name for node in graph}
    taps = []
    for path in paths:
        node = next(
            (n for n in (path, *sorted(n for n in names if n.startswith(f"{path}."))) if n in names), None
        )
        if node is not None:
            taps.append(FeatureTap(path, tuple(thinner.rows(node))))
    return tuple(taps)
