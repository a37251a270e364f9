"""A recipe for a model file that has none: the app, the preprocessing and the data, and what was assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.targets.errors import InputError, UsageError

if TYPE_CHECKING:
    from paredown.pipeline.recipe.imports.imported import Imported

APPS = {"outputs": "apps.outputs", "classify": "apps.classifier", "detect": "apps.detector"}
#: Mean and scale of value 0 to 255 with which most public networks were trained: ImageNet's.
MEAN, SCALE = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SPLITS = {"train": "train", "test": "val"}  # key of a recipe -> key of a data YAML


@dataclass(frozen=True)
class Asked:
    """What the command line says of a model.

    Attributes:
        data: photos, arrays, or a YAML of labelled data.
        task: one of `APPS`.
        mean: subtracted from each channel of 0 to 255; None = not said.
        scale: divides what is left; None = not said.
        channels: "rgb", "bgr" or "grey"; None = not said.
        shape: of the input, where the file leaves it open.
    """

    data: Path
    task: str = "outputs"
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
    from paredown.pipeline.recipe.imports.read import read

    if asked.task not in APPS:
        raise UsageError(f"no task {asked.task!r}", where="--task", hint=f"use {', '.join(APPS)}")
    found = read(model, asked.shape)
    said: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    data = _data(asked, folder, said)
    arrays = data["format"] == "arrays"
    tables: dict[str, Any] = {"app": APPS[asked.task], "network": str(model.absolute())}
    if arrays:
        if extra := [n for n in ("mean", "scale", "channels") if getattr(asked, n) is not None]:
            raise UsageError("arrays go into the network as they are", where=f"--{extra[0]}",
                             hint="leave the option out")  # fmt: skip
    else:
        tables["preprocess"] = _preprocess(found, asked, model, said)
    tables["data"] = data
    return _written(tables, folder / f"{model.stem}.toml", said), tuple(said)


def _written(tables: Mapping[str, Any], path: Path, said: list[str]) -> Path:
    """Writes a recipe; another one that was there, such as an edited one, is kept beside it."""
    import tomli_w

    from paredown.pipeline.store.store import write_atomic

    text = tomli_w.dumps(dict(tables))
    if path.exists() and path.read_text() != text:
        kept = path.with_suffix(".before.toml")
        path.replace(kept)
        said.append(f"the recipe that was there is kept as {kept}")
    write_atomic(path, text.encode())
    said.append(f"the recipe is {path}; change it, and `paredown run {path}`")
    return path


def _preprocess(found: Imported, asked: Asked, model: Path, said: list[str]) -> dict[str, Any]:
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
        grey = count == 1 or asked.task == "detect"
        mean, scale = ((0.0,) * count, (255.0,) * count) if grey else (MEAN, SCALE)
        words = "values are divided by 255" if grey else "mean and scale are ImageNet's"
        said.append(f"assumed: {words} (--mean, --scale)")
    else:
        mean, scale = asked.mean or (0.0,), asked.scale or (1.0,)
    for option, values in (("--mean", mean), ("--scale", scale)):
        if len(values) not in (1, count) or (option == "--scale" and min(values) <= 0):
            raise UsageError(f"{len(values)} numbers for {count} channels, or not above 0", where=option)
    means, scales = (v * count if len(v) == 1 else v for v in (mean, scale))
    said.append(f"photos are brought to {shape[3]}x{shape[2]}")
    return {
        "width": shape[3], "height": shape[2], "colour": colour,
        "mean": [round(v / 255, 7) for v in means], "std": [round(v / 255, 7) for v in scales],
    }  # fmt: skip


# -- data ----------------------------------------------------------------------------------------------------


def _data(asked: Asked, folder: Path, said: list[str]) -> dict[str, Any]:
    """The section [data] of photos, arrays or a YAML."""
    path = asked.data
    if not path.exists():
        raise InputError("no such file or folder", where=path, hint="give --data a folder of photos")
    if path.suffix.lower() in (".yaml", ".yml"):
        if asked.task == "outputs":
            raise UsageError("labels are for a task", where="--data", hint="add --task detect or classify")
        return _labelled(path, asked.task, folder)
    if asked.task == "detect":
        raise UsageError(
            "--task detect needs labels", where="--data", hint="give a YAML of train, val, names"
        )
    place = str(path.absolute())
    if asked.task == "classify":
        names = sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
        if len(names) < 2:
            raise InputError("holds no folder for each class", where=path,
                             hint="give photos/CLASS/*.jpg, or a YAML of train, val, names")  # fmt: skip
        return {"format": "imagefolder", "names": _names(names, folder), "calibration": place, "test": place}
    arrays = path.suffix.lower() in (".npy", ".npz") or (path.is_dir() and _first(path.rglob("*.npy")))
    said.append("the same data calibrates and tests; what is compared are the float network's own outputs")
    return {"format": "arrays" if arrays else "folder", "calibration": place, "test": place}


def _first(found: Any) -> bool:
    return next(iter(found), None) is not None


def _labelled(path: Path, task: str, folder: Path) -> dict[str, Any]:
    """A YAML of labelled data, as YOLO's trainers read it: path, train, val, names."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"not a YAML file ({line})", where=path, hint="write path, train, val, names"
        ) from None
    if not isinstance(document, Mapping):
        raise InputError("holds no keys", where=path, hint="write path, train, val, names")
    names = document.get("names")
    names = [names[key] for key in sorted(names)] if isinstance(names, Mapping) else names
    if not isinstance(names, list) or not names or not all(isinstance(n, (str, int, float)) for n in names):
        raise InputError("names no classes", where=path, hint="write names: [cat, dog]")
    root = path.parent / str(document.get("path") or ".")
    data: dict[str, Any] = {"format": "yolo" if task == "detect" else "imagefolder",
                            "names": _names([str(name) for name in names], folder)}  # fmt: skip
    for key, word in SPLITS.items():
        value = document.get(word)
        if value is None:
            continue
        place = root / str(value)
        if not place.exists():
            raise InputError(f"{word} is {place}, which is not there", where=path)
        data[key] = str(place.absolute())
    if "test" not in data:
        raise InputError("names no val", where=path, hint="write val: images/val")
    data.setdefault("train", data["test"])
    return data


def _names(names: Sequence[str], folder: Path) -> str:
    """Writes the classes' names beside the recipe."""
    from paredown.pipeline.store.store import write_atomic

    path = folder / "names.txt"
    write_atomic(path, "".join(f"{name}\n" for name in names).encode())
    return str(path.absolute())
