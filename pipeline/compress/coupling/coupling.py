"""Coupling: the groups of channels that a network can lose, each with a proof that losing them is legal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from paredown.pipeline.compress.coupling.flow import Flow, Group, Kept, Labels, Member
from paredown.pipeline.compress.coupling.reshapes import Chain, legal_step
from paredown.pipeline.graph.graph import Graph

__all__ = ["Group", "Kept", "Member", "couple"]


def couple(graph: Graph) -> tuple[Group, ...]:
    """Finds the groups of a network.

    An operation that it does not know locks whatever it touches, and is named in `Group.locked`. A group on
    whose way the network reshapes is thinned on trial: its `step` is the smallest at which that works, and
    without one it is locked.

    Returns:
        The groups, in the order in which their first layers run. Every output channel of every layer is in
        exactly one.
    """
    flow = Flow(graph)
    passed = {chain: np.unique(flow.roots(flow.channels(chain.source.name))) for chain in flow.chains}
    return tuple(_stepped(flow, group, passed) for group in flow.groups())


def _stepped(flow: Flow, group: Group, passed: dict[Chain, Labels]) -> Group:
    """The group with its step, or locked where it has none."""
    maker = group.makers[0]
    made = flow.roots(flow.sides[maker.node, "out"])
    units = np.array([made[channels[0]] for channels in maker.channels])
    way = [chain for chain, labels in passed.items() if np.isin(labels, units).any()]

    def legal(gone: Sequence[int]) -> bool:
        return all(flow.shapes(chain, units[list(gone)]) is not None for chain in way)

    if group.locked or group.units < 2 or not way:
        return group
    step = legal_step(group.units, legal)
    if step is None:
        nodes = ", ".join(node.name for chain in way for node in chain.nodes)
        return replace(group, locked=f"has no legal width but its own through {nodes}")
    return replace(group, step=step)
