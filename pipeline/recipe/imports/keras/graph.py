"""A Keras model's configuration as layers and calls: Sequential and Functional, nested in any depth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paredown.pipeline.recipe.imports.keras.file import Place
from paredown.targets.errors import InputError

DEPTH = 20  # of models in models
MODELS = ("Sequential", "Functional", "Model")
#: Output of a call: name of the layer, number of its call, number of the output.
Ref = tuple[str, int, int]
#: What a layer may be given beside its inputs without a difference.
HARMLESS = ("training", "mask")


@dataclass(frozen=True)
class Spec:
    """A layer of a model.

    Attributes:
        name: unique within the model.
        kind: its class.
        config: its own.
        place: of its weights.
        calls: the inputs of each of its calls.
        foreign: the package of a class that is not Keras's own, or "".
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    place: Place
    calls: tuple[tuple[Ref | float, ...], ...]
    foreign: str = ""

    @property
    def is_model(self) -> bool:
        """Whether it is a model of its own, within this one."""
        return self.kind in MODELS and "layers" in self.config


@dataclass(frozen=True)
class Model:
    """A model.

    Attributes:
        layers: by name, in the order of the file.
        inputs: what it is given, in order.
        outputs: what it returns, in order.
    """

    layers: Mapping[str, Spec]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]

    def ordered(self) -> list[tuple[Spec, int]]:
        """Every call that the outputs need, each after those whose results it reads.

        Raises:
            InputError: one reads what no layer makes, or they read each other in a circle.
        """
        done: set[tuple[str, int]] = set()
        order: list[tuple[Spec, int]] = []
        stack = [(ref[0], ref[1], False) for ref in reversed(self.outputs)]
        open_: set[tuple[str, int]] = set()
        while stack:
            name, number, ready = stack.pop()
            key = name, number
            if key in done:
                continue
            spec = self.layers.get(name)
            if spec is None or not 0 <= number < max(len(spec.calls), 1):
                raise InputError(f"reads the layer {name}, call {number}, which is not in the file")
            if ready:
                done.add(key)
                open_.discard(key)
                order.append((spec, number))
                continue
            if key in open_:
                raise InputError(f"the layer {name} reads its own result")
            open_.add(key)
            stack.append((name, number, True))
            reads = spec.calls[number] if spec.calls else ()
            for ref in reversed(reads):
                if isinstance(ref, float):
                    continue
                if (ref[0], ref[1]) in open_:
                    raise InputError(f"the layer {name} reads its own result")
                stack.append((ref[0], ref[1], False))
        return order


def read_model(kind: str, config: Any, names: tuple[str, ...] = (), folders: str = "") -> Model:
    """A model from its configuration.

    Args:
        kind: its class.
        config: its own.
        names: of the models that it lies in.
        folders: of its weights, in a `.keras` file.

    Raises:
        InputError: a class of model that is not known, or the configuration is damaged.
    """
    if kind not in MODELS or not isinstance(config, (Mapping, list)):
        raise InputError(f"is a model of the class {kind}, which is the user's own code",
                         hint="build it with Sequential or Functional, or export it as ONNX")  # fmt: skip
    listed = config if isinstance(config, list) else config.get("layers")
    if not isinstance(listed, list) or not listed:
        raise InputError("its configuration lists no layers")
    used: Counter[str] = Counter()
    layers: dict[str, Spec] = {}
    for each in listed:
        spec = _layer(each, used, names, folders, sequential=kind == "Sequential")
        if spec.name in layers:
            raise InputError(f"two of its layers are called {spec.name}")
        layers[spec.name] = spec
    if kind == "Sequential":
        return _chained(layers, config if isinstance(config, Mapping) else {})
    assert isinstance(config, Mapping)
    return Model(layers, tuple(_refs(config.get("input_layers"))), tuple(_refs(config.get("output_layers"))))


def places(model: Model, depth: int = 0) -> Iterator[Place]:
    """Where the weights of all layers lie, those of models within included.

    Raises:
        InputError: there are too many models within each other.
    """
    if depth > DEPTH:
        raise InputError(f"nests models more than {DEPTH} deep")
    for spec in model.layers.values():
        yield spec.place
        if spec.is_model:
            inner = read_model(spec.kind, spec.config, spec.place.names, spec.place.folders)
            yield from places(inner, depth + 1)


def _layer(each: Any, used: Counter[str], names: tuple[str, ...], folders: str, sequential: bool) -> Spec:
    if not isinstance(each, Mapping) or not isinstance(each.get("config"), (Mapping, list)):
        raise InputError("its configuration lists something that is no layer")
    kind, config = str(each.get("class_name")), each["config"]
    own = config.get("name") if isinstance(config, Mapping) else None
    name = str(each.get("name") or own or _snake(kind))
    folder = _snake(kind)
    number = used[folder]
    used[folder] += 1
    folder = f"{folder}_{number}" if number else folder
    place = Place((*names, name), f"{folders}/layers/{folder}".lstrip("/"))
    if not isinstance(config, Mapping):
        config = {"layers": config}
    module = str(each.get("module") or "keras")
    is_operation = module.startswith("keras.src.ops")
    nodes = () if sequential else each.get("inbound_nodes") or ()
    calls = tuple(tuple(_inputs(name, node, is_operation)) for node in nodes)
    registered = each.get("registered_name")
    foreign = "" if module.split(".")[0] in ("keras", "tf_keras", "tensorflow", "None") else module
    if (
        not foreign
        and isinstance(registered, str)
        and ">" in registered
        and not registered.startswith("keras")
    ):
        foreign = registered
    if each.get("module") is None and isinstance(registered, str) and registered not in ("", kind):
        foreign = registered
    if is_operation:
        kind = f"{kind} of keras.ops"
    return Spec(name, kind, config, place, calls, foreign)


def _chained(layers: dict[str, Spec], config: Mapping[str, Any]) -> Model:
    """A Sequential: each layer reads the one before it."""
    first, last = next(iter(layers)), None
    made: dict[str, Spec] = {}
    if layers[first].kind != "InputLayer":
        start = "input" if "input" not in layers else "the input"
        made[start] = Spec(start, "InputLayer", _input_config(layers[first], config), Place((start,), ""), ())
        last = start
    for name, spec in layers.items():
        calls = () if last is None else ((((last, 0, 0)),),)
        made[name] = Spec(name, spec.kind, spec.config, spec.place, calls, spec.foreign)
        last = name
    assert last is not None
    return Model(made, ((next(iter(made)), 0, 0),), ((last, 0, 0),))


def _input_config(spec: Spec, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the first layer of a Sequential says of its input, or that of the model that it is."""
    for key in ("batch_input_shape", "batch_shape"):
        if key in spec.config:
            return {key: spec.config[key], "dtype": spec.config.get("dtype", "float32")}
    if spec.is_model:
        found: Any = next((each["config"] for each in spec.config["layers"] if isinstance(each, Mapping)
                      and isinstance(each.get("config"), Mapping)), {})  # fmt: skip
        if {"batch_input_shape", "batch_shape"} & set(found):
            return dict(found)
    return {"batch_shape": config.get("build_input_shape")}


def _inputs(name: str, node: Any, numbers: bool) -> Iterator[Ref | float]:
    """The inputs of one call, as Keras 2 or 3 writes it."""
    if isinstance(node, Mapping):
        for key, value in (node.get("kwargs") or {}).items():
            if value is not None and key not in HARMLESS:
                raise InputError(f"the layer {name} is called with {key}", hint="give it its inputs alone")
        yield from _tensors(name, node.get("args", []), numbers)
        return
    parts = [node] if node and isinstance(node[0], str) else node
    for part in parts:
        if not (isinstance(part, list) and len(part) >= 3 and isinstance(part[0], str)):
            raise InputError(
                f"the layer {name} is called with {str(part)[:40]}", hint="give it its inputs alone"
            )
        for key, value in (part[3] if len(part) > 3 else {}).items():
            if value is not None and key not in HARMLESS:
                raise InputError(f"the layer {name} is called with {key}", hint="give it its inputs alone")
        yield part[0], int(part[1]), int(part[2])


def _tensors(name: str, value: Any, numbers: bool) -> Iterator[Ref | float]:
    if isinstance(value, list):
        for each in value:
            yield from _tensors(name, each, numbers)
    elif isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        yield from _refs([value["config"]["keras_history"]])
    elif numbers and isinstance(value, (int, float)):
        yield float(value)
    elif value is not None:
        raise InputError(
            f"the layer {name} is called with {str(value)[:40]}", hint="give it its inputs alone"
        )


def _refs(value: Any) -> Iterator[Ref]:
    """Outputs of layers, in lists, dicts, or alone."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _refs(each)
    elif isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        yield value[0], int(value[1]), int(value[2])
    elif isinstance(value, list):
        for each in value:
            yield from _refs(each)
    else:
        raise InputError("its configuration names no inputs or outputs")


def _snake(name: str) -> str:
    """How Keras writes a class in lower case."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def first_sizes(config: Mapping[str, Any]) -> Sequence[int | None] | None:
    """The shape that an input's configuration says, the batch included."""
    found = config.get("batch_shape", config.get("batch_input_shape"))
    if not isinstance(found, list) or not all(size is None or isinstance(size, int) for size in found):
        return None
    return found
