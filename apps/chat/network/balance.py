"""Columns made alike before weights become codes: outliers of the output layer, and channels of the layers.

A few of Gemma's columns are several times as large as the rest. One of them sets the scale of its whole row:
with a scale per row the codes' error is three times what it is without them. Such a column is divided by a
factor; the final norm multiplies by it, and where the output layer is the embedding
too, so does the embedding's own scale. Powers of two: no weight loses a bit, and the network computes what it
did. Nothing at run time costs more. Our design, after SmoothQuant (arXiv 2211.10438) and AWQ (arXiv
2306.00978), which move such factors between weights and activations everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paredown.apps.chat.network.network import Gemma
from paredown.pipeline.compress.blockwise.channels import Channels

ATTENTION, MLP = ("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up")
ABOVE = 1.3  # of the columns' median size: where an outlier begins


@torch.no_grad()
def balance_head(gemma: Gemma, factors: Mapping[int, float]) -> None:
    """Divides the output layer's columns by their factors, in place; the network computes what it did."""
    if not factors:
        return
    wide = torch.ones(gemma.config.width)
    wide[list(factors)] = torch.tensor(list(factors.values()), dtype=wide.dtype)
    gemma.lm_head.weight.div_(wide)
    gemma.model.norm.weight.copy_((1 + gemma.model.norm.weight) * wide - 1)
    if gemma.config.tied:
        gemma.model.embed_scale = gemma.model.embed_scale * wide


def outliers(rows: Tensor) -> dict[int, float]:
    """Columns of some rows (n, width) that are too large, and by what power of two."""
    sizes = rows.square().mean(0).sqrt()
    middle = sizes.median().clamp_min(torch.finfo(torch.float32).tiny)
    factors = (sizes / (ABOVE * middle)).clamp_min(1).log2().round().exp2()
    return {column: factor for column, factor in enumerate(factors.tolist()) if factor > 1}


def layer_channels(gemma: Gemma) -> list[Channels]:
    """What each layer's matrices read, but for the attention's output: of its norms, and of `up`."""
    found = list[Channels]()
    for number in range(gemma.config.layers):
        layer = f"model.layers.{number}"
        attention, mlp = (tuple(f"{layer}.{each}_proj" for each in group) for group in (ATTENTION, MLP))
        found += [
            Channels(attention, functools.partial(_divide_norm, f"{layer}.input_layernorm")),
            Channels(mlp, functools.partial(_divide_norm, f"{layer}.pre_feedforward_layernorm")),
            Channels((f"{layer}.mlp.down_proj",), functools.partial(_divide_rows, mlp[1])),
        ]
    return found


def _divide_norm(name: str, network: nn.Module, factors: Tensor) -> None:
    weight = network.get_parameter(f"{name}.weight")
    weight.copy_((1 + weight) / factors - 1)


def _divide_rows(name: str, network: nn.Module, factors: Tensor) -> None:
    network.get_parameter(f"{name}.weight").div_(factors.unsqueeze(1))
