"""Batch normalization: folded into the layer before it, else a depthwise convolution of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, module_path, shape_of
from paredown.pipeline.graph.operations.operation import Traced

if TYPE_CHECKING:
    from paredown.pipeline.graph.tracer import Tracer


class BatchNorm(Traced):
    """No kind of its own."""

    aten = ("batch_norm",)

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, gamma, beta, mean, var, training, _, eps, _ = arguments(
            node, None, None, None, None, None, False, 0.1, 1e-5, True
        )
        two = len(shape_of(node)) == 2
        source = tracer.feed(node) if two else tracer.map(node)
        feed = tracer.nodes[source]
        mean_t, var_t = tracer.constant(node, mean), tracer.constant(node, var)
        if training or mean_t is None or var_t is None:
            raise tracer.unknown(node, "has no running statistics and so normalizes by the batch")
        gamma_t, beta_t = tracer.constant(node, gamma), tracer.constant(node, beta)
        # Fold in double: the folded network then differs from the original only by float32 rounding.
        scale = (var_t.double() + eps).rsqrt()
        scale = scale if gamma_t is None else gamma_t.double() * scale
        shift = torch.zeros_like(mean_t).double() if beta_t is None else beta_t.double()
        names = tracer.names(bn_weight=gamma, bn_bias=beta, bn_mean=mean, bn_var=var)
        folds = tracer.kind_of(source).takes_norm and "bn_mean" not in feed.parameters
        if not folds or not tracer.sole_use(node):
            alone(tracer, node, source, scale, shift - mean_t.double() * scale, names)
            return
        assert feed.weight is not None and feed.bias is not None
        weight = feed.weight.double() * scale.reshape(-1, *[1] * (feed.weight.dim() - 1))
        bias = shift + (feed.bias.double() - mean_t.double()) * scale
        names = {**feed.parameters, **names}
        attrs = {**feed.attrs, "bn_eps": float(eps)}
        tracer.replace_input(node, weight=weight.float(), bias=bias.float(), parameters=names, attrs=attrs)


def alone(tracer: Tracer, node: Any, feed: str, scale: Tensor, shift: Tensor, names: dict[str, str]) -> None:
    """Adds `scale * x + shift`, per channel, as a depthwise convolution of one pixel.

    Args:
        tracer: makes nodes.
        node: of the exported program.
        feed: the node that it reads: a map, or (1, features).
        scale: (channels,).
        shift: (channels,).
        names: the parameters that they are made of.
    """
    shape, name, channels = tracer.nodes[feed].shape, module_path(node) or node.name, len(scale)
    flat, pixel = len(shape) == 2, (1, channels, 1, 1)
    if flat:
        feed = tracer.add(node, "reshape", (feed,), shape=pixel, name=f"{name}.map", attrs={"shape": pixel})
    attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": channels}
    made = tracer.add(
        node, "conv2d", (feed,), shape=pixel if flat else shape, name=name, attrs=attrs, parameters=names,
        weight=scale.float().reshape(-1, 1, 1, 1), bias=shift.float(),
    )  # fmt: skip
    if flat:
        tracer.add(node, "reshape", (made,), shape=shape, name=f"{name}.flat", attrs={"shape": shape})
