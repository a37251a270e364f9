"""Ranking: which units of a group matter least (our design; first-order Taylor after Molchanov et al. 2017).

Three criteria, each a score per unit, comparable within its group only:

- "norm": the L2 norm of the filters that make a unit, BN's gamma and running deviation folded in, each layer
  divided by its mean. Needs no data.
- "activation": what a unit brings to the layers that read it: the root mean square of its values on a sample
  times the norm of the weights that read them. Needs images, no labels.
- "taylor": how much the loss changes, to first order, when a unit is switched off: the mean over images of
  |sum of value x gradient|. Needs images and a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.graph.graph import Graph, apply

Criterion = Literal["norm", "activation", "taylor"]
Importance = Mapping[str, NDArray[np.float64]]  # group name -> score per unit
Ranking = Mapping[str, tuple[int, ...]]  # group name -> units, most important first


def ranking(importance: Importance) -> Ranking:
    """The units of each group, most important first; equal scores in their own order."""
    return {
        name: tuple(int(i) for i in np.argsort(-scores, kind="stable")) for name, scores in importance.items()
    }


def keep(ranks: Ranking, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The units that stay at these widths: the best of each group, in rising order."""
    return {name: tuple(sorted(ranks[name][:width])) for name, width in widths.items()}


def norm(graph: Graph, groups: Sequence[Group]) -> dict[str, NDArray[np.float64]]:
    """Scores by the norm of the filters."""
    nodes = {node.name: node for node in graph}
    found = {}
    for group in groups:
        total = np.zeros(group.units)
        for member in group.makers:
            weight = nodes[member.node].weight
            assert weight is not None
            total += _relative(_per_unit(weight.double().flatten(1).square().sum(1).numpy(), member.channels))
        found[group.name] = total
    return found


def activation(
    graph: Graph, groups: Sequence[Group], batches: Sequence[Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Scores by what the layers that read a unit get from it.

    Args:
        graph: traced.
        groups: of `couple(graph)`.
        batches: of images, (N, C, H, W) float32.
    """
    nodes = {node.name: node for node in graph}
    powers: dict[str, Tensor] = {}  # layer -> mean square of each channel that it reads
    count = 0
    for batch in batches:
        values = graph.run(batch)
        count += len(batch)
        for node in graph:
            if node.weight is not None:
                read = values[node.inputs[0]].double()
                power = read.square().flatten(2).mean(2).sum(0) if read.ndim > 2 else read.square().sum(0)
                powers[node.name] = powers.get(node.name, torch.zeros(())) + power
    found = {}
    for group in groups:
        total = np.zeros(group.units)
        for member in group.members:
            node = nodes[member.node]
            if member.side == "out" or node.weight is None:
                continue
            gains = (
                node.weight.double().square().flatten(2).sum(2)
                if node.weight.ndim > 2
                else node.weight.double().square()
            )
            per, conv_groups = gains.shape[1], int(node.attrs.get("groups", 1))
            columns = gains.reshape(conv_groups, -1, per).sum(1).flatten()  # of each input channel
            total += _relative(_per_unit((powers[node.name] / count * columns).numpy(), member.channels))
        found[group.name] = total if total.any() else norm(graph, [group])[group.name]
    return found


def taylor(
    graph: Graph,
    groups: Sequence[Group],
    batches: Iterable[tuple[Tensor, object]],
    loss: Callable[[object, object], Tensor],
) -> dict[str, NDArray[np.float64]]:
    """Scores by the change of the loss when a unit is switched off, to first order.

    Args:
        graph: traced.
        groups: of `couple(graph)`.
        batches: of images (N, C, H, W) and what `loss` wants as labels.
        loss: of the network's outputs (a tensor, or a tuple of them) and labels; a mean over images.
    """
    found = {group.name: np.zeros(group.units) for group in groups}
    makers = {member.node for group in groups for member in group.makers}
    count = 0
    for images, labels in batches:
        gates: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        with torch.enable_grad():
            for node in graph:
                value = images if node.kind == "input" else apply(node, *(values[i] for i in node.inputs))
                if node.name in makers:
                    gate = value.new_ones((len(images), node.shape[1]), requires_grad=True)
                    gates[node.name] = gate
                    value = value * gate.reshape(*gate.shape, *[1] * (value.ndim - 2))
                values[node.name] = value
            outputs = tuple(values[name] for name in graph.outputs)
            total = loss(outputs if len(outputs) > 1 else outputs[0], labels)
        names = sorted(gates)
        grads = torch.autograd.grad(total, [gates[name] for name in names], allow_unused=True)
        slopes = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
        count += len(images)
        for group in groups:
            change = torch.zeros(len(images), group.units)
            for member in group.makers:
                if member.node in slopes:
                    index = torch.tensor(member.channels)
                    change += slopes[member.node][:, index].sum(-1)
            found[group.name] += change.abs().sum(0).double().numpy() * len(images)
    return {name: scores / max(count, 1) for name, scores in found.items()}


def _per_unit(squares: NDArray[np.float64], channels: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The root of the summed squares of each unit's channels."""
    return np.sqrt(squares[np.array(channels)].sum(1))


def _relative(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divided by their mean, so that a layer of large weights does not decide alone."""
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
