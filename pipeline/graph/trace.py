"""Tracing: a torch module in, a `pipeline.graph.graph.Graph` out.

`trace` runs `torch.export` once, folds batch normalization and explicit padding into the operations that
use them, and keeps only the kinds of `pipeline.graph.operations.kinds.KINDS`. What none of them computes in
integers stays in float, by the name of its ATen operation. What cannot, it names, together with the line of
the user's code that calls it, rather than guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from paredown.pipeline.graph.aten import arguments, batched, module_path, shape_of, source_line, target
from paredown.pipeline.graph.export.composed import compose
from paredown.pipeline.graph.export.torch_export import export
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.opaque import Folded, Opaque, text, written
from paredown.pipeline.graph.operations.activation.floats import RANDOM, NotFloat, described, single_values
from paredown.pipeline.graph.operations.kinds import traced
from paredown.pipeline.graph.tracer import Tracer
from paredown.targets.errors import InputError

#: What only checks what torch.export knows already.
ASSERTIONS = frozenset({"_assert_tensor_metadata"})
#: What makes no number of some numbers.
NOT_ALWAYS = frozenset({"div", "true_divide", "pow", "remainder", "fmod", "xlogy", "addcdiv"})
#: What gives the values of a tensor at other places, some of them, or more than once.
MOVES = frozenset({
    "alias", "clone", "contiguous", "detach", "expand", "flatten", "index", "narrow", "permute", "reshape",
    "select", "slice", "squeeze", "t", "to", "transpose", "unsqueeze", "view", "_unsafe_view",
})  # fmt: skip
#: What to do instead of a change in place.
NEW = "make a new tensor: x = x - 1, not x -= 1; torch.where or torch.cat, not x[:, 0] = 0"
NEAR = 0.01  # of an output's largest value: far above rounding, far below a wrong operation
FEW = 1 / 200  # of its values
#: What computes each value of its result from the values at the same place.
ELEMENTWISE = frozenset({
    "add", "div", "exp", "mul", "neg", "pow", "reciprocal", "rsqrt", "sqrt", "square", "sub",
})  # fmt: skip


def trace(network: nn.Module, shape: tuple[int, ...], *, opaque: bool = False, floats: bool = True) -> Graph:
    """Traces a network in evaluation mode.

    Args:
        network: takes one float tensor, (1, channels, height, width) or (1, channels, length); returns a
            tensor or a tuple of them.
        shape: of that tensor, the batch of one included.
        opaque: keep an operation that is not in `KINDS`, and cannot stay in float, as a node of kind
            "opaque". It can be run and pruned around, but not lowered. What does not depend on the input is
            then a constant.
        floats: keep what has no integer form in float, as an "island" or a "function".

    Returns:
        The graph, BN and padding folded in, weights detached (they share the network's memory where
        nothing was folded).

    Raises:
        InputError: torch cannot export it, or it has an operation that is not in `KINDS` and cannot stay in
            float; the line of the user's code is named.
    """
    program = export(network, shape)
    compose(program)
    return _Builder(program, opaque, floats).build()


@torch.no_grad()
def check_trace(network: nn.Module, graph: Graph) -> None:
    """Runs a network and its graph on one random input.

    Raises:
        InputError: more than one value in 200 of an output is further away than 1 % of the largest: a fault
            of ours, told before anything is made of it. Fewer may be ties of `argmax` that rounding decides.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(graph.nodes[0].shape, generator=generator)
    found, values = network.eval()(x), graph.run(x)
    wanted = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    for one, name in zip(wanted, graph.outputs, strict=True):
        away = (one.reshape(-1) - values[name].reshape(-1)).abs()
        wrong = ~(away <= NEAR * one.abs().max().clamp_min(1e-6))
        if wrong.double().mean() > FEW and one.isfinite().all():
            raise InputError(
                f"the graph that was read computes something else: {away.max():.1e} away at output {name}",
                hint="this is a fault of paredown: please report it with the network's code",
            )


class _Builder(Tracer):
    """Turns an exported program into a `Graph`, one ATen node at a time."""

    def __init__(self, exported: torch.export.ExportedProgram, opaque: bool, floats: bool) -> None:
        self.exported, self.opaque, self.floats = exported, opaque, floats
        signature = exported.graph_signature
        self.constants: dict[str, Tensor] = {}
        for source in (signature.inputs_to_parameters, signature.inputs_to_buffers):
            self.constants |= {name: exported.state_dict[path].detach() for name, path in source.items()
                               if path in exported.state_dict}  # fmt: skip
        for name, path in {
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }.items():
            if name not in self.constants:
                self.constants[name] = exported.constants[path].detach()
        first: dict[object, str] = {}  # a tensor under two names is one parameter
        paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.paths = {n: first.setdefault(_memory(self.constants[n]) or n, p) for n, p in paths.items()}
        # constant -> the parameters that it is, or was computed from
        self.origins: dict[str, tuple[str, ...]] = {
            name: (self.paths[name],) if name in self.paths else () for name in self.constants
        }
        self.user_inputs = set(signature.user_inputs)
        self.nodes: dict[str, Node] = {}
        self.alias: dict[str, str] = {}  # ATen name -> our node's name
        self.views, self.sources, self.moved, self._made, self.pointwise = {}, {}, {}, {}, False
        self.rows, self.stepped, self.folds = set(), {}, False
        self.parts: dict[str, str] = {}  # results of an operation that stays in float -> why it does

    def build(self) -> Graph:
        outputs: tuple[str, ...] = ()
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in self.user_inputs:
                    self.add(node, "input", (), name="input")
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                if not all(getattr(a, "name", "") in self.alias for a in node.args[0]):
                    raise InputError("the network returns something that is not computed from its input")
                for argument in node.args[0]:
                    if self.opaque and self.folded(argument) and not batched(argument):
                        self._unfold(argument, argument)
                    elif self.folded(argument) and self.views[argument.name][0] != 0:
                        raise InputError(
                            f"the network returns {tuple(shape_of(argument))}, whose first dim is not the "
                            "batch",
                            where=source_line(argument) or argument.name,
                            hint="return it with the batch of one first: y.transpose(0, 1)",
                        )
                outputs = tuple(self.native(a, a) for a in node.args[0])
        if len([n for n in self.nodes.values() if n.kind == "input"]) != 1:
            raise InputError("the network must take exactly one tensor")
        return _without_dead(Graph(tuple(self.nodes.values()), outputs))

    def _call(self, node: Any) -> None:
        if target(node) in ASSERTIONS:
            return None
        self._check_writes(node)
        self._check_made(node)
        if any(i >= len(node.args) or self._viewed(node.args[i]) for i in written(node)):
            why, hint = "changes a view in place; what else that changes is not followed", NEW
            raise self.unknown(node, why, hint)
        if not any(n.name in self.alias for n in node.all_input_nodes):
            return self._constant(node)
        before = len(self.nodes)
        try:
            self._known(node)
        except InputError as error:
            self._forget(node, before)
            try:
                if not self.floats:
                    raise
                return self._float(node, error.what)
            except (InputError, NotFloat) as why:
                self._forget(node, before)
                if not self.opaque:
                    raise self._refused(node, error, why) from error
            self._opaque(node)

    def _check_writes(self, node: Any) -> None:
        """Refuses a network that leaves something changed behind when it has run."""
        for name in {_base(node.args[i]) for i in written(node) if i < len(node.args)}:
            if name in self.user_inputs:
                raise InputError(
                    f"operation {target(node)} changes the network's input in place",
                    where=source_line(node) or node.name,
                    hint=f"others read the image too: inplace=False; {NEW}",
                )
            if name in self.paths:
                raise InputError(
                    f"operation {target(node)} changes {self.paths[name]} each time the network runs",
                    where=source_line(node) or node.name,
                    hint="an image must not change the answer for the next one: keep no state in forward",
                )

    def _check_made(self, node: Any) -> None:
        """Refuses what no program with fixed memory can hold."""
        value = node.meta.get("val")
        for made in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(made, Tensor):
                continue
            if not all(isinstance(size, int) for size in made.shape):
                hint = "a program on a device has fixed shapes: use torch.where, or topk of a fixed number"
                raise self.unknown(node, "makes a shape that depends on the values of a tensor", hint)
            if made.layout != torch.strided:
                raise self.unknown(node, "makes a sparse tensor", "keep tensors dense")

    def _forget(self, node: Any, before: int) -> None:
        """Undoes what was made of an ATen node."""
        for name in list(self.nodes)[before:]:
            del self.nodes[name]
        for made in (self.alias, self.views, self.sources):
            made.pop(node.name, None)

    def _refused(self, node: Any, error: InputError, why: Exception) -> InputError:
        """Why a node is neither a known kind nor an island."""
        if traced(target(node)) or not isinstance(why, NotFloat):
            return error
        return self.unknown(node, why.what, why.hint)

    def _float(self, node: Any, why: str) -> None:
        """Keeps an operation in float, by its name; of several results each is a node of its own."""
        self.pointwise = self.folds = False
        several = isinstance(node.meta.get("val"), (list, tuple))
        parent, result = (node.args[0], node.args[1]) if node.name in self.parts else (node, -1)
        if several:
            for user in node.users:
                if target(user) != "getitem":
                    raise NotFloat("makes several results")
                described(node, self._held, user.args[1])
            self.alias[node.name] = next(
                self.alias[n.name] for n in node.all_input_nodes if n.name in self.alias
            )
            self.parts |= dict.fromkeys((user.name for user in node.users), why)
            return
        attrs, read = described(parent, self._held, result)
        self._island(node, parent, attrs, read, self.parts.get(node.name, why))

    def _held(self, node: Any) -> bool:
        return node.name not in self.alias

    def _island(self, node: Any, parent: Any, attrs: dict[str, Any], read: list[Any], why: str) -> None:
        if not batched(node) or len(shape_of(node)) < 2:
            raise NotFloat(f"makes the shape {tuple(shape_of(node))}; the batch of one must stay first")
        inputs = [each for each in read if not self._held(each)]
        constants = tuple(self._fixed(each) for each in read if self._held(each))
        shapes = [shape_of(each) for each in inputs]
        single = single_values(attrs, constants, shapes)
        if traced(target(parent)):
            attrs["why"] = why
        line = source_line(node) or source_line(parent)
        attrs |= {"single": single, "nan": bool(NOT_ALWAYS & set(attrs["op"].replace(".", ":").split(":"))),
                  "line": line.rpartition("/")[2]}  # fmt: skip
        if constants:
            attrs["constants"] = tuple(text(each) for each in constants)
        plain = single and all(each.numel() == 1 for each in constants)
        names = self.names(**{each.name: each for each in read if self._held(each)})
        if plain and len(inputs) == 1 and shapes[0] == shape_of(node):
            self.pointwise = self.folds = True
            name, attrs["nan"] = self.tensor(node, inputs[0]), False
            self.add(node, "function", (name,), attrs=attrs, parameters=names, constants=constants)
        else:
            for each in inputs:
                self.check(node, each)
            self.views.pop(node.name, None)
            feeds = tuple(self.native(node, each) for each in inputs)
            self.add(node, "island", feeds, shape=shape_of(node), attrs=attrs, parameters=names,
                     constants=constants)  # fmt: skip

    def _fixed(self, node: Any) -> Tensor:
        value = self.constants.get(node.name)
        if not isinstance(value, Tensor):
            raise NotFloat("reads what is no tensor")
        return value.detach().contiguous()

    def _viewed(self, value: Any) -> bool:
        """Whether what is done to a value in place is done to another too."""
        if not isinstance(value, torch.fx.Node) or _is_view(value):
            return True
        return any(_views(n) and (n.name in self.alias or n.name in self.constants) for n in value.users)

    def _known(self, node: Any) -> None:
        found = traced(target(node))
        if not found:
            raise self.unknown(node)
        kind = next((each for each in found if each.takes(node)), found[-1])
        self.pointwise, self.folds = kind.pointwise, kind.pointwise or kind.folds
        kind.trace(self, node)
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            return  # the parts of a split, each of which is looked at where it is taken
        shape = value.shape if hasattr(value, "shape") else ()
        if (not shape or shape[0] != 1) and not (self.folds and node.name in self.views):
            raise self.unknown(node, f"makes the shape {tuple(shape)}; the batch of one must stay first")

    def _opaque(self, node: Any) -> None:
        """Keeps an operation as it is."""
        self.pointwise = self.folds = False
        for argument in node.all_input_nodes:
            if self.folded(argument) and not batched(argument):
                self._unfold(node, argument)
        feeds = {n.name: batched(n) for n in node.all_input_nodes if n.name in self.alias}
        compute = self._computed(node, feeds)
        given = {n.name: n for n in node.all_input_nodes}
        inputs = [self.native(node, given[name]) for name in compute.names]
        value = node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        what = target(node)
        if what == "getitem":  # of several results: speak of the operation that made them
            what = self.nodes[inputs[0]].attrs["op"]
        attrs = {"op": what, "given": compute.text()}
        names = self.names(**{n.name: n for n in node.all_input_nodes if n.name in self.constants})
        self.add(node, "opaque", tuple(inputs), shape=shape, attrs=attrs, parameters=names, compute=compute)

    def _unfold(self, node: Any, argument: Any) -> None:
        """Makes of a value whose first axis is not the batch what torch has, as an operation not known."""
        axes, shape = self.ordered(argument), shape_of(argument)
        self.folds = True
        name = self.formed(node, argument, axes)
        self.folds = False
        attrs = {"op": "view", "given": str(shape)}
        self.views.pop(argument.name)
        self.add(
            argument, "opaque", (name,), shape=shape, attrs=attrs, compute=Folded(shape),
            name=f"{module_path(argument) or argument.name}.folded",
        )  # fmt: skip

    def _constant(self, node: Any) -> None:
        """Computes what does not depend on the input."""
        if _drops(node) and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise self.unknown(node, *RANDOM)
        self.constants[node.name] = self._computed(node, {})()
        origins = [path for n in node.all_input_nodes for path in self.origins[n.name]]
        self.origins[node.name] = (*dict.fromkeys(origins),)
        read = [n for n in node.all_input_nodes if self.origins[n.name]]
        if target(node) in MOVES | ELEMENTWISE:
            sizes = {self.constants[n.name].numel() for n in read}
            alike = sizes == {getattr(self.constants[node.name], "numel", int)()}
            if alike and all(n.name in self.rows or self._row(n.name) for n in read):
                self.rows.add(node.name)
        if len(read) == 1 and target(node) in MOVES and (places := self.places(read[0].name)) is not None:
            moved = self._computed(node, {}, {read[0].name: places})()
            self.moved |= {node.name: moved} if isinstance(moved, Tensor) else {}

    def _row(self, name: str) -> bool:
        """Whether a constant is a parameter of one axis."""
        return name in self.paths and self.constants[name].dim() == 1

    def _computed(
        self, node: Any, feeds: dict[str, bool], others: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Opaque:
        try:
            return Opaque(node, feeds, {**self.constants, **others})
        except LookupError as error:
            raise self.unknown(node, f"reads {error.args[0]}, which is not a tensor") from error


def _drops(node: Any) -> bool:
    """Whether what torch tags as random is told to drop values, or does something else."""
    if target(node) == "scaled_dot_product_attention":
        return bool(arguments(node, None, None, None, None, 0.0)[4])
    return target(node) not in {"dropout", "feature_dropout"} or bool(arguments(node, None, 0.5, True)[2])


def _memory(tensor: Tensor) -> object:
    return tensor.data_ptr() and (tensor.data_ptr(), tensor.shape, tensor.stride())


def _base(value: Any) -> str:
    """The name of the value whose memory a value is, or is a view of."""
    while isinstance(value, torch.fx.Node) and _views(value) and value.args:
        value = value.args[0]
    return getattr(value, "name", "")


def _is_view(node: Any) -> bool:
    """Whether a value shares its memory with another that is used elsewhere too."""
    return _views(node) and (len(node.args[0].users) > 1 or _is_view(node.args[0]))


def _views(node: Any) -> bool:
    """Whether an operation gives the memory that it reads under another shape or name."""
    if target(node) in {"getitem", "dropout", "feature_dropout"}:
        return True
    schema = getattr(node.target, "_schema", None)
    return any(r.alias_info and not r.alias_info.is_write for r in (schema.returns if schema else []))


def _without_dead(graph: Graph) -> Graph:
    """Drops what no output reads (pads that were folded away)."""
    alive = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.name in alive:
            alive |= set(node.inputs)
    return replace(graph, nodes=tuple(n for n in graph.nodes if n.name in alive or n.kind == "input"))
