"""latency.py and layers.py: what is measured, kept and interpolated. No test asserts a time."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paredown.apps.classifier.network import build
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.surgery import thin
from paredown.pipeline.device.latency.latency import LatencyTable, latency, read_table, table_for
from paredown.pipeline.device.latency.layer_times import LayerMeasure, times_here
from paredown.pipeline.device.latency.layers import LayerShape, layers, one_layer
from paredown.pipeline.graph.fusion import fuse_relu
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.runtimes import runtime
from paredown.targets.cards.card import load_card
from paredown.targets.errors import DeviceError, InputError, UsageError


class Small(nn.Module):
    """The ways in which a layer's shape follows widths: depthwise, grouped, addition, concat, reorg."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.c = nn.Conv2d(8, 6, 1)
        self.d = nn.Conv2d(32, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.leaky_relu(x + self.b(x), 0.1)
        x = F.relu6(self.depth(x))
        p = self.c(self.grouped(x))
        n, c, h, w = p.shape
        p = p.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // 2, w // 2)
        x = torch.cat([p, F.max_pool2d(x, 2)], 1)
        return self.head(F.relu(self.d(x)).mean((2, 3)))


@functools.cache
def small():
    graph = trace(Small().eval(), (1, 3, 8, 8))
    groups = couple(graph)
    return (
        graph,
        groups,
        {g.name: tuple(range(g.units, 0, -1)) for g in groups if not g.locked and g.step == 1},
    )


class Fake:
    """Measures by a formula and remembers what it was asked."""

    def __init__(self, formula=lambda shape: float(shape.work)) -> None:
        self.formula, self.asked = formula, []

    def __call__(self, shapes):
        self.asked += shapes
        return {shape: self.formula(shape) for shape in shapes}


FACTS = {"card": "host", "runtime": "litert"}


# -- the table -----------------------------------------------------------------------------------------------


def test_what_is_kept_is_not_measured_again(tmp_path):
    graph, groups, choices = small()
    first, path = Fake(), tmp_path / "latency" / "table.json"
    cost = latency(graph, groups, LatencyTable(FACTS, path, first), choices)
    assert first.asked and len(first.asked) == len(set(first.asked))
    again = Fake()
    kept = latency(graph, groups, LatencyTable(FACTS, path, again), choices)
    assert again.asked == []
    assert kept.unpruned == cost.unpruned
    assert read_table(path) == (FACTS, LatencyTable(FACTS, path).times)


def test_only_what_is_missing_is_measured(tmp_path):
    path = tmp_path / "table.json"
    one, two = (LayerShape("relu", ((1, c, 4, 4),), (1, c, 4, 4)) for c in (1, 2))
    LatencyTable(FACTS, path, Fake()).need([one])
    measure = Fake()
    LatencyTable(FACTS, path, measure).need([one, two, two])
    assert measure.asked == [two]
    assert set(read_table(path)[1]) == {one, two}


def test_what_was_measured_before_an_interruption_is_kept(tmp_path):
    path = tmp_path / "table.json"
    shapes = [LayerShape("relu", ((1, c, 4, 4),), (1, c, 4, 4)) for c in (3, 1, 2)]

    def interrupted(part):
        if part[0].output[1] == 3:
            raise KeyboardInterrupt
        return {shape: 1.0 for shape in part}

    ticks = []
    with pytest.raises(KeyboardInterrupt):
        LatencyTable(FACTS, path, interrupted, chunk=1, tick=lambda *at: ticks.append(at)).need(shapes)
    assert ticks == [(1, 3), (2, 3)]
    measure = Fake()
    LatencyTable(FACTS, path, measure).need(shapes)
    assert measure.asked == [shapes[0]]


@pytest.mark.parametrize("damage", [
    lambda text: text[: len(text) // 2],
    lambda text: "",
    lambda text: "[1, 2]",
    lambda text: text.replace('"ms": ', '"ms": -'),
    lambda text: text.replace('"kind"', '"kin"'),
    lambda text: text.replace('"format": 1', '"format": 99'),
    lambda text: text.replace('"runtime": "litert"', '"runtime": "executorch"'),
])  # fmt: skip
def test_a_damaged_table_or_another_s_is_made_anew(tmp_path, damage):
    path = tmp_path / "table.json"
    shape = LayerShape("relu", ((1, 2, 4, 4),), (1, 2, 4, 4))
    LatencyTable(FACTS, path, Fake()).need([shape])
    before = path.read_bytes()
    path.write_text(damage(before.decode()))
    measure = Fake()
    LatencyTable(FACTS, path, measure).need([shape])
    assert measure.asked == [shape]
    assert path.read_bytes() == before


def test_a_negative_time_is_none():
    table = LatencyTable(FACTS, None, Fake(lambda shape: -1.0))
    shape = LayerShape("relu", ((1, 2, 4, 4),), (1, 2, 4, 4))
    table.need([shape])
    assert table[shape] == 0


def test_what_cannot_be_measured_is_said():
    graph, groups, choices = small()
    with pytest.raises(DeviceError, match=r"layers of this network are not in its latency table.*macs"):
        latency(graph, groups, LatencyTable({"card": "my-board"}), choices)


# -- tables of targets ---------------------------------------------------------------------------------------


def test_the_host_measures_for_itself_and_keeps_its_table_in_the_store(tmp_path):
    table = table_for(load_card("host"), "litert", tmp_path)
    assert isinstance(table.measure, LayerMeasure) and table.path.parent == tmp_path / "latency"
    assert table.facts["card"] == "host" and table.facts["version"][0].isdigit()
    assert table.path != table_for(load_card("host"), "executorch", tmp_path).path


def test_a_board_needs_a_table_of_its_own(tmp_path):
    board = load_card("raspberry-pi-5")
    with pytest.raises(DeviceError, match="raspberry-pi-5: a latency budget needs a latency table") as caught:
        table_for(board, "litert", tmp_path)
    assert caught.value.exit_code == 5
    shape = LayerShape("relu", ((1, 2, 4, 4),), (1, 2, 4, 4))
    given = LatencyTable({"card": board.name, "runtime": "litert"}, tmp_path / "pi.json", Fake())
    given.need([shape])
    table = table_for(board, "litert", tmp_path, file=tmp_path / "pi.json")
    assert table[shape] == shape.work and table.measure is None
    with pytest.raises(InputError, match="of card raspberry-pi-5, not host"):
        table_for(load_card("host"), "litert", tmp_path, file=tmp_path / "pi.json")
    with pytest.raises(InputError, match="runtime litert, not executorch"):
        table_for(board, "executorch", tmp_path, file=tmp_path / "pi.json")


@pytest.mark.parametrize("content", [None, "{", '{"format": 1}', "\x00"])
def test_a_broken_file_of_the_user_s_is_named(tmp_path, content):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="mine.json"):
        table_for(load_card("raspberry-pi-5"), "litert", tmp_path, file=path)


def test_an_unknown_runtime_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown runtime `tensorrt`"):
        table_for(load_card("host"), "tensorrt", tmp_path)
    card = load_card("host")
    narrow = card.model_copy(update={"runtimes": {"litert": card.runtimes["litert"]}})
    with pytest.raises(UsageError, match="has no runtime `executorch`"):
        table_for(narrow, "executorch", tmp_path)


# -- the cost ------------------------------------------------------------------------------------------------


def test_measured_points_are_exact_and_bilinear_functions_everywhere():
    """A convolution's time that is a + b rows + c columns + d rows columns is interpolated without error."""
    graph, groups, choices = small()

    def formula(shape):
        rows, columns = shape.output[1], shape.inputs[0][1] if shape.inputs else 0
        return 5.0 + 2 * rows + columns + 0.5 * rows * columns if shape.kind == "conv2d" else 0.0

    table = LatencyTable(FACTS, None, Fake(formula), points=2)
    cost = latency(graph, groups, table, choices)
    rng = np.random.default_rng(0)
    for _ in range(10):
        chosen = {name: int(rng.choice(found)) for name, found in choices.items()}
        thinner = thin(graph, groups, {name: range(width) for name, width in chosen.items()})
        shapes = {layer.name: layer.whole for layer in layers(thinner, ())}
        for part in cost.parts:
            if part.node in {"a.relu", "b", "c", "d"}:  # two free axes; one axis may have two products in it
                assert part.value({**cost.full, **chosen}) == pytest.approx(formula(shapes[part.node]))


def test_every_width_is_exact_where_there_are_enough_points():
    graph, groups, choices = small()
    table = LatencyTable(FACTS, None, Fake(lambda s: float(hash(s) % 1000)), points=64)
    cost = latency(graph, groups, table, choices)
    whole = {layer.name: layer for layer in layers(graph, groups)}
    chosen = {name: found[len(found) // 2] for name, found in choices.items()}
    for part in cost.parts:
        layer = whole[part.node]
        if layer.whole.kind not in {"conv2d", "linear"}:
            continue
        rows = round(layer.rows.at({**cost.full, **chosen}))
        columns = round(layer.columns.at({**cost.full, **chosen})) if layer.columns else 0
        assert part.value({**cost.full, **chosen}) == table[layer.shape(rows, columns)]


def test_moves_follow_the_number_of_values():
    graph, groups, choices = small()
    cost = latency(graph, groups, LatencyTable(FACTS, None, Fake()), choices)
    moves = [part for part in cost.parts if graph[part.node].kind == "permute"]
    assert len(moves) == 1 and moves[0].groups == ("c",)
    full = moves[0].value(cost.full)
    assert moves[0].value({**cost.full, "c": 3}) == pytest.approx(full / 2)


# -- layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "resnet20", "nano"])
def test_layers_have_the_shapes_of_the_thin_graph(name):
    """The oracle is surgery: thin, and look at what is there."""
    if name == "small":
        graph, groups, _ = small()
    else:
        network = YoloV2.builtin("yolov2-nano") if name == "nano" else build(name)
        graph = trace(network.eval(), (1, 3, 32, 32))
        groups = couple(graph)
    rng = np.random.default_rng(1)
    free = [g for g in groups if not g.locked]
    chosen = {g.name: max(g.units * int(rng.integers(1, 5)) // 4 // g.step * g.step, g.step) for g in free}
    widths = {g.name: chosen.get(g.name, g.units) for g in groups}
    thinner = thin(graph, groups, {name: range(width) for name, width in chosen.items()})
    expected = {layer.name: layer.whole for layer in layers(thinner, ())}
    for layer in layers(graph, groups):
        columns = round(layer.columns.at(widths)) if layer.columns else 0
        rows = round(layer.rows.at(widths))
        if layer.whole.kind == "concat":
            made = layer.shape(rows, columns)
            assert abs(made.output[1] - rows) < len(made.inputs)
        elif layer.whole.kind not in {"reshape", "permute"}:
            assert layer.shape(rows, columns) == expected[layer.name]


def test_whole_shapes_are_those_of_the_graph():
    graph, groups, _ = small()
    found = {layer.name: layer.whole for layer in layers(graph, groups)}
    assert set(found) == {node.name for node, _ in fuse_relu(graph)}
    assert [found[n].clamp for n in ("relu", "relu6")] == ["relu", "relu6"]  # taken in by a convolution
    for name, shape in found.items():
        assert shape.output == graph[name].shape
        assert LayerShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


def test_work_orders_layers():
    attrs = (("filter", (3, 3)), ("groups", 1), ("padding", (1, 1, 1, 1)), ("stride", (1, 1)))
    conv = LayerShape("conv2d", ((1, 4, 8, 8),), (1, 6, 8, 8), attrs)
    assert conv.work == 4 * 6 * 9 * 64
    assert replace(conv, attrs=(("filter", (3, 3)), ("groups", 2))).work == conv.work // 2


def test_every_kind_of_layer_is_measured_as_a_program_of_its_own(monkeypatch):
    graph, groups, _ = small()
    found = {layer.whole for layer in layers(graph, groups)}
    for shape in found:
        if shape.kind != "input":
            single = one_layer(shape)
            assert [node.kind for node in single] == ["input", shape.kind]
            assert single.nodes[-1].shape == shape.output and single.input.shape == shape.inputs[0]
            if shape.clamp:  # really fused
                assert single.nodes[-1].low > -128 and (single.nodes[-1].high < 127) == (
                    shape.clamp == "relu6"
                )
    monkeypatch.setattr("paredown.pipeline.device.latency.layer_times.SECONDS", 0.0)
    times = LayerMeasure("litert", times_here)(list(found))
    assert set(times) == found
    assert all(math.isfinite(ms) and ms >= 0 for ms in times.values())


@pytest.mark.slow
def test_executorch_runs_every_kind_of_layer_whole_on_the_delegate():
    graph, groups, _ = small()
    by_kind = {layer.whole.kind: layer.whole for layer in layers(graph, groups)}
    for kind in by_kind.keys() - {"input", "reshape"}:  # a reshape alone may be nothing at all
        single = one_layer(by_kind[kind])
        lowered = runtime("executorch").lower_integer(single)
        assert (lowered.subgraphs, lowered.undelegated) == (1, ()), kind
        codes = np.random.default_rng(0).integers(-128, 128, single.input.shape).astype(np.int8)
        (made,) = runtime("executorch").load(lowered.data)(codes)
        (expected,) = reference.predict(single, codes)
        assert made.shape == expected.shape and np.abs(made.astype(int) - expected).max() <= 1, kind
