"""Reading the nodes of an exported program: names, arguments, shapes, and the user's line of code."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

#: Where the code lies that runs models of other tools, which have no lines of their own.
IMPORTERS = "/recipe/imports/"


def target(node: Any) -> str:
    """`aten.leaky_relu_.default` -> `leaky_relu`."""
    name = getattr(node.target, "_opname", "") or getattr(node.target, "__name__", "") or str(node.target)
    return name.rstrip("_")


def arguments(node: Any, *defaults: Any) -> list[Any]:
    """Positional arguments, completed from the keywords and the defaults of the operation's schema."""
    names = [a.name for a in node.target._schema.arguments]
    values = []
    for index, default in enumerate(defaults):
        name = names[index] if index < len(names) else ""
        values.append(node.args[index] if index < len(node.args) else node.kwargs.get(name, default))
    return values


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a number, or of a list of one or two."""
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])


def sides(node: Any, value: Any, none: int) -> tuple[int, int]:
    """(height, width) of an argument of an ATen node; of one over lengths the height has `none`.

    Args:
        node: conv1d, max_pool2d and the like.
        value: the argument, as for `pair`.
        none: a size of which a height of one knows nothing: 1 of a window or a stride, 0 of a padding.
    """
    one = target(node).endswith("1d")
    return (none, pair(value)[1]) if one else pair(value)


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of the tensor that a node makes."""
    return tuple(node.meta["val"].shape)


def unseen(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a node of which these axes are a value's, which has this shape: `Tracer.views`."""
    four = len(set(axes)) < len(axes) or (len(axes) == 3 and axes != (0, 1, 2))
    found = [1] * max(4 if four else 0, max(axes) + 1)
    for axis, size in zip(axes, shape, strict=True):
        found[axis] *= size
    return tuple(found)


def laid(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A value in the shape of a node of which these axes are its own."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return value.permute(order).reshape(unseen(tuple(value.shape), axes))


def module_path(node: Any) -> str:
    """The path of the innermost module that made a node (`layers.3.conv`)."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return re.sub(r"@\d+$", "", paths[-1]) if paths else ""


def source_line(node: Any) -> str:
    """`net.py:12`, where the user's code calls an operation; of an imported model the layer's name."""
    line = user_line(node.meta.get("stack_trace") or "")
    return f"layer {module_path(node)}" if IMPORTERS in line else line


def batched(node: Any) -> bool:
    """Whether an operation makes one tensor with the batch of one first."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and tuple(value.shape[:1]) == (1,)


def user_line(text: str) -> str:
    """The last `File "x.py", line N` of a stack trace that is not torch's own."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [f"{path}:{line}" for path, line in frames if "/torch/" not in path]
    return own[-1] if own else ""
