"""The ledger: what sparse low-bit codes are worth, layer by layer, in bits that can be counted.

A layer's entropy is what an ideal code of its own needs for its codes, taken one by one: the limit that the
packed bytes of a bundle are held against. Bytes count everything a layer ships: codes, int32 biases, float32
scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paredown.pipeline.compress.squantize.entropy import EXTRA, entropy

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import IntegerGraph


@dataclass(frozen=True)
class LayerLedger:
    """One layer.

    Attributes:
        name: of the layer in the integer graph.
        weights: how many it has.
        zeros: of these.
        codes: different ones, zero included.
        entropy: bits per weight.
        packed: bytes of its codes, packed alone; in a bundle the layers share one stream.
        extra: bytes of biases and scales.
        trained: whether its codes were trained, not rounded afterwards.
    """

    name: str
    weights: int
    zeros: int
    codes: int
    entropy: float
    packed: int
    extra: int
    trained: bool

    @property
    def limit(self) -> float:
        """Bytes that the codes need at least."""
        return self.entropy * self.weights / 8


def ledger(graph: Graph, integer: IntegerGraph) -> tuple[LayerLedger, ...]:
    """A row per layer with weights, in running order.

    Args:
        graph: the folded float graph; its `Node.scale` tells which codes were trained.
        integer: made from it.
    """
    from paredown.pipeline.bundle.packed.packing import pack_codes
    from paredown.pipeline.graph.alike import distinct
    from paredown.pipeline.graph.fusion import fuse_relu

    rows = []
    items = {item.name: item for item in distinct(integer)}
    for node, _ in fuse_relu(graph):
        item = items.get(node.name)
        if item is None or item.weight is None or item.bias is None:
            continue
        zeros, codes = int((item.weight == 0).sum()), len(np.unique(item.weight))
        bits, extra = entropy(item.weight), EXTRA * item.bias.size
        packed, trained = len(pack_codes(item.weight)), node.scale is not None
        rows.append(LayerLedger(item.name, item.weight.size, zeros, codes, bits, packed, extra, trained))
    return tuple(rows)


def check_codes(graph: Graph, integer: IntegerGraph) -> None:
    """Zero stays zero: the integer graph has the very codes that were trained.

    Raises:
        AssertionError: a code changed on the way, which is a bug.
    """
    from paredown.pipeline.graph.fusion import fuse_relu

    items = {item.name: item for item in integer}
    for node, _ in fuse_relu(graph):
        item = items[node.name]
        if node.scale is None or node.weight is None or item.weight is None:
            continue
        scale = node.scale.double().reshape(-1, *[1] * (node.weight.dim() - 1))
        codes = (node.weight.double() / scale).round().numpy()
        if not np.array_equal(codes, item.weight):
            raise AssertionError(f"codes of layer {item.name} changed between training and the integer graph")


def total_limit(rows: Sequence[LayerLedger]) -> float:
    """Bytes that codes, biases and scales need at least."""
    return sum(row.limit + row.extra for row in rows)
