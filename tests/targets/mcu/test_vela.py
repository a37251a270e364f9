"""Vela: placement, predictions and bytes of the shipped network, and the claims of the Ethos-U cards."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from mcu_programs import alone, digits, digits_network, everything, lowered
from torch import nn

from paredown.pipeline.graph.trace import trace
from paredown.targets.cards.card import Target, load_card
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.mcu import vela
from paredown.targets.mcu.memory import fits, kib

U55, U85 = "cortex-m55-ethos-u55-128", "ethos-u85-256"


@pytest.fixture(scope="module")
def digits_program() -> bytes:
    return digits()


@pytest.fixture(scope="module", params=[U55, U85])
def card(request) -> Target:
    return load_card(request.param)


@pytest.fixture(scope="module")
def compiled(card, digits_program) -> vela.Compiled:
    return vela.compile_for(card, digits_program)


def test_every_operator_of_yolo_stays_on_the_npu(compiled):
    assert compiled.on_cpu == ()
    kinds = {operator.kind for operator in compiled.operators}
    assert kinds == {"Conv2D", "LeakyRelu", "MaxPool", "Transpose", "Concat"}
    leaky = [operator for operator in compiled.operators if operator.kind == "LeakyRelu"]
    assert len(leaky) == 10 and all(operator.cycles == 0 for operator in leaky)  # fused: the card says so


def test_the_predictions_belong_to_the_cards_system(card, compiled):
    assert (compiled.accelerator, compiled.system) == (card.npu.accelerator, card.npu.system)
    assert sum(operator.cycles for operator in compiled.operators) == pytest.approx(compiled.cycles, rel=0.05)
    assert compiled.inferences_per_second * compiled.cycles == pytest.approx(500e6, rel=1e-3)  # its clock
    macs = trace(digits_network(), (1, 3, 160, 160)).macs
    assert macs <= compiled.macs < 1.01 * macs  # Vela counts those of pools too


def test_the_bytes_are_those_of_the_program(card, compiled, digits_program):
    assert compiled.program[4:8] == b"TFL3" and b"ethos-u" in compiled.program
    assert compiled.weight_bytes < compiled.flash_bytes < len(compiled.program) < 1.1 * compiled.flash_bytes
    assert compiled.sram_bytes >= 80 * 80 * 16 + 40 * 40 * 16  # the first pool reads one and writes the other
    assert compiled.dram_bytes == 0
    fits(card, compiled.sram_bytes, len(compiled.program))


def test_a_network_of_every_operator_stays_on_the_npu(card):
    compiled = vela.compile_for(card, everything())
    assert compiled.on_cpu == () and compiled.operators
    kinds = {operator.kind for operator in compiled.operators}
    assert kinds >= {"Conv2D", "DepthwiseConv2D", "FullyConnected", "Add", "Pad", "MaxPool", "LeakyRelu"}


def magnitude_pruned(program: bytes, share: float) -> bytes:
    """The program with the smallest weights of each layer at zero."""
    data = bytearray(program)
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        if tensor.Name().endswith(b"/w"):
            weights = model.Buffers(tensor.Buffer()).DataAsNumpy().view(np.int8)
            weights.flags.writeable = True
            weights[np.argsort(np.abs(weights.astype(int)), kind="stable")[: int(share * weights.size)]] = 0
    return bytes(data)


def test_zeros_pay_as_the_cards_say(card, compiled, digits_program):
    assert card.runtime("litert").pays.zeros.buys == "time"
    pruned = vela.compile_for(card, magnitude_pruned(digits_program, 0.8))
    assert pruned.weight_bytes < 0.4 * compiled.weight_bytes
    assert pruned.cycles < compiled.cycles
    assert pruned.sram_bytes == pytest.approx(compiled.sram_bytes, rel=0.02)


@pytest.mark.parametrize("reads", [1, 2])
def test_one_channel_more_than_a_multiple_costs_as_much_as_the_next(card, reads):
    """Of what a 3x3 kernel reads: the card's multiple is where the steps are."""
    step = card.channel_multiple.conv

    def cycles(channels: int) -> int:
        network = nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 64, 3, padding=1))
        images = torch.rand((2, 3, 20, 20), generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        layers = vela.compile_for(card, lowered(network, images)).operators
        return layers[-1].cycles

    full, one_more, next_full = (cycles(c) for c in (reads * step, reads * step + 1, (reads + 1) * step))
    assert one_more > 1.2 * full and one_more > 0.9 * next_full


def test_what_stays_on_the_cpu_says_why_what_it_costs_and_what_to_write_instead(card):
    options = schema.SpaceToDepthOptionsT()
    options.blockSize = 2
    compiled = vela.compile_for(card, alone("SPACE_TO_DEPTH", options, (1, 8, 8, 4), (1, 4, 4, 16)))
    (operator,) = compiled.on_cpu
    assert (operator.kind, operator.name, operator.elements) == ("SpaceToDepth", "y", 256)
    assert "Unsupported opType" in operator.reason
    line = operator.line()
    assert "256 elements" in line and "instead: write it as RESHAPE, TRANSPOSE, RESHAPE" in line
    assert "\n" not in line and compiled.inferences_per_second == compiled.cycles == 0


def test_the_replacement_for_space_to_depth_stays_on_the_npu(card):
    class Folded(nn.Module):
        def forward(self, x):
            n, c, h, w = x.shape
            x = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2 * c).transpose(2, 3)
            return x.reshape(n, h // 2, w // 2, 4 * c).permute(0, 3, 1, 2)

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Folded())
    compiled = vela.compile_for(card, lowered(network, torch.rand(2, 3, 8, 8)))
    assert compiled.on_cpu == () and "Transpose" in {operator.kind for operator in compiled.operators}


def test_float_stays_on_the_cpu_and_the_line_says_to_quantize(card):
    program = alone(
        "LEAKY_RELU", schema.LeakyReluOptionsT(), (1, 4, 4, 4), (1, 4, 4, 4), kind_of_values="FLOAT32"
    )
    (operator,) = vela.compile_for(card, program).on_cpu
    assert "unsupported DataType Float32" in operator.reason and "instead: quantize" in operator.line()


@pytest.mark.parametrize("spoil", [lambda p: b"", lambda p: b"hello", lambda p: p[: len(p) // 2]])
def test_what_is_no_program_is_an_input_error(digits_program, spoil):
    with pytest.raises(InputError, match="not a TFLite model") as raised:
        vela.compile_for(load_card(U55), spoil(digits_program))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["accelerator", "system", "memory_mode"])
def test_a_configuration_that_vela_does_not_know_is_named(digits_program, key):
    card = load_card(U55)
    card = card.model_copy(update={"npu": card.npu.model_copy(update={key: "ethos-u55-99"})})
    with pytest.raises(DeviceError, match="Vela fails: .*ethos-u55-99") as raised:
        vela.compile_for(card, digits_program)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 5


def test_what_is_missing_has_its_line(digits_program, monkeypatch):
    with pytest.raises(UsageError, match="target cortex-m4 has no Ethos-U"):
        vela.compile_for(load_card("cortex-m4"), digits_program)
    with pytest.raises(DeviceError, match="not done after 0.001 s"):
        vela.compile_for(load_card(U55), digits_program, timeout=0.001)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="pip install ethos-u-vela"):
        vela.compile_for(load_card(U55), digits_program)


# -- memory ------------------------------------------------------------------------------------------------


def test_to_the_byte_what_fits_and_what_does_not():
    card = load_card("cortex-m4")
    fits(card, 640 * 1024, 2048 * 1024)
    with pytest.raises(DeviceError) as raised:
        fits(card, 640 * 1024 + 1, 2048 * 1024)
    assert "needs 640.1 KiB of SRAM, 0.1 KiB more than the 640 KiB there are" in str(raised.value)
    assert "flash" not in str(raised.value) and raised.value.exit_code == 5


def test_both_memories_are_named_where_both_lack():
    with pytest.raises(DeviceError) as raised:
        fits(load_card("cortex-m4"), 700 * 1024, 3000 * 1024)
    line = str(raised.value)
    assert "SRAM, 60.0 KiB more" in line and "flash, 952.0 KiB more" in line and "NUCLEO-L4R5ZI" in line


def test_only_microcontrollers_are_counted_in_kib():
    with pytest.raises(UsageError, match="host is no microcontroller"):
        fits(load_card("host"), 1, 1)


@pytest.mark.parametrize(("size", "text"), [(0, "0.0"), (1, "0.1"), (1024, "1.0"), (1 << 20, "1,024.0")])
def test_kib_rounds_up(size, text):
    assert kib(size) == f"{text} KiB"
