"""Keras models into plain torch modules, channels first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.keras.file import Place, Saved, read_keras
from paredown.pipeline.recipe.imports.keras.graph import Model, Ref, Spec, first_sizes, places, read_model
from paredown.pipeline.recipe.imports.keras.layers.table import ALIASES, EXPORT, LAYERS, REFUSED
from paredown.pipeline.recipe.imports.keras.maker import CHANNELS_FIRST, Layer, LayerNode, Maker, Value
from paredown.pipeline.recipe.imports.onnx.network import Network
from paredown.targets.errors import InputError

#: What a damaged configuration makes Python raise.
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a Keras model; see `imports.read`.

    Raises:
        InputError: it cannot be imported; the line says why, and names the layer.
    """
    with read_keras(path) as saved:
        try:
            return _imported(saved, path, shape)
        except InputError as error:
            raise InputError(str(error), where=path) from error
        except DAMAGED as error:
            what = f"its configuration is damaged ({type(error).__name__}: {str(error)[:80]})"
            raise InputError(what, where=path) from error


def _imported(saved: Saved, path: Path, shape: tuple[int, ...] | None) -> Imported:
    model = read_model(str(saved.config.get("class_name")), saved.config.get("config"))
    sizes, notes = _input(model, shape)
    made = [_built(saved, model, sizes, order, path) for order in _orders(model, sizes, shape)]
    best = min(made, key=lambda each: each.maker.turned)
    builder = best.maker.builder
    version = f" {saved.version}" if saved.version else ""
    full = tuple(int(size) for size in builder.input.fake.shape)
    notes += [*best.notes, *builder.notes]
    return Imported(best.network, full, f"Keras{version}", tuple(notes), best.names)


@dataclass(frozen=True)
class _Made:
    """A network, and what it was made with."""

    network: Network
    maker: Maker
    names: tuple[str, ...]
    notes: tuple[str, ...]


# -- the input -----------------------------------------------------------------------------------------------


def _input(model: Model, asked: tuple[int, ...] | None) -> tuple[tuple[int, ...], list[str]]:
    """The input's sizes as Keras has them, a batch of one first, and what there is to say of them."""
    if len(model.inputs) != 1:
        names = ", ".join(ref[0] for ref in model.inputs) or "none"
        raise InputError(f"takes {len(model.inputs)} inputs ({names}), not one tensor",
                         hint="save a model of one input")  # fmt: skip
    name = model.inputs[0][0]
    spec = model.layers.get(name)
    if spec is None or spec.kind != "InputLayer":
        raise InputError(f"its input {name} is not in the file")
    said = first_sizes(spec.config)
    notes = []
    if said is None:
        if asked is None:
            raise InputError("does not say the shape of its input", hint="give it: --shape 3x224x224")
        said = [None] * (len(asked) + (1 if len(asked) < 4 else 0))
    if said and isinstance(said[0], int) and said[0] > 1:
        notes.append(f"the file is for a batch of {said[0]}; here it is 1")
    known: list[int | None] = [1, *said[1:]]
    if len(known) not in CHANNELS_FIRST or len(known) < 2:
        raise InputError(
            f"its input {name} is {_text(known)}", hint="known are 2 to 4 axes, the batch included"
        )
    kind = spec.config.get("dtype")
    kind = kind if isinstance(kind, str) else "float32"
    if kind != "float32":
        notes.append(f"the input {name} is {kind}; here it is float32")
    full = _filled(known, asked, name, _is_channels_first(model), notes)
    return full, notes


def _filled(
    known: list[int | None], asked: tuple[int, ...] | None, name: str, first: bool, notes: list[str]
) -> tuple[int, ...]:
    """The sizes that the file says; what is asked for fills those it leaves open, or stands for them."""
    text = _text(known)
    given = list(asked or ())
    if len(given) == len(known) and given:
        given = given[1:]
    if min(given, default=1) < 1 or (
        len(given) not in (0, len(known) - 1) and (len(given), len(known)) != (2, 4)
    ):
        raise InputError(f"the input {name} is {text}, and the shape {_text(given)} does not fit",
                         hint=f"give {len(known) - 1} sizes, channels first")  # fmt: skip
    ways: list[list[int | None]] = [known[1:]]
    if len(given) == 2 and len(known) == 4:  # height and width
        ways = [[known[1], *given]] if first else [[*given, known[3]]]
    elif given:
        ways = [[*given]] if first or len(given) == 1 else [[*given[1:], given[0]], [*given]]
    fits = [
        way for way in ways if all(size in (None, each) for size, each in zip(known[1:], way, strict=True))
    ]
    channel = 0 if first else -1
    near = [way for way in ways if known[1:][channel] in (None, way[channel])]
    way = (fits or near or ways)[0]
    if None in way:
        example = _text(known[1:] if first else [*known[-1:], *known[1:-1]], "224")
        raise InputError(f"the input {name} is {text}, with sizes left open",
                         hint=f"give them, channels first: --shape {example}")  # fmt: skip
    if not near:
        raise InputError(f"the input {name} is {text}, and the shape {_text(given)} does not fit",
                         hint=f"give {len(known) - 1} sizes, channels first")  # fmt: skip
    full = (1, *(int(size) for size in way if size is not None))
    if not fits:
        notes.append(f"the file declares {text}; it is imported for {_text(full)}, as asked")
    return full


def _orders(model: Model, sizes: tuple[int, ...], asked: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """The orders of the input's axes to try: channels first for images; of sequences whatever turns less."""
    plain = tuple(range(len(sizes)))
    if _is_channels_first(model) or len(sizes) < 3:
        return [plain]
    first = CHANNELS_FIRST[len(sizes)]
    if len(sizes) == 4:
        return [first]
    given = [order for order in (first, plain) if asked and tuple(sizes[a] for a in order[1:]) == asked[-2:]]
    return given if len(given) == 1 else [first, plain]


def _is_channels_first(model: Model) -> bool:
    formats = [spec.config.get("data_format") for spec in model.layers.values()]
    for spec in model.layers.values():
        if spec.is_model:
            formats += [each["config"].get("data_format") for each in spec.config["layers"]
                        if isinstance(each, Mapping) and isinstance(each.get("config"), Mapping)]  # fmt: skip
    return "channels_first" in formats


# -- the layers ----------------------------------------------------------------------------------------------


def _built(saved: Saved, model: Model, sizes: tuple[int, ...], order: tuple[int, ...], path: Path) -> _Made:
    shape = tuple(sizes[axis] for axis in order)
    maker = Maker.start(path, shape, saved.weights, places(model))
    x = Value(maker.builder.input, order)
    found = _run(maker, saved, model, [x])
    notes = []
    if order != tuple(range(len(order))):
        notes.append(f"the input is {_text(shape)}, channels first; in Keras it is {_text(sizes)}")
    outputs = []
    for ref, value in zip(model.outputs, found, strict=True):
        kind = model.layers[ref[0]].kind
        node = LayerNode(f"{ref[0]}_output", kind, (), ())
        value = maker.plain(Layer(node, {}, model.layers[ref[0]].place), value)
        if value.order != tuple(range(value.rank)):
            ours, theirs = _text(value.live.fake.shape), _text(value.shape)
            notes.append(f"the output {ref[0]} is {ours}, channels first; in Keras it is {theirs}")
        outputs.append(value)
    if not maker.builder.steps:
        raise InputError("the model returns its input")
    names = [value.live.name for value in outputs]
    network = Network(maker.builder.modules, maker.builder.steps, names).eval()
    return _Made(network, maker, tuple(ref[0] for ref in model.outputs), tuple(notes))


def _text(sizes: Sequence[int | None], unknown: str = "?") -> str:
    return "x".join(unknown if size is None else str(int(size)) for size in sizes)


def _run(m: Maker, saved: Saved, model: Model, inputs: Sequence[Value]) -> list[Value]:
    """Builds a model for these inputs; what it returns."""
    if len(inputs) != len(model.inputs) or not model.outputs:
        raise InputError("a model within it is given another number of inputs")
    values: dict[Ref, Value] = dict(zip(model.inputs, inputs, strict=True))
    for spec, number in model.ordered():
        if (spec.name, number, 0) in values:
            continue
        if spec.kind == "InputLayer":
            raise InputError(f"its layer {spec.name} is an input that it does not name")
        given = spec.calls[number] if spec.calls else ()
        reads = [ref if isinstance(ref, float) else values.get(ref) for ref in given]
        known = [value for value in reads if value is not None]
        if len(known) != len(reads) or not known:
            raise InputError(f"the layer {spec.name} reads an output that no layer has")
        for index, value in enumerate(_one(m, saved, spec, known)):
            values[spec.name, number, index] = value
    if missing := [ref[0] for ref in model.outputs if ref not in values]:
        raise InputError(f"its output {missing[0]} is not made by any layer")
    return [values[ref] for ref in model.outputs]


def _one(m: Maker, saved: Saved, spec: Spec, inputs: Sequence[Any]) -> list[Value]:
    """Builds one layer, or a model within the model."""
    node = LayerNode("/".join(spec.place.names), spec.kind, (), ())
    if spec.foreign:
        raise node.error(f"is a class of {spec.foreign}, the user's own code, which is not run",
                         f"write it with layers of Keras, or {EXPORT}")  # fmt: skip
    if spec.is_model:
        inner = read_model(spec.kind, spec.config, spec.place.names, spec.place.folders)
        return _run(m, saved, inner, inputs)
    kind = ALIASES.get(spec.kind, spec.kind)
    if kind in REFUSED:
        raise node.error(*REFUSED[kind])
    build: Any = LAYERS.get(kind)
    config, place = spec.config, spec.place
    if kind == "TimeDistributed" and _wrapped(config) == "Dense":
        build, kind, config = LAYERS["Dense"], "Dense", config["layer"]["config"]
        place = Place((*place.names, str(config.get("name"))), f"{place.folders}/layer")
    if build is None:
        raise node.error("is not known to the importer", f"write it with other layers, or {EXPORT}")
    layer = Layer(LayerNode(node.name, kind, (), ()), config, place, saved.major)
    policy = config.get("dtype")
    if isinstance(policy, Mapping) and "int8" in str(policy.get("config")) + str(policy.get("class_name")):
        raise node.error("is quantized by Keras", "save the model before it is quantized")
    try:
        return [build(m, layer, *inputs)]
    except InputError as error:
        if error.what.startswith("layer "):
            raise
        raise node.error(error.what) from error
    except Exception as error:  # a damaged file can ask anything of torch
        lines = str(error).splitlines() or [""]
        raise node.error(
            f"cannot be built ({type(error).__name__}: {lines[0][:120]})", "check the file"
        ) from error


def _wrapped(config: Mapping[str, Any]) -> str:
    inner = config.get("layer")
    return str(inner.get("class_name")) if isinstance(inner, Mapping) else ""
