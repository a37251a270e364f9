"""Trial cuts: the groups that the user's own module can lose, found before anything is measured (our design).

The graph alone does not say whether forward() holds a channel count as a number. So every group is cut on
trial by its smallest step: all of them at once, which is one trace where nothing is wrong, and where that
fails by halves until those that fail are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.coupling.surgery import cut
from paredown.pipeline.graph.graph import Graph
from paredown.targets.errors import InputError


def couple_on_trial(network: nn.Module, graph: Graph) -> tuple[Group, ...]:
    """Finds the groups of a network, and locks those that cannot be cut.

    Args:
        network: what `graph` was traced from; it stays as it is.
        graph: its trace, with parameter names.

    Returns:
        Those of `couple(graph)`, in their order; a group that fails is locked, with the error as its reason.
    """
    groups = couple(graph)
    free = [group for group in groups if not group.locked and group.units > group.step]
    trial = _Trial(network, graph, groups)
    reasons = trial.failing(free)
    accepted = [group for group in free if group.name not in reasons]
    if reasons and trial.error(accepted):  # these fail together only
        kept: list[Group] = []
        for group in accepted:
            if error := trial.error([*kept, group]):
                reasons[group.name] = error
            else:
                kept.append(group)
    return tuple(
        replace(group, locked=f"cannot be cut: {reasons[group.name]}") if group.name in reasons else group
        for group in groups
    )


class _Trial:
    """Cuts groups by one step each, and keeps nothing."""

    def __init__(self, network: nn.Module, graph: Graph, groups: Sequence[Group]) -> None:
        self.network, self.graph, self.groups = network, graph, groups

    def error(self, chosen: Sequence[Group]) -> str:
        """Why these cannot lose channels together; empty where they can."""
        kept = {group.name: tuple(range(group.units - group.step)) for group in chosen}
        try:
            if kept:
                cut(self.network, self.graph, self.groups, kept)
        except InputError as error:
            return str(error)
        return ""

    def failing(self, chosen: Sequence[Group]) -> dict[str, str]:
        """The groups that cannot be cut, with the reason."""
        error = self.error(chosen)
        if not error:
            return {}
        if len(chosen) == 1:
            return {chosen[0].name: error}
        half = len(chosen) // 2
        found = self.failing(chosen[:half]) | self.failing(chosen[half:])
        return found or {chosen[-1].name: error}
