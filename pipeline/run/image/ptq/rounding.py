"""Better int8 without training: codes that lose less than the nearest, and biases that make good the rest.

Layer after layer, in running order, on calibration images:

* codes: GPTQ and coordinate descent (`pipeline.compress.grids.rounding`) on the layer's own scales, for the
  inputs that the layer really gets, from layers that are rounded already;
* biases: what the rounded layer's outputs are off by on average is taken away, per channel (Nagel et al.,
  arXiv 1906.04721, section 4.2, on images instead of batch norm's statistics).

Neither changes a scale: the program is as large and as fast as before.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.compress.coupling.patches import patches, pick_spots
from paredown.pipeline.compress.grids.rounding import recoded
from paredown.pipeline.graph.alike import ALIKE
from paredown.pipeline.graph.fusion import fuse_relu
from paredown.pipeline.graph.graph import Graph, Node, apply
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, IntegerNode, integer_bias

MAX_FEATURES = 5000  # of a filter's input; above that its codes stay the nearest
ROWS_PER_FEATURE, MOST_ROWS = 48, 1 << 15
MEMORY = 2 * 2**30  # bytes of activations
ALIVE = 8  # of the largest tensors, at once: as codes, and as floats


@torch.no_grad()
def improve(
    graph: Graph,
    integer: IntegerGraph,
    images: Tensor,
    *,
    codes: bool = True,
    biases: bool = True,
    seed: int = 0,
    most: int = 127,
) -> IntegerGraph:
    """The integer graph with better codes and biases.

    Args:
        graph: the float graph that `integer` was made of.
        integer: what `quantize` made of it.
        images: (N, C, H, W) float32 calibration images; as many of them as fit in `MEMORY`.
        codes: whether codes are chosen anew; those that were trained stay.
        biases: whether biases are corrected.
        seed: of the positions that are looked at.
        most: the largest weight code.
    """
    largest = ALIVE * 4 * max(math.prod(node.shape) for node in graph)
    images = images[: max(1, MEMORY // largest)]
    generator = np.random.default_rng(seed)
    layers = {node.name: node for node, _ in fuse_relu(graph)}
    read = Counter(name for node in integer for name in node.inputs)
    floats: dict[str, Tensor] = {}
    values: dict[str, NDArray[np.int8]] = {}
    made: dict[str, IntegerNode] = {}
    for node in integer:
        if node.kind == "input":
            made[node.name], floats[node.name] = node, images
            values[node.name] = node.out.quantize(images.numpy())
            continue
        feeds = [made[name] for name in node.inputs]
        layer = layers[node.name]
        # What the steps of a recurrence share has no one input to be fitted to: it stays as it is.
        if node.weight is not None and node.kind in {"conv2d", "linear"} and ALIKE not in node.attrs:
            x = torch.from_numpy(feeds[0].out.dequantize(values[node.inputs[0]]))
            if codes and layer.scale is None:
                node = _rounded(layer, node, x, generator, most)
            if biases:
                node = _corrected(layer, node, feeds[0].out.scale, x, floats[node.inputs[0]])
        made[node.name] = node
        values[node.name] = reference.apply(node, feeds, [values[name] for name in node.inputs])
        floats[node.name] = _float(graph, layer, node, floats)
        read.subtract(node.inputs)
        for spent in [name for name in node.inputs if not read[name]]:
            values.pop(spent, None)
            floats.pop(spent, None)
    return IntegerGraph(tuple(made.values()), integer.outputs)


def _float(graph: Graph, layer: Node, node: IntegerNode, floats: dict[str, Tensor]) -> Tensor:
    """The float network's tensor of a node's name."""
    inputs = [floats[name] for name in node.inputs]
    found = apply(layer, *inputs)
    own = graph[node.name]
    return found if own.kind == layer.kind else apply(own, found)


def _rounded(
    layer: Node, node: IntegerNode, x: Tensor, generator: np.random.Generator, most: int
) -> IntegerNode:
    assert layer.weight is not None and node.weight is not None and node.weight_scale is not None
    features = layer.weight[0].numel()
    if node.attrs.get("groups", 1) > 1 or features > MAX_FEATURES or len(node.shape) not in {2, 4}:
        return node
    spots = pick_spots((len(x), *node.shape[1:]), min(MOST_ROWS, ROWS_PER_FEATURE * features), generator)
    rows = patches(layer, x, spots)
    nearest = torch.from_numpy(node.weight).flatten(1)
    scales = torch.from_numpy(node.weight_scale).reshape(-1, 1)
    found = recoded(
        layer.weight.flatten(1), nearest, scales, rows.T @ rows / len(rows), (-most, most),
        torch.zeros_like(nearest, dtype=torch.bool),
    )  # fmt: skip
    return replace(node, weight=found.reshape(layer.weight.shape).numpy().astype(np.int8))


def _corrected(layer: Node, node: IntegerNode, scale_in: float, x: Tensor, real: Tensor) -> IntegerNode:
    assert node.weight is not None and node.weight_scale is not None and node.bias is not None
    unit = np.float32(scale_in) * node.weight_scale
    across = (-1, *[1] * (node.weight.ndim - 1))
    weight = torch.from_numpy(node.weight * node.weight_scale.reshape(across))
    bias = torch.from_numpy((node.bias * unit.astype(np.float64)).astype(np.float32))
    off = apply(layer, real) - apply(replace(layer, weight=weight, bias=bias), x)
    mean = off.double().mean([d for d in range(off.dim()) if d != 1]).numpy()
    corrected = integer_bias((bias.numpy() + mean).astype(np.float32), unit)
    return replace(node, bias=corrected)
