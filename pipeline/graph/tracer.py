"""What the operations are given to trace themselves with: the nodes made so far, and what makes the next.

Kernels work on maps (1, channels, height, width). So a value of another form, such as the (1, channels,
length) of one-dimensional convolutions or the (1, length, features) of linear layers, is held as a map: a
node, and which of its axes are the value's. A change of the order of axes then costs nothing. Where an
operation needs the value as torch has it, a reshape or a permute is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paredown.pipeline.graph.aten import batched, module_path, shape_of, source_line, target, unseen
from paredown.pipeline.graph.graph import Node
from paredown.pipeline.graph.operations.kinds import KINDS, operation
from paredown.pipeline.graph.operations.operation import Operation
from paredown.targets.errors import InputError

Axes = tuple[int, ...]
SPREAD = -2  # of an axis of a constant: along it values are repeated
FORM = "(batch, channels, height, width)"
UNBATCHED = "reads a tensor whose first dim is not the batch"


class Tracer:
    """The nodes made so far, and what makes the next.

    Attributes:
        exported: the program that is read.
        constants: name in the program -> value of what does not depend on the input.
        paths: name in the program -> name in the state dict, one for a tensor under two names.
        origins: name of a constant -> the parameters that it is, or was computed from.
        nodes: by name, in running order.
        alias: name in the program -> name of the node.
        views: name in the program -> which axes of the node are the value's, in its order; the others have
            one element. Axes of the value that are one axis of the node have its number all: they follow each
            other there. Where 0 is not first, the value's first axis is not the batch: the node has that too.
            Not there: the node is the value as torch has it.
        sources: name in the program -> a node and its axes, from which a permuted value was made.
        stepped: name of a node that holds steps along its last axis -> of each step, the tensors
            (1, channels) that it is made of.
        rows: constants that are computed place by place from parameters of one axis.
        moved: name of a constant -> where its values are in the one parameter that they are moved from.
        pointwise: whether the operation that is being traced is: see `Traced`.
        folds: the same.
    """

    exported: torch.export.ExportedProgram
    constants: dict[str, Tensor]
    paths: dict[str, str]
    origins: dict[str, tuple[str, ...]]
    nodes: dict[str, Node]
    alias: dict[str, str]
    views: dict[str, Axes]
    sources: dict[str, tuple[str, Axes]]
    stepped: dict[str, tuple[tuple[str, ...], ...]]
    rows: set[str]
    moved: dict[str, Tensor]
    pointwise: bool
    folds: bool
    _made: dict[tuple[str, Axes], str]

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
        if shape is None:
            shape = (
                unseen(shape_of(node), self.views[node.name]) if node.name in self.views else shape_of(node)
            )
        made = self._put(node, kind, inputs, shape, name or module_path(node) or node.name, **fields)
        self.alias[node.name] = made
        return made

    def _put(
        self, node: Any, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...], name: str, **fields: Any
    ) -> str:
        if name in self.nodes:
            count = sum(1 for n in self.nodes if n == name or n.startswith(f"{name}#"))
            name = f"{name}#{count + 1}"
        attrs = fields.pop("attrs", {})
        self.nodes[name] = Node(name, kind, inputs, shape, attrs, source=source_line(node), **fields)
        return name

    def replace_input(self, node: Any, **changes: Any) -> None:
        """Folds an ATen node into the node that feeds it."""
        name = self.alias[node.args[0].name]
        self.nodes[name] = replace(self.nodes[name], **changes)
        self.alias[node.name] = name

    def skip(self, node: Any) -> None:
        """Leaves an ATen node out: it makes what it reads."""
        argument = node.args[0]
        self.check(node, argument)
        self.alias[node.name] = self.alias[argument.name]
        if argument.name in self.views:
            self.views[node.name] = self.views[argument.name]
        elif argument.name in self.sources:
            self.sources[node.name] = self.sources[argument.name]

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
        """The name of the node that makes an argument of an ATen node, as torch has it.

        A pointwise operation gets it in whatever form it is held, the same for all that it reads.
        """
        self.check(node, argument)
        axes = self._common(node) if self.pointwise else None
        if axes is None:
            return self.native(node, argument)
        self.views[node.name] = axes
        return self._viewed_as(node, argument, axes)

    def check(self, node: Any, argument: Any) -> None:
        """Raises the error that the operation being traced cannot read an argument, if so."""
        if getattr(argument, "name", "") not in self.alias:
            raise self.unknown(node, "reads a constant or a value that is not a tensor")
        known = (
            self.folds or self.views[argument.name][0] == 0 if self.folded(argument) else batched(argument)
        )
        if not known:
            raise self.unknown(node, UNBATCHED)

    def folded(self, argument: Any) -> bool:
        """Whether a value is held by a node that has other axes: see `views`."""
        axes = self.views.get(getattr(argument, "name", ""), (0,))
        return axes[0] != 0 or len(set(axes)) < len(axes)

    # -- forms of a value ----------------------------------------------------------------------------------

    def map(self, node: Any, index: int = 0, channels: int = 1, turned: bool = True) -> str:
        """The map that an argument is, or is made to be; what the ATen node makes is held in the same form.

        Args:
            node: of the exported program; it makes as many axes as it reads.
            index: of the argument, of three or four axes.
            channels: which axis of the argument shall be the channels.
            turned: whether height and width may have changed places: not where a window goes over them.

        Returns:
            The name of a node (1, channels, height, width), height one where there are three axes.
        """
        argument = node.args[index]
        self.check(node, argument)
        rank = len(shape_of(argument))
        if rank not in {3, 4} and not (self.folds and rank > 1):
            raise self.unknown(node, f"reads {rank} axes; it is known over three or four")
        name, axes = self.held(argument)
        apart = axes.count(1) == 1 if self.folds else len(set(axes)) == len(axes)
        apart &= turned or list(axes) == sorted(axes)
        if len(self.nodes[name].shape) != 4 or axes[channels] != 1 or not apart:
            axes = self.spread(argument, channels)
            name = self._viewed_as(node, argument, axes)
        self.views.pop(node.name, None)
        if axes != (0, 1, 2, 3):
            self.views[node.name] = axes
        return name

    def spread(self, argument: Any, channels: int) -> Axes:
        """The axes of a map in which a value has one of its own as channels, the others in their order."""
        shape = shape_of(argument)
        others = [i for i in range(0 if shape[0] > 1 else 1, len(shape)) if i != channels]
        places = dict.fromkeys(others[:-1], 2) | dict.fromkeys(others[-1:], 3)
        return tuple(1 if i == channels else places.get(i, 0) for i in range(len(shape)))

    def ordered(self, argument: Any) -> Axes:
        """The axes of a node that has the batch first, and then a value's axes in their order."""
        (_, axes), shape = self.held(argument), shape_of(argument)
        places = iter(range(1, len(axes) + 1))
        return tuple(0 if axis == 0 and shape[i] == 1 else next(places) for i, axis in enumerate(axes))

    def windowed(self, node: Any) -> str:
        """The map over which an ATen convolution or pool goes: `map`, and no other number of axes."""
        form, rank = ("(batch, channels, length)", 3) if target(node).endswith("1d") else (FORM, 4)
        if len(shape_of(node.args[0])) != rank:
            raise self.unknown(node, f"must read {form}")
        alone = target(node).startswith("conv") and max(shape_of(node.args[1])[2:]) == 1
        return self.map(node, turned=alone)

    def formed(self, node: Any, argument: Any, axes: Axes) -> str:
        """The node of which these axes are an argument's, in its order; made where there is none."""
        self.check(node, argument)
        return self._viewed_as(node, argument, axes)

    def drop(self, node: Any, name: str, keep: bool) -> None:
        """Makes of a node that reduced a map what an ATen node makes; `keep` says that the axes stay."""
        if not keep:
            self.views.pop(node.name, None)
            shape = shape_of(node)
            self.add(node, "reshape", (name,), name=f"{name}.flat", attrs={"shape": shape})

    def held(self, argument: Any) -> tuple[str, Axes]:
        """The node in which a value is held, and which of its axes are the value's."""
        name = self.alias[argument.name]
        if argument.name in self.views:
            return name, self.views[argument.name]
        return self.sources.get(argument.name, (name, tuple(range(len(self.nodes[name].shape)))))

    def hold(self, node: Any, name: str, axes: Axes) -> None:
        """Says that what an ATen node makes is held by a node already."""
        self.alias[node.name] = name
        if axes != tuple(range(len(self.nodes[name].shape))):
            self.views[node.name] = axes

    def step(self, node: Any, dim: int, index: int) -> bool:
        """Takes one step of what a recurrent layer made, which needs not be joined to the others first.

        Args:
            node: of the exported program; it picks one place.
            dim: along which.
            index: the place.

        Returns:
            Whether that is what it picks.
        """
        name, axes = self.held(node.args[0])
        if name not in self.stepped or axes[dim] != 3 or [a for a in axes if a != 3] != [0, 1]:
            return False
        parts = self.stepped[name][index]
        if len(parts) == 1:
            self.alias[node.name] = parts[0]
        else:
            self.add(node, "concat", parts, attrs={"dim": 1})
        return True

    def plain(self, argument: Any) -> bool:
        """Whether there is a node that has a value as torch has it."""
        return getattr(argument, "name", "") not in self.views

    def axis(self, node: Any, dim: int) -> int:
        """Which axis of its node an axis of what an ATen node makes is."""
        axes = self.views.get(node.name)
        if axes and axes.count(axes[dim]) > 1:
            raise self.unknown(node, "works along an axis that is one with another; reshape after it")
        return axes[dim] if axes else dim

    def native(self, node: Any, argument: Any) -> str:
        """The node that has a value as torch has it."""
        if argument.name not in self.views:
            return self.alias[argument.name]
        if self.views[argument.name][0] != 0:
            raise self.unknown(node, "reads a tensor whose first dim is not the batch")
        return self._viewed_as(node, argument, tuple(range(len(shape_of(argument)))))

    def _common(self, node: Any) -> Axes | None:
        """The form in which a pointwise operation reads and makes its values; None for torch's."""
        read = [a for a in node.all_input_nodes if a.name in self.alias]
        rank = len(shape_of(node))
        if any(self.folded(a) for a in read):
            shapes = {shape_of(a) for a in read}
            if len(shapes) > 1 or len(next(iter(shapes))) != rank:
                raise self.unknown(node, f"joins {sorted(shapes)}; alike where the batch is not first")
            found = [(axes, len(self.nodes[name].shape)) for name, axes in map(self.held, read)]
            return min(found, key=lambda form: form[1] != 4)[0]
        if any(len(shape_of(a)) != rank for a in read) or not 3 <= rank <= 4:
            return None
        forms = (axes for a in read for name, axes in [self.held(a)] if len(self.nodes[name].shape) == 4)
        return next((axes for axes in forms if axes != (0, 1, 2, 3)), None)

    def _viewed_as(self, node: Any, argument: Any, axes: Axes) -> str:
        """A node of which these axes are a value's, made where there is none."""
        alias = self.alias[argument.name]
        if argument.name not in self.views and axes == tuple(range(len(self.nodes[alias].shape))):
            return alias
        name, have = self.held(argument)
        shape = unseen(shape_of(argument), axes)
        if have == axes and self.nodes[name].shape == shape:
            return name
        key = (argument.name, axes)
        if self._made.get(key, "") not in self.nodes:
            merged = any(len(set(each)) < len(each) for each in (have, axes))
            move = self._refolded if merged or have[0] or axes[0] else self._moved
            sizes = shape_of(argument)
            self._made[key] = move(node, name, have, axes, shape, sizes)
        return self._made[key]

    def _refolded(
        self, node: Any, name: str, have: Axes, axes: Axes, shape: tuple[int, ...], sizes: tuple[int, ...]
    ) -> str:
        """A reshape, a permute and a reshape, as far as they are needed."""
        where, before = module_path(node) or node.name, self.nodes[name].shape
        # Not by their sizes: a thinner network shall be traced alike.
        long = [i for i, size in enumerate(sizes) if size > 1 or (have[i] and axes[i])]
        old, new = (sorted(long, key=lambda i: (form[i], i)) for form in (have, axes))  # noqa: B023
        if old != new:
            split = (1, *(sizes[i] for i in old))
            if before != split:
                name = self._put(node, "reshape", (name,), split, f"{where}.split", attrs={"shape": split})
            dims = (0, *(1 + old.index(i) for i in new))
            before = tuple(split[dim] for dim in dims)
            name = self._put(node, "permute", (name,), before, f"{where}.move", attrs={"dims": dims})
        if before == shape:
            return name
        return self._put(node, "reshape", (name,), shape, f"{where}.map", attrs={"shape": shape})

    def _moved(
        self, node: Any, name: str, have: Axes, axes: Axes, shape: tuple[int, ...], _: tuple[int, ...]
    ) -> str:
        """A permute and a reshape, as far as they are needed."""
        where = module_path(node) or node.name
        before = self.nodes[name].shape
        order = tuple(have[i] for i in sorted(range(len(axes)), key=lambda i: axes[i]))
        if order != tuple(sorted(order)):
            spare = tuple(axis for axis in range(len(before)) if axis not in order)
            dims = (0, *spare, *order[1:])
            before = tuple(before[axis] for axis in dims)
            name = self._put(node, "permute", (name,), before, f"{where}.move", attrs={"dims": dims})
        while before != shape and self.nodes[name].kind == "reshape":
            (name,) = self.nodes[name].inputs
            before = self.nodes[name].shape
        if before == shape:
            return name
        return self._put(node, "reshape", (name,), shape, f"{where}.map", attrs={"shape": shape})

    def unknown(
        self, node: Any, why: str = "is not one that paredown can carry", hint: str = ""
    ) -> InputError:
        """The error that an ATen node cannot be carried, to be raised; unset, the hint names the kinds."""
        return InputError(
            f"operation {target(node)} {why}",
            where=source_line(node) or node.name,
            hint=hint or f"use one of: {', '.join(KINDS[1:])}",
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

    def with_number(self, node: Any) -> tuple[int, float] | None:
        """Which of two arguments the input decides, and the other, where that is one number."""
        for index, other in ((0, node.args[1]), (1, node.args[0])):
            if (number := self.number(node, other)) is not None:
                return index, number
        return None

    def affine(self, node: Any, feed: str, scale: float, shift: float) -> None:
        """Adds `scale * x + shift`; two of them in a row become one."""
        before = self.nodes[feed]
        if before.kind == "affine" and self.readers(feed) == 1:
            scale, shift = scale * before.attrs["scale"], scale * before.attrs["shift"] + shift
            feed = before.inputs[0]
        self.add(node, "affine", (feed,), attrs={"scale": scale, "shift": shift})

    def fixed(self, node: Any, given: Any, formed: Callable[[Tensor], Tensor]) -> str:
        """Adds a node that holds a constant.

        Args:
            node: of the exported program.
            given: its argument that the constant is, or is made of.
            formed: makes of the argument what the node holds, the batch of one first: only moves, or repeats.
        """
        constant = self.constants[given.name]
        value, spots = formed(constant), formed(torch.arange(constant.numel()).reshape(constant.shape))
        names = {f"computed value {i}": path for i, path in enumerate(self.origins[given.name] or ("",))}
        axes = [SPREAD if _repeats(spots, dim) else -1 for dim in range(spots.dim())]
        if (places := self.places(given.name)) is not None:
            parameter = self.origins[given.name][0]
            found = _axes_of(formed(places), self.exported.state_dict[parameter].shape)
            axes = [max(pair) if pair[1] >= 0 else pair[0] for pair in zip(axes, found, strict=True)]
            names = {"value": parameter} if max(axes) >= 0 else names
        attrs = {"axes": tuple(axes)} if set(axes) != {-1} else {}
        return self.add(
            node, "constant", (next(iter(self.nodes)),), shape=tuple(value.shape),
            name=f"{module_path(node) or node.name}.constant", value=value.detach().float().contiguous(),
            parameters=names, attrs=attrs,
        )  # fmt: skip

    def places(self, name: str) -> Tensor | None:
        """Of a constant that only moves the values of one parameter: where in it each of them is."""
        if name in self.paths:
            parameter = self.exported.state_dict.get(self.paths[name])
            same = parameter is not None and parameter.shape == self.constants[name].shape
            return torch.arange(self.constants[name].numel()).reshape(parameter.shape) if same else None
        return self.moved.get(name)

    def readers(self, name: str) -> int:
        """How many operations of the program read a node of ours."""
        return sum(len(n.users) for n in self.exported.graph.nodes if self.alias.get(n.name) == name)

    def kind_of(self, name: str) -> Operation:
        """The operation of a node of ours."""
        return operation(self.nodes[name].kind)

    def sole_use(self, node: Any) -> bool:
        """Whether nothing else reads what this operation reads, under another name neither."""
        feed = self.alias[node.args[0].name]
        aliases = [n for n in self.exported.graph.nodes if self.alias.get(n.name) == feed]
        return sum(len(alias.users) for alias in aliases) == len(aliases)


def _repeats(places: Tensor, dim: int) -> bool:
    """Whether a view has the same values along an axis, or in each of its parts, as all heads of a window."""
    rows = places.movedim(dim, 0).flatten(1)
    run = int((rows == rows[:1]).all(1).long().cumprod(0).sum())
    return run > 1 and len(rows) % run == 0 and torch.equal(rows, rows[::run].repeat_interleave(run, 0))


def _axes_of(places: Tensor, shape: tuple[int, ...]) -> Axes:
    """For each axis of a view that of the parameter whose places it has, in order; -1 where there is none."""
    found = [-1] * places.dim()
    for axis, spots in enumerate(torch.unravel_index(places, shape)):
        for dim, size in enumerate(places.shape):
            row = torch.arange(size).reshape(*[1] * dim, -1, *[1] * (places.dim() - dim - 1))
            if size == shape[axis] > 1 and bool((spots == row).all()):
                found[dim] = axis
    return tuple(found)
