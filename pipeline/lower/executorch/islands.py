"""Islands in a .pte: an ATen operation as those for which ExecuTorch has portable kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.operations.activation import floats
from paredown.pipeline.graph.operations.kinds import operation
from paredown.targets.errors import InputError

#: Their second result is places, and the kernel does not keep the order of equal values.
UNORDERED = ("aten::topk", "aten::sort")


@functools.cache
def portable() -> frozenset[str]:
    """Names of the ATen operations that the runtime has kernels of, with or without a copy."""
    from executorch.extension.pybindings import _C as binding

    found = {name.removeprefix("aten::").partition(".")[0] for name in binding._get_operator_names()
             if name.startswith("aten::")}  # fmt: skip
    return frozenset({*found, *(name.removesuffix("_copy") for name in found)})


def island(node: Any, shapes: Sequence[Sequence[int]]) -> Callable[..., Tensor]:
    """What computes an island in a program.

    Args:
        node: a `Node` or an `IntegerNode`.
        shapes: of what it reads.

    Raises:
        InputError: a part of it has no kernel.
    """
    if node.attrs["result"] == 1 and node.attrs["op"].startswith(UNORDERED):
        raise InputError(
            f"{node.attrs['op']} says where equal values are in no certain order in ExecuTorch, and 8-bit "
            "values are often equal", where=node.attrs["line"] or node.name,
            hint='return the scores, or lower to LiteRT alone ([lower] runtimes = ["litert"])',
        )  # fmt: skip
    constants = [torch.from_numpy(np.asarray(each)) for each in node.constants]
    compute = operation(node.kind).recipe(node, constants)
    try:
        graph = floats.decomposed(compute, shapes, _known, OWN)
    except Exception as error:  # noqa: BLE001  torch raises whatever it likes where it cannot decompose
        raise _refused(node, node.attrs["op"]) from error
    for each in graph.graph.nodes:
        if each.op == "call_function" and hasattr(each.target, "_schema") and not _known(each.target):
            raise _refused(node, str(each.target))
    return graph


def _known(op: Any) -> bool:
    name = str(getattr(op, "_schema", op) and op._schema.name) if hasattr(op, "_schema") else ""
    return name.removeprefix("aten::") in portable() if name.startswith("aten::") else False


def _refused(node: Any, what: str) -> InputError:
    op, line = node.attrs["op"], node.attrs["line"] or node.name
    part = "" if op.removeprefix("aten::") in what else f" (its part {what})"
    return InputError(
        f"{op}{part} has no kernel in ExecuTorch", where=line,
        hint='lower to LiteRT alone ([lower] runtimes = ["litert"]), or write it in other operations',
    )  # fmt: skip


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    """XNNPACK has the exact one alone, and takes the other for it."""
    if approximate != "tanh":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


#: What is decomposed here alone.
OWN: dict[Any, Callable[..., Any]] = {torch.ops.aten.gelu.default: _gelu}
