"""Any function of one value that torch has: on int8 it is a table of 256 codes.

Where both runtimes compute it within the delegate from float operators that are right to a few units of the
last place (`CHAINS`), they do, and scales are moved as in `table.py`. Any other is looked up: a program holds
its table, made in float64, so no two runtimes can differ. That is beside the delegate: a cast, an addition, a
gather.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.operations.activation import floats
from paredown.pipeline.graph.operations.activation.island import Island, coded
from paredown.pipeline.graph.operations.activation.table import NUDGE
from paredown.pipeline.graph.operations.operation import QMAX, QMIN, Codes

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import Affine, IntegerNode, Scales
    from paredown.pipeline.lower.litert.program import Writer

#: How near to halfway a chain of operators may end up on the other side, as a share of the value in codes.
HALFWAY = 1e-5
#: Beyond it torch's softplus is x itself; from here on that is the same.
LEAST_THRESHOLD = 15.0


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Without overflow, whatever x is."""
    x = x if beta == 1 else x * float(beta)
    made = (x.abs().neg().exp() + 1.0).log() + F.relu(x)
    return made if beta == 1 else made * (1 / float(beta))


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


def _log_sigmoid(x: Tensor) -> Tensor:
    return _softplus(x.neg()).neg()


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Tensor:
    below = F.relu(x.neg()).neg()
    below = below if inner == 1 else below * float(inner)
    below = below.exp() - 1.0
    made = F.relu(x) + (below if alpha == 1 else below * float(alpha))
    return made if scale == 1 else made * float(scale)


def _selu(x: Tensor) -> Tensor:
    return _elu(x, 1.6732632423543772, 1.0507009873554805)


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha, 1.0, 1 / alpha)


#: ATen operation -> the same of operators that XNNPACK has in float in both runtimes, right for every number.
CHAINS: Mapping[str, Callable[..., Tensor]] = {
    "abs": torch.abs, "neg": torch.neg, "floor": torch.floor, "ceil": torch.ceil, "exp": torch.exp,
    "square": lambda x: x * x, "softplus": _softplus, "mish": _mish, "log_sigmoid": _log_sigmoid,
    "gelu": _gelu, "elu": _elu, "selu": _selu, "celu": _celu,
}  # fmt: skip


def chain(attrs: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """The chain of operators of a function; None where it is looked up."""
    args, kwargs = json.loads(attrs["given"])
    name = attrs["op"].removeprefix("aten::").partition(".")[0]
    if name == "pow" and args[1:] == [2]:
        name, args = "square", args[:1]
    if name not in CHAINS or attrs["takes"] != ("float32",) or attrs["makes"] != "float32":
        return None
    numbers = args[1:]
    if name == "softplus" and len(numbers) > 1 and numbers[1] < LEAST_THRESHOLD:
        return None
    return lambda x: CHAINS[name](x, *numbers, **kwargs)


class Function(Island):
    """The attributes of an `island`.

    Where `op` is no ATen operation, which is so in integer graphs alone, the only constant is its table.
    """

    kind: ClassVar[str] = "function"
    table = True
    tolerance = 0

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return floats.function(node.attrs, node.constants)(*inputs)

    def follow(self, flow: Flow, node: Node) -> Labels:
        return flow.channels(node.inputs[0])

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        return ""

    def recipe(self, node: Node | IntegerNode, constants: Sequence[Tensor]) -> Callable[..., Tensor]:
        return chain(node.attrs) or super().recipe(node, constants)

    def widen(self, node: Node, scales: Scales) -> None:
        super().widen(node, scales)
        while chain(node.attrs) and self._halfway(
            node, scales.affine(node.inputs[0]), scales.affine(node.name)
        ):
            scales.widen(node.name, scales[node.name] * NUDGE)

    def _halfway(self, node: Node, source: Affine, out: Affine) -> bool:
        """Whether a value is as good as halfway between two codes."""
        real = torch.from_numpy(source.dequantize(np.arange(QMIN, QMAX + 1).astype(np.int8))).double()
        units = self.compute(node, real).numpy() / np.float64(np.float32(out.scale))
        inside = (units > QMIN - out.zero_point - 1) & (units < QMAX - out.zero_point + 1)
        away = np.abs(np.abs(units - np.floor(units)) - 0.5)
        return bool((inside & (away < HALFWAY * np.maximum(1, np.abs(units)))).any())

    def made(self, node: IntegerNode, feed: IntegerNode) -> Codes:
        """The codes that it makes of all codes, in their order."""
        if not node.attrs["op"].startswith("aten::"):  # of a file of codes: its kernel's own
            return np.asarray(node.constants[0])
        every = np.arange(QMIN, QMAX + 1).astype(np.int8)
        real = torch.from_numpy(feed.out.dequantize(every)).double()
        constants = [torch.from_numpy(np.asarray(each)) for each in node.constants]
        return coded(floats.function(node.attrs, constants)(real).numpy(), node)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        return self.made(node, feeds[0])[inputs[0].astype(np.int16) - QMIN]

    def constants(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> Mapping[str, NDArray[Any]]:
        return {} if chain(node.attrs) else {"table": node.out.dequantize(self.made(node, feeds[0]))}

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        if found := chain(node.attrs):
            return found(reals[0])
        codes = program.codes(reals[0], program.graph[node.inputs[0]])
        where = codes.to(torch.int64).reshape(-1) - QMIN
        return program.constant(node, "table").index_select(0, where).reshape(node.shape)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        if writer.integer and not chain(node.attrs):
            writer.looked_up(node, feeds[0], self.made(node, feeds[0]))
        else:
            writer.island(node, feeds)
