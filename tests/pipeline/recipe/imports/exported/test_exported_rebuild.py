"""Programs of torch.export and TorchScript as plain modules, beside the modules that they were made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.apps.classifier.network import build
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.read import read
from paredown.targets.errors import InputError


def settled(network: nn.Module, seed: int = 0) -> nn.Module:
    """With running statistics that are not those of the start."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def exported(network: nn.Module, shape: tuple[int, ...], folder: Path, **how: object) -> Path:
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(network, (torch.zeros(shape),), **how), path)
    return path


def scripted(network: nn.Module, shape: tuple[int, ...], folder: Path, traced: bool = True) -> Path:
    path = folder / "net.pt"
    made = torch.jit.trace(network, torch.zeros(shape)) if traced else torch.jit.script(network)
    torch.jit.save(made, path)
    return path


@torch.no_grad()
def beside(found: Imported, network: nn.Module, most: float = 1e-5) -> None:
    for seed in range(2):
        x = torch.rand(found.shape, generator=torch.Generator().manual_seed(seed))
        wanted, got = network.eval()(x), found.module(x)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        got = got if isinstance(got, tuple) else (got,)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.shape == theirs.shape
            assert float((ours - theirs).abs().max()) <= most * max(float(theirs.abs().max()), 1.0)


class Branches(nn.Module):
    """In-place operations, a shared layer, several outputs, a constant, a view of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.shared = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 8, 1)
        self.up, self.drop, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Dropout(), nn.Linear(8 * 4, 5)
        self.register_buffer("shift", torch.arange(8.0).reshape(1, 8, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu_(self.norm(self.first(x)))
        y = self.deep(x)
        y += 1
        y = self.shared(self.shared(y).sigmoid() * x + self.shift)
        z = F.adaptive_avg_pool2d(F.hardswish(y), 2)
        return self.head(self.drop(z.view(z.size(0), -1))), self.up(torch.cat((y[:, :4], x[:, 4:]), 1))


def test_what_networks_do_is_done_again(tmp_path: Path):
    network = settled(Branches())
    shape = (1, 3, 12, 10)
    for path, asked in (
        (exported(network, shape, tmp_path), None),
        (scripted(network, shape, tmp_path), (3, 12, 10)),
        (scripted(network, shape, tmp_path, traced=False), (12, 10)),
    ):
        found = read(path, asked)
        assert found.shape == shape
        beside(found, network)
        kinds = {type(module) for module in found.module.modules()}
        assert {nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d, nn.Linear} <= kinds
        names = dict(found.module.named_parameters())
        assert {"first.weight", "norm.weight", "deep.weight", "head.weight"} <= set(names)
        assert sum(value.shape == (8, 8, 1, 1) for value in names.values()) == 1  # shared
        trace(found.module, shape)


@pytest.mark.parametrize("name", ["resnet20", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_networks_keep_their_names_and_norms(tmp_path: Path, name: str):
    network = settled(build(name, 10))
    for found in (
        read(exported(network, (1, 3, 32, 32), tmp_path)),
        read(scripted(network, (1, 3, 32, 32), tmp_path), (3, 32, 32)),
    ):
        beside(found, network)
        own, theirs = dict(found.module.named_parameters()), dict(network.named_parameters())
        assert set(own) == set(theirs)
        assert all(torch.equal(own[name], theirs[name]) for name in own)
        norms = [
            sum(isinstance(m, nn.BatchNorm2d) for m in each.modules()) for each in (found.module, network)
        ]
        assert norms[0] == norms[1]


def test_batches_open_sizes_and_training_mode(tmp_path: Path):
    network = settled(Branches())
    found = read(exported(network, (4, 3, 12, 10), tmp_path))
    beside(found, network)
    assert found.shape == (1, 3, 12, 10) and "for a batch of 4" in found.notes[0]
    batch = torch.export.Dim("batch")
    found = read(exported(network, (2, 3, 12, 10), tmp_path, dynamic_shapes=({0: batch},)))
    beside(found, network)
    plain = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    free = {2: torch.export.Dim("h", min=8, max=64), 3: torch.export.Dim("w", min=8, max=64)}
    path = exported(plain, (1, 3, 16, 24), tmp_path, dynamic_shapes=(free,))
    with pytest.raises(InputError, match=r"1x3x\?x\?, with sizes left open; .*--shape 3x224x224"):
        read(path)
    found = read(path, (20, 30))
    assert found.shape == (1, 3, 20, 30)
    beside(found, plain)
    with pytest.raises(InputError, match="export the model for that size"):
        read(exported(plain, (1, 3, 16, 24), tmp_path), (20, 30))
    plain.train()
    path = exported(plain, (2, 3, 16, 24), tmp_path)
    found = read(path)
    assert any("training mode" in note for note in found.notes)
    beside(found, plain)


def test_half_precision_becomes_float32(tmp_path: Path):
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)))
    half = network.to(torch.bfloat16)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(half, (torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16),)), path)
    found = read(path)
    assert all(value.dtype == torch.float32 for value in found.module.parameters())
    assert any("bfloat16 made float32" in note for note in found.notes)
    beside(found, half.float())


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, 2, batch_first=True, bidirectional=True)
        self.lstm, self.head = nn.LSTM(12, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.gru(x)[0])[0][:, -1])


def test_recurrent_layers_stay_whole(tmp_path: Path):
    network = Steps().eval()
    found = read(exported(network, (1, 7, 5), tmp_path))
    beside(found, network)
    assert sum(isinstance(module, (nn.GRU, nn.LSTM)) for module in found.module.modules()) == 2


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    channels, layers = draw(st.integers(1, 4)), []
    shape = (1, channels, draw(st.integers(8, 14)), draw(st.integers(8, 14)))
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["conv", "norm", "act", "pool", "depthwise", "group", "prelu"]))
        if kind == "conv":
            out = draw(st.integers(1, 6))
            layers.append(nn.Conv2d(channels, out, draw(st.sampled_from([1, 3])), draw(st.integers(1, 2)), 1))
            channels = out
        elif kind == "depthwise":
            layers.append(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=draw(st.booleans()))
            )
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(channels, affine=draw(st.booleans())))
        elif kind == "group":
            layers.append(nn.GroupNorm(1, channels))
        elif kind == "prelu":
            layers.append(nn.PReLU(draw(st.sampled_from([1, channels]))))
        elif kind == "pool":
            pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]))
            layers.append(pool(3, draw(st.integers(1, 2)), 1, ceil_mode=draw(st.booleans())))
        else:
            acts = [
                nn.ReLU(),
                nn.ReLU6(inplace=True),
                nn.SiLU(),
                nn.GELU(),
                nn.Hardswish(),
                nn.LeakyReLU(0.2),
            ]
            layers.append(draw(st.sampled_from(acts)))
    return settled(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    ), shape


@settings(max_examples=15, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(networks(), st.booleans())
def test_random_networks(tmp_path: Path, made: tuple[nn.Module, tuple[int, ...]], script: bool):
    network, shape = made
    path = scripted(network, shape, tmp_path) if script else exported(network, shape, tmp_path)
    beside(read(path, shape if script else None), network)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_two_inputs_and_nothing_computed(tmp_path: Path):
    x = torch.zeros(1, 3)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Two(), (x, x)), path)
    with pytest.raises(InputError, match=r"takes 2 inputs \(x, y\), not one tensor"):
        read(path)
    torch.jit.save(torch.jit.trace(Two(), (x, x)), tmp_path / "two.pt")
    with pytest.raises(InputError, match="fails on an input of 1x3"):
        read(tmp_path / "two.pt", (1, 3))
    path = exported(nn.Identity(), (1, 3), tmp_path)
    with pytest.raises(InputError, match="no output is computed"):
        read(path)
