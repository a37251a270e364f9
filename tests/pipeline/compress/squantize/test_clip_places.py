"""Low-bit activations behind anything: where they can be, that they train, and run on both runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import ranges_of
from operation_checks import RUNTIMES, assert_codes, images
from torch import Tensor, nn

from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.squantize.clip_places import (
    Grid,
    check_clips,
    clip_places,
    gridded,
    kept_at_8_bits,
    untrained,
)
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import Affine, IntegerGraph, IntegerNode, quantize
from paredown.pipeline.lower.parity import compare
from paredown.targets.errors import InputError

SHAPE = (1, 3, 8, 8)
ACTIVATIONS = {
    "elu": nn.ELU, "gelu": nn.GELU, "hardsigmoid": nn.Hardsigmoid, "hardswish": nn.Hardswish,
    "hardtanh": lambda: nn.Hardtanh(-0.4, 0.9), "leaky": lambda: nn.LeakyReLU(0.1), "linear": nn.Identity,
    "prelu": lambda: nn.PReLU(8), "relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "silu": nn.SiLU,
    "tanh": nn.Tanh,
}  # fmt: skip
SLOW = {*ACTIVATIONS} - {"leaky", "silu", "tanh"}  # as the others, at lowering
EVERY = np.arange(-128, 128).astype(np.int8).reshape(1, 4, 8, 8)


class Maps(nn.Module):
    """An activation, a residual, a pool, a depthwise and a transposed convolution."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.n, self.f = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation
        self.b, self.d = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.t, self.c, self.e = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(self.n(self.a(x)))
        x = self.d(F.max_pool2d(x + self.b(x), 2))
        return self.e(self.c(self.t(x)))


class Signal(nn.Module):
    """One-dimensional, with a bottleneck that no activation follows."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.a, self.n, self.f = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), activation
        self.b, self.c, self.l = nn.Conv1d(8, 4, 1), nn.Conv1d(4, 6, 3), nn.Linear(6, 5)
        self.o = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.f(self.n(self.a(x)))))
        return self.o(self.l(x.mean(2)))


def live_of(net: nn.Module, shape: tuple[int, ...], bits: int) -> QatNetwork:
    """Clips and a few sparse low-bit layers, set to a few images."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight, 1, 0.4)
            nn.init.normal_(layer.bias, 0, 0.4)
    weights = [f"{name}.weight" for name, _ in net.named_children() if name in ("b", "t", "l")]
    live = QatNetwork(
        net.eval(), trace(net, shape), {w: LayerPlan(GridConfig(4), 0.5) for w in weights}, bits
    )
    live.start_clips(images(shape, 8))
    return live.eval()


def ranges(graph: Graph, x: Tensor) -> dict[str, tuple[float, float]]:
    return {name: (float(v.min()), float(v.max())) for name, v in graph.run(x).items()}


def integer_of(live: QatNetwork, shape: tuple[int, ...]) -> IntegerGraph:
    graph = fold(live, shape)
    return quantize(graph, ranges_of(graph), input_range=(-3.0, 3.0))


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("leaky", "silu", "tanh") else pytest.param(n, marks=pytest.mark.slow)
        for n in sorted(ACTIVATIONS)
    ],
)
def test_no_more_than_these_levels_on_both_runtimes(name: str) -> None:
    bits = 2 + sorted(ACTIVATIONS).index(name) % 6
    live = live_of(Maps(ACTIVATIONS[name]()), SHAPE, bits)
    graph = integer_of(live, SHAPE)
    codes = np.concatenate([graph.input.out.quantize(images(SHAPE, 3, 7).numpy()),
                            np.full(SHAPE, -128, np.int8), np.full(SHAPE, 127, np.int8)])  # fmt: skip
    values = reference.run(graph, codes)
    assert len(live.clips_named) >= 4
    for made, clip in live.clips_named.items():
        name_of = made if made in values and f"{made}.levels" not in values else f"{made}.levels"
        node = graph[name_of]
        assert (node.out.scale, node.out.zero_point) == (
            pytest.approx(float(clip.step), rel=1e-6), 127 - clip.levels + clip.below,
        )  # fmt: skip
        assert values[name_of].min() >= 127 - clip.levels
    if name != "gelu":
        assert_codes(graph, codes, {})
        return
    for runtime in RUNTIMES.values():  # LiteRT computes GELU in float, in its delegate or not
        apart = compare(graph, runtime.load(runtime.lower_integer(graph).data), codes)
        assert apart.values and not apart.differing


@pytest.mark.parametrize("name", ["silu", "linear", "tanh"])
def test_signals_have_them_too(name: str) -> None:
    shape = (1, 3, 24)
    live = live_of(Signal(ACTIVATIONS[name]()), shape, 4)
    graph = integer_of(live, shape)
    assert {name for place in live.places if place.signed for name in place.makers} >= {"b"}
    assert_codes(graph, graph.input.out.quantize(images(shape, 4, 7).numpy()), {})


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_what_is_trained_is_what_runs(bits: int) -> None:
    """Where nothing between clips has 8 bits, the integer graph has the very levels of the evaluation."""
    plain = {"bias": False}  # a bias is rounded to a whole number when it ships: that may tip what is halfway
    net = nn.Sequential(nn.Conv2d(3, 8, 3, **plain), nn.Conv2d(8, 8, 3, **plain),
                        nn.ConvTranspose2d(8, 6, 3, **plain), nn.Conv2d(6, 4, 1, **plain))  # fmt: skip
    torch.manual_seed(bits)
    weights = {f"{index}.weight": LayerPlan(GridConfig(4), 0.5) for index in range(4)}
    live = QatNetwork(net.eval(), trace(net, SHAPE), weights, bits)
    live.start_clips(images(SHAPE, 8))
    graph = integer_of(live.eval(), SHAPE)
    codes = graph.input.out.quantize(images(SHAPE, 6, 3).numpy())
    real = torch.from_numpy(graph.input.out.dequantize(codes))
    with torch.no_grad():
        trained = live._values(real, live.state, live.quantized(), live.clip_of)
    values = reference.run(graph, codes)
    assert set(live.clips_named) == {"0", "1", "2"}
    for name, clip in live.clips_named.items():
        node = graph[f"{name}.levels"]
        levels = np.rint(trained[name].numpy() / float(clip.step)).astype(int)
        assert np.array_equal(values[node.name].astype(int) - node.out.zero_point, levels), name


@pytest.mark.parametrize("name", ["elu", "sigmoid", "tanh"])
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 7))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_kernel_s_own_scale_is_trained_with(name: str, seed: int, bits: int) -> None:
    """All 256 codes of an activation's input: training's levels, from floats, are the integer graph's."""
    from paredown.pipeline.compress.squantize.clip import Clip, prescribed
    from paredown.pipeline.graph.operations.kinds import operation

    rng = np.random.default_rng(seed)
    levels = 2**bits - 1
    below = int(rng.integers(0, levels + 1)) if name in ("tanh", "elu") else 0
    clip = Clip(bits, signed=True)
    with torch.no_grad():
        clip.log_step.fill_(float(np.log(rng.uniform(0.2, 3) / levels)))
        clip.offset.fill_(below)
    step = float(np.float32(clip.step.detach()))
    source = Affine(float(np.float32(rng.uniform(0.01, 0.1))), int(rng.integers(-128, 128)))
    fixed = operation(name).fixed(None)  # type: ignore[arg-type]
    middle = Affine(step, below - 128) if fixed is None else Affine(*fixed)
    nodes = (
        IntegerNode("input", "input", (), EVERY.shape, source),
        IntegerNode("f", name, ("input",), EVERY.shape, middle),
        IntegerNode("y", "fake_quantize", ("f",), EVERY.shape, Affine(step, 127 - levels + below),
                    attrs={"offset": below}),
    )  # fmt: skip
    found = reference.predict(IntegerGraph(nodes, ("y",)).written, EVERY)[0].astype(int)
    real = torch.from_numpy(source.dequantize(EVERY))
    made = getattr(F, name)(real) if hasattr(F, name) else getattr(torch, name)(real)
    if fixed is not None:
        made = prescribed(made, *fixed)
    expected = np.rint((clip(made) / clip.step).detach().numpy()).astype(int)
    # Float32 may round the other way what is halfway to seven digits.
    assert (found - (127 - levels + below) != expected).sum() <= 1


def test_gradients_pass_and_the_steps_learn() -> None:
    live = live_of(Maps(nn.Tanh()), SHAPE, 3).train()
    live(images(SHAPE, 4)).square().mean().backward()
    assert all(float(clip.log_step.grad) != 0 for clip in live.clips)
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in live.network.parameters())


def test_a_resumed_training_has_the_offsets() -> None:
    live, again = (live_of(Maps(nn.SiLU()), SHAPE, 4) for _ in range(2))
    for clip in again.clips:
        clip.offset.zero_()  # type: ignore[operator, union-attr]
    again.load_state_dict(live.state_dict())
    assert [clip.below for clip in again.clips] == [clip.below for clip in live.clips]
    assert any(clip.below for clip in live.clips)


def test_a_small_network_without_relu_keeps_its_accuracy() -> None:
    """Four bits everywhere, SiLU: after a short training as good as in float."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(512, 3, 8, 8, generator=generator)
    x[:, 0] += 0.5 * torch.linspace(-1, 1, 8) * torch.randn(512, 1, 1, generator=generator)
    labels = (x[:, 0, :, 4:].mean((1, 2)) > x[:, 0, :, :4].mean((1, 2))).long()

    def train(net: nn.Module, steps: int, rate: float) -> float:
        optimizer = torch.optim.Adam(net.parameters(), rate)
        for step in range(steps):
            part = slice(step % 6 * 64, step % 6 * 64 + 64)
            optimizer.zero_grad()
            F.cross_entropy(net.train()(x[part]), labels[part]).backward()
            optimizer.step()
        with torch.no_grad():
            return float((net.eval()(x[384:]).argmax(1) == labels[384:]).float().mean())

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16),
        nn.SiLU(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 2),
    )  # fmt: skip
    whole = train(net, 150, 0.01)
    live = QatNetwork(net, trace(net.eval(), SHAPE), {
        name: LayerPlan(GridConfig(4), 0.5) for name in ("3.weight", "7.weight")}, 4)  # fmt: skip
    live.start_clips(x[:64])
    trained = train(live, 100, 0.003)
    graph = fold(live, SHAPE)
    integer = quantize(graph, ranges(graph, x[:64]), input_range=(-4.0, 4.0))
    made = reference.predict(integer, integer.input.out.quantize(x[384:].numpy()))[0]
    shipped = float((made.argmax(1) == labels[384:].numpy()).mean())
    assert whole > 0.9 and trained > whole - 0.05 and abs(shipped - trained) < 0.03


def test_where_they_sit_and_what_keeps_8_bits() -> None:
    net = Maps(nn.SiLU()).eval()
    graph = trace(net, SHAPE)
    places = clip_places(graph)
    assert all(place.signed for place in places)
    made = {name for place in places for name in place.makers}
    assert made == {"f", "add", "d", "t"}
    assert kept_at_8_bits(graph, places) == ("c",)  # what the last layer reads
    assert {n for p in clip_places(graph, ["e.weight"]) for n in p.makers} == made | {"c"}
    low = untrained(graph, 4, places)
    found = [node.name for node in low if node.kind == "fake_quantize"]
    assert found == [f"{name}.levels" for name in ("f", "add", "d", "t")]


def test_a_clamp_s_own_ends_stay_within() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(-0.4, 0.9), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    live = live_of(net, SHAPE, 4)
    (place,) = [place for place in live.places if place.root == "1"]
    clip = live.clips_named["1"]
    assert (place.low, place.high) == (-0.4, 0.9)
    assert clip.below * float(clip.step) <= 0.4001 and (15 - clip.below) * float(clip.step) <= 0.9001


def test_a_relu_beside_what_is_signed_shares_the_grid() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1),
                                              nn.Conv2d(4, 2, 1))  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(torch.cat([F.relu(self.a(x)), self.b(x)], 1)))

    live = live_of(Both(), SHAPE, 4)
    graph = integer_of(live, SHAPE)
    assert graph["relu"].out == graph["b.levels"].out == graph["cat"].out
    assert graph["relu"].low == graph["relu"].out.zero_point > 112
    assert_codes(graph, graph.input.out.quantize(images(SHAPE, 4, 7).numpy()), {})


def test_a_network_of_one_layer_has_none_and_says_so() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()).eval(), SHAPE)
    check_clips(graph, 8)
    with pytest.raises(InputError, match="none is made by a ReLU, or read by a layer"):
        check_clips(graph, 4)


def test_steps_of_a_recurrent_layer_keep_8_bits() -> None:
    class Spoken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g = nn.Linear(4, 6), nn.GRU(6, 5, batch_first=True)
            self.l, self.o = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.l(self.g(self.a(x))[0][:, -1]))

    graph = trace(Spoken().eval(), (1, 3, 4))
    made = {name for place in clip_places(graph) for name in place.makers}
    assert made and not {name for name in made if "g" in name.split(".")}


def test_grids_go_behind_what_makes_the_tensor() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval(), SHAPE)
    made = gridded(graph, {"1": Grid(0.1, 15, 0, False), "2": Grid(0.2, 7, 3, True)})
    assert made["1"].attrs == {"step": 0.1, "levels": 15}
    assert (made["2.levels"].kind, made["2.levels"].inputs) == ("fake_quantize", ("2",))
    x = images(SHAPE, 2)
    values = made.run(x)
    expected = (values["2"] / 0.2).clamp(-3, 4).round() * 0.2
    assert torch.allclose(values["2.levels"], expected)
    assert len(values["1"].unique()) <= 16
