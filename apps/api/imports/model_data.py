"""The data of a model file: what lies in a folder or a YAML, as a recipe's section [data]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paredown.targets.errors import InputError

SPLITS = {"train": "train", "test": "val"}  # key of a recipe -> key of a data YAML
LABELS = ("labels", "masks", "annotations")  # folders of masks beside `images`
#: Task -> kinds of data that have its labels.
KINDS = {"detect": ("yaml",), "classify": ("yaml", "classes"), "segment": ("masks",)}
NAMES = ("names.txt", "classes.txt")


@dataclass(frozen=True)
class Found:
    """What lies where the data are said to be.

    Attributes:
        kind: "photos", "arrays", "classes" (a folder for each), "masks" or "yaml".
        path: of it.
        names: of the classes, where the data say them.
        places: of a YAML, key of [data] -> path; of masks "images" and "labels".
    """

    kind: str
    path: Path
    names: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """What was found, for a sentence."""
        count = f"{len(self.names)} classes" if self.names else ""
        words = {"photos": "photos", "arrays": "arrays", "classes": f"a folder for each of {count}",
                 "masks": "images with masks" + (f" of {count}" if count else ""),
                 "yaml": f"labelled data of {count}"}  # fmt: skip
        return f"{self.path}: {words[self.kind]}"


def look(path: Path) -> Found:
    """Looks at data.

    Raises:
        InputError: there is nothing, or a YAML that is broken.
    """
    if not path.exists():
        raise InputError("no such file or folder", where=path, hint="give --data a folder of photos")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _yaml(path)
    if path.suffix.lower() in (".npy", ".npz") or (path.is_dir() and _first(path.rglob("*.npy"))):
        return Found("arrays", path)
    if not path.is_dir():
        return Found("photos", path)
    labels = next((path / name for name in LABELS if (path / name).is_dir()), None)
    if labels is not None and (path / "images").is_dir() and _first(labels.rglob("*.png")):
        places = {"images": str((path / "images").absolute()), "labels": str(labels.absolute())}
        return Found("masks", path, _names_beside(path), places)
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    return Found("classes" if len(folders) > 1 else "photos", path, tuple(f.name for f in folders))


def _names_beside(path: Path) -> tuple[str, ...]:
    from paredown.calibration.datasets import read_names

    return next((read_names(path / name) for name in NAMES if (path / name).is_file()), ())


def _first(found: Any) -> bool:
    return next(iter(found), None) is not None


def section(found: Found, task: str, names: Sequence[str], recipe: Path) -> dict[str, Any]:
    """The section [data] of a recipe.

    Args:
        found: of `look`.
        task: for which it is; the data have its labels: see `check`.
        names: of the network's classes; none where the task has none.
        recipe: its file; lists of names lie beside it.
    """
    place = str(found.path.absolute())
    if task == "outputs":
        if found.kind == "yaml":
            return {"format": "folder", "calibration": found.places.get("train", found.places["test"]),
                    "test": found.places["test"]}  # fmt: skip
        return {
            "format": "arrays" if found.kind == "arrays" else "folder",
            "calibration": place,
            "test": place,
        }
    made: dict[str, Any] = {"names": _written(names, recipe.with_suffix(".names.txt"))}
    if found.names and tuple(found.names) != tuple(names):
        made["label_names"] = _written(found.names, recipe.with_suffix(".label_names.txt"))
    if task == "segment":
        images = found.places["images"]
        return made | {
            "format": "masks", "calibration": images, "test": images, "labels": found.places["labels"]
        }  # fmt: skip
    if found.kind == "yaml":
        return made | {"format": "yolo" if task == "detect" else "imagefolder", **found.places}
    return made | {"format": "imagefolder", "calibration": place, "test": place}


def check(found: Found, task: str) -> None:
    """Checks that data have the labels of a task.

    Raises:
        InputError: they have not.
    """
    if task == "outputs" or found.kind in KINDS[task]:
        return
    lacking, hint = {
        "detect": ("holds no boxes", "give a YAML of train, val, names"),
        "classify": (
            "holds no folder for each class",
            "give photos/CLASS/*.jpg, or a YAML of train, val, names",
        ),
        "segment": ("holds no masks", "give a folder of images/ and labels/, PNGs of the images' names"),
    }[task]
    raise InputError(lacking, where=found.path, hint=hint)


def _yaml(path: Path) -> Found:
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
    data: dict[str, str] = {}
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
    return Found("yaml", path, tuple(str(name) for name in names), data)


def _written(names: Sequence[str], path: Path) -> str:
    """Writes names of classes beside the recipe."""
    from paredown.pipeline.store.store import write_atomic

    write_atomic(path, "".join(f"{name}\n" for name in names).encode())
    return str(path.absolute())
