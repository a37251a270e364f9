"""After training: batch norm becomes a part of the scales, and the codes stay what they are.

Folding multiplies an output channel by gamma / sqrt(var + eps). Its integer codes and its zeros survive
exactly, only the channel's scale changes; a negative gamma turns the signs round.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from paredown.pipeline.compress.grids.grid import encode
from paredown.pipeline.compress.squantize.clip_places import Grid, gridded
from paredown.pipeline.compress.squantize.qat_network import QatNetwork
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.trace import trace

SMALLEST_GAIN = 1e-6  # of a layer's largest: below it a channel is dead, but a scale must not be zero


@torch.no_grad()
def fold(live: QatNetwork, shape: tuple[int, ...]) -> Graph:
    """The trained network as a graph whose weights are whole numbers times `Node.scale`.

    Args:
        live: trained; evaluated as it is shipped.
        shape: of the input, a batch of one.
    """
    live.eval()
    graph = trace(live.network, shape)
    layers = []
    for node in graph:
        name = node.parameters.get("weight", "")
        layers.append(_folded(live, node, name) if name in live.plans else node)
    clips = live.clips_named.items()
    grids = {name: Grid(float(clip.step), clip.levels, clip.below, clip.signed) for name, clip in clips}
    return gridded(Graph(tuple(layers), graph.outputs), grids)


def codes_of(live: QatNetwork, name: str) -> tuple[Tensor, Tensor]:
    """The codes of a weight as they are trained, before folding, and their step or steps."""
    weight = live.latent(name, live.state)
    return encode(weight, live.final_sigma(name, weight), live.plans[name].config)


def _folded(live: QatNetwork, node: Node, name: str) -> Node:
    codes, step = codes_of(live, name)
    gain = _gain(live, node, len(codes))
    gain = torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp_min(SMALLEST_GAIN * float(gain.abs().max()))
    scale = (gain.abs() * step.flatten().double()).float()
    across = (-1, *[1] * (codes.dim() - 1))
    folded = codes * gain.sign().reshape(across).float() * scale.reshape(across)
    return replace(node, weight=folded, scale=scale)


def _gain(live: QatNetwork, node: Node, channels: int) -> Tensor:
    """What batch norm multiplies each output channel by."""
    names = node.parameters
    if "bn_var" not in names:
        return torch.ones(channels, dtype=torch.float64)
    state = live.network.state_dict()
    gain = (state[names["bn_var"]].double() + node.attrs["bn_eps"]).rsqrt()
    return gain * state[names["bn_weight"]].double() if "bn_weight" in names else gain
