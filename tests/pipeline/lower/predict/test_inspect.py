"""What `inspect` predicts is what happens: every rule made to happen in the runtime that it is about."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from tiny_project import make_project
from torch import Tensor, nn

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.predict.inspect import Inspection, inspect, inspect_graph, refusal, signs
from paredown.pipeline.lower.predict.placement import Placement
from paredown.pipeline.recipe.file import load_recipe
from paredown.targets.cards.card import Target, load_card
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.mcu import tflm, vela
from paredown.targets.runners.litert import Runner

SHAPE = (1, 3, 12, 12)
LOWEST = float("-inf")
U55, U85 = "cortex-m55-ethos-u55-128", "ethos-u85-256"


class Net(nn.Module):
    """Any function of an image and some layers."""

    def __init__(self, function: Callable[..., object], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> object:
        return self.function(x, *self.layers)


def conv(inputs: int = 8, outputs: int = 8, size: int = 3) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def seven_axes(x: Tensor) -> Tensor:
    return x.reshape(1, 2, 4, 6, 2, 6, 2).permute(0, 4, 6, 1, 2, 3, 5).reshape(1, 32, 6, 6)


def reorg(x: Tensor) -> Tensor:
    _, c, h, w = x.shape
    x = x.reshape(1, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(1, 4 * c, h // 2, w // 2)


def traced(network: nn.Module, shape: tuple[int, ...] = SHAPE) -> Graph:
    return trace(network.eval(), shape, opaque=True)


def calibrated(graph: Graph) -> IntegerGraph:
    """As a run makes it, with ranges of images; what `inspect` makes up has no part in it."""
    generator = torch.Generator().manual_seed(0)
    values = graph.run(torch.rand((2, *graph.nodes[0].shape[1:]), generator=generator))
    ranges = {name: (float(v.min()), float(v.max())) for name, v in values.items()}
    return quantize(graph, ranges, input_range=(0.0, 1.0))


def predicted(graph: Graph, card: str | Target, runtime: str) -> Placement:
    target = load_card(card) if isinstance(card, str) else card
    return inspect_graph(graph, target, [runtime], (0.0, 1.0), "net").placements[0]


def names(placement: Placement) -> set[str]:
    return {operation.name for operation in placement.leaving}


def node_of(tensor: str) -> str:
    """The node whose tensor this is in a .tflite."""
    return re.sub(r"(:plain|:nhwc|/padded|/before|/after)$", "", tensor)


# -- XNNPACK ----------------------------------------------------------------------------------------------

LEAVES = {
    "pool that skips": (lambda x, a, b: b(F.max_pool2d(a(x), 2, 3)), [conv(3), conv()], "their window"),
    "flat ReLU": (lambda x, a, b: b(F.relu(a(x).mean((2, 3)))), [conv(3), nn.Linear(8, 4)], "no int8 ReLU"),
    "flat ReLU6": (lambda x, a, b: b(F.relu6(a(x).mean((2, 3)))), [conv(3), nn.Linear(8, 4)], "no int8 ReLU"),
    "concat of one": (lambda x, a: leaky(torch.cat([a(x)], 1)), [conv(3)], "2 tensors or more"),
    "seven axes": (lambda x, a: leaky(seven_axes(a(x))), [conv(3)], "at most 6 axes"),
}  # fmt: skip

STAYS = {
    "pool padded on both sides": (
        lambda x, a, b: b(F.max_pool2d(leaky(a(x)), 3, 2, 1)), [conv(3), conv()],
    ),
    "pool padded before its map": (
        lambda x, a, b: b(F.max_pool2d(F.pad(a(x), (1, 0, 1, 0), value=LOWEST), 2, 2)),
        [conv(3), conv()],
    ),
    "pool beside the delegate's work": (
        lambda x, a, b: b(a(x)) + F.max_pool2d(F.pad(a(x), (2, 0, 2, 0), value=LOWEST), 3, 1),
        [conv(3), conv()],
    ),
    "padded pool at the end": (lambda x, a: F.max_pool2d(leaky(a(x)), 3, 2, 1), [conv(3)]),
    "concat of six": (
        lambda x, a, *more: leaky(torch.cat([layer(a(x)) for layer in more], 1)),
        [conv(3), *(conv() for _ in range(6))],
    ),
    "pool padded as SAME": (
        lambda x, a, b: b(F.max_pool2d(F.pad(leaky(a(x)), (0, 1, 0, 1), value=LOWEST), 3, 2)),
        [conv(3), conv()],
    ),
    "padded pool behind a ReLU": (
        lambda x, a, b: b(F.max_pool2d(F.relu(a(x)), 3, 2, 1)), [conv(3), conv()],
    ),
    "padded pool behind a ReLU and a pool": (
        lambda x, a, b: b(F.max_pool2d(F.max_pool2d(F.relu(a(x)), 2), 3, 2, 1)), [conv(3), conv()],
    ),
    "padded pool of the image": (lambda x, a: a(F.max_pool2d(x, 3, 2, 1)), [conv(3)]),
    "ReLU of its own": (
        lambda x, a, b: F.relu(torch.cat([a(x), leaky(b(x))], 1)), [conv(3), conv(3)],
    ),
    "ReLU behind a linear layer": (lambda x, a, b: F.relu(b(a(x).mean((2, 3)))), [conv(3), nn.Linear(8, 4)]),
    "concat of five": (
        lambda x, a, *more: torch.cat([layer(a(x)) for layer in more], 2),
        [conv(3), *(conv() for _ in range(5))],
    ),
    "concat of six in steps": (
        lambda x, a, *more: torch.cat(
            [torch.cat([layer(a(x)) for layer in part], 1) for part in (more[:3], more[3:])], 1
        ),
        [conv(3), *(conv() for _ in range(6))],
    ),
    "pool as wide as its stride": (lambda x, a, b: b(F.max_pool2d(a(x), 3, 3)), [conv(3), conv()]),
    "reorg": (lambda x, a: leaky(reorg(a(x))), [conv(3)]),
    "groups, addition, pad": (
        lambda x, a, b, c: F.relu6(F.pad(b(a(x)) + c(a(x)), (1, 2, 0, 1))),
        [conv(3), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=2)],
    ),
}  # fmt: skip


def against_litert(graph: Graph) -> Placement:
    """The prediction, once it is what LiteRT did."""
    placement = predicted(graph, "host", "litert")
    integer = calibrated(graph)
    runner = Runner(litert.lower_integer(integer).data)
    assert [operation.name for operation in placement.operations] == [
        node.name for node in integer.written.nodes[1:]
    ]
    assert names(placement) == {node_of(tensor) for tensor in runner.undelegated_tensors()}
    assert placement.segments == runner.undelegated()[0]
    return placement


@pytest.mark.parametrize("case", LEAVES)
def test_what_leaves_xnnpack_in_litert_is_predicted_with_why_and_what_to_do(case):
    function, layers, reason = LEAVES[case]
    placement = against_litert(traced(Net(function, *layers)))
    assert placement.leaving
    for operation in placement.leaving:
        assert reason in operation.reason and operation.instead and operation.place == "cpu"


@pytest.mark.parametrize("case", STAYS)
def test_what_stays_is_predicted_too(case):
    function, layers = STAYS[case]
    placement = against_litert(traced(Net(function, *layers)))
    assert (placement.leaving, placement.segments, placement.moved_bytes) == ((), 1, 0)


def test_a_break_costs_the_bytes_that_go_out_and_come_back():
    function, layers, _ = LEAVES["pool that skips"]
    placement = predicted(traced(Net(function, *layers)), "host", "litert")
    assert placement.moved_bytes == 8 * 12 * 12 + 8 * 4 * 4
    assert placement.macs_leaving == 0
    assert sum(operation.macs for operation in placement.operations) == 9 * 8 * (3 * 144 + 8 * 16)


@pytest.mark.slow
def test_executorch_keeps_what_litert_does_not_but_for_pools_that_skip_and_concats_of_one():
    def function(x, a, b, *more):
        x = F.max_pool2d(leaky(a(x)), 3, 2, 1)
        x = F.relu(torch.cat([layer(x) for layer in more], 1))
        x = b(F.max_pool2d(x, 1, 2))
        return F.relu(leaky(torch.cat([x], 1)).mean((2, 3)))

    graph = traced(Net(function, conv(3), conv(48), *(conv() for _ in range(6))))
    placement = predicted(graph, "host", "executorch")
    lowered = executorch.lower_integer(calibrated(graph))
    assert [operation.kind for operation in placement.leaving] == ["max_pool2d", "concat"]
    assert sorted(lowered.undelegated) == ["aten.cat.default", "aten.max_pool2d_with_indices.default"]
    assert placement.segments == lowered.subgraphs == 3
    assert len(predicted(graph, "host", "litert").leaving) == 3


def test_executorch_makes_a_program_of_seven_axes_that_it_does_not_load():
    graph = traced(Net(lambda x, a: leaky(seven_axes(a(x))), conv(3)))
    found = predicted(graph, "host", "executorch").leaving
    assert {operation.kind for operation in found} == {"reshape", "permute"}
    assert {operation.place for operation in found} == {"refused"}
    runner_or_error = executorch.lower_integer(calibrated(graph)).data
    with pytest.raises(InputError):
        executorch.load(runner_or_error)(np.zeros(SHAPE, np.int8))


# -- microcontrollers -------------------------------------------------------------------------------------


def test_litert_micro_refuses_a_transpose_that_cannot_be_written_with_five_axes():
    def turned(x: Tensor, a: nn.Module) -> Tensor:
        x = a(x).reshape(1, 2, 2, 2, 4, 3, 12).permute(0, 6, 5, 4, 3, 2, 1)
        return x.reshape(1, 144, 8, 1)

    graph = traced(Net(turned, conv(3)))
    (found,) = predicted(graph, "cortex-m4", "litert").leaving
    assert (found.kind, found.place) == ("permute", "refused")
    with pytest.raises(DeviceError, match="TRANSPOSE"):
        tflm.run(litert.lower_integer(calibrated(graph)).data, np.zeros(SHAPE, np.int8))
    placement = predicted(traced(Net(lambda x, a: leaky(reorg(a(x))), conv(3))), "cortex-m4", "litert")
    assert not placement.leaving and {each.place for each in placement.operations} == {"cpu"}
    assert (placement.segments, placement.moved_bytes) == (0, 0)


class Hard(nn.Module):
    """Everything that an Ethos-U55 leaves to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 1), nn.Conv2d(3, 8, 1)
        self.far, self.deep = nn.Conv2d(3, 8, 5, 4), nn.Conv2d(8, 8, 5, 4, groups=8)
        self.sum = nn.Linear(8 * 96 * 96, 1)
        nn.init.constant_(self.sum.weight, 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        b = self.b(x)
        tall = b.reshape(1, 8, 96 * 96, 1)
        strided = self.far(F.pad(x, (0, 1, 0, 1))), self.deep(b)
        pooled = F.max_pool2d(F.pad(b, (0, 1, 0, 1), value=LOWEST), 5, 4), F.max_pool2d(tall, (257, 1), 1)
        return *strided, *pooled, tall.mean((2, 3)), self.sum(b.flatten(1)), reorg(self.a(x))


@pytest.fixture(scope="module")
def hard() -> Graph:
    torch.manual_seed(0)
    return traced(Hard(), (1, 3, 96, 96))


@pytest.mark.parametrize(("card", "leaving"), [(U55, 7), (U85, 3)])
def test_what_leaves_the_ethos_u_is_what_vela_leaves_to_the_cpu(hard, card, leaving):
    placement = predicted(hard, card, "litert")
    compiled = vela.compile_for(load_card(card), litert.lower_integer(calibrated(hard)).data)
    assert names(placement) == {node_of(operator.name) for operator in compiled.on_cpu}
    assert len(placement.leaving) == leaving
    assert all(operation.reason and operation.instead for operation in placement.leaving)


class Mended(nn.Module):
    """The same, as the rules say to write it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 1), nn.Conv2d(3, 8, 1)
        self.far = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(8, 8, 3, 2, 1))
        self.deep = nn.Sequential(*(nn.Conv2d(8, 8, 3, 2, groups=8) for _ in range(2)))
        self.sum = nn.Linear(8 * 48 * 48, 1)
        nn.init.constant_(self.sum.weight, 0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        b = self.b(x)
        tall = b.reshape(1, 8, 96 * 96, 1)
        pooled = (
            F.max_pool2d(F.max_pool2d(b, 2), 2),
            F.max_pool2d(F.max_pool2d(tall, (129, 1), 1), (129, 1), 1),
        )
        mean = F.max_pool2d(tall, (3, 1)).mean((2, 3))
        small = F.max_pool2d(self.a(x), 2)
        return self.far(x), self.deep(b), *pooled, mean, self.sum(F.max_pool2d(b, 2).flatten(1)), reorg(small)


def test_what_the_rules_say_to_write_stays_on_the_ethos_u():
    torch.manual_seed(0)
    graph = traced(Mended(), (1, 3, 96, 96))
    assert predicted(graph, U55, "litert").leaving == ()
    assert vela.compile_for(load_card(U55), litert.lower_integer(calibrated(graph)).data).on_cpu == ()


def test_vela_fails_at_a_far_stride_with_a_padding_of_its_own():
    graph = traced(Net(lambda x, a: a(x), nn.Conv2d(3, 8, 5, 4, 2)))
    result = inspect_graph(graph, load_card(U55), ["litert"], (0.0, 1.0), "net")
    (found,) = result.placements[0].leaving
    assert found.place == "refused" and "stride above 3" in found.reason
    assert result.npu is None and "Vela was not asked" in result.notes[0]
    with pytest.raises(DeviceError, match="Vela fails"):
        vela.compile_for(load_card(U55), litert.lower_integer(calibrated(graph)).data)


def test_vela_is_quoted_and_what_does_not_fit_is_said(monkeypatch):
    graph = traced(Net(lambda x, a: leaky(a(x)), conv(3)))
    card = load_card(U85)
    small = card.model_copy(
        update={"microcontroller": card.microcontroller.model_copy(update={"sram_kib": 1})}
    )
    result = inspect_graph(graph, small, ["litert"], (0.0, 1.0), "net")
    assert result.npu is not None and result.npu.on_cpu == () and result.npu.cycles > 0
    assert "0 operators on the CPU" in result.notes[0] and "more than the 1 KiB" in result.notes[1]
    assert result.to_dict()["npu"]["cycles"] == result.npu.cycles
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bare = inspect_graph(graph, card, ["litert"], (0.0, 1.0), "net")
    assert bare.npu is None and "pip install ethos-u-vela" in bare.notes[0]


# -- cards and unknown operations -------------------------------------------------------------------------


def without(card: str, kind: str) -> Target:
    """A card whose LiteRT lacks a kind of operator."""
    target = load_card(card)
    runtime = target.runtime("litert")
    less = runtime.model_copy(update={"ops": tuple(op for op in runtime.ops if op != kind)})
    return target.model_copy(update={"runtimes": {**target.runtimes, "litert": less}})


def test_what_the_card_does_not_name_leaves_with_its_macs():
    graph = traced(Net(lambda x, a, b: b(a(x)), conv(3), nn.Conv2d(8, 8, 3, padding=1, groups=8)))
    placement = predicted(graph, without("host", "depthwise_conv2d"), "litert")
    (found,) = placement.leaving
    assert found.kind == "depthwise_conv2d" and "not among the operators on the card" in found.reason
    assert placement.macs_leaving == pytest.approx(8 / (3 * 8 + 8))
    (refused,) = predicted(graph, without("cortex-m4", "depthwise_conv2d"), "litert").leaving
    assert refused.place == "refused"


class Spectrum(nn.Module):
    """What can be inspected, and not run."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


def test_it_says_that_run_refuses_a_network_with_the_error_of_run():
    network = nn.Sequential(conv(3), Spectrum(), conv()).eval()
    (note,) = refusal(network, trace(network, SHAPE, opaque=True))
    with pytest.raises(InputError) as error:
        trace(network, SHAPE)
    assert note == f"`paredown run` refuses this network: {error.value}"
    assert refusal(network[0], traced(network[0])) == ()


class Sine(nn.Module):
    """An operation that no kernel of ours has."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def test_an_operation_that_is_not_known_is_named_with_its_line():
    graph = trace(nn.Sequential(conv(3), Sine(), conv()).eval(), SHAPE, opaque=True, floats=False)
    for runtime in ("executorch", "litert"):
        placement = predicted(graph, "host", runtime)
        (found,) = placement.leaving
        assert found.place == "not lowered" and found.reason.startswith("not lowered: sin")
        file, _, line = found.source.rpartition(":")
        assert Path(file) == Path(__file__)
        assert "x.sin()" in Path(file).read_text().splitlines()[int(line) - 1]
        assert "leaky_relu" in found.instead and placement.segments == 2
    result = inspect_graph(graph, load_card(U55), ["litert"], (0.0, 1.0), "net")
    assert result.npu is None and "Vela was not asked" in result.notes[0]


@pytest.mark.parametrize(("card", "runtime", "dtype"), [("iphone", "executorch", "float16"),
                                                        ("android-vulkan", "executorch", "float32"),
                                                        ("browser", "litert", "int8")])  # fmt: skip
def test_targets_of_floats_say_so(card, runtime, dtype):
    function, layers, _ = LEAVES["pool that skips"]
    graph = traced(Net(function, *layers))
    result = inspect_graph(graph, load_card(card), [runtime], (0.0, 1.0), "net")
    (placement,) = result.placements
    assert placement.dtype == dtype and any("float" in note for note in result.notes)
    assert len(placement.leaving) == (dtype == "int8")  # int8's rules do not hold for floats


def test_signs_are_those_of_a_real_input():
    def function(x, a, b):
        both = F.relu(a(x)) + F.relu(b(x))
        return F.max_pool2d(both, 2), leaky(F.relu6(a(x))).mean((2, 3)), b(x)

    network = Net(function, conv(3), conv(3))
    graph = traced(network)
    values = graph.run(torch.rand((8, *SHAPE[1:]), generator=torch.Generator().manual_seed(1)))
    made = signs(graph, (0.0, 1.0))
    assert set(made) == set(values)
    for name, value in values.items():
        assert (made[name][0] == 0) == (float(value.min()) >= 0), name


# -- recipes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("inspect"))


@pytest.fixture(scope="module")
def host(project) -> Inspection:
    return inspect(load_recipe(str(project), (), ()), load_card("host"))


def test_a_recipes_network_is_inspected_on_every_runtime_of_the_card(host):
    assert [each.runtime for each in host.placements] == ["executorch", "litert"]
    assert (host.target, host.shape, host.npu) == ("host", (1, 3, 64, 64), None)
    for each in host.placements:
        kinds = [operation.kind for operation in each.operations]
        assert [kinds.count(kind) for kind in ("leaky_relu", "max_pool2d")] == [2, 1]
        # 3x3 on 3 to 8 channels over 32x32, 3x3 on 8 to 16 and 1x1 on 16 to 14 over 16x16
        macs = 9 * 3 * 8 * 32 * 32 + (9 * 8 * 16 + 16 * 14) * 16 * 16
        assert sum(operation.macs for operation in each.operations) == host.macs == macs
        assert not each.leaving


def test_json_holds_all_of_it(host):
    document = json.loads(json.dumps(host.to_dict(), allow_nan=False))
    assert set(document) == {"network", "target", "input", "macs", "tag", "runtimes", "npu", "notes"}
    assert document["tag"] == "predicted" and document["input"] == [1, 3, 64, 64]
    for each in document["runtimes"]:
        assert {"runtime", "delegate", "dtype", "operations", "leaving", "macs_leaving", "segments",
                "moved_bytes", "notes"} == set(each)  # fmt: skip
        fields = {"name", "kind", "place", "macs", "reason", "instead", "source"}
        assert each["operations"] and all(set(operation) == fields for operation in each["operations"])


def test_tables_say_what_leaves_why_and_what_to_write_instead(host):
    function, layers, _ = LEAVES["pool that skips"]
    graph = traced(Net(function, *layers))
    result = inspect_graph(graph, load_card("host"), ["litert"], (0.0, 1.0), "net")
    screen = Console(file=io.StringIO(), width=400)
    for table in result.tables():
        screen.print(table)
    text = screen.file.getvalue()
    assert "2 of 3" in text and "1,280" in text and "their window" in text and "a larger window" in text
    assert len(host.tables()) == 1


def test_a_runtime_that_the_target_has_not_is_an_error_only_where_the_recipe_names_it(project):
    card = load_card("cortex-m4")
    (only,) = inspect(load_recipe(str(project), (), ()), card).placements
    assert only.runtime == "litert"
    named = load_recipe(str(project), ('lower.runtimes=["executorch"]',), ())
    with pytest.raises(UsageError, match="cortex-m4 has no runtime `executorch`"):
        inspect(named, card)


def test_a_slope_that_no_int8_kernel_takes_is_an_input_error_with_the_layers_name():
    graph = traced(Net(lambda x, a: F.leaky_relu(a(x), 2.0), conv(3)))
    with pytest.raises(InputError, match="slope 2.0 .* plain ReLU"):
        inspect_graph(graph, load_card("host"), ["litert"], (0.0, 1.0), "net")


def test_low_bit_activations_are_named_and_their_requantizations_counted(project, host):
    asked = ("squantize.weight_bits=4", "squantize.activation_bits=4")
    found = inspect(load_recipe(str(project), asked, ()), load_card("host"))
    notes = [note for note in found.notes if note.startswith("squantize: ")]
    assert re.search(r"\d+ activations have 16 levels: ", notes[0])
    signed = re.search(r"(\d+) of them may have levels below zero, and are requantized: (.*)", notes[1])
    names = {f"{name}.levels" for name in signed[2].split(", ")}
    assert len(names) == int(signed[1]) > 0
    for before, after in zip(host.placements, found.placements, strict=True):
        more = {each.name for each in after.operations} - {each.name for each in before.operations}
        assert more == names
        assert len(after.leaving) == len(before.leaving)
    assert not [note for note in host.notes if "levels" in note]
