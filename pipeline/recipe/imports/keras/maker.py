"""What Keras's layers are built with: values with the order of their axes, weights by their role.

Keras keeps channels last, torch and everything after it channels first. A value knows which of Keras's axes
each of its own is, so that layers are built for channels first and nothing is turned, but where a layer needs
another order. A flattened map keeps torch's order too; the next layer's weights follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.keras.file import Place
from paredown.pipeline.recipe.imports.onnx.builder import Builder, Live, Node
from paredown.targets.errors import InputError

CHANNELS_FIRST = {1: (0,), 2: (0, 1), 3: (0, 2, 1), 4: (0, 3, 1, 2)}


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the network.

    Attributes:
        live: in the network's steps.
        order: the axis of Keras's that each of torch's is.
        flat: Keras's place of each number, where a map was flattened in torch's order.
        whole: the map that was flattened.
    """

    live: Live
    order: tuple[int, ...]
    flat: Tensor | None = None
    whole: Value | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As Keras has it, with a batch of one."""
        sizes = dict(zip(self.order, self.live.fake.shape, strict=True))
        return tuple(int(sizes[axis]) for axis in range(len(self.order)))

    @property
    def rank(self) -> int:
        """Number of axes, the batch included."""
        return len(self.order)


@dataclass(frozen=True)
class LayerNode(Node):
    """A layer of Keras as the builder names what it makes."""

    def error(self, what: str, hint: str | None = None) -> InputError:
        """The error that this layer cannot be imported."""
        return InputError(f"layer {self.name} ({self.kind}): {what}", hint=hint)


@dataclass(frozen=True)
class Layer:
    """A layer at work.

    Attributes:
        node: its name and kind.
        config: as the file has it.
        place: of its weights.
        major: of Keras: 2 or 3.
    """

    node: LayerNode
    config: Mapping[str, Any]
    place: Place
    major: int = 3

    def named(self, suffix: str) -> Layer:
        """The same with another name, for a step that Keras does within it."""
        return replace(self, node=replace(self.node, name=f"{self.node.name}_{suffix}", kind=""))

    def error(self, what: str, hint: str | None = None) -> InputError:
        """The error that this layer cannot be imported."""
        return self.node.error(what, hint)

    def pair(self, key: str, rank: int = 2, default: int = 1) -> tuple[int, ...]:
        """A size for each axis: "kernel_size", "strides"."""
        found = self.config.get(key)
        found = default if found is None else found
        sizes = [found] * rank if isinstance(found, int) else list(found)
        if len(sizes) != rank or not all(isinstance(size, int) and 0 < size < 2**20 for size in sizes):
            raise self.error(f"its {key} is {found}, not {rank} sizes")
        return tuple(sizes)


class Held(Protocol):
    """The weights of all layers, as a file has them."""

    def of(self, place: Place, roles: tuple[str, ...], inner: str = "") -> dict[str, Tensor]:
        """Those of one layer, by their role."""


@dataclass
class Maker:
    """Builds layers, one after the other.

    Attributes:
        builder: of modules and steps.
        weights: of the file.
        places: of the weights of all layers.
        turned: how many values had to be put into another order.
    """

    builder: Builder
    weights: Held
    places: tuple[Place, ...] = ()
    turned: int = 0
    _same: dict[Place, Place] = field(default_factory=dict)
    _parameters: dict[tuple[Any, ...], nn.Parameter] = field(default_factory=dict)
    _read: dict[tuple[Place, str], dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def start(cls, path: Path, shape: tuple[int, ...], weights: Held, places: Iterable[Place]) -> Maker:
        """Of a network with this input, (1, ...)."""
        return cls(Builder(path, shape), weights, tuple(places))

    # -- weights -------------------------------------------------------------------------------------------

    def read(
        self, layer: Layer, roles: tuple[str, ...], inner: str = "", **other_names: str
    ) -> dict[str, Tensor]:
        """The weights of a layer, all of these roles.

        Args:
            layer: whose weights they are.
            roles: names of the weights in their order.
            inner: folders of a layer within it.
            other_names: of a role, in another version of Keras.

        Raises:
            InputError: one is missing.
        """
        key = layer.place, inner
        if key not in self._read:
            try:
                self._read[key] = self._found(layer.place, roles, inner)
            except InputError as error:
                raise layer.error(error.what) from None
        found = self._read[key]
        found = found | {role: found[name] for role, name in other_names.items() if name in found}
        if missing := [role for role in roles if role not in found]:
            verb = "is" if len(missing) == 1 else "are"
            raise layer.error(f"its {' and '.join(missing)} {verb} not in the file",
                              'save it again with model.save("model.keras")')  # fmt: skip
        return {role: found[role] for role in roles}

    def _found(self, place: Place, roles: tuple[str, ...], inner: str) -> dict[str, Tensor]:
        """The weights at a place; where a model is used twice, they are saved at its first place alone."""
        found = self.weights.of(place, roles, inner)
        for other in self.places if roles and not found else ():
            if other.names[-1] == place.names[-1] and other != place:
                found = self.weights.of(other, roles, inner)
                if found:
                    self._same[place] = other
                    break
        return found

    def parameter(
        self, layer: Layer, role: str, value: Tensor, shape: tuple[int, ...] | None = None
    ) -> nn.Parameter:
        """A weight as a parameter: the same one wherever the layer is used again."""
        if shape is not None and tuple(value.shape) != shape:
            raise layer.error(f"its {role} is {tuple(value.shape)}, not {shape}")
        key = self._same.get(layer.place, layer.place), role, tuple(value.shape)
        known = self._parameters.get(key)
        if known is not None and torch.equal(known.detach(), value):
            return known
        self._parameters[key] = made = nn.Parameter(value.detach().contiguous().clone())
        return made

    # -- steps ---------------------------------------------------------------------------------------------

    def module(
        self, layer: Layer, module: nn.Module, x: Value, order: tuple[int, ...] | None = None
    ) -> Value:
        """Runs a module; its output has the input's order of axes unless another is given."""
        made: Live = self.builder.module(layer.node, module, x.live)
        return Value(made, x.order if order is None else order, x.flat if order is None else None)

    def call(
        self, layer: Layer, function: Callable[..., Any], like: Value, *arguments: Any,
        order: tuple[int, ...] | None = None, **keywords: Any,
    ) -> Value:  # fmt: skip
        """Runs a function of the values among its arguments; `like` says the order of the result."""
        made: Live = self.builder.call(layer.node, function, *map(_live, arguments), **keywords)
        return Value(made, like.order if order is None else order, like.flat if order is None else None)

    # -- orders --------------------------------------------------------------------------------------------

    def plain(self, layer: Layer, x: Value) -> Value:
        """A value whose numbers are where Keras has them."""
        if x.flat is None:
            return x
        if x.whole is not None:
            whole = self.ordered(layer, x.whole, tuple(range(x.whole.rank)))
            return self.call(layer.named("flat"), torch.flatten, x, whole, 1, order=(0, 1))
        places = torch.argsort(x.flat)
        self.turned += 1
        return self.call(layer.named("places"), torch.index_select, x, x, 1, places, order=x.order)

    def ordered(self, layer: Layer, x: Value, order: tuple[int, ...]) -> Value:
        """A value with its axes in this order."""
        if x.order == order:
            return x
        places = tuple(x.order.index(axis) for axis in order)
        sizes = tuple(int(size) for size in x.live.fake.shape)
        moved = [place for place in places if sizes[place] > 1]
        named = layer.named("turned")
        if moved == sorted(moved):  # only axes of one number move: the numbers stay
            shape = [sizes[place] for place in places]
            return self.call(named, torch.reshape, x, x, shape, order=order)
        self.turned += 1
        return self.call(named, torch.permute, x, x, places, order=order)

    def first(self, layer: Layer, x: Value) -> Value:
        """A value with its channels first, as Keras's last axis is."""
        return self.ordered(layer, self.plain(layer, x), CHANNELS_FIRST[x.rank])

    def axis(self, layer: Layer, x: Value, axis: int) -> int:
        """Torch's axis for one of Keras's."""
        if not -x.rank <= axis < x.rank:
            raise layer.error(f"has the axis {axis}, and its input {x.rank} of them")
        return x.order.index(axis % x.rank)

    def channels(self, layer: Layer, x: Value) -> Value:
        """The value as a layer with `data_format` reads it: channels first for torch."""
        if layer.config.get("data_format") == "channels_first":
            return self.ordered(layer, self.plain(layer, x), tuple(range(x.rank)))
        return self.first(layer, x)


def _live(value: Any) -> Any:
    if isinstance(value, Value):
        return value.live
    return (
        [_live(each) for each in value]
        if isinstance(value, list) and value and isinstance(value[0], Value)
        else value
    )
