"""Batch normalization: folded into the convolution or linear layer before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from paredown.pipeline.graph.aten import arguments, shape_of
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
        feed = tracer.nodes[tracer.feed(node) if two else tracer.map(node)]
        if feed.weight is None or not tracer.sole_use(node):
            raise tracer.unknown(node, "does not directly follow a convolution of its own")
        mean_t, var_t = tracer.constant(node, mean), tracer.constant(node, var)
        if training or mean_t is None or var_t is None:
            raise tracer.unknown(node, "has no running statistics and so normalizes by the batch")
        assert feed.bias is not None
        gamma_t, beta_t = tracer.constant(node, gamma), tracer.constant(node, beta)
        # Fold in double: the folded network then differs from the original only by float32 rounding.
        scale = (var_t.double() + eps).rsqrt()
        scale = scale if gamma_t is None else gamma_t.double() * scale
        shift = torch.zeros_like(mean_t).double() if beta_t is None else beta_t.double()
        weight = feed.weight.double() * scale.reshape(-1, *[1] * (feed.weight.dim() - 1))
        bias = shift + (feed.bias.double() - mean_t.double()) * scale
        names = tracer.names(bn_weight=gamma, bn_bias=beta, bn_mean=mean, bn_var=var)
        names = {**feed.parameters, **names}
        attrs = {**feed.attrs, "bn_eps": float(eps)}
        tracer.replace_input(node, weight=weight.float(), bias=bias.float(), parameters=names, attrs=attrs)
