"""A recipe for a model file that has none: the app, the preprocessing and the data, and what was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.apps.api.imports.model_data import KINDS, Found, check, look, section
from paredown.apps.api.imports.recognise import Recognised, recognise
from paredown.targets.errors import InputError, UsageError

if TYPE_CHECKING:
    from paredown.pipeline.recipe.imports.imported import Imported

APPS = {
    "outputs": "apps.outputs", "classify": "apps.classifier", "detect": "apps.detector",
    "segment": "apps.segmenter",
}  # fmt: skip
#: Mean and scale of value 0 to 255 with which most public networks were trained: ImageNet's.
MEAN, SCALE = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PLACING = ("resize", "shorter_side", "resample")


@dataclass(frozen=True)
class Asked:
    """What the command line says of a model.

    Attributes:
        data: photos, arrays, or a YAML of labelled data.
        task: one of `APPS`; None = what the outputs and the data show.
        mean: subtracted from each channel of 0 to 255; None = not said.
        scale: divides what is left; None = not said.
        channels: "rgb", "bgr" or "grey"; None = not said.
        shape: of the input, where the file leaves it open.
    """

    data: Path
    task: str | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    channels: str | None = None
    shape: tuple[int, ...] | None = None


def numbers(text: str | None, option: str, kind: type = float, by: str = ",") -> tuple[Any, ...] | None:
    """The numbers of an option, "0.5,0.5,0.5" or "3x224x224".

    Raises:
        UsageError: it is not that.
    """
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.lower().replace(" ", "").split(by))
    except ValueError:
        example = "3x224x224" if by == "x" else "123.7,116.3,103.5"
        raise UsageError(f"{text!r} is no list of numbers", where=option, hint=f"as {example}") from None


def model_recipe(model: Path, asked: Asked, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Writes the recipe of a model file.

    Args:
        model: the file.
        asked: what is known of it.
        folder: where the recipe goes, as the model's name and .toml.

    Returns:
        The recipe's file, and what the user should know: each a sentence without its full stop.

    Raises:
        UsageError: options that do not fit each other.
        InputError: the model cannot be imported, or the data cannot be read.
    """
    import tomli_w

    from paredown.pipeline.recipe.imports.read import read

    path, said = folder / f"{model.stem}.toml", list[str]()
    tables = proposed(model, read(model, asked.shape), asked, path, said)
    save(tomli_w.dumps(tables), path, said)
    said.append(f"the recipe is {path}; change it, and `paredown run {path}`")
    return path, tuple(said)


def proposed(model: Path, found: Imported, asked: Asked, path: Path, said: list[str]) -> dict[str, Any]:
    """The tables of a model file's recipe.

    Args:
        model: the file.
        found: what it holds.
        asked: what else is known.
        path: of the recipe; lists of names are written beside it.
        said: gets what the user should know.

    Raises:
        UsageError: options that do not fit each other.
        InputError: the model or the data do not fit.
    """
    if asked.task is not None and asked.task not in APPS:
        raise UsageError(f"no task {asked.task!r}", where="--task", hint=f"use {', '.join(APPS)}")
    data = look(asked.data)
    said.append(f"data: {data.line()}")
    task, decoding = _task(found, data, asked, model, said)
    tables: dict[str, Any] = {"app": APPS[task], "network": str(model.absolute())}
    if decoding:
        tables["decoding"] = decoding
    if data.kind == "arrays":
        if extra := [n for n in ("mean", "scale", "channels") if getattr(asked, n) is not None]:
            raise UsageError("arrays go into the network as they are", where=f"--{extra[0]}",
                             hint="leave the option out")  # fmt: skip
    else:
        tables["preprocess"] = _preprocess(found, asked, task, model, said)
    path.parent.mkdir(parents=True, exist_ok=True)
    tables["data"] = section(data, task, _names(found, data), path)
    if "train" not in tables["data"] and task != "outputs":
        said.append("the same images calibrate and test")
    elif task == "outputs":
        said.append(
            "the same data calibrates and tests; what is compared are the float network's own outputs"
        )
    return tables


def _names(found: Imported, data: Found) -> tuple[str, ...]:
    """The network's classes: by its own files, by the data, else numbers where masks have no names."""
    if found.labels or data.names or data.kind != "masks":
        return found.labels or data.names
    outputs, _ = _outputs(found)
    return tuple(f"class {index}" for index in range(outputs[0][1]))


def _task(
    found: Imported, data: Found, asked: Asked, model: Path, said: list[str]
) -> tuple[str, dict[str, Any]]:
    """What the network is for, and how a detector's outputs become boxes."""
    if asked.task == "outputs":
        return "outputs", {}
    if asked.task is not None:
        check(data, asked.task)
    outputs, maps = _outputs(found)
    names = found.labels or data.names
    labelled = data.kind in ("yaml", "classes", "masks") and _in_common(found.labels, data.names)
    seen = recognise(outputs, found.shape, len(names) if labelled and names else None, maps)
    if asked.task is None:
        if seen is None or not labelled or data.kind not in KINDS[seen.task]:
            return _unknown(seen, data, outputs, said), {}
        count = f", and there are {len(names)} names" if names else ""
        said.append(f"the task is {seen.task}: {seen.why}{count} (--task)")
    elif asked.task != "detect":
        return asked.task, {}
    elif seen is None or seen.task != "detect":
        raise InputError(
            f"its outputs ({_shapes(outputs)}) are no heads of {len(names)} classes that are known",
            where=model, hint="export the raw convolutions of the heads, or write a recipe with `decoding`",
        )  # fmt: skip
    if seen.decoding:
        kind, strides = seen.decoding["kind"], seen.decoding["strides"]
        said.append(f"the heads are {kind} of strides {strides}: {seen.why}")
        if "anchors" in seen.decoding:
            said.append("assumed: the anchors are those that YOLO v5 begins with (decoding.anchors)")
    return seen.task, seen.decoding


def _in_common(labels: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the data's classes are some of the network's, where both have names."""
    from paredown.calibration.readers.records import match_name

    return not labels or not names or any(match_name(name, labels) is not None for name in names)


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, each)) for each in shapes)


def _unknown(
    seen: Recognised | None, data: Found, outputs: Sequence[tuple[int, ...]], said: list[str]
) -> str:
    """Outputs alone are compared; what else might be possible is said."""
    if data.kind == "yaml":
        raise UsageError(
            f"outputs of {_shapes(outputs)} show no task for {len(data.names)} classes", where="--data",
            hint=f"say it: --task {', '.join(name for name in APPS if name != 'outputs')}",
        )  # fmt: skip
    if seen is not None:
        said.append(
            f"it may be a network that can {seen.task} {seen.classes} classes: {seen.why}; "
            "with labelled --data its score is measured, too"
        )
    return "outputs"


def _outputs(found: Imported) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes of the outputs, and of the maps that the last convolutions make."""
    import torch

    from paredown.pipeline.recipe.imports.logits import last_maps

    with torch.no_grad():
        made = found.module(torch.zeros(found.shape))
    parts = made if isinstance(made, tuple) else (made,)
    return [tuple(part.shape) for part in parts], list(last_maps(found).values())


def save(text: str, path: Path, said: list[str]) -> None:
    """Writes a recipe; another one that was there, such as an edited one, is kept beside it."""
    from paredown.pipeline.store.store import write_atomic

    if path.exists() and path.read_text() != text:
        kept = path.with_suffix(".before.toml")
        path.replace(kept)
        said.append(f"the recipe that was there is kept as {kept}")
    write_atomic(path, text.encode())


def _preprocess(found: Imported, asked: Asked, task: str, model: Path, said: list[str]) -> dict[str, Any]:
    """From a photo to the input, in a recipe's terms: of value / 255."""
    shape = found.shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise InputError(f"takes {shape}, which is no image of one or three channels", where=model,
                         hint="give arrays: --data with .npy files of that shape")  # fmt: skip
    count = shape[1]
    colour = asked.channels or ("grey" if count == 1 else "rgb")
    if (colour == "grey") != (count == 1):
        raise UsageError(f"{colour}, and the network takes {count} channels", where="--channels",
                         hint="use grey for one channel, rgb or bgr for three")  # fmt: skip
    if asked.channels is None:
        said.append(f"assumed: the channels are {colour} (--channels)")
    if asked.mean is None and asked.scale is None:
        own = found.preprocess.get("mean"), found.preprocess.get("std")
        grey = count == 1 or task == "detect"
        mean, scale = ((0.0,) * count, (255.0,) * count) if grey else (MEAN, SCALE)
        words = "values are divided by 255" if grey else "mean and scale are ImageNet's"
        if any(own):
            mean, scale = (
                tuple(255 * v for v in each or (plain,)) for each, plain in zip(own, (0.0, 1.0), strict=True)
            )
            said.append("mean, scale and size are those of the model's own files (--mean, --scale, --shape)")
        else:
            said.append(f"assumed: {words} (--mean, --scale)")
    else:
        mean, scale = asked.mean or (0.0,), asked.scale or (1.0,)
    for option, values in (("--mean", mean), ("--scale", scale)):
        if len(values) not in (1, count) or (option == "--scale" and min(values) <= 0):
            raise UsageError(f"{len(values)} numbers for {count} channels, or not above 0", where=option)
    means, scales = (v * count if len(v) == 1 else v for v in (mean, scale))
    said.append(f"photos are brought to {shape[3]}x{shape[2]}")
    placing = {key: found.preprocess[key] for key in PLACING if key in found.preprocess}
    if placing.get("shorter_side", 0) < max(shape[2:]):  # the file's, and another input was asked for
        placing.pop("shorter_side", None)
    return {
        "width": shape[3], "height": shape[2], "colour": colour,
        "mean": [round(v / 255, 7) for v in means], "std": [round(v / 255, 7) for v in scales],
        **placing,
    }  # fmt: skip
