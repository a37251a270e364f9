"""Fine-grained weight pruning: single weights made zero, gradually, to an exact share of the network.

Magnitudes are compared across layers by their LAMP score (Lee et al., arXiv 2010.07611); a layer keeps at
least a floor of its weights and every filter at least one (our design). The share grows along the cubic of
Zhu & Gupta (arXiv 1710.01878). A weight that has gone never comes back, so the masks only ever grow. Biases
and batch norm are left alone.

Why LAMP: with 60 % of the inner weights gone at once, ResNet-56 has 91.0 % top-1 on 500 CIFAR-10 test images
(by plain magnitude 91.2, by magnitude over the layer's root mean square 90.4), and YOLO-LITE VOC without
batch norm an mAP of .232 on 64 COCO images (.231 and .107; .240 unpruned): near the best of both on each,
and blind to the scale of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paredown.pipeline.graph.graph import Graph, Node
from paredown.targets.errors import InputError, UsageError

#: Name of a weight to where it stays, a bool tensor of its shape.
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class SparsitySchedule:
    """How many weights are zero after each step of a training."""

    target: float
    """Share of zeros at the end, of all the weights named below together."""
    weights: tuple[str, ...]
    """The parameters that are pruned, by their names in the network; see `prunable`."""
    begin: float = 0.0
    """Share of the steps after which pruning begins."""
    end: float = 0.5
    """Share of the steps after which the target is reached; from then on the masks are fixed."""
    every: int = 10
    """Steps between two changes of the masks."""
    floor: float = 0.02
    """Least share of its weights that every layer keeps."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UsageError: a value that cannot work, by its name.
        """
        for name, fits, hint in (
            ("target", 0 <= self.target < 1, "0 or more, below 1"),
            ("begin", 0 <= self.begin < self.end, "0 or more, below end"),
            ("end", self.end <= 1, "at most 1"),
            ("every", self.every >= 1, "at least 1"),
            ("floor", 0 <= self.floor <= 1, "0 to 1"),
        ):
            if not fits:
                raise UsageError(f"{name} = {getattr(self, name)}", where="SparsitySchedule", hint=hint)

    def last(self, steps: int) -> int:
        """The number of steps after which the target is reached, at least 1."""
        return max(1, round(self.end * steps))

    def at(self, step: int, steps: int) -> float:
        """The share of zeros after `step` of `steps` steps: s (1 - (1 - t)^3), t from 0 to 1."""
        first, last = round(self.begin * steps), self.last(steps)
        if step >= last:
            return self.target
        progress = max(0.0, (step - first) / max(1, last - first))
        return self.target * (1 - (1 - progress) ** 3)

    def due(self, step: int, steps: int) -> bool:
        """Whether the masks change after `step` of `steps` steps."""
        last = self.last(steps)
        return step == last or (step < last and step % self.every == 0 and self.at(step, steps) > 0)


@dataclass(frozen=True)
class LayerSparsity:
    """The zeros of one parameter.

    Attributes:
        name: of the parameter.
        zeros: how many of its weights are zero.
        count: of how many.
    """

    name: str
    zeros: int
    count: int


def prunable(graph: Graph, *, ends: bool = False, depthwise: bool = False) -> tuple[str, ...]:
    """The weights of a network that are worth pruning, by their names in its state dict.

    Args:
        graph: the traced network.
        ends: also the first layers (nothing with weights before them) and the last ones (nothing after): they
            are small and most sensitive.
        depthwise: also depthwise convolutions: a few weights a filter, all of them needed (our design).
    """
    first = _ends(graph.nodes)
    last = _ends(
        tuple(reversed(graph.nodes)), {n.name: [c.name for c in graph.consumers(n.name)] for n in graph}
    )
    names: dict[str, None] = {}
    for node in graph:
        if "weight" not in node.parameters or (node.name in first | last and not ends):
            continue  # no layer, or one of numbers per channel only: a batch norm, slopes
        assert node.weight is not None
        if node.kind == "conv2d" and node.weight.shape[1] == 1 and node.attrs["groups"] > 1 and not depthwise:
            continue
        if "weight" in node.parameters:
            names[node.parameters["weight"]] = None
    return tuple(names)


def _ends(nodes: Sequence[Node], feeds: Mapping[str, Sequence[str]] | None = None) -> set[str]:
    """Nodes with weights before which, in this order and along these feeds, there is none."""
    weighted: dict[str, bool] = {}
    found = set()
    for node in nodes:
        sources = node.inputs if feeds is None else feeds[node.name]
        before = any(weighted[source] for source in sources)
        if node.weight is not None and not before:
            found.add(node.name)
        weighted[node.name] = before or node.weight is not None
    return found


def sparsest(network: nn.Module, weights: Sequence[str], floor: float) -> float:
    """The highest share of zeros that the floors allow."""
    kept = total = 0
    for tensor in parameters_of(network, weights).values():
        kept += int(_protected(tensor.detach().abs(), floor).sum())
        total += tensor.numel()
    return 1 - kept / total


def grow_masks(
    network: nn.Module, weights: Sequence[str], sparsity: float, floor: float, masks: Masks | None = None
) -> dict[str, Tensor]:
    """Chooses which weights stay, so that exactly round(sparsity * count) go.

    Args:
        network: its weights decide.
        weights: names of the parameters.
        sparsity: share of zeros over all of them together.
        floor: least share of its weights that a layer keeps; a filter always keeps one.
        masks: of an earlier call: what has gone stays gone.

    Raises:
        UsageError: the floors do not allow so many zeros, or no weights are named.
    """
    tensors = {name: parameter.detach() for name, parameter in parameters_of(network, weights).items()}
    scores = []
    for name, tensor in tensors.items():
        magnitude = tensor.abs()
        score = _comparable(magnitude)
        if masks is not None:
            magnitude = magnitude.masked_fill(~masks[name], -1)
            score = score.masked_fill(~masks[name], -1)
        scores.append(score.masked_fill(_protected(magnitude, floor), math.inf).flatten())
    flat = torch.cat(scores)
    wanted = round(sparsity * len(flat))
    possible = int((flat < math.inf).sum())
    if wanted > possible:
        raise UsageError(
            f"a weight sparsity of {sparsity:.4g} leaves less than every layer has to keep",
            hint=f"at most {possible / len(flat):.4g} can be reached, or lower the floor (it was {floor:g})",
        )
    stay = torch.ones_like(flat, dtype=torch.bool)
    if wanted:
        limit = flat.kthvalue(wanted).values
        stay = flat >= limit
        ties = (flat == limit).nonzero().flatten()
        stay[ties[: wanted - int((~stay).sum())]] = False  # equal ones: the first go, so the count is exact
    parts = stay.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Masks, gradients: bool = False) -> None:
    """Makes the weights that have gone zero, in place; with `gradients` their gradients instead."""
    for name, parameter in parameters_of(network, tuple(masks)).items() if masks else ():
        tensor = parameter.grad if gradients else parameter
        if tensor is not None:
            tensor.masked_fill_(~masks[name], 0.0)


def prune_weights(
    network: nn.Module, sparsity: float, weights: Sequence[str], floor: float = SparsitySchedule.floor
) -> tuple[LayerSparsity, ...]:
    """Makes the smallest weights zero at once, in place; arguments and errors as for `grow_masks`."""
    apply_masks(network, grow_masks(network, weights, sparsity, floor))
    return layer_sparsity(network, weights)


def layer_sparsity(network: nn.Module, weights: Sequence[str]) -> tuple[LayerSparsity, ...]:
    """Counts the zeros of each of these parameters."""
    return tuple(
        LayerSparsity(name, int((parameter == 0).sum()), parameter.numel())
        for name, parameter in parameters_of(network, weights).items()
    )


def parameters_of(network: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Finds parameters by their names; one that layers share comes once.

    Raises:
        InputError: there is none of that name.
        UsageError: no names.
    """
    if not names:
        raise UsageError("no weights to prune", hint="the network has only protected layers; allow its ends")
    known = dict(network.named_parameters(remove_duplicate=False))
    found: dict[str, nn.Parameter] = {}
    for name in names:
        if name not in known:
            raise InputError(f"the network has no parameter {name!r}", where="weights to prune")
        if all(known[name] is not other for other in found.values()):
            found[name] = known[name]
    return found


def _comparable(magnitude: Tensor) -> Tensor:
    """LAMP: a weight's square over the sum of all squares in its layer that are not smaller.

    It does not change with the layer's scale, which batch norm and the layers after it make arbitrary: a
    plain threshold over all layers is at the mercy of that. The largest weight of every layer has the score
    1, so no layer runs dry while another has weights to spare.
    """
    squares, order = magnitude.flatten().double().square().sort()
    larger = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / larger.clamp(min=1e-300)
    return scores.view(magnitude.shape)


def _protected(magnitude: Tensor, floor: float) -> Tensor:
    """Which weights stay whatever happens: each filter's largest, and the layer's largest up to the floor."""
    rows = magnitude.flatten(1)
    stay = torch.zeros_like(rows, dtype=torch.bool)
    stay[torch.arange(len(rows)), rows.argmax(1)] = True
    missing = math.ceil(floor * rows.numel()) - len(rows)
    if missing > 0:
        flat = rows.masked_fill(stay, -2).flatten()
        stay.view(-1)[flat.topk(missing).indices] = True
    return stay.view(magnitude.shape)
