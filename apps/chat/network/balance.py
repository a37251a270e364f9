"""Outlier columns of the output layer, made like the others before weights become codes.

A few of Gemma's columns are several times as large as the rest. In a row, or in a block of it, one of them
sets the scale for all: with a scale per row the codes' error is three times what it is without them. Such a
column is divided by a factor; the final norm multiplies by it, and where the output layer is the embedding
too, so does the embedding's own scale. Powers of two: no weight loses a bit, and the network computes what it
did. Nothing at run time costs more. Our design, after SmoothQuant (arXiv 2211.10438) and AWQ (arXiv
2306.00978), which move such factors between weights and activations everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paredown.apps.chat.network.network import Gemma

ABOVE = 1.3  # of the columns' median size: where an outlier begins


@torch.no_grad()
def balance_head(gemma: Gemma, factors: Tensor) -> None:
    """Divides the output layer's columns by factors (width,), in place; the network computes what it did."""
    if not bool((factors > 1).any()):
        return
    gemma.lm_head.weight.div_(factors)
    gemma.model.norm.weight.copy_((1 + gemma.model.norm.weight) * factors - 1)
    if gemma.config.tied:
        gemma.model.embed_scale = gemma.model.embed_scale * factors


def outliers(rows: Tensor) -> Tensor:
    """By what each column of some rows (n, width) is too large: powers of two (width,), 1 for most."""
    sizes = rows.square().mean(0).sqrt()
    middle = sizes.median().clamp_min(torch.finfo(torch.float32).tiny)
    return (sizes / (ABOVE * middle)).clamp_min(1).log2().round().exp2()
