"""The live network: what it is in training, what it is in evaluation, and what is left when it is folded."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.bundle.packed.ledger import check_codes, ledger
from paredown.pipeline.compress.grids.grid import GRIDS, PER, GridConfig
from paredown.pipeline.compress.squantize.entropy import entropy
from paredown.pipeline.compress.squantize.fold import codes_of, fold
from paredown.pipeline.compress.squantize.qat_network import (
    GridSchedule,
    LayerPlan,
    QatNetwork,
    quantizable,
)
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    """A residual, a pooling, a depthwise convolution with ReLU6, a frozen layer and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=0.3)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=1e-3)
        self.d, self.nd = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.frozen = nn.Conv2d(8, 8, 1).requires_grad_(False)
        self.f = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.na(self.a(x)))
        x = F.relu(self.nb(self.b(x)) + x)
        x = F.max_pool2d(x, 2)
        x = F.relu6(self.nd(self.d(x)))
        return self.f(F.relu(self.frozen(x)).flatten(1))


@pytest.fixture
def network() -> Net:
    torch.manual_seed(0)
    made = Net().train()
    with torch.no_grad():
        for norm in (made.na, made.nb, made.nd):
            norm.weight.copy_(torch.randn(8))  # some gains are negative
            norm.bias.copy_(torch.randn(8) / 4)
        for _ in range(5):
            made(torch.randn(16, *SHAPE[1:]))
    return made.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def plans(config: GridConfig | None = None, sparsity: float | None = 0.6) -> dict[str, LayerPlan]:
    sigma = None if sparsity is not None else 0.1
    return {f"{n}.weight": LayerPlan(config or GridConfig(4), sparsity, sigma) for n in ("a", "b", "d")}


def test_without_quantizers_it_is_the_network(network: Net):
    live = QatNetwork(network, trace(network, SHAPE), {})
    x = images()
    assert torch.equal(live.eval()(x), network.eval()(x))
    twin = copy.deepcopy(network).train()
    assert torch.allclose(live.train()(x), twin(x), atol=1e-6)
    for (name, mine), (_, theirs) in zip(network.named_buffers(), twin.named_buffers(), strict=True):
        if "running" in name:  # each batch norm with its own momentum
            assert torch.allclose(mine, theirs, atol=1e-6), name


def test_it_trains_the_users_own_parameters(network: Net):
    live = QatNetwork(network, trace(network, SHAPE), plans()).train()
    assert {id(p) for p in live.parameters()} == {id(p) for p in network.parameters()}
    live(images()).square().mean().backward()
    assert network.a.weight.grad is not None and network.na.weight.grad is not None
    assert network.frozen.weight.grad is None


@pytest.mark.parametrize("bits", [None, 8, 4, 2])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("per", PER)
def test_folding_keeps_every_code(network: Net, bits: int | None, grid: str, per: str):
    live = QatNetwork(network, trace(network, SHAPE), plans(GridConfig(4, grid, per=per)), bits)
    if bits:
        live.start_clips(images())
    graph = fold(live, SHAPE)
    for node in graph:
        if node.scale is None:
            continue
        codes, _ = codes_of(live, node.parameters["weight"])
        folded = node.weight / node.scale.reshape(-1, 1, 1, 1)
        assert torch.equal(folded.round().abs(), codes.abs())
        assert torch.allclose(folded, folded.round(), atol=1e-4)
    if bits is None:
        out = graph.run(images())[graph.outputs[0]]
        assert torch.allclose(out, live.eval()(images()), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_integer_graph_has_the_codes_and_the_levels(network: Net, bits: int):
    live = QatNetwork(network, trace(network, SHAPE), plans(), bits)
    live.start_clips(images())
    graph = fold(live, SHAPE)
    ranges = {k: (float(v.min()), float(v.max())) for k, v in graph.run(images(8)).items()}
    integer = quantize(graph, ranges, input_range=(-4.0, 4.0))
    check_codes(graph, integer)
    for row in ledger(graph, integer):
        if row.trained:
            assert row.zeros == int(0.6 * row.weights) and row.codes <= 17
    values = reference.run(integer, integer.input.out.quantize(images(1).numpy()))
    clipped = [name for place in live.places if not place.signed for name in place.makers]
    assert {"relu", "relu_1", "relu6"} <= set(clipped)
    for name in clipped:
        node = integer[name]
        assert node.out.zero_point == 127 - (2**bits - 1)
        assert values[name].min() >= node.out.zero_point  # 2**bits levels, at the top of int8
        real = node.out.dequantize(values[name])
        assert real.min() >= 0 and len(np.unique(values[name])) <= 2**bits


def test_low_bits_run_exactly_on_both_runtimes(network: Net):
    from paredown.pipeline.lower.runtimes import RUNTIMES, runtime
    from paredown.targets.host.host import EXTRA_RUNTIMES, this_machine

    live = QatNetwork(network, trace(network, SHAPE), plans(), 4)
    live.start_clips(images())
    graph = fold(live, SHAPE)
    ranges = {k: (float(v.min()), float(v.max())) for k, v in graph.run(images(8)).items()}
    integer = quantize(graph, ranges, input_range=(-4.0, 4.0))
    codes = integer.input.out.quantize(images(1).numpy())
    expected = reference.predict(integer, codes)
    saturating = EXTRA_RUNTIMES if this_machine().saturates else ()  # these weights exceed 63
    for kind in sorted(RUNTIMES.keys() - set(saturating)):
        found = runtime(kind).load(runtime(kind).lower_integer(integer).data, 1, kind)(codes)
        for a, b in zip(found, expected, strict=True):
            assert np.array_equal(a, b), kind


def test_evaluation_is_what_ships_whatever_the_schedule(network: Net):
    graph, x = trace(network, SHAPE), images()
    late = QatNetwork(network, graph, plans(), None, GridSchedule(delay=1000)).eval()
    now = QatNetwork(network, graph, plans(), None).eval()
    assert torch.equal(late(x), now(x)) and not torch.equal(now(x), network(x))
    with torch.no_grad():
        network.a.weight.mul_(torch.linspace(0.5, 2, 8).reshape(8, 1, 1, 1))
    again = QatNetwork(network, graph, plans(), None).eval()
    assert torch.equal(now(x), again(x))  # nothing stale is kept


def test_delay_and_ramp(network: Net):
    live = QatNetwork(network, trace(network, SHAPE), plans(), None, GridSchedule(delay=5, ramp=40)).train()
    shares = []
    for _ in range(70):
        live(images())
        state = dict(network.named_parameters())
        on = int(live.step) > 5
        shares.append(float((live.quantized(state)["b.weight"] == 0).float().mean()) if on else None)
    assert shares[:5] == [None] * 5
    risen = [share for share in shares if share is not None]
    assert risen == sorted(risen) and risen[0] < 0.1 and risen[-1] == pytest.approx(0.6, abs=0.002)


@pytest.mark.parametrize("part", [0, 1, 10, 39, 40, 500])
def test_the_ramp_is_cubic(part: int):
    assert GridSchedule(3, 40).share(3 + part) == pytest.approx(1 - (1 - min(part / 40, 1)) ** 3)
    assert GridSchedule(3, 0).share(0) == 1


def test_a_given_sigma_is_the_papers_threshold(network: Net):
    live = QatNetwork(network, trace(network, SHAPE), plans(sparsity=None)).train()
    weight = network.b.weight.detach().abs()
    t = weight.mean() + 0.1 * weight.std(correction=0)
    live(images())
    assert torch.equal(live.quantized()["b.weight"] == 0, weight < t)


def test_frozen_layers_are_left_alone(network: Net):
    assert quantizable(trace(network, SHAPE), network) == ("a.weight", "b.weight", "d.weight", "f.weight")


def test_a_changed_code_is_caught(network: Net):
    live = QatNetwork(network, trace(network, SHAPE), plans())
    graph = fold(live, SHAPE)
    ranges = {k: (float(v.min()), float(v.max())) for k, v in graph.run(images(8)).items()}
    integer = quantize(graph, ranges, input_range=(-4.0, 4.0))
    next(node for node in integer if node.weight is not None).weight[0, 0, 0, 0] += 1
    with pytest.raises(AssertionError, match="codes of layer relu changed"):
        check_codes(graph, integer)


@pytest.mark.parametrize(
    "counts, bits", [((8,), 0.0), ((4, 4), 1.0), ((2, 2, 2, 2), 2.0), ((6, 2), 0.8112781)]
)
def test_entropy(counts: tuple[int, ...], bits: float):
    codes = np.repeat(np.arange(len(counts)), counts).astype(np.int8)
    assert entropy(codes) == pytest.approx(bits, abs=1e-5)


def test_a_layer_that_would_be_all_zero_is_kept_alive_and_named(network: Net):
    from paredown.pipeline.run.image.summary.squantize_summary import SquantizeFacts

    high = {name: LayerPlan(GridConfig(4), sigma=20.0 if name == "b.weight" else 0.1) for name in plans()}
    live = QatNetwork(network, trace(network, SHAPE), high)
    graph = fold(live, SHAPE)
    ranges = {k: (float(v.min()), float(v.max())) for k, v in graph.run(images(8)).items()}
    rows = ledger(graph, quantize(graph, ranges, input_range=(-4.0, 4.0)))
    history = {"baseline": None, "int8_activations": []}
    facts = SquantizeFacts(rows, history, 1000, {}, {}, 0, {})
    (note,) = [n for n in facts.notes(2000) if "would have left nothing" in n]
    assert "nothing of b;" in note
    row = next(row for row in rows if row.name == "b")
    assert row.weights - row.zeros == 1


def test_what_zeros_buy_is_said_as_the_card_has_it():
    from paredown.pipeline.run.image.summary.squantize_summary import SquantizeFacts

    history = {"baseline": None, "int8_activations": []}
    buys = {"executorch": ("storage", "storage"), "litert": ("storage", "time")}
    sizes = {"executorch": 800, "litert": 900}
    facts = SquantizeFacts((), history, 4000, sizes, {"executorch": 400, "litert": 500}, 700, buys)
    assert facts == SquantizeFacts.from_dict(facts.to_dict())
    words = facts.notes(2000)
    (line,) = [n for n in words if n.startswith("executorch: the program")]
    assert "is 10.0x smaller" in line and line.endswith("runs there 2.0x")  # 4000 / 400, 4000 / 2000
    assert any(n.startswith("executorch: these zeros") and "nothing in time" in n for n in words)
    assert "litert: on this target zeros buy storage, low bits buy time" in words
    times = {"litert": {"latency_p50": 2.0}, "litert-original": {"latency_p50": 3.0}}
    table = facts.report(times)
    assert "| executorch | 800 | 400 | 10.0x | not measured | not measured |" in table
    assert "| litert | 900 | 500 | 8.0x | 3.00 | 2.00 |" in table
