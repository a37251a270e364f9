"""A Gemma with random weights whose window several texts go past, in floats or in codes; and what it says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from paredown.apps.chat.network.config import GemmaConfig
from paredown.apps.chat.network.network import Gemma, Stateful
from paredown.pipeline.compress.blockwise.codes import find_residual, put_residual
from paredown.pipeline.compress.blockwise.modules import put
from paredown.pipeline.compress.grids.weight import BlockWeight, stored_scales
from paredown.pipeline.lower.language.network import LanguageFacts

CONFIG = GemmaConfig(
    local=(True, False), width=64, ffn=128, heads=4, kv_heads=2, head_dim=16, window=8, vocabulary=256,
    max_positions=64,
)  # fmt: skip
FACTS = LanguageFacts(vocabulary=256, context=64, chunk=8, longest=64, bos=2, eos=(1,))
TOKENS = np.random.default_rng(0).integers(3, 256, 56).tolist()  # seven windows


@dataclass(frozen=True)
class Codes:
    """How linear layers and the embedding are held: so many bits, a scale per block or (0) per row.

    `rows`: the layers have a scale per row, int8 for values, and the embedding and the output layer alone one
    per block. `residual`: every other token's look-up gets back what rounding took.
    """

    bits: int
    block: int
    rows: bool = False
    residual: bool = False

    def of(self, name: str) -> Codes:
        if not self.rows or "layers." not in name:
            return self
        return Codes(8 if "v_proj" in name else self.bits, 0)


def network(codes: Codes | None = None, tied: bool = True, config: GemmaConfig = CONFIG) -> Gemma:
    torch.manual_seed(0)
    made = Gemma(replace(config, tied=tied)).eval()
    for name, parameter in made.named_parameters():  # of a norm; zeros would hide that they are added
        if "norm" in name:
            parameter.data.uniform_(-0.3, 0.3)
    plain = made.model.embed_tokens.weight.detach().clone()
    if codes is not None:
        linear = {name: m for name, m in made.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
        linear = {name: m for name, m in linear.items() if not tied or isinstance(m, nn.Linear)}
        put(made, {name: rounded(m.weight.detach(), codes.of(name)) for name, m in linear.items()}, 8)
    if codes is not None and codes.residual:
        tokens = torch.arange(3, config.vocabulary, 2)
        put_residual(made, find_residual(tokens, plain, made.model.embed_tokens.tensor.weight))
    return made


def rounded(weight: torch.Tensor, codes: Codes) -> BlockWeight:
    block, largest = codes.block or weight.shape[1], 2 ** (codes.bits - 1) - 1
    blocks = weight.unflatten(1, (-1, block))
    scales = blocks.abs().amax(2) / largest
    scales = stored_scales(scales) if codes.block else scales
    units = (blocks / scales.unsqueeze(2)).round().clamp(-largest - 1, largest)
    return BlockWeight(units.flatten(1).to(torch.int8), scales, codes.bits, block)


def eager(gemma: Gemma) -> np.ndarray:
    """Logits after each of TOKENS, (tokens, vocabulary)."""
    step = Stateful(gemma, FACTS.context, FACTS.chunk).eval()
    with torch.no_grad():
        rows = [step(torch.tensor([[token]]), torch.tensor([i])) for i, token in enumerate(TOKENS)]
    return torch.cat(rows).numpy()
