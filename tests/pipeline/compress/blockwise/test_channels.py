"""Channels that are balanced: the same network, and codes of whole rows that lose less."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from paredown.pipeline.compress.blockwise.channels import Channels, find_factors, multiply
from paredown.pipeline.compress.blockwise.layerwise import Calibration
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

WIDTH, HIDDEN = 24, 16


class Fan(nn.Module):
    """A writer whose channels two readers share."""

    def __init__(self) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(0)
        self.write = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.left, self.right = (nn.Linear(HIDDEN, 8, bias=False) for _ in range(2))
        for layer in (self.write, self.left, self.right):
            layer.weight.data = torch.randn(layer.weight.shape, generator=chance)
        self.write.weight.data[3] *= 20  # values that are large
        for layer in (self.left, self.right):
            layer.weight.data[:, 5] *= 20  # weights that are large

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.write(x)
        return self.left(wide) + self.right(wide)


def divide(name: str, network: nn.Module, factors: torch.Tensor) -> None:
    network.get_parameter(f"{name}.weight").div_(factors[:, None])


def groups() -> list[Channels]:
    return [Channels(("left", "right"), functools.partial(divide, "write"))]


def texts() -> Calibration:
    chance = torch.Generator().manual_seed(1)
    batches = [torch.randn(32, WIDTH, generator=chance) for _ in range(3)]
    return Calibration(lambda network, batch: network(batch), batches, ())


@torch.no_grad()
def lost(network: Fan, batch: torch.Tensor) -> float:
    """By the readers' codes, of the square of what they give."""
    wide, whole = network.write(batch), network(batch)
    codes = [
        nearest(layer.weight, BlockGrid(4, None)).dequantized() for layer in (network.left, network.right)
    ]
    return float((wide @ sum(codes).T - whole).square().mean() / whole.square().mean())


def test_the_network_computes_what_it_did_and_its_codes_lose_less() -> None:
    network, calibration = Fan(), texts()
    fresh = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2))
    before, worse = network(fresh), lost(network, fresh)
    factors = find_factors(network, groups(), calibration)
    multiply(network, groups(), factors)
    assert (network(fresh) - before).abs().max() <= 1e-5 * before.abs().max()
    assert lost(network, fresh) < 0.8 * worse


def test_large_values_are_made_smaller_and_large_weights_too() -> None:
    (factors,) = find_factors(Fan(), groups(), texts()).values()
    assert factors.shape == (HIDDEN,) and int(factors.argmax()) == 3 and int(factors.argmin()) == 5
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-5)


def test_a_channel_that_is_never_used_gets_a_factor_that_can_be_stored() -> None:
    network = Fan()
    network.write.weight.data[7] = 0
    network.left.weight.data[:, 9] = network.right.weight.data[:, 9] = 0
    (factors,) = find_factors(network, groups(), texts()).values()
    assert bool(torch.isfinite(factors).all()) and float(factors.min()) > 0


def test_a_name_that_is_missing() -> None:
    with pytest.raises(InputError, match="nobody is missing"):
        find_factors(Fan(), [Channels(("nobody",), groups()[0].divide)], texts())
