"""Reconstruction: after a cut, each layer's weights are solved again for what the layer gave before.

In running order, every convolution and linear layer of the thinner network gets the weights that bring its
output, on a few unlabelled images, nearest to the original's in the least-squares sense, starting from the
weights that it kept (ridge). It reads what the thinner network really feeds it, so it makes up for the layers
before it too; a layer whose output is only added to a skip connection aims at the sum. Least-squares
reconstruction is known from He et al. 2017 (arXiv 1707.06168); the ridge towards the kept weights, the target
after the addition and the treatment of batch norm are our design. No training, no labels, seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.flow import Flow, Group, Kept
from paredown.pipeline.compress.coupling.patches import at_spots, patches, pick_spots
from paredown.pipeline.compress.coupling.thin_graph import Thinner
from paredown.pipeline.graph.graph import Graph, Node, apply
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace

MAX_FEATURES = 5000  # of a layer's input patch; above that only its bias is corrected
ROWS_PER_FEATURE = 12
RIDGE = 1e-2  # of the mean power of a feature
MEMORY = 6 * 2**30  # bytes of activations, of both networks; large inputs need fewer images for as many rows


@torch.no_grad()
def reconstruct(
    network: nn.Module, graph: Graph, groups: Sequence[Group], kept: Kept, images: Tensor, seed: int = 0
) -> None:
    """Solves the layers of a cut network again, in place.

    Args:
        network: what `cut` gave, in evaluation mode.
        graph: the original's, from which it was cut.
        groups: of that graph.
        kept: what the cut kept.
        images: (N, C, H, W) float32, unlabelled; as many of them as the activations of all fit in `MEMORY`.
        seed: of the positions that are looked at.
    """
    images = images[: max(1, MEMORY // _bytes(graph))]
    thinner = trace(network, tuple(graph.nodes[0].shape), opaque=any(n.kind == "opaque" for n in graph))
    whole, left = graph.run(images), Thinner(Flow(graph), groups, kept)
    users = Counter(parameter for node in thinner for parameter in node.parameters.values())
    generator = np.random.default_rng(seed)
    values: dict[str, Tensor] = {}
    for node in thinner:
        inputs = [values[name] for name in node.inputs]
        own = all(users[parameter] == 1 for parameter in node.parameters.values())
        if node.weight is not None and own and _solvable(network, node):
            target = whole[node.name][:, left.rows(node.name)]
            readers = thinner.consumers(node.name)
            if len(readers) == 1 and readers[0].kind == "add":
                skip = next(name for name in readers[0].inputs if name != node.name)
                if skip in values:
                    target = whole[readers[0].name][:, left.rows(readers[0].name)] - values[skip]
            node = _solved(node, inputs[0], target, generator)
            _write(network, node, apply(node, *inputs))
        values[node.name] = images if node.kind == "input" else apply(node, *inputs)


def _bytes(graph: Graph) -> int:
    """What one image takes at most: every tensor of the original network and of the thinner one."""
    return 2 * 4 * sum(math.prod(node.shape) for node in graph)


def _solvable(network: nn.Module, node: Node) -> bool:
    """Whether a layer's weights are trained, and a bias or a whole batch norm can take the rest."""
    names = node.parameters
    trained = dict(network.named_parameters())
    free = "weight" in names and names["weight"] in trained and trained[names["weight"]].requires_grad
    folded = "bn_mean" in names
    return free and node.attrs.get("groups", 1) == 1 and ("bn_weight" if folded else "bias") in names


def _solved(node: Node, x: Tensor, target: Tensor, generator: np.random.Generator) -> Node:
    """The node with the weights that fit best."""
    assert node.weight is not None and node.bias is not None
    weight = node.weight.flatten(1).double()
    features = weight.shape[1]
    error = target - apply(node, x)
    if features > MAX_FEATURES:
        return replace(node, bias=node.bias + (error.mean((0, 2, 3)) if error.ndim == 4 else error.mean(0)))
    spots = pick_spots(error.shape, ROWS_PER_FEATURE * features, generator)
    x, error = patches(node, x, spots), at_spots(error, spots)
    mean_x, mean_e = x.mean(0), error.mean(0)
    x, error = x - mean_x, error - mean_e
    gram = x.T @ x
    gram += torch.eye(features, dtype=gram.dtype) * (RIDGE * gram.diagonal().mean() + 1e-12)
    change = torch.linalg.solve(gram, x.T @ error).T  # (out, features)
    bias = node.bias.double() + mean_e - change @ mean_x
    return replace(node, weight=(weight + change).reshape(node.weight.shape).float(), bias=bias.float())


def _write(network: nn.Module, node: Node, output: Tensor) -> None:
    """Puts folded weights back into a layer and its batch norm; `output` is what they give.

    The running statistics become those of `output`, so that training goes on from the same function.
    """
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    names = node.parameters
    assert node.weight is not None and node.bias is not None
    weight = operation(node.kind).own(state[names["weight"]], int(node.attrs.get("groups", 1)))
    if "bn_mean" not in names:
        weight.copy_(node.weight)
        state[names["bias"]].copy_(node.bias)
        return
    norm: Any = network.get_submodule(names["bn_mean"].rpartition(".")[0])
    # The filters keep the length that they were trained with: learning rate and weight decay suit it.
    scale = node.weight.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1).clamp(min=1e-12)
    scale = scale.clamp(min=1e-12)
    weight.copy_(node.weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    values = output.transpose(0, 1).flatten(1)  # (out, N x pixels)
    mean, var = values.mean(1), values.var(1, unbiased=False)
    # output = scale * conv + bias, and BN makes of conv: gamma * (conv + inner - running) / deviation + beta
    inner = state[names["bias"]] if "bias" in names else torch.zeros_like(mean)
    running = state[names["bn_var"]].copy_((var / scale.square()).clamp(min=1e-8))
    state[names["bn_mean"]].copy_((mean - node.bias) / scale + inner)
    state[names["bn_weight"]].copy_(scale * (running + norm.eps).sqrt())
    state[names["bn_bias"]].copy_(mean)
