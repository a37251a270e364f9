"""What the readers of label formats share: records and samples, matching of classes, checks of boxes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paredown.calibration.readers.reading import Reading
from paredown.targets.errors import InputError

Box = tuple[float, float, float, float]  # cx, cy, w, h, normalised to the image
Row = tuple[int, Box]  # the network's class, and the box

_NO, _YES = ("", "0", "no", "false", "none", "n", "f"), ("1", "yes", "true", "y", "t")

# How far a box may reach over the image's edge and still be rounding, not an error: a hundredth of the side,
# or a pixel where pixels are known. Real sets have 0.2 % (labelled on a larger copy) and one pixel. Ours.
EDGE_SLACK = 0.01

# COCO's classes have these names in its JSON; darknet's coco.names, and VOC, call the same classes otherwise.
# (dining table and potted plant differ by a blank only, which match_name ignores.)
_SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}


@dataclass(frozen=True, eq=False)
class Ignored:
    """Objects of an image that are neither to be found nor to be missed; nothing trains on them.

    Attributes:
        boxes: (N, 4) float32 cx, cy, w, h, normalised to the image.
        classes: (N,) int64, indices into the network's names.
        crowd: (N,) bool; a region of many objects (COCO), else one object that is hard to see (VOC).
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class Record:
    """One image of a dataset, not decoded, with its labels, already checked.

    Attributes:
        name: of the sample, the same on every machine.
        image: path of the image file.
        labelled: whether somebody looked for objects here; True with no boxes is an image without objects.
        boxes: (N, 4) float32 cx, cy, w, h, normalised to the image.
        classes: (N,) int64, indices into the network's names.
        digest: sha256 of the bytes of the label file; empty where there is none.
        size: width and height that the labels state; None where they state none.
        ignored: objects that no score counts.
    """

    name: str
    image: Path
    labelled: bool = False
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    digest: str = ""
    size: tuple[int, int] | None = None
    ignored: Ignored = field(default_factory=Ignored)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its labels.

    Attributes:
        name: of the sample within its data set: the same on every machine.
        image: (H, W, 3) uint8, BGR, upright.
        boxes: (N, 4) float32 cx, cy, w, h, normalised to the image.
        classes: (N,) int64, indices into the data set's ``names``.
        labelled: whether there are labels; True with no boxes is an image without objects.
        ignored: objects that no score counts.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    labelled: bool
    ignored: Ignored = field(default_factory=Ignored, kw_only=True)


def pack(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of a record, read-only: (N, 4) float32 boxes and (N,) int64 classes."""
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    classes = np.array([index for index, _ in rows], np.int64)
    boxes.setflags(write=False)
    classes.setflags(write=False)
    return boxes, classes


def pack_ignored(rows: Sequence[Row], crowd: bool) -> Ignored:
    """The ignored objects of a record; all are regions of many, or none is."""
    return Ignored(*pack(rows), np.full(len(rows), crowd))


def is_marked(value: object, key: str, where: str) -> bool:
    """Whether a mark in a label file says yes: a word, a number or a truth value; nothing at all is no.

    Raises:
        InputError: it is neither a yes nor a no.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, int | float) and value in (0, 1):
        return value == 1
    word = value.strip().casefold() if isinstance(value, str) else None
    if word in _NO or word in _YES:
        return word in _YES
    raise InputError(f"{key} is {str(value)[:40]!r}, neither 0 nor 1", where=where)


@dataclass(frozen=True)
class Classes:
    """The network's classes, and the label files' where they differ.

    Classes are matched by name: exactly, else ignoring case, blanks, ``_`` and ``-``, else by the names that
    COCO's JSON and darknet's lists give to the same class (airplane, aeroplane). Our design.

    Attributes:
        names: the network's classes.
        label_names: the label files' classes; those that the network does not have are dropped. None: the
            label files use the network's classes, and any other is an error.
    """

    names: tuple[str, ...]
    label_names: tuple[str, ...] | None = None
    _found: dict[str, int | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses lists without a class in common: every label would be dropped."""
        if self.label_names is not None and all(match_name(n, self.names) is None for n in self.label_names):
            raise InputError(
                f"the labels' classes ({_some(self.label_names)}) and the network's ({_some(self.names)}) "
                "have no name in common",
                hint="check data.names and data.label_names",
            )

    def by_index(self, index: int, where: str) -> int | None:
        """The network's class for an index in a label file; None when it is to be dropped.

        Raises:
            InputError: the index is beyond the end of the list.
        """
        names = self.names if self.label_names is None else self.label_names
        if not 0 <= index < len(names):
            raise InputError(
                f"class {index} is out of range: there are {len(names)} classes, 0 to {len(names) - 1}",
                where=where,
                hint="check data.names, and data.label_names if the labels use other classes",
            )
        return index if self.label_names is None else self._match(names[index])

    def by_name(self, name: str, where: str) -> int | None:
        """The network's class for a name in a label file; None when it is to be dropped.

        Raises:
            InputError: the name is neither in ``names`` nor in ``label_names``.
        """
        found = self._match(name)
        if found is not None or (self.label_names and match_name(name, self.label_names) is not None):
            return found
        near = difflib.get_close_matches(name, self.names, n=1)
        raise InputError(
            f"class {name!r} is not one of the network's" + (f" (did you mean {near[0]!r}?)" if near else ""),
            where=where,
            hint="data.label_names, the list of the labels' classes, drops those the network does not have",
        )

    def _match(self, name: str) -> int | None:
        if name not in self._found:  # asked once per box, and a set may have a million of them
            self._found[name] = match_name(name, self.names)
        return self._found[name]


def match_name(name: str, names: Sequence[str]) -> int | None:
    """The index in ``names`` of the class called ``name``, or None; see ``Classes`` for what is equal."""
    if name in names:
        return names.index(name)
    keys = [_key(other) for other in names]
    key = _key(name)
    for candidate in (key, _SYNONYMS.get(key), {v: k for k, v in _SYNONYMS.items()}.get(key)):
        if candidate is not None and candidate in keys:
            return keys.index(candidate)
    return None


def fit_box(
    edges: Box,
    where: str,
    slack: tuple[float, float] = (EDGE_SLACK, EDGE_SLACK),
    reading: Reading | None = None,
) -> Box | None:
    """Checks a box, and clips what reaches over the image's edge: by rounding, or as far as is asked for.

    Args:
        edges: left, top, right, bottom, normalised to the image.
        where: file and line or object, for the message.
        slack: how far a box may reach over the edge, of the width and of the height.
        reading: says whether larger overhangs are clipped too, and counts them.

    Returns:
        cx, cy, w, h, normalised to the image; None of a box that lies outside, where boxes are clipped.

    Raises:
        InputError: a value is not finite, the box has no area, or it reaches further outside.
    """
    left, top, right, bottom = edges
    if not all(math.isfinite(value) for value in edges):
        raise InputError("a box with a value that is not finite (NaN or infinite)", where=where)
    if right <= left or bottom <= top:
        raise InputError(f"a box without area: width {right - left:g}, height {bottom - top:g}", where=where)
    over = max((-left) / slack[0], (right - 1) / slack[0], (-top) / slack[1], (bottom - 1) / slack[1])
    clip = reading is not None and reading.clip
    if over > 1 + 1e-9 and not clip:
        found = f"left {left:.4g}, top {top:.4g}, right {right:.4g}, bottom {bottom:.4g}"
        raise InputError(f"a box outside the image: {found} of its width and height", where=where,
                         hint='data.boxes = "clip" cuts such boxes at the edge')  # fmt: skip
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
    if right <= left or bottom <= top:
        if reading is not None and clip:
            reading.left_out["boxes left out, since they lie outside the image"] += 1
            return None
        raise InputError("a box that lies outside the image, beyond its edge", where=where)
    if reading is not None and over > 1 + 1e-9:
        reading.clipped += 1
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def pixel_slack(width: int, height: int) -> tuple[float, float]:
    """The slack for boxes in pixels: a hundredth of the side, and one pixel at least."""
    return max(EDGE_SLACK, 1 / width), max(EDGE_SLACK, 1 / height)


def _key(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in " _-")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
