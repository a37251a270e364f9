"""A small language model for the tests of low-bit weights: tied head, gated layers, other arguments."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.layerwise import Calibration

VOCABULARY, WIDTH, FFN, LAYERS = 48, 32, 64, 2


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.value, self.mix = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, FFN, bias=False)
        self.up = nn.Linear(WIDTH, FFN, bias=False)
        self.down = nn.Linear(FFN, WIDTH, bias=False)

    def forward(self, x: Tensor, past: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        x = x + self.mix(past @ self.value(y)) * scale
        y = self.norm(x)
        return x + self.down(F.gelu(self.gate(y)) * self.up(y)), past


class Talker(nn.Module):
    """Tokens (1, T) to logits (1, T, vocabulary); each token sees the mean of those before it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        past = torch.ones(length, length).tril() / torch.arange(1, length + 1).unsqueeze(1)
        x = self.embed(tokens)
        for layer in self.layers:
            x, past = layer(x, past, scale=1.0)
        return self.head(x)


LINEARS = tuple(
    f"layers.{number}.{name}" for number in range(LAYERS) for name in ("value", "mix", "gate", "up", "down")
)


def texts(count: int, length: int = 16, seed: int = 1) -> list[Tensor]:
    """Tokens in which each depends on the one before."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        tokens = [int(torch.randint(VOCABULARY, (), generator=generator))]
        while len(tokens) < length:
            jump = int(torch.randint(3, (), generator=generator))
            tokens.append((tokens[-1] * 5 + jump) % VOCABULARY)
        found.append(torch.tensor([tokens]))
    return found


def calibration(count: int = 6) -> Calibration:
    layers = [f"layers.{number}" for number in range(LAYERS)]
    return Calibration(lambda network, tokens: network(tokens), texts(count), layers)
