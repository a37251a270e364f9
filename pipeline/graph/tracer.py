"""What the operations are given to trace themselves with: the nodes made so far, and what makes the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paredown.pipeline.graph.aten import batched, module_path, shape_of, source_line, target
from paredown.pipeline.graph.graph import Node
from paredown.pipeline.graph.operations.kinds import KINDS
from paredown.targets.errors import InputError


class Tracer:
    """The nodes made so far, and what makes the next.

    Attributes:
        exported: the program that is read.
        constants: name in the program -> value of what does not depend on the input.
        paths: name in the program -> name in the state dict, one for a tensor under two names.
        origins: name of a constant -> the parameters that it is, or was computed from.
        nodes: by name, in running order.
        alias: name in the program -> name of the node.
    """

    exported: torch.export.ExportedProgram
    constants: dict[str, Tensor]
    paths: dict[str, str]
    origins: dict[str, tuple[str, ...]]
    nodes: dict[str, Node]
    alias: dict[str, str]

    def add(
        self,
        node: Any,
        kind: str,
        inputs: tuple[str, ...],
        *,
        shape: tuple[int, ...] | None = None,
        name: str = "",
        **fields: Any,
    ) -> str:
        """Adds a node of ours for an ATen node.

        Args:
            node: of the exported program.
            kind: of ours.
            inputs: names of the nodes that it reads.
            shape: of its output; unset, that of the ATen node.
            name: unset, the path of the module that made it.
            **fields: of `Node`.

        Returns:
            Its name, with a number where there is one of that name already.
        """
        name = name or module_path(node) or node.name
        if name in self.nodes:
            count = sum(1 for n in self.nodes if n == name or n.startswith(f"{name}#"))
            name = f"{name}#{count + 1}"
        attrs = fields.pop("attrs", {})
        shape = shape_of(node) if shape is None else shape
        self.nodes[name] = Node(name, kind, inputs, shape, attrs, source=source_line(node), **fields)
        self.alias[node.name] = name
        return name

    def replace_input(self, node: Any, **changes: Any) -> None:
        """Folds an ATen node into the node that feeds it."""
        name = self.alias[node.args[0].name]
        self.nodes[name] = replace(self.nodes[name], **changes)
        self.alias[node.name] = name

    def skip(self, node: Any) -> None:
        """Leaves an ATen node out: it makes what it reads."""
        self.alias[node.name] = self.feed(node)

    def constant(self, node: Any, argument: Any) -> Tensor | None:
        """The value of an argument that does not depend on the input."""
        if argument is None:
            return None
        if getattr(argument, "name", "") not in self.constants:
            raise self.unknown(node, "has weights that the network computes; make them parameters")
        return self.constants[argument.name]

    def names(self, **arguments: Any) -> dict[str, str]:
        """Role -> state-dict name of what these arguments are; see `Node.parameters`."""
        names: dict[str, str] = {}
        for role, name in ((role, getattr(a, "name", "")) for role, a in arguments.items()):
            if name in self.paths:
                names[role] = self.paths[name]
            elif name:
                names |= {f"computed {role} {i}": p for i, p in enumerate(self.origins[name] or ("",))}
        return names

    def feed(self, node: Any, index: int = 0) -> str:
        """The name of the node that an ATen node reads as this argument."""
        return self.tensor(node, node.args[index])

    def tensor(self, node: Any, argument: Any) -> str:
        """The name of the node that makes an argument of an ATen node."""
        if getattr(argument, "name", "") not in self.alias:
            raise self.unknown(node, "reads a constant or a value that is not a tensor")
        if not batched(argument):
            raise self.unknown(node, "reads a tensor whose first dim is not the batch")
        return self.alias[argument.name]

    def unknown(self, node: Any, why: str = "is not one that paredown can carry") -> InputError:
        """The error that an ATen node cannot be carried, to be raised."""
        return InputError(
            f"operation {target(node)} {why}",
            where=source_line(node) or node.name,
            hint=f"use one of: {', '.join(KINDS[1:])}",
        )

    def number(self, node: Any, argument: Any) -> float | None:
        """The value of an argument that is one number; None where it is a tensor that the input decides.

        Raises:
            InputError: it is a constant of several numbers.
        """
        if isinstance(argument, (int, float)):
            return float(argument)
        value = self.constants.get(getattr(argument, "name", ""))
        if value is None:
            return None
        if value.numel() != 1:
            raise self.unknown(node, f"takes a constant of {value.numel()} numbers; one is known")
        return float(value)

    def with_number(self, node: Any) -> tuple[str, float | None]:
        """The node that makes one of two values, and the other value, where that is a number."""
        for argument, other in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
            if (number := self.number(node, other)) is not None:
                return self.tensor(node, argument), number
        return "", None

    def affine(self, node: Any, feed: str, scale: float, shift: float) -> None:
        """Adds `scale * x + shift`; two of them in a row become one."""
        before = self.nodes[feed]
        if before.kind == "affine" and self.readers(feed) == 1:
            scale, shift = scale * before.attrs["scale"], scale * before.attrs["shift"] + shift
            feed = before.inputs[0]
        self.add(node, "affine", (feed,), attrs={"scale": scale, "shift": shift})

    def readers(self, name: str) -> int:
        """How many operations of the program read a node of ours."""
        return sum(len(n.users) for n in self.exported.graph.nodes if self.alias.get(n.name) == name)

    def sole_use(self, node: Any) -> bool:
        """Whether nothing else reads what this operation reads, under another name neither."""
        feed = self.alias[node.args[0].name]
        aliases = [n for n in self.exported.graph.nodes if self.alias.get(n.name) == feed]
        return sum(len(alias.users) for alias in aliases) == len(aliases)
