"""Reader of arrays instead of images: `.npy` and `.npz` files of float32, for sounds and sensors."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paredown.calibration.array_input import ArrayInput
from paredown.calibration.readers.images import is_dir, is_file
from paredown.calibration.readers.records import Classes, Sample
from paredown.targets.errors import InputError

INPUTS, LABELS = "inputs", "labels"  # of a .npz
_HINT = "save it with numpy.save(file, array.astype(numpy.float32))"


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """Where a sample lies.

    Attributes:
        name: of the sample.
        path: of the file.
        row: in a file of many samples; None where the file holds one.
        label: index into the network's names; None without.
    """

    name: str
    path: Path
    row: int | None = None
    label: int | None = None


class ArraySet:
    """A data set of arrays of one shape; `read_arrays` makes it."""

    def __init__(self, files: Sequence[ArrayFile], classes: Classes, shape: tuple[int, ...]) -> None:
        """Takes the samples in their order, their headers checked."""
        self.names, self.shape = classes.names, shape
        self._files, self._label_names = tuple(files), classes.label_names
        self._input = ArrayInput(shape)
        self._whole: dict[Path, np.ndarray] = {}
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        found = self._files[index]
        if found.row is None:
            array = _open(found.path)
        else:
            if found.path not in self._whole:
                self._whole[found.path] = _open(found.path)
            array = self._whole[found.path][found.row]
        try:
            array = self._input(np.array(array))  # a copy: torch takes none that cannot be written to
        except InputError as error:
            row = "" if found.row is None else f", row {found.row}"
            raise InputError(str(error), where=f"{found.path}{row}") from error
        classes = self.classes_of(index)
        boxes = np.zeros((0, 4), np.float32)
        labels = np.zeros(0, np.int64) if classes is None else classes
        return Sample(found.name, array, boxes, labels, classes is not None)

    def classes_of(self, index: int) -> np.ndarray | None:
        """(1,) int64, without reading the array; None where it is unlabelled."""
        label = self._files[index].label
        return None if label is None else np.array([label], np.int64)

    def fingerprint(self) -> str:
        """Sha256, in hex, over the bytes of the files, the labels and the names; computed once."""
        if self._fingerprint is None:
            total = hashlib.sha256(json.dumps([self.names, self._label_names]).encode() + b"\n")
            digests: dict[Path, str] = {}
            for each in self._files:
                if each.path not in digests:
                    with each.path.open("rb") as file:
                        digests[each.path] = hashlib.file_digest(file, "sha256").hexdigest()
                row = [each.name, digests[each.path], each.row, each.label]
                total.update(json.dumps(row).encode() + b"\n")
            self._fingerprint = total.hexdigest()
        return self._fingerprint


def read_arrays(path: Path, classes: Classes) -> ArraySet:
    """Reads a folder or a file of arrays; headers and labels are checked, values when they are asked for.

    Args:
        path: a folder of `.npy` files, one sample each, in a sub-folder per class if they are labelled; a
            `.npy` of samples along its first axis; or a `.npz` with such an array `inputs` and, if they are
            labelled, whole numbers `labels`.
        classes: the network's and the labels' classes; without names, labels are not looked at.

    Raises:
        InputError: no arrays, a file that cannot be read, another dtype or shape than the first one's, or a
            class that is unknown or out of range.
    """
    found = _folder(path, classes) if is_dir(path) else _file(path, classes)
    if not found:
        raise InputError("no arrays of the network's classes here", where=path)
    shape = _shape(found[0])
    for each in {each.path: each for each in found}.values():
        other = _shape(each)
        if other != shape:
            raise InputError(
                f"an array of shape {other}, and {found[0].path.name} before it has {shape}",
                where=each.path,
                hint="all inputs of a network have one shape: pad or cut them",
            )
    return ArraySet(found, classes, shape)


def array_shape(path: Path) -> tuple[int, ...]:
    """The shape of the first sample of a data set, from its header alone.

    Raises:
        InputError: there is none, or it is no array of float32.
    """
    if is_dir(path):
        return _shape(ArrayFile("", _npy_files(path)[0]))
    return _shape(ArrayFile("", path, 0))


def _npy_files(folder: Path) -> list[Path]:
    found = [
        file
        for file in folder.rglob("*.npy")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not found:
        raise InputError("no .npy files in this folder", where=folder)
    return sorted(found, key=lambda file: file.relative_to(folder).as_posix())


def _folder(folder: Path, classes: Classes) -> list[ArrayFile]:
    """Of sub-folders one of each in turn, so that a part of the set has all classes."""
    columns: dict[str, list[ArrayFile]] = {}
    for file in _npy_files(folder):
        name = file.relative_to(folder).as_posix()
        top, _, rest = name.partition("/")
        columns.setdefault(top if rest else "", []).append(ArrayFile(name, file))
    loose = columns.get("", [])
    if not classes.names or len(loose) == sum(map(len, columns.values())):
        return [each for files in columns.values() for each in files]
    if loose:
        raise InputError(
            f"an array beside the {len(columns) - 1} class folders, and so of no class", where=loose[0].path
        )
    kept = []
    for top, files in columns.items():
        label = classes.by_name(top, str(folder / top))
        if label is not None:
            kept.append([ArrayFile(each.name, each.path, None, label) for each in files])
    rows = itertools.zip_longest(*kept)
    return [each for row in rows for each in row if each is not None]


def _file(path: Path, classes: Classes) -> list[ArrayFile]:
    if not is_file(path):
        raise InputError("no such file or folder", where=path)
    array = _open(path)
    if array.ndim < 2:
        raise InputError(
            f"an array of shape {array.shape}, not of samples along its first axis", where=path,
            hint="stack the samples: (count, channels, ...)",
        )  # fmt: skip
    labels = _labels(path, len(array), classes) if path.suffix.lower() == ".npz" else None
    found = []
    for row in range(len(array)):
        label = None
        if labels is not None:
            label = classes.by_index(int(labels[row]), f"{path}, row {row}")
            if label is None:
                continue
        found.append(ArrayFile(f"{path.stem}/{row}", path, row, label))
    return found


def _labels(path: Path, count: int, classes: Classes) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if LABELS not in archive or not classes.names:
                return None
            labels = _array(archive, LABELS)
    except Exception as error:  # numpy's reader raises many kinds for a damaged file
        raise InputError(f"cannot read {LABELS!r}: {str(error)[:100]}", where=path) from error
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{LABELS!r} is {labels.shape} {labels.dtype}, not a whole number for each of the {count} inputs",
            where=path,
        )
    return labels


def _shape(each: ArrayFile) -> tuple[int, ...]:
    """The shape of a sample, from its file's header where that is enough."""
    array = _open(each.path)
    if array.dtype != np.float32:
        raise InputError(f"an array of {array.dtype}, not float32", where=each.path, hint=_HINT)
    return array.shape if each.row is None else array.shape[1:]


def _open(path: Path) -> np.ndarray:
    """A file's array: of a .npy its values are read when they are looked at, of a .npz at once.

    Objects are refused: reading them would run what the file says.

    Raises:
        InputError: it cannot be read, or holds no such array.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.lib.format.open_memmap(path, mode="r")
        if suffix != ".npz":
            raise InputError("neither a .npy nor a .npz file", where=path)
        with np.load(path, allow_pickle=False) as archive:
            if INPUTS not in archive:
                names = ", ".join(list(archive)[:5]) or "nothing"
                raise InputError(f"no array {INPUTS!r} in this file; it holds {names}", where=path)
            return _array(archive, INPUTS)
    except InputError:
        raise
    except Exception as error:  # numpy's reader raises many kinds for a damaged file
        reason = str(error)[:100] or type(error).__name__
        raise InputError(f"cannot read this array: {reason}", where=path, hint=_HINT) from error


def _array(archive: Mapping[str, object], name: str) -> np.ndarray:
    """An array of an archive, whose members may be anything.

    Raises:
        ValueError: it is none.
    """
    found = archive[name]
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{name!r} is no array")
    return found
