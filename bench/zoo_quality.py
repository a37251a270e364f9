"""How near int8 is to float: the integer graph, and the float graph whose tensors are rounded one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.calibration.observers import activation_qparams, weight_scales
from paredown.pipeline.graph.graph import Graph, apply
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, quantize

AGAIN = 8  # how often a difference is measured again


def snr(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Of what differs between the samples, in dB."""
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    signal = wanted - wanted.mean(0, keepdims=True)
    return float(10 * np.log10(max((signal**2).sum(), 1e-300) / max(((wanted - found) ** 2).sum(), 1e-300)))


def rounded(graph: Graph, ranges: dict[str, tuple[float, float]], x: Tensor) -> dict[str, Tensor]:
    """The float graph, its weights and each of its tensors rounded to int8."""
    values: dict[str, Tensor] = {}
    for node in graph:
        if node.weight is not None:
            scale = torch.from_numpy(weight_scales(node.weight.numpy())).reshape(
                -1, *[1] * (node.weight.dim() - 1)
            )
            node = replace(node, weight=(node.weight / scale).round().clamp(-127, 127) * scale)
        made = x if node.kind == "input" else apply(node, *(values[i] for i in node.inputs))
        readers = graph.consumers(node.name)
        fused = len(readers) == 1 and readers[0].kind in {"relu", "relu6"} and node.name not in graph.outputs
        grid = activation_qparams(*ranges[node.name])
        values[node.name] = made if fused else torch.fake_quantize_per_tensor_affine(made, *grid, -128, 127)
    return values


def near_float(
    graph: Graph,
    made: IntegerGraph,
    ranges: dict[str, tuple[float, float]],
    x: Tensor,
    values: dict[str, Tensor],
) -> list[tuple[float, float]]:
    """SNR of each output in dB: of the integer graph, and of the float graph that is rounded."""
    plain = rounded(graph, ranges, x)
    codes = reference.predict(made, made.input.out.quantize(x.numpy()))
    pairs = []
    for name, each in zip(made.outputs, codes, strict=True):
        want = values[name].numpy()
        real = made[name].out.dequantize(each).reshape(want.shape)
        pairs.append((snr(want, real), snr(want, plain[name].numpy())))
    return pairs


def again(graph: Graph, ranges: dict[str, tuple[float, float]], x: Tensor, values: dict[str, Tensor]) -> str:
    """By how much the integer graph is nearer to float than the rounded float graph, in dB.

    Mean and standard error of the output that is furthest from float, with ranges that are up to 5 % wider
    than those that were calibrated, each by a number of its own.
    """
    source, apart = graph.nodes[0].name, []
    for seed in range(AGAIN):
        rng = np.random.default_rng(seed)
        wider = {name: rng.uniform(1, 1.05) * np.array(ends) for name, ends in ranges.items()}
        other = {name: (float(low), float(high)) for name, (low, high) in wider.items()}
        other[source] = ranges[source]
        made = quantize(graph, other, input_range=ranges[source])
        own, theirs = min(near_float(graph, made, other, x, values))
        apart.append(own - theirs)
    return f"{np.mean(apart):+.1f} ± {np.std(apart, ddof=1) / AGAIN**0.5:.1f}"
