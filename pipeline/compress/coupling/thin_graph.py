"""The thin graph: what is left of a traced graph when units go.

Layers lose rows and columns; a reshape gets the thinner shape under which every value ends up where the whole
network would have put it. Where there is none, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from paredown.pipeline.compress.coupling.flow import Flow, Group, Kept, Labels
from paredown.pipeline.compress.coupling.reshapes import Shape
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.targets.errors import InputError


@dataclass(frozen=True)
class LayerSlice:
    """What stays of a layer: output channels, input channels as its weight counts them, conv groups."""

    rows: list[int]
    columns: list[int]
    groups: int


class Thinner:
    """Makes the thin graph of a flow.

    Args:
        flow: of the whole graph.
        groups: its groups.
        kept: the units that stay.
        shapes: of reshapes, where they are fixed already: name to shape.
    """

    def __init__(
        self, flow: Flow, groups: Sequence[Group], kept: Kept, shapes: Mapping[str, Shape] | None = None
    ) -> None:
        self.flow, self.given = flow, shapes or {}
        gone: list[Labels] = [np.zeros(0, np.int64)]
        for group in groups:
            removed = sorted(set(range(group.units)) - set(kept.get(group.name, range(group.units))))
            for member in group.members if removed else ():
                channels = [channel for unit in removed for channel in member.channels[unit]]
                gone.append(flow.roots(flow.sides[member.node, member.side][channels]))
        self.gone = np.unique(np.concatenate(gone))

    def stays(self, labels: Labels) -> list[int]:
        """Which of these channels (C,) stay."""
        return self.flow.stays(labels, self.gone)

    def rows(self, name: str) -> list[int]:
        """The channels of a tensor that stay."""
        return self.stays(self.flow.channels(name))

    def part(self, node: Node) -> LayerSlice:
        """What stays of a layer."""
        assert node.weight is not None
        rows = self.stays(self.flow.sides[node.name, "out"])
        read = self.stays(self.flow.sides[node.name, "in"])
        groups = int(node.attrs.get("groups", 1))
        if groups == 1:
            return LayerSlice(rows, read, 1)
        per = node.weight.shape[1]
        left = sorted({channel // per for channel in read})
        columns = sorted({channel % per for channel in read})
        assert len(left) * len(columns) == len(read) and len(rows) % len(left) == 0
        return LayerSlice(rows, columns, len(left))

    def graph(self) -> Graph:
        """The thin graph.

        Raises:
            InputError: a reshape has no legal form at these widths.
        """
        moved: dict[str, Shape] = {}
        for chain in self.flow.chains:
            shapes = self.flow.shapes(chain, self.gone, self.given)
            if shapes is None:
                raise InputError(
                    "the network's reshapes have no legal form at these widths",
                    where=chain.nodes[0].source or chain.nodes[0].name,
                    hint="another width of this group may have one; `paredown groups` shows its step",
                )
            moved |= shapes
        return replace(self.flow.graph, nodes=tuple(self._node(n, moved) for n in self.flow.graph))

    def _node(self, node: Node, moved: Mapping[str, Shape]) -> Node:
        kind = operation(node.kind)
        if kind.moves:
            shape = moved[node.name]
            return replace(node, shape=shape, attrs=kind.thinned(node, shape, 1))
        shape = node.shape
        if len(shape) > 1 and node.kind != "opaque":
            rows, axis = self.rows(node.name), self.flow.axes[node.name]
            shape = (*shape[:axis], len(rows), *shape[axis + 1 :])
            if node.value is not None:
                value = node.value  # that is one number for all channels, or has one for each
                if value.shape[axis] > 1:
                    value = value.index_select(axis, torch.tensor(rows)).contiguous()
                return replace(node, shape=shape, value=value)
        if node.weight is None or node.bias is None:
            return replace(node, shape=shape, attrs=kind.thinned(node, shape, 1))
        part = self.part(node)
        weight = node.weight[part.rows][:, part.columns].contiguous()
        attrs = kind.thinned(node, shape, part.groups)
        return replace(node, shape=shape, attrs=attrs, weight=weight, bias=node.bias[part.rows])
