"""Small `.tflite` files of codes, operation by operation, as TensorFlow's converter quantizes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_models import SAME, Writer

from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph
from paredown.pipeline.lower.litert.reader.load import load
from paredown.pipeline.lower.runtimes import runtime

VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "SUB": 2, "MUL": 2, "MEAN": 2,
    "AVERAGE_POOL_2D": 2, "MAX_POOL_2D": 2, "LOGISTIC": 2, "TANH": 2, "SOFTMAX": 2, "PAD": 2, "SLICE": 2,
    "CONCATENATION": 2, "RELU": 2, "RELU6": 2, "LEAKY_RELU": 2, "STRIDED_SLICE": 2, "TRANSPOSE": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
}  # fmt: skip


class Int8(Writer):
    """A model of one input, by default of int8; each tensor has a scale, each kernel one per channel."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0, kind: int = schema.TensorType.INT8) -> None:
        super().__init__(shape, seed)
        zero = -128 if kind == schema.TensorType.INT8 else 0
        self.scaled(self.input, 0.05, int(self.dice.integers(0, 100)) + zero, kind)

    def scaled(
        self, place: int, scale: Any, zero: Any = 0, kind: int = schema.TensorType.INT8, axis: int = 0
    ):
        """Makes a tensor one of codes."""
        found = schema.QuantizationParametersT()
        found.scale = np.atleast_1d(np.asarray(scale, np.float32))
        found.zeroPoint = np.broadcast_to(np.asarray(zero, np.int64), len(found.scale)).copy()
        found.quantizedDimension = axis
        self.graph.tensors[place].quantization = found
        self.graph.tensors[place].type = kind
        return place

    def codes(self, place: int) -> tuple[float, int]:
        """Scale and zero point of a tensor."""
        found = self.graph.tensors[place].quantization
        return float(found.scale[0]), int(found.zeroPoint[0])

    def made(
        self, kind: str, inputs: list[int], shape: tuple[int, ...], options: str = "", *, scale: float = 0,
        zero: int | None = None, **values: Any,
    ) -> int:  # fmt: skip
        """An operation whose output has a scale; without one, that of its first input."""
        place = self.op(kind, inputs, shape, options, **values)
        self.model.operatorCodes[-1].version = VERSIONS.get(kind, 1)
        first = self.codes(inputs[0])
        own = first if not scale else (scale, int(self.dice.integers(-128, 60)) if zero is None else zero)
        return self.scaled(place, *own)

    def kernel(self, x: int, *shape: int, axis: int = 0) -> tuple[int, int, float]:
        """Weight codes, biases, and a scale that suits their sums."""
        weight = self.constant(self.dice.integers(-127, 128, shape).astype(np.int8))
        scales = self.dice.uniform(0.002, 0.02, shape[axis]).astype(np.float32)
        self.scaled(weight, scales, 0, axis=axis)
        bias = self.constant(self.dice.integers(-2000, 2000, shape[axis]).astype(np.int32))
        source = self.codes(x)[0]
        self.scaled(bias, scales * np.float32(source), 0, schema.TensorType.INT32)
        depth = np.prod(shape) / shape[axis]
        return weight, bias, source * float(scales.max()) * 60 * float(np.sqrt(depth))

    def layer(
        self, x: int, out: int, k: int = 3, stride: int = 1, padding: int = SAME, dilation: int = 1,
        activation: int = 0, groups: int = 1,
    ) -> int:  # fmt: skip
        """CONV_2D."""
        weight, bias, scale = self.kernel(x, out, k, k, self.shape(x)[3] // groups)
        size = self.window(x, (k, k), stride, padding, dilation)
        return self.made(
            "CONV_2D", [x, weight, bias], (1, *size, out), "Conv2D", scale=scale, padding=padding,
            strideH=stride, strideW=stride, dilationHFactor=dilation, dilationWFactor=dilation,
            fusedActivationFunction=activation,
        )  # fmt: skip

    def each(self, x: int, times: int = 1, k: int = 3, stride: int = 1, padding: int = SAME,
             activation: int = 0) -> int:  # fmt: skip
        """DEPTHWISE_CONV_2D."""
        out = self.shape(x)[3] * times
        weight, bias, scale = self.kernel(x, 1, k, k, out, axis=3)
        size = self.window(x, (k, k), stride, padding)
        return self.made(
            "DEPTHWISE_CONV_2D", [x, weight, bias], (1, *size, out), "DepthwiseConv2D", scale=scale,
            padding=padding, strideH=stride, strideW=stride, depthMultiplier=times, dilationHFactor=1,
            dilationWFactor=1, fusedActivationFunction=activation,
        )  # fmt: skip

    def full(self, x: int, out: int, activation: int = 0, shape: tuple[int, ...] = (), **values: Any) -> int:
        """FULLY_CONNECTED."""
        shape = shape or (1, out)
        depth = int(np.prod(self.shape(x))) * out // int(np.prod(shape))
        weight, bias, scale = self.kernel(x, out, depth)
        return self.made(
            "FULLY_CONNECTED", [x, weight, bias], shape, "FullyConnected", scale=scale,
            fusedActivationFunction=activation, **values,
        )  # fmt: skip

    def window_of(self, x: int, kind: str, k: tuple[int, int], stride: int, padding: int, **more: Any) -> int:
        """A pool."""
        size = self.window(x, k, stride, padding)
        return self.made(
            f"{kind}_POOL_2D", [x], (1, *size, self.shape(x)[3]), "Pool2D", padding=padding, strideH=stride,
            strideW=stride, filterHeight=k[0], filterWidth=k[1], **more,
        )  # fmt: skip

    def to(self, x: int, kind: int, scale: float, zero: int) -> int:
        """QUANTIZE to another type or scale."""
        return self.scaled(self.op("QUANTIZE", [x], self.shape(x), "Quantize"), scale, zero, kind)


def run(data: bytes, codes: np.ndarray, exact: bool = False) -> list[np.ndarray]:
    """What LiteRT's interpreter makes of codes (1, C, H, W), with XNNPACK or its reference kernels."""
    more = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF} if exact else {}
    interpreter = Interpreter(model_content=data, num_threads=1, **more)
    interpreter.allocate_tensors()
    nhwc = np.ascontiguousarray(codes.transpose(0, 2, 3, 1)) if codes.ndim == 4 else codes
    detail = interpreter.get_input_details()[0]
    if detail["dtype"] == np.uint8:
        nhwc = (nhwc.astype(np.int16) + 128).astype(np.uint8)
    interpreter.set_tensor(detail["index"], nhwc)
    interpreter.invoke()
    found = [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]
    found = [(a.astype(np.int16) - 128).astype(np.int8) if a.dtype == np.uint8 else a for a in found]
    return [np.ascontiguousarray(a.transpose(0, 3, 1, 2)) if a.ndim == 4 else a for a in found]


def numbers(w: Writer, *values: int) -> int:
    """A constant of whole numbers."""
    return w.constant(np.array(values, np.int32))


def read(folder: Path, data: bytes) -> IntegerGraph:
    """The integer graph of a file of these bytes."""
    path = folder / "net.tflite"
    path.write_bytes(data)
    return load(path)


def check(folder: Path, data: bytes, most: int = 0, codes: np.ndarray | None = None) -> IntegerGraph:
    """Reference, LiteRT and ExecuTorch give the codes of the interpreter on the file, of these inputs."""
    graph = read(folder, data)
    shape = graph.input.shape
    any_codes = np.random.default_rng(3).integers(-128, 128, (3, *shape[1:])).astype(np.int8)
    x = any_codes if codes is None else codes
    programs = [
        runtime(name).load(runtime(name).lower_integer(graph).data, 1, name)
        for name in ("litert", "executorch")
    ]
    for index in range(len(x)):
        one = x[index : index + 1]
        theirs = run(data, one)
        for name, made in (
            ("reference", reference.predict(graph, one)), ("litert", programs[0](one)),
            ("executorch", programs[1](one)),
        ):  # fmt: skip
            assert [each.shape for each in made] == [each.shape for each in theirs], name
            for ours, wanted in zip(made, theirs, strict=True):
                apart = np.abs(ours.astype(int) - wanted.astype(int)).max()
                assert apart <= most, f"{name}: {apart} codes apart"
    return graph
