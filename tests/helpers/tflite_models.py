"""Small float `.tflite` files, written operation by operation with TFLite's own schema."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from paredown.pipeline.lower.litert.program import aligned_builder

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
NONE, RELU, RELU6 = (
    schema.ActivationFunctionType.NONE,
    schema.ActivationFunctionType.RELU,
    schema.ActivationFunctionType.RELU6,
)
KINDS = {
    np.dtype(np.float32): schema.TensorType.FLOAT32, np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16, np.dtype(np.int8): schema.TensorType.INT8,
}  # fmt: skip


class Writer:
    """A model of one input; tensors are places in it."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.dice = np.random.default_rng(seed)
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.operatorCodes = 3, []
        self.model.buffers = [schema.BufferT()]
        self.graph.tensors, self.graph.operators = [], []
        self.input = self.tensor(shape)

    def tensor(self, shape: tuple[int, ...], value: np.ndarray | None = None, kind: Any = None) -> int:
        made = schema.TensorT()
        made.shape, made.name = np.array(shape, np.int32), f"net/layer{len(self.graph.tensors)};more"
        made.type = KINDS[np.dtype(np.float32) if value is None else value.dtype] if kind is None else kind
        made.buffer = 0
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def weight(self, *shape: int) -> int:
        return self.constant(self.dice.normal(0, 0.4, shape).astype(np.float32))

    def constant(self, value: np.ndarray) -> int:
        return self.tensor(value.shape, value)

    def shape(self, place: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.graph.tensors[place].shape)

    def op(
        self, kind: str, inputs: list[int], shape: tuple[int, ...], options: str = "", **values: Any
    ) -> int:
        """Adds an operation; `options` is the name of its schema class without "Options"."""
        code, made = schema.OperatorCodeT(), schema.OperatorT()
        number = getattr(schema.BuiltinOperator, kind)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.model.operatorCodes.append(code)
        made.opcodeIndex = len(self.model.operatorCodes) - 1
        made.inputs, made.outputs = np.array(inputs, np.int32), np.array([self.tensor(shape)], np.int32)
        if options:
            made.builtinOptions = getattr(schema, f"{options}OptionsT")()
            made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            for name, value in values.items():
                setattr(made.builtinOptions, name, value)
        self.graph.operators.append(made)
        return int(made.outputs[0])

    def window(self, x: int, kernel: tuple[int, int], stride: int, padding: int, dilation: int = 1):
        """Height and width of what a window makes of a map."""
        found = []
        for size, k in zip(self.shape(x)[1:3], kernel, strict=True):
            span = (k - 1) * dilation + 1
            found.append(-(-size // stride) if padding == SAME else (size - span) // stride + 1)
        return tuple(found)

    def conv(self, x: int, out: int, k: int = 3, stride: int = 1, padding: int = SAME, dilation: int = 1,
             activation: int = NONE, groups: int = 1) -> int:  # fmt: skip
        weight = self.weight(out, k, k, self.shape(x)[3] // groups)
        size = self.window(x, (k, k), stride, padding, dilation)
        return self.op(
            "CONV_2D", [x, weight, self.weight(out)], (1, *size, out), "Conv2D",
            padding=padding, strideH=stride, strideW=stride, dilationHFactor=dilation,
            dilationWFactor=dilation, fusedActivationFunction=activation,
        )  # fmt: skip

    def depthwise(self, x: int, times: int = 1, k: int = 3, stride: int = 1, padding: int = SAME,
                  activation: int = RELU6) -> int:  # fmt: skip
        out = self.shape(x)[3] * times
        size = self.window(x, (k, k), stride, padding)
        return self.op(
            "DEPTHWISE_CONV_2D", [x, self.weight(1, k, k, out), self.weight(out)], (1, *size, out),
            "DepthwiseConv2D", padding=padding, strideH=stride, strideW=stride, depthMultiplier=times,
            dilationHFactor=1, dilationWFactor=1, fusedActivationFunction=activation,
        )  # fmt: skip

    def pool(self, x: int, kind: str, k: int = 2, stride: int = 2, padding: int = VALID) -> int:
        size = self.window(x, (k, k), stride, padding)
        return self.op(
            f"{kind}_POOL_2D", [x], (1, *size, self.shape(x)[3]), "Pool2D", padding=padding, strideH=stride,
            strideW=stride, filterHeight=k, filterWidth=k, fusedActivationFunction=NONE,
        )  # fmt: skip

    def flat(self, x: int) -> int:
        count = int(np.prod(self.shape(x)))
        return self.op("RESHAPE", [x, self.constant(np.array([1, count], np.int32))], (1, count), "Reshape")

    def dense(self, x: int, out: int, activation: int = NONE) -> int:
        weight = self.weight(out, int(np.prod(self.shape(x))))
        return self.op(
            "FULLY_CONNECTED", [x, weight, self.weight(out)], (1, out), "FullyConnected",
            fusedActivationFunction=activation, keepNumDims=False,
        )  # fmt: skip

    def data(self, *outputs: int) -> bytes:
        self.graph.inputs = np.array([self.input], np.int32)
        self.graph.outputs = np.array(outputs, np.int32)
        self.model.subgraphs = [self.graph]
        builder = aligned_builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def reference(data: bytes, x: np.ndarray) -> list[np.ndarray]:
    """What TFLite's reference kernels make of an input (N, C, H, W); maps come back like that."""
    for kernels in (OpResolverType.BUILTIN_REF, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES):
        try:
            interpreter = Interpreter(model_content=data, experimental_op_resolver_type=kernels)
            break
        except ValueError:  # ELU has no reference kernel
            continue
    interpreter.allocate_tensors()
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], nhwc)
    interpreter.invoke()
    found = [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]
    return [each.transpose(0, 3, 1, 2) if each.ndim == 4 else each for each in found]
