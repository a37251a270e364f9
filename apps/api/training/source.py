"""What is to be trained on: the layout of a data set is recognised, and said."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from paredown.calibration.datasets import read_names
from paredown.calibration.readers.imagefolder import csv_rows
from paredown.calibration.readers.images import IMAGE_SUFFIXES, is_dir, is_file, read_text, walk
from paredown.calibration.readers.yolo import label_path
from paredown.targets.errors import InputError, UsageError

DETECTOR, CLASSIFIER = "apps.detector", "apps.classifier"
TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
NAMES = ("classes.txt", "names.txt", "obj.names", "data.names", "labels.txt")
LOOKED_AT = 200  # files of a folder, to tell what it is
LAYOUTS = (
    "a folder images/ with labels/ (YOLO), a data.yaml, JPEGImages/ with Annotations/ (VOC), a COCO .json, "
    "a folder per class, or a .csv of file and class"
)


@dataclass(frozen=True)
class Source:
    """A data set to train on.

    Attributes:
        app: that trains on it.
        format: as `data.format` has it.
        names: of the classes, in the order of their indices.
        train: as `data.train` has it.
        validation: likewise; None = a part of the training images is to be held out.
        test: likewise; None = the validation images are scored in the end.
        images: as `data.images` has it.
        labels: as `data.labels` has it.
    """

    app: str
    format: str
    names: tuple[str, ...]
    train: Path
    validation: Path | None = None
    test: Path | None = None
    images: Path | None = None
    labels: Path | None = None

    def line(self) -> str:
        """What was recognised, in a sentence."""
        parts = [f"data of format {self.format}, {len(self.names)} classes: {', '.join(self.names[:8])}"]
        parts[0] += f" and {len(self.names) - 8} more" if len(self.names) > 8 else ""
        named = (("train", self.train), ("validation", self.validation), ("test", self.test))
        parts += [f"{name} {path}" for name, path in named if path is not None]
        return "; ".join(parts)


def find_source(
    data: Path, names: Path | None = None, format: str | None = None, validation: Path | None = None
) -> Source:
    """Recognises a data set.

    Args:
        data: its folder or file.
        names: list of the classes; found beside the data where it can be.
        format: yolo, voc, coco or imagefolder, where it cannot be told.
        validation: labelled images that are not trained on, of the same format.

    Raises:
        UsageError: an unknown format.
        InputError: nothing is recognised, or the classes' names are found nowhere.
    """
    if not is_dir(data) and not is_file(data):
        raise InputError("no such file or folder", where=data)
    listed = read_names(names) if names else None
    suffix = data.suffix.lower()
    if format is None and (config := _config(data)) is not None:
        found = _from_yaml(config, listed)
    else:
        kind = format or _kind(data, suffix)
        makers = {"yolo": _yolo, "voc": _voc, "coco": _coco, "imagefolder": _imagefolder}
        if kind not in makers:
            raise UsageError(f"unknown data format {kind!r}", where="--format",
                             hint=f"use one of: {', '.join(makers)}")  # fmt: skip
        found = makers[kind](data, listed)
    if validation is not None:
        if not is_dir(validation) and not is_file(validation):
            raise InputError("no such file or folder", where=validation)
        found = Source(**{**vars(found), "validation": validation})
    return found


def _kind(data: Path, suffix: str) -> str:
    """The format of what lies here, by its looks."""
    if suffix == ".json":
        return "coco"
    if suffix == ".csv":
        return "imagefolder"
    if suffix == ".txt":
        return "voc" if data.absolute().parent.parts[-2:] == ("ImageSets", "Main") else "yolo"
    if not is_dir(data):
        raise InputError("no data set is recognised here", where=data, hint=f"known are {LAYOUTS}")
    if is_dir(data / "JPEGImages") and is_dir(data / "Annotations"):
        return "voc"
    if _jsons(data):
        return "coco"
    files = list(islice(walk(data), LOOKED_AT))
    suffixes = {file.suffix.lower() for file in files}
    if ".xml" in suffixes:
        return "voc"
    if ".txt" in suffixes and any(_is_label(file) for file in files if file.suffix.lower() == ".txt"):
        return "yolo"
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if any(child.name == "labels" for child in _folders(data)):
        return "yolo"
    if any(is_file(label_path(picture)) for picture in pictures):
        return "yolo"
    if len(_class_folders(_part(data, TRAIN) or data)) >= 2:
        return "imagefolder"
    if not pictures:
        raise InputError("no images here", where=data, hint=f"known are {LAYOUTS}")
    raise InputError("images, but no labels", where=data, hint=f"known are {LAYOUTS}")


def _is_label(file: Path) -> bool:
    """Whether a text file looks like YOLO labels: five numbers a line."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()[:5] if line.strip()]
    except (OSError, UnicodeDecodeError):
        return False
    return bool(lines) and all(len(line) >= 5 and line[0].isdigit() for line in lines)


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if is_dir(child) and not child.name.startswith("."))


def _part(folder: Path, names: Iterable[str]) -> Path | None:
    """A sub-folder of one of these names, in any case."""
    known = {child.name.casefold(): child for child in _folders(folder)}
    return next((known[name] for name in names if name in known), None)


# -- formats -------------------------------------------------------------------------------------------------


def _yolo(data: Path, names: tuple[str, ...] | None) -> Source:
    if not is_dir(data):
        return Source(DETECTOR, "yolo", names or _names_near(data.parent), data)
    images = _part(data, ("images",))
    inner = images if images is not None and _part(images, TRAIN) else data
    found = [_part(inner, each) for each in (TRAIN, VALIDATION, TEST)]
    if inner is data:  # train/images, as Roboflow has it
        found = [None if each is None else _part(each, ("images",)) or each for each in found]
    train = found[0] or images or data
    return Source(DETECTOR, "yolo", names or _names_near(data), train, found[1], found[2])


def _names_near(folder: Path) -> tuple[str, ...]:
    """The list of classes beside YOLO labels."""
    folders = (folder, folder / "labels", folder.parent)
    for each in folders:
        for name in NAMES:
            if is_file(each / name):
                return read_names(each / name)
        if is_dir(each) and (lists := sorted(each.glob("*.names"))):
            return read_names(lists[0])
    raise InputError(
        "no list of the classes' names", where=folder,
        hint=f"--names gives one, or write {NAMES[0]} beside the data, a name a line",
    )  # fmt: skip


def _voc(data: Path, names: tuple[str, ...] | None) -> Source:
    if not is_dir(data):
        root = data.absolute().parent.parent.parent
        return Source(DETECTOR, "voc", names or _voc_names(root / "Annotations"), data)
    lists = data / "ImageSets" / "Main"
    named = {file.stem: file for file in sorted(lists.glob("*.txt"))} if is_dir(lists) else {}
    devkit = is_dir(data / "JPEGImages")
    parts = [None if devkit else _part(data, each) for each in (TRAIN, VALIDATION, TEST)]
    found = [
        next((named[name] for name in each if name in named), None) for each in (TRAIN, VALIDATION, TEST)
    ]
    found = [a or b for a, b in zip(found, parts, strict=True)]
    names = names or _voc_names(data / "Annotations" if devkit else data)
    return Source(DETECTOR, "voc", names, found[0] or named.get("trainval") or data, found[1], found[2])


def _voc_names(folder: Path) -> tuple[str, ...]:
    """The classes of all annotations, by the alphabet."""
    found: set[str] = set()
    for file in walk(folder):
        if file.suffix.lower() != ".xml":
            continue
        try:
            root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError):
            continue  # it is told when the set is opened
        found |= {(item.findtext("name") or "").strip() for item in root.findall("object")}
    if not found - {""}:
        raise InputError("no objects in the annotations", where=folder)
    return tuple(sorted(found - {""}))


def _jsons(folder: Path) -> list[Path]:
    """COCO files of a folder: annotations/*.json, *.json, or Roboflow's in a folder per split."""
    found = [*sorted(folder.glob("annotations/*.json")), *sorted(folder.glob("*.json"))]
    found = [*found, *sorted(folder.glob("*/_annotations.coco.json"))]
    return [file for file in found if _is_coco(file)]


def _is_coco(file: Path) -> bool:
    """Whether a .json begins like annotations: other tools leave such files, too."""
    try:
        with file.open("rb") as opened:
            start = opened.read(2**20)
    except OSError:
        return False
    return any(key in start for key in (b'"images"', b'"annotations"', b'"categories"'))


def _coco(data: Path, names: tuple[str, ...] | None) -> Source:
    files = [data] if is_file(data) else _jsons(data)
    if not files:
        raise InputError("no COCO .json here", where=data)

    def named(words: Iterable[str]) -> Path | None:
        return next((f for f in files for w in words if w in f"{f.parent.name}/{f.name}".casefold()), None)

    train = data if is_file(data) else named(TRAIN) or files[0]
    rest = [None if is_file(data) else named(each) for each in (VALIDATION, TEST)]
    text, _ = read_text(train, "COCO annotation file")
    try:
        categories = json.loads(text)["categories"]
        used = {entry["category_id"] for entry in json.loads(text).get("annotations", [])}
        listed = tuple(str(c["name"]) for c in sorted(categories, key=lambda c: c["id"]) if c["id"] in used)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("no COCO annotations: no list 'categories' of ids and names", where=train) from error
    return Source(DETECTOR, "coco", names or listed, train, *rest)


def _class_folders(folder: Path) -> list[Path]:
    return [
        child for child in _folders(folder) if any(f.suffix.lower() in IMAGE_SUFFIXES for f in walk(child))
    ]


def _imagefolder(data: Path, names: tuple[str, ...] | None) -> Source:
    if is_file(data):
        return Source(CLASSIFIER, "imagefolder", names or tuple(sorted({c for _, c in csv_rows(data)})), data)
    train = _part(data, TRAIN)
    if train is None:
        return Source(CLASSIFIER, "imagefolder", names or _folder_names(data), data)
    found = [_part(data, each) for each in (VALIDATION, TEST)]
    return Source(CLASSIFIER, "imagefolder", names or _folder_names(train), train, *found)


def _folder_names(folder: Path) -> tuple[str, ...]:
    found = tuple(child.name for child in _class_folders(folder))
    if len(found) < 2:
        raise InputError(
            f"{len(found)} folders with images, and a classifier needs two classes", where=folder
        )
    return found


# -- data.yaml -----------------------------------------------------------------------------------------------


def _config(data: Path) -> Path | None:
    """The data.yaml that this is, or that lies in this folder."""
    if data.suffix.lower() in (".yaml", ".yml") and is_file(data):
        return data
    found = (data / name for name in ("data.yaml", "data.yml", "dataset.yaml"))
    return next((file for file in found if is_file(file)), None)


def _from_yaml(file: Path, names: tuple[str, ...] | None) -> Source:
    """The data set of an Ultralytics data.yaml."""
    text, _ = read_text(file, "data.yaml")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"malformed YAML: {' '.join(str(error).split())[:160]}", where=file) from error
    if not isinstance(config, Mapping):
        raise InputError("no mapping with train, val and names", where=file)
    listed = names or _yaml_names(config, file)
    count = config.get("nc")
    if count is not None and count != len(listed):
        raise InputError(f"nc is {count}, and there are {len(listed)} names", where=file)
    train = _yaml_path(config, "train", file)
    if train is None:
        raise InputError("no key 'train'", where=file)
    others = [_yaml_path(config, key, file) for key in ("val", "test")]
    return Source(DETECTOR, "yolo", listed, train, *others)


def _yaml_names(config: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names = config.get("names")
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            raise InputError(
                f"the keys of 'names' are {list(names)[:5]}, not 0 to {len(names) - 1}", where=file
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise InputError("no list 'names' of the classes", where=file)
    if len(set(map(str, names))) < len(names):
        raise InputError("a class twice in 'names'", where=file)
    return tuple(map(str, names))


def _yaml_path(config: Mapping[str, Any], key: str, file: Path) -> Path | None:
    """The folder or list of a split; Roboflow writes ../train/images and means train/images."""
    value = config.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InputError(f"{key} is a {type(value).__name__}, not one folder or list", where=file)
    tries = list(_places(value, str(config.get("path") or ""), file.parent))
    found = next((path for path in tries if is_dir(path) or is_file(path)), None)
    if found is None:
        looked = ", ".join(dict.fromkeys(map(str, tries)))
        raise InputError(f"no {key} images {value!r}; looked at {looked}", where=file)
    return found


def _places(value: str, root: str, folder: Path) -> Iterator[Path]:
    yield folder / root / value
    yield folder / value
    yield folder / value.removeprefix("../")
    yield folder / "datasets" / root / value
