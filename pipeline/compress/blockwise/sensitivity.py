"""Mixed bits: how many each part of a network gets within a budget of bytes, from what it loses alone.

The question of `pipeline.compress.squantize.bits`, and its answer: a curve per part over its bits, and the
program that picks one point of each. What a part loses is how far the network's probabilities move, on
calibration tokens, with that part alone in codes. Our design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.allocate.allocate import Allocation
from paredown.pipeline.compress.blockwise.modules import put
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.compress.sensitivity.sensitivity import Curve, Point, Sensitivity
from paredown.pipeline.compress.squantize.bits import INT8, choose_bits

METRIC = "minus the divergence"

Tick = Callable[[int, int], None]


@torch.no_grad()
def measure_divergence(
    network: nn.Module,
    parts: Mapping[str, Sequence[str]],
    bits: Sequence[int],
    find: Callable[[str, int], BlockWeight],
    logits: Callable[[nn.Module], Tensor],
    activation_bits: int | None = None,
    tick: Tick | None = None,
) -> tuple[Sensitivity, dict[str, dict[int, float]]]:
    """How far probabilities move with each part alone in so many bits.

    Args:
        network: in full precision; it comes back as it was.
        parts: name -> the linear layers and embeddings that have the same number of bits.
        bits: those to measure, and 8, which counts as lossless, as in `choose_bits`.
        find: the codes of a layer, by its name, with so many bits.
        logits: of the network on calibration tokens, (tokens, classes).
        activation_bits: see `BlockLinear`.
        tick: takes (points done, points in all).

    Returns:
        A curve per part, with bits for widths and minus the mean KL divergence from full precision, in nats
        per token, with its 95 % confidence interval over the tokens; and part -> bits -> bytes.
    """
    expected = logits(network).log_softmax(-1)
    fewer = sorted((each for each in bits if each < INT8), reverse=True)
    curves, sizes, done = [], dict[str, dict[int, float]](), 0
    for part, names in parts.items():
        points = [Point(INT8, 0.0, 0.0, 0.0)]
        sizes[part] = {}
        for width in (INT8, *fewer):
            found = {name: find(name, width) for name in names}
            sizes[part][width] = float(sum(weight.bytes for weight in found.values()))
            if width < INT8:
                with in_codes(network, found, activation_bits):
                    points.append(_point(width, expected, logits(network)))
                done += 1
                if tick:
                    tick(done, len(parts) * len(fewer))
        curves.append(Curve(part, INT8, tuple(points)))
    return Sensitivity(METRIC, len(expected), Point(0, 0.0, 0.0, 0.0), tuple(curves)), sizes


def choose_block_bits(
    found: Sensitivity, sizes: Mapping[str, Mapping[int, float]], rest: float, budget: float
) -> Allocation:
    """Bits for every part, at the least predicted divergence within so many bytes.

    Args:
        found: of `measure_divergence`.
        sizes: likewise.
        rest: bytes of everything that has no choice.
        budget: bytes in all.

    Returns:
        Bits as widths; its share is of the bytes with 8 bits everywhere.

    Raises:
        BudgetError: the budget cannot be met; the line says the best reachable.
    """
    whole = rest + sum(each[INT8] for each in sizes.values())
    return choose_bits(found, sizes, rest, limit=min(1.0, budget / whole))


@contextmanager
def in_codes(
    network: nn.Module, weights: Mapping[str, BlockWeight], activation_bits: int | None = None
) -> Iterator[None]:
    """Has codes in a network for a while, see `put`; then it is what it was."""
    with for_a_while(network):
        put(network, weights, activation_bits)
        yield


@contextmanager
def for_a_while(network: nn.Module) -> Iterator[None]:
    """Gives a network its modules back that were replaced meanwhile."""
    before = dict(network.named_modules(remove_duplicate=False))
    try:
        yield
    finally:
        for name, module in before.items():
            if network.get_submodule(name) is not module:
                network.set_submodule(name, module)


def _point(bits: int, expected: Tensor, logits: Tensor) -> Point:
    """Minus the divergence of each token, their mean and its interval."""
    each = (expected.exp() * (expected - logits.log_softmax(-1))).sum(-1)
    mean, spread = float(each.mean()), float(each.std()) / len(each) ** 0.5
    return Point(bits, -mean, -mean - 1.96 * spread, -mean + 1.96 * spread)
