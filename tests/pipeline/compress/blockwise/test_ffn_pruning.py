"""Thinner feed-forward layers."""

from __future__ import annotations

import copy

import pytest
import torch
from blocks_networks import FFN, LAYERS, Talker, calibration
from torch import nn

from paredown.pipeline.compress.blockwise.ffn_pruning import GatedFfn, thin_ffn
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit

FFNS = [GatedFfn(*(f"layers.{n}.{name}" for name in ("gate", "up", "down"))) for n in range(LAYERS)]
TOKENS = torch.cat(calibration().batches)


def moved(network: nn.Module, plain: nn.Module) -> float:
    with torch.no_grad():
        return float((network(TOKENS) - plain(TOKENS)).square().mean())


@pytest.mark.parametrize(
    ("share", "multiple", "width"), [(0.5, 8, 32), (0.7, 16, 48), (0.01, 8, 8), (1, 8, 64)]
)
def test_widths_are_the_nearest_multiple(share: float, multiple: int, width: int) -> None:
    network = Talker()
    found = thin_ffn(network, FFNS, share, multiple, calibration())
    assert [(each.before, len(each.kept)) for each in found] == [(FFN, width)] * LAYERS
    for layer in network.layers:
        assert layer.gate.out_features == layer.up.out_features == layer.down.in_features == width
        assert layer.gate.weight.shape == (width, 32) and layer.down.weight.shape == (32, width)
    assert network(TOKENS).isfinite().all()


def test_channels_that_say_nothing_go_first_and_cost_nothing() -> None:
    network = Talker()
    with torch.no_grad():
        for layer in network.layers:
            layer.up.weight[::2] = 0
    plain = copy.deepcopy(network)
    found = thin_ffn(network, FFNS, 0.5, 1, calibration())
    assert all(each.kept == tuple(range(1, FFN, 2)) and abs(each.lost) < 1e-6 for each in found)
    assert moved(network, plain) < 1e-9


def test_a_channel_that_repeats_another_is_made_good() -> None:
    network = Talker()
    with torch.no_grad():
        for layer in network.layers:
            for name in ("gate", "up"):
                layer.get_submodule(name).weight[1::2] = layer.get_submodule(name).weight[::2]
    plain = copy.deepcopy(network)
    lost = [each.lost for each in thin_ffn(network, FFNS, 0.75, 1, calibration())]
    masked = copy.deepcopy(plain)
    for layer, each in zip(
        masked.layers, thin_ffn(copy.deepcopy(plain), FFNS, 0.75, 1, calibration()), strict=True
    ):
        gone = [channel for channel in range(FFN) if channel not in each.kept]
        with torch.no_grad():
            layer.down.weight[:, gone] = 0
    assert moved(network, plain) < 0.5 * moved(masked, plain)
    assert all(0 <= each < 0.2 for each in lost)


def test_settings_that_cannot_work() -> None:
    for share, multiple in ((1.5, 8), (0.5, 0)):
        with pytest.raises(UsageError):
            thin_ffn(Talker(), FFNS, share, multiple, calibration())
