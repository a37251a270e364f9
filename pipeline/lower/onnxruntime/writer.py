"""Puts an ONNX graph together: tensors that are codes until an operator wants their real values.

Codes are uint8, 128 more than ours: ONNX Runtime's fast kernels read those beside int8 weights. A tensor that
is only moved stays codes; each operator that computes gets a DequantizeLinear of its own, and ONNX Runtime
fuses it with that and the QuantizeLinear behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.lower.integer import Affine
from paredown.targets.errors import DeviceError

OPSET, IR_VERSION = 17, 8
#: uint8 codes less int8 ones.
OFFSET = 128


@dataclass(frozen=True)
class Value:
    """A tensor of the file.

    Attributes:
        name: in the file.
        shape: with a batch of one.
        affine: of codes; None where the values are themselves.
        dtype: numpy's name of values that are themselves.
    """

    name: str
    shape: tuple[int, ...]
    affine: Affine | None = None
    dtype: str = "float32"


def helper() -> Any:
    """The package `onnx`.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise DeviceError("onnx is not installed", hint='pip install "paredown[onnxruntime]"') from None
    return onnx


class Writer:
    """The nodes and constants of one file.

    Attributes:
        own: kind -> how codes of it are written, where that is not as for ONNX Runtime.
    """

    own: Mapping[str, Callable[..., Value]] = MappingProxyType({})

    def __init__(self) -> None:
        self.onnx = helper()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def name(self, hint: str) -> str:
        """A name that nothing has yet."""
        count = self._names[hint] = self._names.get(hint, -1) + 1
        return f"{hint}.{count}" if count else hint

    def constant(self, array: NDArray[Any], hint: str = "constant") -> str:
        """A constant; the same ones are held once."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = made = self.name(hint)
            self.initializers.append(self.onnx.numpy_helper.from_array(array, made))
        return self._constants[key]

    def op(self, kind: str, inputs: Sequence[str], hint: str, **attrs: Any) -> str:
        """Writes an operator of one result.

        Args:
            kind: of ONNX.
            inputs: names.
            hint: of the result's name.
            attrs: of the operator.
        """
        made = self.name(hint)
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [made], name=made, **attrs))
        return made

    def made(
        self, kind: str, inputs: Sequence[Value | str], like: Value, shape: Sequence[int], **attrs: Any
    ) -> Value:
        """Writes an operator whose result stands for values as another tensor does."""
        names = [each if isinstance(each, str) else each.name for each in inputs]
        return replace(like, name=self.op(kind, names, f"{like.name}/{kind}", **attrs), shape=tuple(shape))

    def scale(self, affine: Affine) -> tuple[str, str]:
        """Scale and zero point of codes, as constants."""
        zero = np.asarray(affine.zero_point + OFFSET, np.uint8)
        return self.constant(np.asarray(affine.scale, np.float32), "scale"), self.constant(zero, "zero")

    def real(self, value: Value) -> Value:
        """The values themselves, for one reader."""
        if value.affine is None:
            return value
        names = [value.name, *self.scale(value.affine)]
        return Value(self.op("DequantizeLinear", names, f"{value.name}/real"), value.shape)

    def codes(self, value: Value, affine: Affine, hint: str, low: int = -128, high: int = 127) -> Value:
        """The codes of values, no code below or above these.

        Where the least is -128 and the most 127, QuantizeLinear's own saturation keeps to it.
        """
        if value.affine == affine:
            return self.clipped(value, low, high, hint)
        name = self.op("QuantizeLinear", [self.real(value).name, *self.scale(affine)], hint)
        return self.clipped(Value(name, value.shape, affine), low, high, hint)

    def summed(self, name: str) -> str:
        """What a ReduceSum reads of whole numbers: these themselves."""
        return name

    def clipped(self, value: Value, low: int, high: int, hint: str) -> Value:
        """Codes within a range."""
        if (low, high) == (-128, 127):
            return value
        ends = [self.constant(np.asarray(end + OFFSET, np.uint8), "end") for end in (low, high)]
        return replace(value, name=self.op("Clip", [value.name, *ends], f"{hint}/clip"))

    def model(self, source: Value, outputs: Sequence[tuple[str, Value]]) -> bytes:
        """The finished file, of what its outputs need.

        Args:
            source: the input.
            outputs: names in the file, and what they are.
        """
        types = self.onnx.TensorProto
        info = self.onnx.helper.make_tensor_value_info

        def typed(name: str, value: Value) -> Any:
            return info(name, types.FLOAT if value.affine is None else types.UINT8, list(value.shape))

        for name, value in outputs:
            self.nodes.append(self.onnx.helper.make_node("Identity", [value.name], [name], name=name))
        wanted = {name for name, _ in outputs}
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
        nodes = [node for node in self.nodes if wanted.intersection(node.output)]
        held = [each for each in self.initializers if each.name in wanted]
        graph = self.onnx.helper.make_graph(
            nodes, "paredown", [typed(source.name, source)],
            [typed(name, value) for name, value in outputs], held,
        )  # fmt: skip
        opset = self.onnx.helper.make_opsetid("", OPSET)
        model = self.onnx.helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="paredown"
        )
        return model.SerializeToString(deterministic=True)
