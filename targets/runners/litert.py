"""Runs a .tflite with whatever interpreter the board has; numpy only, so it is copied to boards as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners.quiet import quiet


@dataclass(frozen=True)
class TensorInfo:
    """The input or an output of a program.

    Attributes:
        shape: with a batch of one; NCHW where it has four axes.
        dtype: numpy's name; codes of uint8 are int8 here, each 128 less.
    """

    shape: tuple[int, ...]
    dtype: str = "int8"

    @property
    def bytes(self) -> int:
        """Of one."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @classmethod
    def of(cls, detail: dict[str, Any]) -> TensorInfo:
        """From the interpreter's own description, NHWC."""
        shape = tuple(int(size) for size in detail["shape"])
        if len(shape) == 4:
            batch, height, width, channels = shape
            shape = (batch, channels, height, width)
        dtype = np.dtype(detail["dtype"]).name
        return cls(shape, "int8" if dtype == "uint8" else dtype)


def unsigned(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes, each 128 more."""
    return codes.view(np.uint8) ^ np.uint8(128)


def signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes, each 128 less."""
    return (codes ^ np.uint8(128)).view(np.int8)


def interpreter_class() -> Any:
    """LiteRT, else the older runtimes that old boards still have."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            try:
                from tensorflow.lite import Interpreter
            except ImportError:
                raise DeviceError(
                    "no TFLite interpreter is installed", hint="pip install ai-edge-litert"
                ) from None
    return Interpreter


def _reference_kernels() -> dict[str, Any]:
    from ai_edge_litert.interpreter import OpResolverType

    return {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}


class Runner:
    """A loaded .tflite of one input; NCHW and int8 outside, the file's own NHWC, and perhaps uint8, inside.

    Args:
        data: the file's bytes.
        threads: of the XNNPACK delegate.
        where: named in errors.
        reference: TFLite's reference kernels instead of XNNPACK; LiteRT's own interpreter has them.

    Attributes:
        input: what it takes.

    Raises:
        InputError: the bytes are not a model that this interpreter loads.
    """

    def __init__(
        self, data: bytes, threads: int = 1, where: object = ".tflite", reference: bool = False
    ) -> None:
        self._where = where
        # The interpreter reads offsets unchecked: a file that does not even begin as one can crash it.
        if len(data) < 16 or data[4:8] != b"TFL3":
            raise InputError("not a TFLite model (truncated or damaged?)", where=where)
        with quiet():
            try:
                self.interpreter = interpreter_class()(
                    model_content=data, num_threads=threads, **(_reference_kernels() if reference else {})
                )
                self.interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise InputError(
                    "not a TFLite model that this interpreter loads (truncated or damaged?)", where=where,
                    hint="make it again with `paredown run`",
                ) from error  # fmt: skip
        self._input = self.interpreter.get_input_details()[0]
        self._outputs = self.interpreter.get_output_details()

    @property
    def input(self) -> TensorInfo:
        """What it takes."""
        return TensorInfo.of(self._input)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What it gives."""
        return tuple(map(TensorInfo.of, self._outputs))

    @property
    def package(self) -> str:
        """The interpreter's distribution with its version, which a board's own build does not know."""
        name = type(self.interpreter).__module__.partition(".")[0]
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            return f"{name} unknown"

    def __call__(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Runs one input, (1, channels, height, width), in the model's own dtype, int8 for uint8; NCHW out.

        Raises:
            InputError: the model does not take this input, or the interpreter stops on the way.
        """
        self._set(x)
        try:
            self.interpreter.invoke()
        except RuntimeError as error:  # some damage shows only here
            raise InputError(f"the model does not run: {error}", where=self._where) from error
        raw = (self.interpreter.get_tensor(o["index"]) for o in self._outputs)
        outputs = (signed(o) if o.dtype == np.uint8 else o for o in raw)
        return tuple(np.ascontiguousarray(o.transpose(0, 3, 1, 2)) if o.ndim == 4 else o for o in outputs)

    def bound(self, x: NDArray[Any]) -> Callable[[], object]:
        """A call with its input in place, for timing."""
        self._set(x)
        return self.interpreter.invoke

    def _set(self, x: NDArray[Any]) -> None:
        nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x
        if self._input["dtype"] == np.uint8 and nhwc.dtype == np.int8:
            nhwc = unsigned(nhwc)
        try:
            self.interpreter.set_tensor(self._input["index"], nhwc)
        except ValueError as error:
            shape = tuple(int(size) for size in self._input["shape"])
            wanted = f"{np.dtype(self._input['dtype'])} {shape} (NHWC)"
            given = f"{nhwc.dtype} {nhwc.shape}"
            raise InputError(f"the model takes {wanted}, not {given}", where=self._where) from error

    def undelegated(self) -> tuple[int, tuple[str, ...]]:
        """How many delegate calls an inference makes, and the names of operations outside them."""
        calls, rest = self._outside()
        return calls, tuple(op["op_name"] for op in rest)

    def undelegated_tensors(self) -> tuple[str, ...]:
        """Names of the tensors that operations outside the delegate make."""
        names = {tensor["index"]: tensor["name"] for tensor in self.interpreter.get_tensor_details()}
        return tuple(names[int(index)] for op in self._outside()[1] for index in op["outputs"])

    def _outside(self) -> tuple[int, list[dict[str, Any]]]:
        ops = self.interpreter._get_ops_details()
        delegates = [op for op in ops if op["op_name"] == "DELEGATE"]
        rest = {op["index"]: op for op in ops if op["op_name"] != "DELEGATE"}
        maker = {int(t): i for i, op in rest.items() for t in op["outputs"]}
        # The API lists the original operations, delegated or not: those on the way from a delegate's outputs
        # back to its inputs are the delegate's.
        for delegate in delegates:
            stop = {int(t) for t in delegate["inputs"]}
            todo = [int(t) for t in delegate["outputs"]]
            while todo:
                tensor = todo.pop()
                op = rest.pop(maker.get(tensor, -1), None)
                if op is not None:
                    todo += [int(t) for t in op["inputs"] if int(t) not in stop]
        return len(delegates), list(rest.values())


def load(data: bytes, threads: int = 1, where: object = ".tflite") -> Runner:
    """Loads a model; see `Runner`."""
    return Runner(data, threads, where)
