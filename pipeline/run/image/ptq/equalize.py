"""Equalization across layers (Nagel et al., arXiv 1906.04721, section 4.1), only where it is exact.

A channel between two layers may be made larger in the first and smaller in the second, if what lies between
passes a factor on, as ReLU and pooling do. Factors are powers of two here, so that the float network computes
the very same bits (denormals aside). Weights have a scale per output channel, to which a factor is nothing;
what is balanced is the tensor between, which has one scale for all its channels, against the columns of the
layer that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation

LAYERS = ("conv2d", "linear")
MOST = 64  # times larger or smaller: a channel that wants more is all but dead


class Reach:
    """The largest magnitude of each channel over many samples; see `calibration.observers.Observer`."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.largest = torch.zeros(1)

    def update(self, values: NDArray[np.float32]) -> None:
        """Takes the values of one sample, (1, channels, ...)."""
        found = torch.from_numpy(np.abs(values).reshape(values.shape[1], -1).max(axis=1))
        self.largest = torch.maximum(self.largest, found)


def pairs(graph: Graph) -> list[tuple[str, str]]:
    """Two layers each, between which each channel goes its own way and has no other reader."""
    readers: dict[str, list[Node]] = {}
    for node in graph:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found = []
    for node in filter(_free, graph):
        at = node
        while at.name not in graph.outputs and len(readers.get(at.name, ())) == 1:
            at = readers[at.name][0]
            if _free(at) and at.inputs:
                found.append((node.name, at.name))
            passes = operation(at.kind).homogeneous and "levels" not in at.attrs
            if not passes or at.shape[1] != node.shape[1]:
                break
    return found


def _free(node: Node) -> bool:
    """Whether a layer's channels may be scaled: not where its codes were trained."""
    return node.kind in LAYERS and node.scale is None and len(node.shape) in (2, 4)


@torch.no_grad()
def equalize(graph: Graph, reach: Mapping[str, Tensor]) -> tuple[Graph, dict[str, int]]:
    """The same network with its channels balanced.

    Args:
        graph: traced, BN folded.
        reach: of every tensor that a second layer reads, the largest magnitude of each channel, (channels,),
            from a calibration run.

    Returns:
        The graph, and layer -> how many of its channels got a factor.
    """
    nodes = {node.name: node for node in graph}
    changed: dict[str, int] = {}
    for first, second in pairs(graph):
        before, after = nodes[first], nodes[second]
        assert before.weight is not None and before.bias is not None and after.weight is not None
        columns = _columns(after)
        if len(before.weight) != columns.numel():
            continue
        factor = _factors(reach[after.inputs[0]], columns, alone=columns.shape[1] == 1)
        if not bool((factor != 1).any()):
            continue
        changed[first] = int((factor != 1).sum())
        weight = before.weight * factor.view(-1, *[1] * (before.weight.dim() - 1))
        nodes[first] = replace(before, weight=weight, bias=before.bias * factor)
        each = factor.view(columns.shape).repeat_interleave(len(after.weight) // len(columns), 0)
        inverse = (1 / each).view(*each.shape, *[1] * (after.weight.dim() - 2))
        nodes[second] = replace(after, weight=after.weight * inverse)
    return Graph(tuple(nodes[node.name] for node in graph), graph.outputs), changed


def _columns(after: Node) -> Tensor:
    """The largest weight that reads each channel, (groups, in / groups)."""
    assert after.weight is not None
    rows = after.weight.abs().flatten(2).amax(2) if after.weight.dim() > 2 else after.weight.abs()
    return rows.view(after.attrs.get("groups", 1), -1, rows.shape[1]).amax(1)


def _factors(reach: Tensor, columns: Tensor, alone: bool) -> Tensor:
    """Powers of two, (channels,), after which reach and columns are alike, but for dead channels.

    Args:
        reach: of each channel.
        columns: that read it.
        alone: whether each has a reader, and so a weight scale, of its own: then only reach counts.
    """
    columns = torch.ones_like(reach) if alone else columns.flatten()
    alive = (reach > 0) & (columns > 0)
    exponent = torch.where(alive, (columns / reach).log2() / (1 if alone else 2), torch.nan)
    exponent = (exponent - exponent.nanmedian()).round().nan_to_num(0.0)
    return exponent.exp2().clamp(1 / MOST, MOST)
