"""Which observer each tensor gets: the one with which the network's outputs change least (our design).

An observer that is right for one tensor is wrong for another: a percentile cuts the outliers that one head
lives on, the extremes waste the codes of another. So each tensor's ranges are tried in turn, in a simulation
of the int8 network on calibration images that no observer has seen, and the better one stays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.fusion import fuse_relu, same_scale, scales_apart
from paredown.pipeline.graph.graph import Graph, Node, apply
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.operation import QMAX, QMIN
from paredown.pipeline.lower.integer import Affine, WeightMethod, scales_of, tensor_scales

Ranges = Mapping[str, tuple[float, float]]
Scales = dict[str, Affine]
#: Outputs, and those of the float network, to a number that is 0 where they are the same.
Divergence = Callable[[Sequence[Tensor], Sequence[Tensor]], float]
#: Multiply-accumulates of a whole choice, and bytes of activations: they bound the images that are looked at.
MOST_MACS, MEMORY = 1.5e12, 2 * 2**30
FEWEST, MOST = 4, 16


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        ranges: of every tensor.
        observers: of every tensor, by name.
        images: that were looked at.
        before: divergence of the outputs with the first observer everywhere.
        after: the same with the ranges that were chosen.
    """

    ranges: dict[str, tuple[float, float]]
    observers: dict[str, str]
    images: int
    before: float
    after: float

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors each observer has."""
        return dict(Counter(self.observers.values()))


def images_for(graph: Graph, images: int) -> int:
    """How many held-out images a choice for this graph looks at, of those that there are."""
    tensors = len(fuse_relu(graph))
    share = MOST_MACS / max(1, graph.macs * tensors)  # two trials of half a network for each tensor
    held = MEMORY / max(1, 8 * sum(math.prod(node.shape) for node in graph))
    return min(images, MOST, max(FEWEST, int(share)), max(1, int(held)))


@torch.no_grad()
def choose(
    graph: Graph,
    candidates: Mapping[str, Ranges],
    images: Tensor,
    *,
    input_range: tuple[float, float],
    weights: WeightMethod = "minmax",
    divergence: Divergence | None = None,
) -> Choice:
    """Chooses, tensor by tensor in running order, whose range it gets.

    Args:
        graph: traced, BN folded.
        candidates: observer -> ranges of every tensor; the first is that which others have to beat.
        images: (N, C, H, W) float32, held-out.
        input_range: as `pipeline.lower.integer.quantize` takes it.
        weights: likewise.
        divergence: of the outputs from the float network's; unset, `squared_share`.

    Raises:
        InputError: as of `pipeline.lower.integer.quantize`.
    """
    network = Simulation(graph, images, input_range, weights, divergence or squared_share)
    before = math.inf
    ranges: dict[str, tuple[float, float]] = {}
    observers: dict[str, str] = {}
    first = network.divergence(candidates[next(iter(candidates))])
    for name, found in candidates.items():
        if (now := network.divergence(found)) < before:
            before, ranges, observers = now, dict(found), dict.fromkeys(found, name)
    network.settle(ranges)
    for tensors in network.sharing(ranges):
        for name, found in candidates.items():
            trial = ranges | {tensor: found[tensor] for tensor in tensors}
            if (now := network.divergence(trial)) < before:
                before, ranges = now, trial
                observers |= dict.fromkeys(tensors, name)
                network.settle(ranges)
    return Choice(ranges, observers, len(images), first, before)


def squared_share(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Squared error of outputs, as a share of their squares; the mean of all outputs."""
    shares = []
    for ours, theirs in zip(found, truth, strict=True):
        error = (ours - theirs).square().sum(dtype=torch.float64)
        shares.append(float(error / theirs.square().sum(dtype=torch.float64).clamp_min(1e-30)))
    return float(np.mean(shares))


class Simulation:
    """The network in float, with every tensor and weight rounded to what codes can say.

    Only what a change of ranges reaches is computed anew.

    Args:
        graph: traced.
        images: (N, C, H, W) float32.
        input_range: of the input's scale.
        weights: how their scales are chosen.
        divergence: of outputs from the float network's.
    """

    def __init__(
        self,
        graph: Graph,
        images: Tensor,
        input_range: tuple[float, float],
        weights: WeightMethod,
        divergence: Divergence = squared_share,
    ) -> None:
        """Computes the float network's outputs."""
        self._nodes, self._input_range = fuse_relu(graph), input_range
        self._outputs, self._apart = graph.outputs, divergence
        self._weight_scale = {n.name: scales_of(n, weights) for n, _ in self._nodes if n.weight is not None}
        floats = graph.run(images)
        self._truth = [floats[name] for name in graph.outputs]
        self._layers = [(self._rounded(node), clamp) for node, clamp in self._nodes]
        self._images = images
        self._values: dict[str, Tensor] = {}
        self._scales: Scales = {}

    def _rounded(self, node: Node) -> Node:
        if node.weight is None:
            return node
        scale = torch.from_numpy(self._weight_scale[node.name]).reshape(-1, *[1] * (node.weight.dim() - 1))
        return replace(node, weight=(node.weight / scale).round().clamp(-QMAX, QMAX) * scale)

    def scales(self, ranges: Ranges) -> Scales:
        """Scale and zero point of every tensor, as the integer graph will have them."""
        return tensor_scales(self._nodes, ranges, self._input_range, self._weight_scale)

    def sharing(self, ranges: Ranges) -> list[list[str]]:
        """The tensors that share a scale, together, in running order; none whose scale is given."""
        plain = [node for node, _ in self._nodes]
        find = same_scale(plain, scales_apart(plain, {**ranges, plain[0].name: self._input_range}))
        groups: dict[str, list[Node]] = {}
        for node in plain:
            groups.setdefault(find(node.name), []).append(node)

        told = {node.inputs[0] for node in plain if operation(node.kind).feed_at(node) is not None}

        def free(node: Node) -> bool:
            given = node.kind == "input" or node.name in told
            return not (given or "levels" in node.attrs or operation(node.kind).fixed(node))

        return [[node.name for node in group] for group in groups.values() if all(map(free, group))]

    def divergence(self, ranges: Ranges) -> float:
        """How far the outputs are from the float network's."""
        values = self._computed(self.scales(ranges))
        return self._apart([values[name] for name in self._outputs], self._truth)

    def settle(self, ranges: Ranges) -> None:
        """Makes these ranges those that trials start from."""
        scales = self.scales(ranges)
        self._values = self._computed(scales)
        self._scales = scales

    def _computed(self, scales: Scales) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        dirty: set[str] = set()
        for node, clamp in self._layers:
            same = scales[node.name] == self._scales.get(node.name) and not dirty & set(node.inputs)
            if same:
                values[node.name] = self._values[node.name]
                continue
            dirty.add(node.name)
            x = self._images if node.kind == "input" else apply(node, *(values[name] for name in node.inputs))
            out = scales[node.name]
            x = torch.fake_quantize_per_tensor_affine(x, out.scale, out.zero_point, QMIN, QMAX)
            if clamp:
                low, high = ((code - out.zero_point) * out.scale for code in operation(clamp).limits(out))
                x = x.clamp(low, high)
            values[node.name] = x
        return values
