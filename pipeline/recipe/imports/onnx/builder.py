"""What the operations of ONNX are built with: values that are known, values that are live, modules, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paredown.pipeline.recipe.imports.onnx.chunks import Part
from paredown.pipeline.recipe.imports.onnx.network import INPUT, Call, Held, Slot, Step, flat
from paredown.targets.errors import InputError

#: Numbers in one value, above which a file is taken for a broken one.
MOST = 2**28


@dataclass(frozen=True, eq=False)
class Live:
    """A value that depends on the network's input.

    Attributes:
        name: in the network's steps.
        fake: its shape and type, without memory.
    """

    name: str
    fake: Tensor


#: A constant is a tensor; an optional input that is not given is None.
Value = Live | Tensor | None


@dataclass(frozen=True)
class Node:
    """A node of an ONNX graph.

    Attributes:
        name: its own, or one that is made of its outputs.
        kind: op_type.
        inputs: names of values; "" where an optional one is left out.
        outputs: the same.
        attrs: by name, as Python values; a tensor is an array, a graph a GraphProto.
        opset: of the file.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 0

    def error(self, what: str, hint: str | None = None) -> InputError:
        """The error that this node cannot be imported."""
        return InputError(f"node {self.name} ({self.kind}): {what}", hint=hint)


class Builder:
    """Collects the modules and steps of a network.

    Args:
        path: of the file.
        shape: of the network's input.
        batch: that the file declares, where it is a fixed number.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], batch: int | None = None) -> None:
        self.path = path
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.notes: dict[str, None] = {}
        self.names: dict[int, str] = {}  # of the file's tensors, by identity
        self.batch = batch
        self.permuted: dict[str, tuple[Live, tuple[int, ...]]] = {}  # the same of a permute, and its order
        self.reshaped: dict[str, Live] = {}  # what a reshape made -> what it was made of
        self.parts: dict[str, Part] = {}  # what a slice made -> what it takes
        self._held: dict[int, Tensor] = {}  # keeps them, so that no identity comes twice
        self._parameters: dict[int, nn.Parameter] = {}
        self._derived: dict[tuple[int, str], Tensor] = {}
        with self.mode:
            self.input = Live(INPUT, torch.empty(shape))

    def note(self, text: str) -> None:
        """Something that the user should know, said once."""
        self.notes[text] = None

    def weight(self, name: str, value: Tensor) -> None:
        """Makes a tensor of the file known by its name."""
        self.names[id(value)], self._held[id(value)] = name, value

    # -- values --------------------------------------------------------------------------------------------

    @staticmethod
    def shape(value: Value) -> tuple[int, ...]:
        """The shape of a value."""
        assert value is not None
        return tuple(value.fake.shape if isinstance(value, Live) else value.shape)

    @staticmethod
    def dtype(value: Value) -> torch.dtype:
        """The type of a value."""
        assert value is not None
        return value.fake.dtype if isinstance(value, Live) else value.dtype

    @staticmethod
    def known(node: Node, value: Value, what: str) -> Tensor:
        """A value that must be a constant.

        Raises:
            InputError: it depends on the network's input, or is not there.
        """
        if isinstance(value, Tensor):
            return value
        why = "is missing" if value is None else "is computed from the network's input"
        raise node.error(f"its {what} {why}", "export the model with constant sizes and weights")

    def ints(self, node: Node, value: Value, what: str) -> list[int]:
        """The whole numbers of a constant."""
        return [int(number) for number in self.known(node, value, what).reshape(-1).tolist()]

    def parameter(self, value: Tensor) -> nn.Parameter:
        """A tensor as a parameter: the same one wherever the file uses it."""
        alike = value.numel() > 1 and bool((value == value.reshape(-1)[0]).all())
        if alike:  # exporters keep equal tensors once: zeros of two layers are two biases
            self._parameters.pop(id(value), None)
        if id(value) not in self._parameters:
            if not torch.isfinite(value).all():
                name = self.names.get(id(value), "a weight")
                raise InputError(
                    f"{name} holds values that are NaN or infinite",
                    hint="export the model again, from weights that are numbers",
                )
            self._held[id(value)] = value
            self._parameters[id(value)] = nn.Parameter(value.detach().contiguous().clone())
        return self._parameters[id(value)]

    def derived(self, value: Tensor, how: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """A tensor that is made of another of the file, once for each way."""
        key = id(value), how
        if key not in self._derived:
            self._held[id(value)] = value
            self._derived[key] = made = make(value)
            if id(value) in self.names:
                self.weight(self.names[id(value)], made)
        return self._derived[key]

    # -- modules -------------------------------------------------------------------------------------------

    def call(self, node: Node, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Calls a function of constants at once, and of live values whenever the network runs."""
        live: list[Live] = []
        tensors: dict[str, Tensor] = {}
        if not _any_live((arguments, list(keywords.values()))):
            made = function(*arguments, **keywords)
            for each in made if isinstance(made, (tuple, list)) else (made,):
                self._check(node, tuple(each.shape))
            return made

        def place(value: Any) -> Any:
            if isinstance(value, Live):
                live.append(value)
                return Slot(len(live) - 1)
            if isinstance(value, Tensor):
                name = "value" if not tensors else f"value{len(tensors) + 1}"
                tensors[name] = self._constant(value)
                return Held(name)
            return type(value)(map(place, value)) if isinstance(value, (list, tuple)) else value

        placed = [place(value) for value in arguments]
        named = {name: place(value) for name, value in keywords.items()}
        return self.module(node, Call(function, placed, named, tensors), *live)

    def _constant(self, value: Tensor) -> Tensor:
        """A constant among the arguments of a function: trained where it is a weight of the file."""
        trained = value.is_floating_point() and id(value) in self.names and bool(torch.isfinite(value).all())
        return self.parameter(value) if trained else value.contiguous()

    def module(self, node: Node, module: nn.Module, *inputs: Value, path: str = "") -> Any:
        """Adds a module that the network runs; of constants alone its result is one."""
        module.eval()
        with torch.no_grad():
            if not any(isinstance(value, Live) for value in inputs):
                return module(*inputs)
            live = [value for value in inputs if isinstance(value, Live)]
            assert len(live) == len(inputs)
            with self.mode:
                found = module(*(value.fake for value in live))
        parts = flat(found)
        for part in parts:
            self._check(node, tuple(part.shape))
        path = self._free(path or path_of(node))
        self.modules[path] = module
        made = [Live(f"{path}:{index}", part) for index, part in enumerate(parts)]
        step = Step(path, tuple(v.name for v in live), tuple(v.name for v in made))
        self.steps.append(step)
        return tuple(made) if isinstance(found, (tuple, list)) else made[0]

    def layer(self, node: Node, module: nn.Module, *inputs: Value, weight: Tensor) -> Any:
        """Adds a module that is named after its weight in the file, where that name says more."""
        name = self.names.get(id(weight), "")
        stem = name.removesuffix(".weight")
        return self.module(node, module, *inputs, path=cleaned(stem) if stem != name else "")

    @staticmethod
    def _check(node: Node, shape: tuple[int, ...]) -> None:
        if prod(shape) > MOST:
            raise node.error(f"makes {prod(shape):,} numbers, {shape}", f"at most {MOST:,} are taken")
        if 0 in shape and len(shape) > 1:
            raise node.error(f"makes the shape {shape}, without any numbers", "give a larger --shape")

    def _free(self, path: str) -> str:
        """A path like this one that is no module's yet, below no module and above none."""
        parts = path.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts))}
        if above & self.modules.keys() or self._is_reserved(path):
            path = f"{path.replace('.', '_')}_"  # no module can be below another one
        count, free = 1, path
        while not self._is_free(free):
            count += 1
            free = f"{path}_{count}"
        return free

    def _is_free(self, path: str) -> bool:
        parts = path.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        taken = above & self.modules.keys() or any(name.startswith(f"{path}.") for name in self.modules)
        return not taken and not self._is_reserved(path)

    @staticmethod
    def _is_reserved(path: str) -> bool:
        return any(part in RESERVED or hasattr(nn.Module, part) for part in path.split("."))


#: Attributes of `Network`, and those that apps give it.
RESERVED = frozenset({"steps", "outputs", "training", "decoding", "input_size"})


def _any_live(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_any_live(each) for each in value)
    return isinstance(value, Live)


def path_of(node: Node) -> str:
    """A module's path from a node's name: "/layer1/layer1.0/conv1/Conv" is "layer1.0.conv1".

    The last word of an exporter's scope is the operation. It stays where no layer of that name can follow.
    """
    parts = [part for part in re.split(r"[/]", node.name) if part]
    own = bool(re.fullmatch(rf"{re.escape(node.kind)}(_\d+)?", parts[-1])) if parts else False
    if len(parts) > 1 and own and node.kind in LAYERS:
        parts = parts[:-1]
    kept: list[str] = []
    for part in parts:
        if kept and part.startswith(f"{kept[-1]}."):
            kept.pop()
        kept.append(part)
    return cleaned(".".join(kept))


#: What is a layer of its own in most frameworks, so that its scope is its name.
LAYERS = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Linear", "BatchNormalization", "LayerNormalization", "PRelu",
    "InstanceNormalization", "GroupNormalization", "LSTM", "GRU", "RNN",
})  # fmt: skip


def cleaned(name: str) -> str:
    """A name of dots, letters, numbers and underscores."""
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in name.split(".")]
    return ".".join(part for part in parts if part) or "node"


def listed(values: Sequence[str], most: int = 4) -> str:
    """Names for a line: the first few, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"{', '.join(values[:most])}{more}"
