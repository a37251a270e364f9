"""Mixed precision: bits per layer for a budget, from what each layer loses alone.

The same question as channel widths, so the same answer (`pipeline.prune`): a curve per layer, here over its
bits, with confidence intervals; and a mixed-integer program that picks one point of each. A point is the
score of the network in which this layer alone has so few bits, and so many zeros, without training, but
rounded as training will find it. Our design.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paredown.calibration.observers import weight_scales
from paredown.pipeline.compress.allocate.allocate import Allocation, allocate, predicted_losses
from paredown.pipeline.compress.allocate.cost import Cost, CostTerm
from paredown.pipeline.compress.coupling.flow import Group, Member
from paredown.pipeline.compress.sensitivity.experiment import Score
from paredown.pipeline.compress.sensitivity.sensitivity import Curve, Point, Sensitivity
from paredown.pipeline.compress.squantize.entropy import EXTRA, entropy
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.gptq_init import round_weights
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
from paredown.pipeline.graph.graph import Graph, Node, apply

CHOICES = (2, 3, 4, 5, 6)
INT8 = 8  # the full precision: post-training int8
CHUNK = 32

Tick = Callable[[int, int], None]


@torch.no_grad()
def measure_bits(
    network: nn.Module,
    graph: Graph,
    plans: Mapping[str, LayerPlan],
    inputs: Tensor,
    score: Score,
    metric: str,
    tick: Tick,
    choices: Sequence[int] = CHOICES,
    rounding: Tensor | None = None,
) -> tuple[Sensitivity, dict[str, dict[int, float]]]:
    """The metric of every layer at every number of bits, the others float.

    Args:
        network: the trained one, in evaluation mode.
        graph: traced from it.
        plans: weight's name -> how; only their bits are varied.
        inputs: (N, C, H, W) float32.
        score: of outputs, to metric and its interval.
        metric: its name.
        tick: progress.
        choices: bits.
        rounding: images to find codes with, see `pipeline.compress.squantize.gptq_init`; None takes the
            nearest.

    Returns:
        A curve per weight, with bits for widths; and weight -> bits -> bytes of its codes at their entropy,
        biases and scales included.
    """
    folded = {bits: _at(network, graph, plans, bits, rounding) for bits in choices}
    users: dict[str, list[str]] = {name: [] for name in plans}
    for node in graph:
        if node.parameters.get("weight") in plans:
            users[node.parameters["weight"]].append(node.name)
    nodes = {name: found[0] for name, found in users.items()}
    behind = {name: set[str]().union(*(_behind(graph, n) for n in users[name])) for name in plans}
    found: dict[tuple[str, int], list[Any]] = {(name, bits): [] for name in plans for bits in choices}
    base: list[Any] = []
    for start in range(0, len(inputs), CHUNK):
        values = graph.run(inputs[start : start + CHUNK])
        base += _split(graph, values)
        for name, bits in found:
            changed = {node: folded[bits][node] for node in users[name]}
            found[name, bits] += _split(graph, _rerun(graph, values, behind[name], changed))
        tick(min(start + CHUNK, len(inputs)), len(inputs))
    curves, sizes = [], dict[str, dict[int, float]]()
    whole = score(base)
    for name in plans:
        points = [Point(INT8, *whole)]
        points += [Point(bits, *score(found[name, bits])) for bits in sorted(choices, reverse=True)]
        curves.append(Curve(name, INT8, tuple(points)))
        sizes[name] = {bits: packed_bytes(folded[bits][nodes[name]]) for bits in choices}
        sizes[name][INT8] = packed_bytes(graph[nodes[name]])
    return Sensitivity(metric, len(inputs), Point(0, *whole), tuple(curves)), sizes


def choose_bits(
    found: Sensitivity,
    sizes: Mapping[str, Mapping[int, float]],
    rest: float,
    *,
    limit: float | None = None,
    tolerance: float | None = None,
    resolution: float | None = None,
) -> Allocation:
    """One number of bits per layer under a limit on bytes, or the fewest bytes within a tolerated drop.

    Args:
        found: of `measure_bits`.
        sizes: likewise.
        rest: bytes of the layers that have no choice.
        limit: bytes to keep, as a share of those in int8.
        tolerance: the largest sum of drops, in the unit of the metric.
        resolution: of the metric, see `allocate`; None takes that of a share of the images.

    Raises:
        BudgetError: the limit cannot be met; the line says the best reachable.
        UsageError: limit or tolerance out of range.
    """
    units = tuple((unit,) for unit in range(INT8))
    groups = [Group(c.group, (Member(c.group, "out", units),), ()) for c in found.curves]
    parts = [CostTerm(name, (name,), _Size(name, each), False) for name, each in sizes.items()]
    fixed = CostTerm("rest", (), lambda chosen: rest, False)
    cost = Cost("bytes", "bytes", dict.fromkeys(sizes, INT8), (*parts, fixed))
    losses = predicted_losses(found)
    if resolution is None:
        resolution = 1 / found.images / INT8
    return allocate(groups, losses, cost, limit=limit, tolerance=tolerance, resolution=resolution)


class _Size:
    """Bytes of one layer, as a part of a cost."""

    def __init__(self, name: str, sizes: Mapping[int, float]) -> None:
        self.name, self.sizes = name, sizes

    def __call__(self, chosen: Mapping[str, int]) -> float:
        return self.sizes[chosen[self.name]]


def packed_bytes(node: Node) -> float:
    """Bytes of a layer, its codes at their entropy; int8 where they were not trained."""
    assert node.weight is not None
    weight = node.weight.numpy()
    scale = node.scale.numpy() if node.scale is not None else weight_scales(weight, "minmax")
    codes = np.clip(np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))), -127, 127).astype(np.int8)
    return entropy(codes) * codes.size / 8 + EXTRA * len(codes)


def _at(
    network: nn.Module, graph: Graph, plans: Mapping[str, LayerPlan], bits: int, rounding: Tensor | None
) -> Graph:
    """The folded graph in which all of these layers have so many bits."""
    at = {name: replace(plan, config=replace(plan.config, bits=bits)) for name, plan in plans.items()}
    live = QatNetwork(network if rounding is None else copy.deepcopy(network), graph, at)
    if rounding is not None:
        round_weights(live, rounding)
    return fold(live, tuple(graph.nodes[0].shape))


def _behind(graph: Graph, start: str) -> set[str]:
    """The nodes that a change of one reaches, itself included."""
    reached = {start}
    for node in graph:
        if reached & set(node.inputs):
            reached.add(node.name)
    return reached


def _rerun(
    graph: Graph, values: Mapping[str, Tensor], behind: set[str], changed: Mapping[str, Node]
) -> dict[str, Tensor]:
    """The outputs with some layers changed: only what lies behind them is computed."""
    fresh: dict[str, Tensor] = {}
    for node in graph:
        if node.name in behind:
            inputs = [fresh[name] if name in fresh else values[name] for name in node.inputs]
            fresh[node.name] = apply(changed.get(node.name, node), *inputs)
    return {name: fresh[name] if name in fresh else values[name] for name in graph.outputs}


def _split(graph: Graph, values: Mapping[str, Tensor]) -> list[tuple[np.ndarray, ...]]:
    """Outputs image by image."""
    arrays = [values[name].numpy() for name in graph.outputs]
    return [tuple(a[i : i + 1] for a in arrays) for i in range(len(arrays[0]))]
