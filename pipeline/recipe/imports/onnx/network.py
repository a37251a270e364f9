"""The module that an ONNX graph becomes: plain layers and functions, run one after the other (our design)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

INPUT = "input"


@dataclass(frozen=True)
class Step:
    """One module at work.

    Attributes:
        path: of the module.
        inputs: names of the values that it takes.
        outputs: names of the values that it makes.
        last: names of the values that nothing reads after it.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """The place of an input among a function's arguments."""

    index: int


@dataclass(frozen=True)
class Held:
    """The place of one of the module's own tensors among a function's arguments."""

    name: str


class Call(nn.Module):
    """A function as a module; the constant tensors that it takes are its parameters.

    Args:
        function: of torch, or one below.
        arguments: with a `Slot` for each input.
        keywords: the same, by name.
        tensors: of the `Held`; parameters can be trained, other tensors are buffers.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        keywords: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.function, self.arguments, self.keywords = function, tuple(arguments), dict(keywords)
        for name, value in tensors.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, *values: Tensor) -> Any:
        """The function of the inputs, in the order of their slots."""
        keywords = {name: self._filled(value, values) for name, value in self.keywords.items()}
        return self.function(*(self._filled(value, values) for value in self.arguments), **keywords)

    def _filled(self, argument: Any, values: Sequence[Tensor]) -> Any:
        if isinstance(argument, Slot):
            return values[argument.index]
        if isinstance(argument, Held):
            return getattr(self, argument.name)
        if isinstance(argument, (list, tuple)):
            return type(argument)(self._filled(each, values) for each in argument)
        return argument

    def extra_repr(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", str(self.function))


class Network(nn.Module):
    """An imported graph.

    Args:
        modules: by path, as "layer1.0.conv1".
        steps: in running order.
        outputs: names of the values that are returned; of one the tensor alone.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], steps: Sequence[Step], outputs: Sequence[str]
    ) -> None:
        super().__init__()
        for path, module in modules.items():
            *parents, name = path.split(".")
            place: nn.Module = self
            for parent in parents:
                if parent not in place._modules:
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.add_module(name, module)
        self.steps, self.outputs = _with_ends(steps, outputs), tuple(outputs)

    def forward(self, x: Tensor) -> Any:
        """The outputs of the graph for one batch of its input."""
        values: dict[str, Any] = {INPUT: x}
        for step in self.steps:
            found = self.get_submodule(step.path)(*(values[name] for name in step.inputs))
            parts = flat(found)
            values |= zip(step.outputs, parts, strict=True)
            for name in step.last:
                del values[name]
        made = tuple(values[name] for name in self.outputs)
        return made[0] if len(made) == 1 else made


def flat(found: Any) -> tuple[Tensor, ...]:
    """The tensors of what a module returned, as of an LSTM its outputs and two states."""
    if not isinstance(found, (tuple, list)):
        return (found,)
    return tuple(each for part in found for each in flat(part))


def needed(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """The steps whose values come to anything."""
    wanted, kept = set(outputs), []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            kept.append(step)
            wanted |= set(step.inputs)
    return kept[::-1]


def _with_ends(steps: Sequence[Step], outputs: Sequence[str]) -> tuple[Step, ...]:
    """The steps, each knowing which values can be let go after it."""
    kept, made = set(outputs), []
    for step in reversed(steps):
        names = dict.fromkeys((*step.inputs, *step.outputs))
        made.append(Step(step.path, step.inputs, step.outputs, tuple(n for n in names if n not in kept)))
        kept |= set(names)
    return tuple(reversed(made))
