"""Int8 programs for the tests of microcontrollers: the shipped digits network, one of every operator, and
single operators that no network of ours has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

import paredown.apps.detector
from paredown.apps.detector.digits import Digits
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import load_checkpoint
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.litert import program as litert


def lowered(network: nn.Module, images: Tensor) -> bytes:
    """An int8 .tflite of a float network, calibrated on images in 0..1."""
    graph = trace(network.eval(), (1, *images.shape[1:]))
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(images).items()}
    return litert.lower_integer(quantize(graph, ranges, input_range=(0.0, 1.0))).data


def digits_images(count: int) -> np.ndarray:
    """Scenes as the digits network sees them: float32 in 0..1, (count, 3, 160, 160)."""
    scenes = Digits("test", count)
    images = np.stack([scenes[i].image[..., ::-1] for i in range(count)]).transpose(0, 3, 1, 2)
    return images.astype(np.float32) / 255


def digits_network() -> nn.Module:
    """The shipped yolov2-nano."""
    network = YoloV2.builtin("yolov2-nano")
    load_checkpoint(Path(paredown.apps.detector.__file__).with_name("digits.safetensors"), network)
    return network.eval()


def digits() -> bytes:
    """It, lowered."""
    return lowered(digits_network(), torch.from_numpy(digits_images(4)))


class Everything(nn.Module):
    """Every operator of our integer graphs but reorg, which the digits network has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.b, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head, self.fc = nn.Conv2d(16, 5, 1), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self.a(F.pad(x, (1, 2, 0, 1))))
        y = F.leaky_relu(self.b(F.relu(self.dw(x))), 0.1)
        x = F.max_pool2d(F.relu(x + y), 3, 2, 1)
        y = F.max_pool2d(self.grouped(y), 3, 2, 1)
        z = torch.cat([x, y], 1)
        return self.head(z), self.fc(z.mean((2, 3)))


def everything() -> bytes:
    """The network of every operator, with random weights."""
    torch.manual_seed(3)
    return lowered(Everything(), torch.rand((4, 3, 21, 24), generator=torch.Generator().manual_seed(4)))


def alone(
    kind: str, options: Any, given: tuple[int, ...], made: tuple[int, ...], *constants: list[int],
    kind_of_values: str = "INT8",
) -> bytes:  # fmt: skip
    """A .tflite of one operator with one input `x`, int32 constants, and one output `y`."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []

    def tensor(name: str, shape: tuple[int, ...], values: np.ndarray | None = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.buffer = name, np.asarray(shape, np.int32), 0
        entry.type = getattr(schema.TensorType, kind_of_values if values is None else "INT32")
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = values.view(np.uint8)
            model.buffers.append(buffer)
            entry.buffer = len(model.buffers) - 1
        elif kind_of_values == "INT8":
            entry.quantization = schema.QuantizationParametersT()
            entry.quantization.scale = np.asarray([0.02], np.float32)
            entry.quantization.zeroPoint = np.asarray([0], np.int64)
        graph.tensors.append(entry)
        return len(graph.tensors) - 1

    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    graph.inputs = [tensor("x", given)]
    values = [np.asarray(constant, np.int32) for constant in constants]
    operator.inputs = np.asarray(graph.inputs + [tensor("c", v.shape, v) for v in values], np.int32)
    graph.outputs = [tensor("y", made)]
    operator.outputs = np.asarray(graph.outputs, np.int32)
    operator.builtinOptions = options
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
    graph.operators, model.subgraphs, model.operatorCodes = [operator], [graph], [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
