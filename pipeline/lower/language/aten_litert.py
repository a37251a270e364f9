"""An exported torch program as operations of a .tflite: constants folded, weights as they are.

Every operation's shape is known, so whatever only renames the elements of a tensor is one RESHAPE. What
nobody asks for is not written. Whole numbers become int32, the type that TFLite's kernels have.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from paredown.pipeline.compress.grids.weight import BlockWeight, pack
from paredown.targets.errors import InputError


@dataclass(frozen=True)
class Ref:
    """A tensor of the file: its number within its subgraph."""

    index: int


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter that is held in codes."""

    codes: BlockWeight


Value = Ref | Weight | Tensor
_SMALL = 4096  # bytes of a constant that is compared with those there are


class Operations(Protocol):
    """How operations are written; `aten_operations` is one."""

    def reads(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values are needed for a node's."""

    def write(self, sub: Subgraph, node: fx.Node, args: Any, kwargs: Any) -> Value:
        """Writes a node, given its arguments' values; of what it does not read the nodes themselves."""


class Writer:
    """Builds a model of several subgraphs whose constants are shared."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.s = schema
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "paredown"
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.model.subgraphs, self.model.signatureDefs = [], []
        self._codes: dict[tuple[int, int], int] = {}
        self._shared: dict[Hashable, tuple[Tensor, int]] = {}

    def buffer(self, owner: Tensor, data: Callable[[], NDArray[np.uint8]]) -> int:
        """The buffer of a tensor, or of a view of the same, made at the first call.

        Args:
            owner: kept alive, for its address to stay its own.
            data: the bytes to store for it.
        """
        key = (owner.data_ptr(), owner.dtype, tuple(owner.shape), owner.stride())
        if key not in self._shared:
            entry = self.s.BufferT()
            entry.data = data()
            self.model.buffers.append(entry)
            self._shared[key] = (owner, len(self.model.buffers) - 1)
        return self._shared[key][1]

    def opcode(self, kind: str, version: int) -> int:
        """The number of an operation's kind, made at the first call."""
        code = getattr(self.s.BuiltinOperator, kind)
        if (code, version) not in self._codes:
            entry = self.s.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
            self._codes[code, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        return self._codes[code, version]

    def sign(self, key: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Names the last subgraph's inputs and outputs."""
        signature = self.s.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = key, len(self.model.subgraphs) - 1
        signature.inputs, signature.outputs = (
            [self._named(name, index) for name, index in table.items()] for table in (inputs, outputs)
        )
        self.model.signatureDefs.append(signature)

    def _named(self, name: str, index: int) -> Any:
        entry = self.s.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        return entry


class Subgraph:
    """One subgraph of a model, from one exported program.

    Args:
        writer: of the model.
        program: with static shapes.
        weights: parameters' names, as the program has them, with the low-bit weights that belong there.
        operations: how each is written.
        name: of the subgraph.
    """

    def __init__(
        self,
        writer: Writer,
        program: torch.export.ExportedProgram,
        weights: Mapping[str, BlockWeight],
        operations: Operations,
        name: str,
    ) -> None:
        self._operations = operations
        self.writer, self.s = writer, writer.s
        self.sub = self.s.SubGraphT()
        self.sub.name, self.sub.tensors, self.sub.operators = name, [], []
        writer.model.subgraphs.append(self.sub)
        self._values: dict[fx.Node, Value] = {}
        self._constants: dict[bytes, Ref] = {}
        self.sources: dict[tuple[Ref, int], Ref] = {}  # of `index_copy`, one for all layers of a kind
        signature = program.graph_signature
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        held |= signature.inputs_to_lifted_tensor_constants
        tensors = {**program.constants, **program.state_dict}
        self.inputs: list[Ref] = []
        for node in program.graph.find_nodes(op="placeholder"):
            path = held.get(node.name)
            if path is None:
                self.inputs.append(self._tensor_of(node))
                self._values[node] = self.inputs[-1]
            elif path in weights:
                self._values[node] = Weight(weights[path])
            else:
                self._values[node] = tensors[path].detach()
        self.sub.inputs = np.asarray([ref.index for ref in self.inputs], np.int32)
        self._results = next(iter(program.graph.find_nodes(op="output"))).args[0]

    def outputs(self, wanted: Callable[[int], bool] = lambda _: True) -> list[Ref]:
        """Writes what the wanted outputs need, and says which tensors they are."""
        nodes = [node for number, node in enumerate(self._results) if wanted(number)]
        found = [self.ref(self.value(node)) for node in nodes]
        self.sub.outputs = np.asarray([ref.index for ref in found], np.int32)
        return found

    # -- tensors -------------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Value:
        """What a node is; the operations that make it are written at the first call."""
        todo = [node]
        while todo:  # no recursion: programs are deeper than Python's stack
            current = todo[-1]
            missing = [n for n in self._operations.reads(current) if n not in self._values]
            if missing and current not in self._values:
                todo += missing
                continue
            todo.pop()
            if current not in self._values:
                self._values[current] = self._made(current)
        return self._values[node]

    def _made(self, node: fx.Node) -> Value:
        def known(read: fx.Node) -> Any:
            return self._values.get(read, read)

        arguments: Any = fx.map_arg((node.args, node.kwargs), known)
        if all(not isinstance(self._values.get(n), (Ref, Weight)) for n in node.all_input_nodes):
            return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]  # a constant
        return self._operations.write(self, node, *arguments)

    def ref(self, value: Value) -> Ref:
        """A value as a tensor of the file."""
        if isinstance(value, Ref):
            return value
        if isinstance(value, Weight):
            return self._codes(value.codes)
        values = value.detach().contiguous()
        if not values.dtype.is_floating_point and values.dtype not in (torch.bool, torch.int16):
            values = values.to(torch.int32)
        array = values.numpy()
        key = array.dtype.str.encode() + str(array.shape).encode() + array.tobytes()[:_SMALL]
        if array.nbytes > _SMALL or key not in self._constants:
            number = self.writer.buffer(value, lambda: array.reshape(-1).view(np.uint8))
            self._constants[key] = self._add("constant", array.shape, array.dtype.name, buffer=number)
        return self._constants[key]

    def constant(self, values: Any, dtype: Any = np.int32) -> Ref:
        """Numbers as a tensor of the file."""
        return self.ref(torch.from_numpy(np.asarray(values, dtype)))

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of a tensor of the file."""
        return tuple(int(size) for size in self.sub.tensors[ref.index].shape)

    def dtype(self, ref: Ref) -> str:
        """Of a tensor of the file."""
        return next(name for name, kind in self._kinds().items() if kind == self.sub.tensors[ref.index].type)

    def _tensor_of(self, node: fx.Node) -> Ref:
        given = node.meta["val"]
        return self._add(node.name, given.shape, dtype_of(given.dtype))

    def _add(self, name: str, shape: Any, dtype: str, quantization: Any = None, buffer: int = 0) -> Ref:
        tensor = self.s.TensorT()
        tensor.name, tensor.shape = name, np.asarray(shape, np.int32)
        tensor.type = self._kinds()[dtype]
        tensor.buffer, tensor.quantization = buffer, quantization
        self.sub.tensors.append(tensor)
        return Ref(len(self.sub.tensors) - 1)

    def _kinds(self) -> dict[str, int]:
        kinds = self.s.TensorType
        return {
            "float32": kinds.FLOAT32, "float16": kinds.FLOAT16, "int32": kinds.INT32, "bool": kinds.BOOL,
            "int16": kinds.INT16, "int8": kinds.INT8, "int4": kinds.INT4,
        }  # fmt: skip

    def _codes(self, weight: BlockWeight) -> Ref:
        """Codes with their scales, once in each subgraph and once in the file."""
        key = str(id(weight)).encode()
        if key in self._constants:
            return self._constants[key]
        number = self.writer.buffer(weight.codes, lambda: _packed(weight))
        quantization = self.s.QuantizationParametersT()
        if weight.per_row:
            quantization.scale = weight.scales.flatten().numpy()
            quantization.zeroPoint = np.zeros(len(quantization.scale), np.int64)
            quantization.quantizedDimension = 0
        else:
            quantization.detailsType = self.s.QuantizationDetails.BlockwiseQuantization
            quantization.details = self._blocks(weight)
        dtype = "int8" if weight.bits == 8 else "int4"
        self._constants[key] = self._add("codes", weight.codes.shape, dtype, quantization, number)
        return self._constants[key]

    def _blocks(self, weight: BlockWeight) -> Any:
        halves = weight.scales.to(torch.float16)
        if not torch.equal(halves.to(torch.float32), weight.scales):
            raise InputError(
                "a scale that float16 does not hold", where="lowering to LiteRT",
                hint="its blocks have such scales; one scale per row is float32",
            )  # fmt: skip
        number = self.writer.buffer(weight.scales, lambda: halves.numpy().reshape(-1).view(np.uint8))
        details = self.s.BlockwiseQuantizationT()
        details.scales = self._add("scales", halves.shape, "float16", buffer=number).index
        details.zeroPoints, details.blockSize = -1, weight.block
        return details

    # -- operations ----------------------------------------------------------------------------------------

    def op(
        self,
        kind: str,
        version: int,
        inputs: list[Any],
        shape: Any,
        dtype: str = "float32",
        options: Any = None,
    ) -> Ref:
        """Writes one operation.

        Args:
            kind: of TFLite.
            version: the least that can do what is asked.
            inputs: values, as they come.
            shape: of its output.
            dtype: of its output.
            options: its table.
        """
        given = [self.ref(value).index for value in inputs]
        result = self._add(kind.lower(), shape, dtype)
        entry = self.s.OperatorT()
        entry.opcodeIndex = self.writer.opcode(kind, version)
        entry.inputs, entry.outputs = np.asarray(given, np.int32), np.asarray([result.index], np.int32)
        if options is not None:
            entry.builtinOptions = options
            entry.builtinOptionsType = getattr(self.s.BuiltinOptions, type(options).__name__[:-1])
        self.sub.operators.append(entry)
        return result


def dtype_of(dtype: torch.dtype) -> str:
    """The file's type for torch's."""
    if dtype in (torch.bool, torch.int16):
        return str(dtype).removeprefix("torch.")
    return "float32" if dtype.is_floating_point else "int32"


def _packed(weight: BlockWeight) -> NDArray[np.uint8]:
    """A byte for each code, or for two of them."""
    packed = weight.codes if weight.bits == 8 else pack(weight.codes, 4)
    return packed.numpy().reshape(-1).view(np.uint8)
