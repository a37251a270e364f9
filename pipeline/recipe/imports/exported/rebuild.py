"""An exported program as plain torch modules: the graph of `torch.export`, node by node.

Only operations of ATen are computed, never a module's own code. What was rebuilt is run beside the program
that it was made of, and must say the same.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from paredown.pipeline.recipe.imports.exported.operations import IDENTITIES, LAYERS, PLAIN, plain
from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node
from paredown.pipeline.recipe.imports.onnx.network import Network, needed
from paredown.targets.errors import InputError

HALVES = (torch.float16, torch.bfloat16, torch.float64)
#: Checks of sizes, which are fixed here.
CHECKS = frozenset({
    "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
    "sym_constrain_range_for_size", "_check_is_size",
})  # fmt: skip
#: Operations that touch more than their tensors.
REFUSED = frozenset({"from_file", "_print", "save", "_save_for_backward"})
INTEGERS = frozenset({
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg, operator.truediv,
    operator.ge, operator.le, operator.gt, operator.lt, operator.eq, operator.ne, operator.pow,
})  # fmt: skip
#: Largest difference, as a share of the largest number.
CLOSE, CLOSE_HALF = 1e-4, 5e-2


def rebuilt(
    program: torch.export.ExportedProgram,
    shape: tuple[int, ...] | None,
    path: Path,
    form: str,
    sizes_open: bool = False,
) -> Imported:
    """An exported program as plain modules.

    Args:
        program: as it was exported; its code is not run.
        shape: of the input, where the program leaves sizes open; see `imports.read`.
        path: of its file, for errors.
        form: of the file, for the user.
        sizes_open: the program's sizes are those of an example.

    Raises:
        InputError: it takes more than one tensor, or has operations that are not known.
    """
    try:
        return _Rebuild(program, shape, path, sizes_open).made(form)
    except InputError as error:
        raise InputError(error.what if error.what == str(error) else str(error), where=path) from error


class _Rebuild:
    """The work on one program."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        shape: tuple[int, ...] | None,
        path: Path,
        sizes_open: bool,
    ) -> None:
        self.program, self.notes = program, []  # type: tuple[Any, list[str]]
        self.kinds: set[str] = set()
        self.placeholder = self._input()
        self.batch = 1
        self.shape = self._shape(shape, sizes_open)
        self.builder = Builder(path, self.shape, self.batch if self.batch > 1 else None)

    def made(self, form: str) -> Imported:
        """The network, checked against the program."""
        values = self._tensors()
        values[self.placeholder.name] = self.builder.input
        outputs: list[Any] = []
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                values[node.name] = self._call(node, values)
            elif node.op == "output":
                outputs = self._outputs(node, values)
            elif node.op != "placeholder":
                raise InputError(
                    f"node {node.name} is {node.op}", hint="export the model without control flow"
                )
        live = [value for value in outputs if isinstance(value, Live)]
        if len(live) < len(outputs):
            self.notes.append(
                f"{len(outputs) - len(live)} outputs do not depend on the input and are left out"
            )
        if not live or not self.builder.steps:
            raise InputError("no output is computed from the input")
        names = [value.name for value in live]
        steps = needed(self.builder.steps, names)
        network = Network({step.path: self.builder.modules[step.path] for step in steps}, steps, names).eval()
        self._check(network, [index for index, value in enumerate(outputs) if isinstance(value, Live)])
        if self.kinds:
            self.notes.append(f"{' and '.join(sorted(self.kinds))} made float32")
        return Imported(network, self.shape, form, (*self.notes, *self.builder.notes))

    # -- the input -----------------------------------------------------------------------------------------

    def _input(self) -> fx.Node:
        names = self.program.graph_signature.user_inputs
        found = [node for node in self.program.graph.nodes if node.op == "placeholder" and node.name in names]
        tensors = [node for node in found if isinstance(node.meta.get("val"), Tensor)]
        if len(names) != 1 or len(tensors) != 1:
            listed = ", ".join(map(str, names)) or "none"
            raise InputError(f"takes {len(names)} inputs ({listed}), not one tensor",
                             hint="export a module whose forward takes one tensor")  # fmt: skip
        return tensors[0]

    def _shape(self, asked: tuple[int, ...] | None, sizes_open: bool) -> tuple[int, ...]:
        """The input's sizes: those of the file, and what is asked for where it leaves them open."""
        value = self.placeholder.meta["val"]
        if value.dtype != torch.float32:
            self.notes.append(f"the input is {str(value.dtype).removeprefix('torch.')}; here it is float32")
        sizes = [size if isinstance(size, int) else None for size in value.shape]
        if sizes and sizes[0] is not None and sizes[0] > 1:
            self.batch = sizes[0]
            self.notes.append(f"the file is for a batch of {sizes[0]}; here it is 1")
        known = [1, *sizes[1:]]
        said = "x".join("?" if size is None else str(size) for size in known)
        given = list(asked or ())
        if len(given) == len(known):
            given = given[1:]
        if len(given) >= len(known) or min(given, default=1) < 1:
            raise InputError(f"the input is {said}, and {'x'.join(map(str, given))} does not fit")
        full = [*known[: len(known) - len(given)], *given]
        if None in full:
            example = "x".join(str(size or 224) for size in known[1:])
            raise InputError(
                f"the input is {said}, with sizes left open", hint=f"give them: --shape {example}"
            )
        if not sizes_open and any(size not in (None, each) for size, each in zip(known, full, strict=True)):
            raise InputError(f"the input is {said}, and {'x'.join(map(str, given))} does not fit",
                             hint="export the model for that size")  # fmt: skip
        return tuple(int(size) for size in full if size is not None)

    def _tensors(self) -> dict[str, Any]:
        """The values of parameters, buffers and constants by the names of their placeholders, in float32."""
        signature, found = self.program.graph_signature, {}
        sources: Mapping[str, str] = {
            **signature.inputs_to_parameters, **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }  # fmt: skip
        held = {**self.program.constants, **self.program.state_dict}
        known: dict[int, Tensor] = {}
        for name, source in sources.items():
            value = held.get(source)
            if not isinstance(value, Tensor):
                raise InputError(f"{source} is not in the file")
            value = value.detach()
            if value.is_meta or value.is_quantized or value.layout != torch.strided or value.is_complex():
                raise InputError(f"{source} holds no plain numbers ({value.dtype})")
            if id(held[source]) not in known:
                if value.dtype in HALVES:
                    self.kinds.add(str(value.dtype).removeprefix("torch."))
                    value = value.float()
                known[id(held[source])] = value
                if source in signature.inputs_to_parameters.values() or value.dim() > 0:
                    self.builder.weight(source, value)
            found[name] = known[id(held[source])]
        return found

    # -- nodes ---------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node, values: dict[str, Any]) -> Any:
        def read(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                if argument.name not in values:
                    raise InputError(f"node {node.name} reads {argument.name}, which nothing computes")
                return values[argument.name]
            if isinstance(argument, (list, tuple)):
                return type(argument)(read(each) for each in argument)
            return torch.float32 if argument in HALVES and isinstance(argument, torch.dtype) else argument

        target: Any = node.target
        args = [read(argument) for argument in node.args]
        keywords = {name: read(argument) for name, argument in node.kwargs.items()}
        if target is operator.getitem:
            return args[0][args[1]]
        if target in INTEGERS and not any(isinstance(each, (Live, Tensor)) for each in args):
            return target(*args)
        if (
            getattr(target, "namespace", "") not in ("aten", "prims")
            or target.__name__.split(".")[0] in REFUSED
        ):
            raise InputError(f"node {node.name} is {target}, which is no operation of torch itself",
                             hint="export the model without custom operations and control flow")  # fmt: skip
        kind = str(target.__name__).split(".")[0]
        named = Node(self._name(node, kind), kind.removesuffix("_"), (), ())
        if kind in CHECKS:
            return None
        if kind == "sym_size":
            return int(self.builder.shape(args[0])[args[1]])
        try:
            return self._built(node, named, kind, target, args, keywords, values)
        except InputError as error:
            raise error if error.what.startswith("node ") else named.error(error.what) from error
        except Exception as error:  # a damaged file can ask anything of torch
            reason = (str(error).splitlines() or [""])[0][:160]
            raise named.error(f"cannot be computed ({type(error).__name__}: {reason})",
                              "export it for a batch of 1, or give another --shape") from error  # fmt: skip

    def _built(
        self, node: fx.Node, named: Node, kind: str, target: Any, args: list[Any], keywords: dict[str, Any],
        values: dict[str, Any],
    ) -> Any:  # fmt: skip
        """What an operation makes: a layer, a function, or a constant."""
        if kind in IDENTITIES and args and _keeps(self.builder, args, keywords):
            return (args[0], None) if kind == "native_dropout" else args[0]
        args = self._one_image(node, kind, args)
        given = _bound(target, args, keywords)
        found = NotImplemented
        build = LAYERS.get(named.kind, plain if named.kind in PLAIN else None)
        if build is not None and any(isinstance(each, Live) for each in given.values()):
            found = build(self.builder, named, given)
        if found is NotImplemented:
            found = self.builder.call(named, target, *args, **keywords)
        if kind.endswith("_") and not kind.endswith("__") and node.args and isinstance(node.args[0], fx.Node):
            values[node.args[0].name] = found  # changed in place: so it is for all who read it later
        return found

    def _one_image(self, node: fx.Node, kind: str, args: list[Any]) -> list[Any]:
        """Arguments that name the batch of the file's, with a batch of one."""
        value = node.meta.get("val")
        if self.batch == 1 or kind not in BATCHED or not isinstance(value, Tensor) or len(args) < 2:
            return args
        sizes = args[1]
        if isinstance(sizes, (list, tuple)) and sizes and sizes[0] == self.batch == value.shape[0]:
            return [args[0], [1, *sizes[1:]], *args[2:]]
        return args

    @staticmethod
    def _name(node: fx.Node, kind: str) -> str:
        """The path of the module that the operation stands in, and its own name."""
        stack = node.meta.get("nn_module_stack") or {}
        paths = [str(entry[0]) for entry in stack.values() if isinstance(entry, tuple) and entry]
        path = paths[-1].replace("L['self'].", "") if paths else ""
        return (
            f"{path}/{node.name}"
            if path and kind.removesuffix("_") not in {*LAYERS, *PLAIN}
            else path or node.name
        )

    def _outputs(self, node: fx.Node, values: dict[str, Any]) -> list[Any]:
        """What the user gets: not the buffers that the program would write."""
        specs = self.program.graph_signature.output_specs
        found = []
        for spec, argument in zip(specs, node.args[0], strict=True):  # type: ignore[arg-type]
            if spec.kind.name == "USER_OUTPUT":
                found.append(values.get(getattr(argument, "name", "")))
        return found

    # -- the check -----------------------------------------------------------------------------------------

    def _check(self, network: Network, places: list[int]) -> None:
        """Runs both on one input of the file's own size.

        Raises:
            InputError: they differ.
        """
        if any("training mode" in note for note in self.builder.notes):
            return
        value = self.placeholder.meta["val"]
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((self.batch, *self.shape[1:]), generator=generator)
        with torch.no_grad():
            try:
                flat = [*self._flat(x.to(value.dtype))]
                wanted = fx.Interpreter(self.program.graph_module).run(*flat)
            except (RuntimeError, NotImplementedError):  # such as half precision that this machine lacks
                self.notes.append("not compared: the program itself does not run here")
                return
            got = [network(image[None]) for image in x]
        specs = self.program.graph_signature.output_specs
        users = [each for spec, each in zip(specs, wanted, strict=True) if spec.kind.name == "USER_OUTPUT"]
        close = CLOSE_HALF if self.kinds else CLOSE
        for number, place in enumerate(places):
            ours = torch.cat([each[number] if isinstance(each, tuple) else each for each in got])
            theirs = users[place].float()
            scale = max(float(theirs.abs().max()), 1e-3)
            if ours.shape != theirs.shape or not float((ours - theirs).abs().max()) <= close * scale:
                raise InputError(f"output {place + 1} of the rebuilt network differs from the program's",
                                 hint="export the model as ONNX, and import that")  # fmt: skip

    def _flat(self, x: Tensor) -> list[Any]:
        signature = self.program.graph_signature
        held = {**self.program.constants, **self.program.state_dict}
        sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
                   **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
        names = [node.name for node in self.program.graph.nodes if node.op == "placeholder"]
        return [x if name == self.placeholder.name else held[sources[name]] for name in names]


BATCHED = frozenset({"view", "reshape", "_unsafe_view", "expand"})


def _bound(target: Any, args: list[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, defaults included."""
    schema = target._schema.arguments
    given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    given |= {argument.name: value for argument, value in zip(schema, args, strict=False)}
    return given | dict(keywords)


def _keeps(builder: Builder, args: list[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether a copy has the type of what it copies."""
    if not isinstance(args[0], (Live, Tensor)):
        return False
    dtypes = [each for each in (*args[1:], *keywords.values()) if isinstance(each, torch.dtype)]
    return all(each == builder.dtype(args[0]) for each in dtypes)
