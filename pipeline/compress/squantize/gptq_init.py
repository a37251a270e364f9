"""Where training starts: weights moved onto their grid so that the layers' outputs change least.

The nearest codes are far from the best ones: what one weight's code loses, the others of its filter can make
good (`pipeline.compress.grids.rounding`, GPTQ). In running order each layer is rounded for what it is really
fed, by layers that are rounded already. The latent weights become the codes' values; so training starts
there, and goes on from there as it would from anywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.compress.coupling.patches import Spots, patches, pick_spots
from paredown.pipeline.compress.grids.grid import encode, threshold_at
from paredown.pipeline.compress.grids.rounding import recoded
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
from paredown.pipeline.graph.alike import ALIKE
from paredown.pipeline.graph.graph import Graph, Node

MAX_FEATURES = 5000  # of a filter's input; above that its codes stay the nearest
ROWS_PER_FEATURE, MOST_ROWS = 48, 1 << 16
PATCHES = 1 << 26  # values of patches that are held at once
MEMORY = 6 * 2**30  # bytes of activations
ALIVE = 4  # of the largest tensors, at once


@torch.no_grad()
def round_weights(live: QatNetwork, images: Tensor, seed: int = 0) -> None:
    """Rounds the latent weights of every squantized layer without groups, in place.

    Args:
        live: its grids are uniform, and what training changes is not changed yet.
        images: (N, C, H, W) float32, unlabelled; as many of them as fit in `MEMORY`.
        seed: of the positions that are looked at.
    """
    training, state, graph = live.training, live.eval().state, live.graph
    images = images[: max(1, MEMORY // _bytes(graph))]
    generator = np.random.default_rng(seed)
    waiting = Counter(name for node in graph for name in node.inputs)
    values: dict[str, Tensor] = {}
    for node in graph:
        inputs = [values[name] for name in node.inputs]
        name = node.parameters.get("weight", "")
        planned = name in live.plans
        weight = live.latent(name, state) if planned else torch.zeros(1)
        fits = node.attrs.get("groups", 1) == 1 and weight[0].numel() <= MAX_FEATURES
        if planned and fits and ALIKE not in node.attrs:  # what steps share has no one input to be fitted to
            shape = (len(images), *node.shape[1:])
            spots = pick_spots(shape, min(MOST_ROWS, ROWS_PER_FEATURE * weight[0].numel()), generator)
            moments = _moments(replace(node, weight=weight), inputs[0], spots)
            weight.copy_(_rounded(weight, live.final_sigma(name, weight), live.plans[name], moments))
        weights = {}
        if planned:
            codes, step = encode(weight, live.final_sigma(name, weight), live.plans[name].config)
            weights = {name: codes * step}
        values[node.name] = images if node.kind == "input" else live.compute(node, inputs, state, weights)
        waiting.subtract(node.inputs)
        for spent in [name for name in node.inputs if not waiting[name]]:
            values.pop(spent, None)
    live.train(training)


def _moments(node: Node, x: Tensor, spots: Spots) -> Tensor:
    """Second moments of what a layer reads there, float64 (in, in)."""
    assert node.weight is not None
    most = max(1, PATCHES // node.weight[0].numel())
    if spots is None or len(spots[0]) <= most:
        rows = patches(node, x, spots)
        return rows.T @ rows / len(rows)
    total, count = torch.zeros(()), len(spots[0])
    for start in range(0, count, most):
        image, y, column = (axis[start : start + most] for axis in spots)
        rows = patches(node, x, (image, y, column))
        total = total + rows.T @ rows
    return total / count


def _rounded(weight: Tensor, sigma: float, plan: LayerPlan, hessian: Tensor) -> Tensor:
    """The values of better codes than the nearest; a filter that would lose its grid's end keeps those."""
    config = plan.config
    nearest, step = encode(weight, sigma, config)
    most = config.most_uniform
    rows, scales = nearest.flatten(1).to(torch.int8), step.expand(len(weight), *step.shape[1:]).reshape(-1, 1)
    units = weight / step
    stays = (rows == 0) & bool(threshold_at(units, sigma) > 0)
    found = recoded(weight.flatten(1), rows, scales, hessian, (-most, most), stays)
    lost = (rows.abs().amax(1) == most) & (found.abs().amax(1) < most)  # the step would be another
    found = torch.where(lost.unsqueeze(1), rows, found)
    return (found.float() * scales).reshape(weight.shape)


def _bytes(graph: Graph) -> int:
    """What one image takes at most, about."""
    return ALIVE * 4 * max(math.prod(node.shape) for node in graph)
