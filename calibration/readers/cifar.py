"""Reader of CIFAR-10 and CIFAR-100 as published, the binary version and the Python version.

The Python version is a pickle. It is read without running what it says: every function that it names is
replaced by a record of its arguments (`_Array`), and any but the few of a NumPy array is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paredown.calibration.readers.images import is_dir, is_file, read_bytes, read_text
from paredown.calibration.readers.records import Classes, Sample
from paredown.targets.errors import InputError

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # of an image: red, green, blue plane
COARSE = 20  # classes of CIFAR-100's coarse labels

#: Files of a published folder, by split.
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_FILES = {"train": (*_BATCHES, "train"), "test": ("test_batch", "test")}
_META = ("batches.meta.txt", "fine_label_names.txt", "batches.meta", "meta")  # text, then pickles
_AGAIN = "unpack the archive again"


@dataclass(frozen=True, eq=False)
class CifarPart:
    """One file.

    Attributes:
        name: of the file, without its suffix: the binary and the Python version name samples alike.
        pixels: (N, 3072) uint8, planes of red, green, blue.
        labels: (N,) int64 as the file has them.
        path: of the file.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    path: Path


class Cifar:
    """A data set of 32x32 images in memory, each with its one class; `read_cifar` makes it."""

    def __init__(self, parts: Sequence[CifarPart], classes: Classes) -> None:
        """Takes the files' content; images of classes that the network does not have are left out.

        Raises:
            InputError: a label out of range, or no image of the network's classes.
        """
        self.names = classes.names
        self._parts = tuple(parts)
        self._label_names = classes.label_names
        self._fingerprint: str | None = None
        self._index: list[tuple[int, int]] = []
        self._classes: list[int] = []
        for number, part in enumerate(self._parts):
            for row, label in enumerate(part.labels.tolist()):
                index = classes.by_index(label, f"{part.path}, image {row}")
                if index is not None:
                    self._index.append((number, row))
                    self._classes.append(index)
        if not self._index:
            raise InputError(
                "not one image of the network's classes",
                where=self._parts[0].path.parent,
                hint="check data.names and data.label_names",
            )

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        number, row = self._index[index]
        part = self._parts[number]
        planes = part.pixels[row].reshape(3, SIDE, SIDE)
        image = np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))  # BGR, as OpenCV decodes
        boxes = np.zeros((0, 4), np.float32)
        return Sample(f"{part.name}/{row}", image, boxes, self.classes_of(index), labelled=True)

    def classes_of(self, index: int) -> np.ndarray:
        """(1,) int64, the sample's class, without its image."""
        return np.array([self._classes[index]], np.int64)

    def fingerprint(self) -> str:
        """Sha256, in hex, over names, pixels and labels; the same for both published versions."""
        if self._fingerprint is None:
            total = hashlib.sha256(json.dumps([self.names, self._label_names]).encode() + b"\n")
            for part in self._parts:
                total.update(json.dumps([part.name, part.labels.tolist()]).encode() + b"\n")
                total.update(np.ascontiguousarray(part.pixels).data)
            self._fingerprint = total.hexdigest()
        return self._fingerprint


def read_cifar(path: Path, classes: Classes, split: str | None = None) -> Cifar:
    """Reads one file, or the files of a split in a published folder.

    Args:
        path: a file of either version, or the folder that the archive unpacks to.
        classes: the network's and the files' classes. CIFAR-100 has two labels: 20 classes select the coarse
            one, any other number the fine one.
        split: of a folder, "test" reads its test file, "train" and "calibration" its training files; None
            reads all of them.

    Raises:
        InputError: no such files, a file of another size or content, a label out of range.
    """
    coarse = len(classes.label_names or classes.names) == COARSE
    files = _find(path, split) if is_dir(path) else [path]
    return Cifar([_read(file, coarse, classes) for file in files], classes)


def read_cifar_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The class names in the meta file beside the data; of CIFAR-100 the 100 fine ones.

    Args:
        paths: folders of data, or files; the first that has a meta file beside it counts.

    Raises:
        InputError: none has, or the file is damaged.
    """
    folders = list(dict.fromkeys(path if is_dir(path) else path.parent for path in paths))
    for folder in folders:
        for name in _META:
            if not is_file(folder / name):
                continue
            if name.endswith(".txt"):
                names: Any = read_text(folder / name, "list of class names")[0].split()
            else:
                meta = _unpickle(folder / name)
                names = meta.get("label_names", meta.get("fine_label_names"))
            return _checked(names, folder / name)
    what = f"no list of class names here ({', '.join(_META)})"
    raise InputError(what, where=folders[0] if folders else None, hint="set data.names")


def _checked(names: Any, file: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError("no list of class names in this file", where=file, hint=_AGAIN)
    if len(set(names)) != len(names):
        raise InputError("a class name for the second time", where=file, hint=_AGAIN)
    return tuple(names)


def _find(folder: Path, split: str | None) -> list[Path]:
    """The files of a split in a folder, in their order; a binary one wins over a Python one."""
    stems = _FILES["test" if split == "test" else "train"]
    if split is None:
        stems = (*_FILES["train"], *_FILES["test"])
    found = []
    for stem in stems:
        file = next((f for f in (folder / f"{stem}.bin", folder / stem) if is_file(f)), None)
        if file is not None:
            found.append(file)
    if not found:
        some = f"{stems[0]}.bin ... {stems[-1]}.bin" if len(stems) > 1 else stems[0]
        raise InputError(
            f"no {split or 'CIFAR'} files here ({some}, or without .bin)",
            where=folder,
            hint="name the folder that the archive unpacks to, or one file",
        )
    batches = [file for file in found if file.stem in _BATCHES]
    missing = [stem for stem in _BATCHES[: _last(batches)] if stem not in {file.stem for file in batches}]
    if missing:
        raise InputError(f"{missing[0]} is missing among the batches", where=folder, hint=_AGAIN)
    return found


def _last(batches: Sequence[Path]) -> int:
    return max((_BATCHES.index(file.stem) + 1 for file in batches), default=0)


def _read(file: Path, coarse: bool, classes: Classes) -> CifarPart:
    if not is_file(file):
        raise InputError("no such file", where=file)
    if file.suffix.lower() in (".gz", ".tar", ".tgz", ".zip"):
        raise InputError("an archive, not a CIFAR file", where=file, hint="unpack it")
    if file.suffix.lower() == ".bin":
        return _read_binary(file, coarse, classes)
    return _read_python(file, coarse)


def _read_binary(file: Path, coarse: bool, classes: Classes) -> CifarPart:
    """Records of one label (CIFAR-10) or two (CIFAR-100: coarse, fine), then the pixels."""
    data = np.frombuffer(read_bytes(file, "CIFAR file"), np.uint8)
    labels = _labels_per_record(file, data.size, len(classes.label_names or classes.names))
    size = labels + PIXELS
    if data.size == 0 or data.size % size:
        whole, rest = divmod(data.size, size)
        raise InputError(
            f"holds {data.size:,} bytes, which is {whole:,} images of {size:,} bytes and {rest:,} bytes more",
            where=file,
            hint=f"it is incomplete, or no CIFAR-{10 if labels == 1 else 100} file: {_AGAIN}",
        )
    records = data.reshape(-1, size)
    column = 0 if coarse or labels == 1 else 1
    return CifarPart(file.stem, records[:, labels:], records[:, column].astype(np.int64), file)


def _labels_per_record(file: Path, size: int, classes: int) -> int:
    """One or two: by the published name, else by the size, else by the number of classes."""
    if file.stem in (*_BATCHES, "test_batch"):
        return 1
    if file.stem in ("train", "test"):
        return 2
    fits = [labels for labels in (1, 2) if size % (labels + PIXELS) == 0]
    return fits[0] if len(fits) == 1 else 2 if classes in (COARSE, 100) else 1


def _read_python(file: Path, coarse: bool) -> CifarPart:
    content = _unpickle(file)
    pixels, labels = content.get("data"), content.get("labels")
    if labels is None:
        labels = content.get("coarse_labels" if coarse else "fine_labels")
    pixels = pixels.array(file) if isinstance(pixels, _Array) else None
    if pixels is None or not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError("no array `data` and list `labels` in this file", where=file, hint=_AGAIN)
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS or len(pixels) != len(labels) or not labels:
        what = f"data of shape {pixels.shape} with {len(labels)} labels; expected (N, {PIXELS}) with N"
        raise InputError(what, where=file, hint=_AGAIN)
    try:
        return CifarPart(file.stem, pixels, np.array(labels, np.int64), file)
    except OverflowError as error:
        raise InputError("a label that is no class", where=file, hint=_AGAIN) from error


def _unpickle(file: Path) -> dict[str, Any]:
    data = read_bytes(file, "CIFAR file")
    try:
        content = _Reader(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error)[:100] if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise InputError(
            f"not a CIFAR file of the Python version ({reason})",
            where=file,
            hint=f"{_AGAIN}; files of the binary version end in .bin",
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"holds a {type(content).__name__}, not CIFAR's dict", where=file)
    # Python 2 wrote str keys; who pickled it anew from Python 3 may have bytes.
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): v for key, v in content.items()}


@dataclass
class _Array:
    """What a pickle says about a NumPy array: the arguments only, nothing is built by the pickle."""

    arguments: tuple[Any, ...] = ()
    state: Any = field(default=None)

    def __setstate__(self, state: Any) -> None:
        """Takes what the pickle's BUILD gives."""
        self.state = state

    def array(self, file: Path) -> np.ndarray:
        """The bytes as uint8, if that is what was said.

        Raises:
            InputError: another dtype, or a shape that the bytes do not fill.
        """
        try:
            if self.state is not None:  # ndarray.__reduce__: version, shape, dtype, Fortran order, bytes
                _, shape, dtype, fortran, raw = self.state
            else:  # numpy._frombuffer of pickle protocol 5
                raw, dtype, shape, order = self.arguments
                fortran = order == "F"
            raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
            kind = str(dtype.arguments[0]).lstrip("|")
            if kind not in ("u1", "uint8"):
                raise ValueError(f"dtype {kind[:20]}")
            return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
        except Exception as error:  # any of the above may be anything
            raise InputError(f"no array of 8-bit pixels in this file ({error})", where=file) from error


class _Reader(pickle.Unpickler):
    """Admits plain values and NumPy arrays, the latter as `_Array`."""

    def find_class(self, module: str, name: str) -> Any:
        """Stands in for what an array's pickle calls; refuses all else."""
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in (
            "ndarray", "dtype", "_reconstruct",
        ):  # fmt: skip
            return _stand_in
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _stand_in
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes from Python 3
            return _encode
        raise pickle.UnpicklingError(f"it would call {module[:40]}.{name[:40]}: refused")


def _stand_in(*arguments: Any) -> _Array:
    return _Array(arguments)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("an encoding that no array has")
    return text.encode("latin1")
