"""The integer graph executed in true integer arithmetic: what the device's kernels compute, bit for bit.

Accumulators are exact integers (carried in float32 where no sum can exceed what that holds exactly, else in
float64). Each requantization is the own one of the kernels: those of XNNPACK, which serves both runtimes on
x86-64 and aarch64.

Each kind's own arithmetic is `codes` of its class in `pipeline.graph.operations`.

Source of the formulas: XNNPACK's microkernel parameters, read and then confirmed value by value against
both runtimes (`tests/pipeline/lower/test_reference.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode

Codes = NDArray[np.int8]


def run(graph: IntegerGraph, codes: Codes) -> dict[str, Codes]:
    """Every tensor of the network, as int8 codes.

    Args:
        graph: the integer graph.
        codes: int8, (batch, channels, height, width), in the scale of the graph's input.

    Returns:
        Name to codes, in running order.
    """
    values: dict[str, Codes] = {}
    for node in graph:
        if node.kind == "input":
            values[node.name] = codes
        else:
            feeds = [graph[name] for name in node.inputs]
            values[node.name] = apply(node, feeds, [values[name] for name in node.inputs])
    return values


def predict(graph: IntegerGraph, codes: Codes) -> tuple[Codes, ...]:
    """The network's outputs only, keeping no more tensors alive than it must."""
    last_use = {name: index for index, node in enumerate(graph) for name in node.inputs}
    values: dict[str, Codes] = {}
    for index, node in enumerate(graph):
        if node.kind == "input":
            values[node.name] = codes
            continue
        feeds = [graph[name] for name in node.inputs]
        values[node.name] = apply(node, feeds, [values[name] for name in node.inputs])
        for name in node.inputs:
            if last_use[name] == index and name not in graph.outputs:
                values.pop(name, None)
    return tuple(values[name] for name in graph.outputs)


def apply(node: IntegerNode, feeds: list[IntegerNode], inputs: list[Codes]) -> Codes:
    """One operation on int8 codes, as programs hold it."""
    known = dict(zip((feed.name for feed in feeds), zip(feeds, inputs, strict=True), strict=True))
    for part in operation(node.kind).written(node, feeds):
        read = [known[name] for name in part.inputs]
        codes = operation(part.kind).codes(part, [feed for feed, _ in read], [x for _, x in read])
        known[part.name] = (part, codes)
    return known[node.name][1]
