"""The table of runtimes: how each is lowered to, loaded, and called.

Adding a runtime is adding a row here and, beside this file, a module with `lower_integer`, `lower_float` and
`load`. Modules are imported when one of these is called and not before: some take seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import UsageError

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Graph
    from paredown.pipeline.lower.integer import Affine, IntegerGraph


@dataclass(frozen=True)
class Runtime:
    """What the pipeline does with one runtime.

    Attributes:
        name: as in recipes, cards and figures.
        suffix: of its files.
        package: the distribution whose version decides the bytes.
        folder: of its modules below this one, with dots; empty where it has the runtime's name.
        loader: the module whose `load` is used, where running needs less than lowering (torch, above all).
        tolerance: kind -> codes by which its kernels may differ from the integer graph, on the same inputs;
            kinds that are not named may differ by `Operation.tolerance`.
    """

    name: str
    suffix: str
    package: str
    loader: str = ""
    folder: str = ""
    tolerance: Mapping[str, int] = field(default_factory=dict)

    @property
    def _module(self) -> Any:
        return importlib.import_module(f"paredown.pipeline.lower.{self.folder or self.name}.program")

    def lower_integer(self, graph: IntegerGraph) -> Lowered:
        """The integer graph to a program, int8 in and out."""
        return self._module.lower_integer(graph)

    def lower_float(self, graph: Graph) -> Lowered:
        """The traced float network to a program, float32 in and out."""
        return self._module.lower_float(graph)

    def load(self, data: bytes, threads: int = 1, where: object = "program") -> Runner:
        """A program's bytes to something that runs; `where` names it in errors."""
        return self.warm().load(data, threads, where)

    def warm(self) -> Any:
        """The module that loads programs, imported."""
        return importlib.import_module(self.loader or self._module.__name__)


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("executorch", ".pte", "executorch"),
        Runtime("litert", ".tflite", "ai-edge-litert", "paredown.targets.runners.litert"),
        Runtime(
            "onnxruntime",
            ".onnx",
            "onnxruntime",
            "paredown.targets.runners.onnxruntime.runner",
            # Its kernels round a half to even where XNNPACK rounds it up.
            tolerance={"add": 1, "sub": 1, "mul": 1},
        ),
        Runtime(
            "openvino",
            ".openvino.onnx",
            "openvino",
            "paredown.targets.runners.onnxruntime.openvino",
            "onnxruntime.openvino",
        ),
    )
}


def runtime(name: str) -> Runtime:
    """The row of a runtime.

    Raises:
        UsageError: there is no such runtime.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime `{name}`", hint=f"known: {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def float_predict(
    source: Affine,
    outputs: Sequence[Affine],
    run: Callable[[NDArray[np.int8]], tuple[NDArray[np.int8], ...]],
) -> Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]:
    """Wraps an int8 program as float32 in, float32 out, as scores want it.

    Args:
        source: scale and zero point of the input.
        outputs: those of each output.
        run: int8 codes to a tuple of int8 codes.
    """

    def predict(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        codes = run(source.quantize(x))
        return tuple(scale.dequantize(code) for scale, code in zip(outputs, codes, strict=True))

    return predict


@dataclass(frozen=True)
class Lowered:
    """A lowered program.

    Attributes:
        data: the file's bytes.
        subgraphs: how many delegate calls an inference makes; one is the aim.
        undelegated: names of compute operations left outside the delegate; none is the aim.
    """

    data: bytes
    subgraphs: int
    undelegated: tuple[str, ...]


class Runner(Protocol):
    """A loaded program."""

    def __call__(self, x: NDArray[Any], /) -> tuple[NDArray[Any], ...]:
        """Runs one input, (1, channels, height, width), in the program's own dtype; outputs NCHW."""

    def bound(self, x: NDArray[Any], /) -> Callable[[], object]:
        """A call with its input in place, for timing."""
