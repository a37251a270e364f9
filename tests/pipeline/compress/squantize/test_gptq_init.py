"""Where training starts: rounded weights lie on their grid, and the network is nearer to what it was."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.compress.grids.grid import PER, GridConfig, encode
from paredown.pipeline.compress.squantize import gptq_init as start
from paredown.pipeline.compress.squantize.fold import codes_of, fold
from paredown.pipeline.compress.squantize.gptq_init import round_weights
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
from paredown.pipeline.graph.trace import trace

SHAPE = (1, 4, 10, 10)
LAYERS = ("a", "d", "b", "c", "f")


class Net(nn.Module):
    """A strided convolution, a depthwise one, a skip connection and a linear layer; norms with odd gains."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(4, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.d = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.b, self.nb = nn.Conv2d(24, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.c = nn.Conv2d(24, 24, 3, padding=1)
        self.f = nn.Linear(24 * 25, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.na(self.a(x)))
        x = F.relu(self.nb(self.b(self.d(x))) + x)
        return self.f(F.relu(self.c(x)).flatten(1))


def images(count: int, seed: int) -> Tensor:
    """Smooth ones: neighbouring pixels depend on each other, as in photographs."""
    rough = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(rough, size=SHAPE[2:], mode="bilinear")


@pytest.fixture
def network() -> Net:
    torch.manual_seed(0)
    made = Net()
    with torch.no_grad():
        made.na.weight.copy_(torch.randn(24))
        for _ in range(20):
            made.train()(images(16, 5))
    return made.eval()


def live_of(network: Net, per: str, sparsity: float | None = None) -> QatNetwork:
    config = GridConfig(3, "uniform", per=per)
    sigma = None if sparsity is not None else -30.0
    plans = {f"{name}.weight": LayerPlan(config, sparsity, sigma) for name in LAYERS}
    return QatNetwork(network, trace(network, SHAPE), plans)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_outputs_on_other_images_change_less(network: Net, per: str, sparsity: float | None):
    live = live_of(network, per, sparsity)
    with torch.no_grad():
        whole = network(images(64, 2))
        nearest = (live.eval()(images(64, 2)) - whole).square().mean()
        steps = {name: codes_of(live, f"{name}.weight")[1] for name in LAYERS}
        round_weights(live, images(64, 1))
        rounded = (live(images(64, 2)) - whole).square().mean()
    assert rounded < 0.7 * nearest
    for name in LAYERS:
        weight = network.get_parameter(f"{name}.weight")
        codes, step = codes_of(live, f"{name}.weight")
        assert torch.allclose(step, steps[name])  # no grid moved
        assert torch.allclose(codes * step, weight, atol=1e-6) or name == "d" or sparsity
        if sparsity:
            assert (codes == 0).float().mean() >= sparsity - 1 / codes.numel()


def test_patches_in_parts_find_the_same_codes(network: Net, monkeypatch: pytest.MonkeyPatch):
    found = []
    for patches in (start.PATCHES, 1000):
        monkeypatch.setattr(start, "PATCHES", patches)
        live = live_of(copy.deepcopy(network), "channel")
        round_weights(live, images(16, 1))
        found.append(torch.cat([codes_of(live, f"{name}.weight")[0].flatten() for name in LAYERS]))
    assert torch.equal(*found)


def test_the_mode_comes_back_and_depthwise_layers_stay(network: Net):
    live = live_of(network, "channel").train()
    before = network.d.weight.detach().clone()
    round_weights(live, images(8, 1))
    assert live.training and torch.equal(network.d.weight, before)
    assert fold(live, SHAPE).parameters  # and it can be folded


def test_frozen_statistics_stay_in_training(network: Net):
    frozen = QatNetwork(network, trace(network, SHAPE), {}, live_norm=False)
    x = images(8, 3)
    with torch.no_grad():
        plain, mean = frozen.eval()(x), network.na.running_mean.clone()
        assert torch.allclose(frozen.train()(x), plain, atol=1e-6)
    assert torch.equal(network.na.running_mean, mean)


def test_a_filter_that_would_lose_its_largest_code_keeps_the_nearest_ones():
    """The step follows from the largest weight: without one at the grid's end it would be another."""
    kept = 0
    config = GridConfig(3, "uniform", per="channel")
    for seed in range(60):
        chance = torch.Generator().manual_seed(seed)
        weight = torch.randn(8, 4, generator=chance)
        inputs = torch.randn(16, 4, generator=chance) @ torch.randn(4, 4, generator=chance)
        codes, step = encode(weight, -30.0, config)
        moved = start._rounded(weight, -30.0, LayerPlan(config, None, -30.0), (inputs.T @ inputs).double())
        found, again = encode(moved, -30.0, config)
        assert torch.allclose(again, step, rtol=1e-6)
        assert (found.abs().amax(1) == 3).all()
        kept += int((found == codes).all(1).sum())
    assert 0 < kept < 60 * 8
