"""The detector's embedded data set: real handwritten digits on real photographs, composed on the fly.

Nothing is downloaded: the 1,797 scans (8 x 8, 17 grey levels; Alpaydin and Kaynak, UCI Optical Recognition
of Handwritten Digits) and the two photographs both come inside scikit-learn. Every digit is a real scan and
every background a real photograph; only their arrangement is ours. A scan belongs to exactly one split, and
a part of a photograph to training (calibration shares it), validation or test: a test scene shows neither a
digit nor a background that training saw. (The scans carry no writer's name: the same hand may have written
digits of two splits.)

A scene is a pure function of (split, index). It is drawn with whole numbers only, from raw PCG64 output, the
stream of which numpy guarantees (the distributions' it does not): the same bytes on every machine.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import itertools
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np

from paredown.calibration.datasets import Sample
from paredown.targets.errors import UsageError

Split = Literal["train", "calibration", "validation", "test"]
_Box = tuple[int, int, int, int]  # left, top, width, height in pixels

SIZE = 160
"""Width and height of a scene in pixels."""
SMALLEST, LARGEST = 20, 64
"""The longer side of a digit's box, in pixels, lies in this closed range."""
MOST_OVERLAP = 8
"""Two boxes may share at most 1/MOST_OVERLAP of the smaller one's area."""

_VERSION = 1  # part of the fingerprint: raise it whenever a scene would come out differently
_GLYPH = 64  # a scan is enlarged once to this many pixels, then drawn smaller
_MARGIN = 8  # transparent border around an enlarged scan, so that a turned digit keeps its corners
_CONTRAST = 90  # least difference of luma between a digit and the mean of what lies behind it

_SCENES: dict[Split, int] = {"train": 6000, "calibration": 128, "validation": 200, "test": 300}
# Shares of each class's scans, in 1/64; train and validation together are what training may look at.
_SHARES: dict[Split, tuple[int, int]] = {
    "train": (0, 45), "validation": (45, 50), "calibration": (50, 54), "test": (54, 64),
}  # fmt: skip
# Rows and columns (y0, y1, x0, x1) of the two photographs, 427 x 640. Calibration is never scored: it may
# share training's part.
_REGIONS: dict[Split, tuple[tuple[int, int, int, int], ...]] = {
    "train": ((0, 427, 0, 400), (0, 427, 0, 320)),
    "calibration": ((0, 427, 0, 400), (0, 427, 0, 320)),
    "validation": ((0, 170, 400, 640), (0, 200, 320, 640)),
    "test": ((170, 427, 400, 640), (200, 427, 320, 640)),
}


class Sources(NamedTuple):
    """What the scenes are made of.

    Attributes:
        scans: (1797, 8, 8) uint8, 0..16.
        labels: (1797,) int64, the digit written.
        photographs: two (427, 640, 3) uint8 images, BGR.
        digest: sha256 over all of these.
    """

    scans: np.ndarray
    labels: np.ndarray
    photographs: tuple[np.ndarray, ...]
    digest: str


def _photograph(path: Path) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise ValueError(f"{path.name} is no picture")
    return np.asarray(decoded)


@functools.cache
def sources() -> Sources:
    """Reads the scans and the photographs out of scikit-learn's files, once per process.

    scikit-learn itself is not imported: that takes two seconds, and its reader of photographs needs a package
    more.

    Raises:
        UsageError: scikit-learn is not installed, or does not have these files any more.
    """
    spec = importlib.util.find_spec("sklearn")
    folder = Path(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "")
    try:
        with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        pictures = [folder / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]
        images = tuple(_photograph(path) for path in pictures)
        scans = np.ascontiguousarray(table[:, :64].astype(np.uint8).reshape(-1, 8, 8))
        labels = np.ascontiguousarray(table[:, 64])
    except (OSError, ValueError, IndexError, cv2.error) as error:
        raise UsageError(
            f"the embedded digits come inside scikit-learn, which cannot be used here ({error})",
            where="paredown.apps.detector.digits",
            hint="pip install scikit-learn",
        ) from error
    digest = hashlib.sha256()
    for part in (scans.tobytes(), labels.tobytes(), *(image.tobytes() for image in images)):
        digest.update(part)
    return Sources(scans, labels, images, digest.hexdigest())


@functools.cache
def split_scans(split: Split) -> np.ndarray:
    """Indices of the scans that belong to a split: disjoint between splits, the same share of every class.

    Returns:
        (N,) int64, ascending.
    """
    first, last = _SHARES[split]
    labels, chosen = sources().labels, []
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        order = np.argsort(np.random.PCG64([_VERSION, digit]).random_raw(len(members)), kind="stable")
        chosen.append(members[order[len(members) * first // 64 : len(members) * last // 64]])
    return np.sort(np.concatenate(chosen))


class _Draws:
    """Whole numbers from PCG64's raw stream."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._numbers = iter(self._bits.random_raw(256).tolist())

    def below(self, limit: int) -> int:
        """A whole number in 0..limit-1 (limit is tiny beside 2**64: the bias does not matter)."""
        number = next(self._numbers, None)
        if number is None:
            self._numbers = iter(self._bits.random_raw(256).tolist())
            number = next(self._numbers)
        return (number >> 11) % limit

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high, both included."""
        return low + self.below(high - low + 1)

    def octets(self, count: int) -> np.ndarray:
        """(count,) uint8, every value equally likely."""
        return self._bits.random_raw((count + 7) // 8).astype("<u8").view(np.uint8)[:count]


@functools.cache
def _enlarge() -> np.ndarray:
    """(64, 8) whole-numbered weights, in 1/8192, of Catmull-Rom interpolation from 8 samples to 64."""
    weights = np.zeros((_GLYPH, 8), np.int64)
    for row in range(_GLYPH):
        position = 2 * row + 1 - 8  # in 1/16 of a sample, measured from sample 0's centre
        start, t = position // 16, position % 16
        cubic = (
            -(t**3) + 32 * t**2 - 256 * t,
            3 * t**3 - 80 * t**2 + 8192,
            -3 * t**3 + 64 * t**2 + 256 * t,
            t**3 - 16 * t**2,
        )
        for tap, weight in zip(range(start - 1, start + 3), cubic, strict=True):
            if 0 <= tap < 8:  # beyond the scan there is no ink
                weights[row, tap] += weight
    return weights


@functools.cache
def _glyph(scan: int) -> np.ndarray:
    """One scan enlarged to (80, 80) int32 coverage 0..255, with its transparent border."""
    # Whole numbers below 2**53 in float64: the product is exact whatever order BLAS adds in.
    weights = _enlarge().astype(np.float64)
    ink = np.rint(weights @ sources().scans[scan].astype(np.float64) @ weights.T).astype(np.int64)
    ink = np.clip(ink >> 22, 0, 256)  # the weights sum to 8192, twice: 16 grey levels become 256
    coverage = np.clip((ink - 64) * 2, 0, 255).astype(np.int32)  # faint grey is no ink; a stroke is opaque
    return np.pad(coverage, _MARGIN)


def _draw_digit(scan: int, size: int, draws: _Draws) -> np.ndarray:
    """A scan's coverage, turned and slanted a little and cut to its ink.

    Returns:
        (h, w) int32, 0..255.
    """
    turn, slant = draws.between(-14, 14), draws.between(-8, 8)  # in 1/64: up to 12 degrees
    narrow = draws.between(56, 76)  # width in 1/64 of the scan's own
    side = size * (_GLYPH + 2 * _MARGIN) // _GLYPH
    offset = (2 * np.arange(side, dtype=np.int32) + 1 - side) * (_GLYPH * 2048) // size
    across, down = offset[None, :], offset[:, None]
    centre, last = (_GLYPH // 2 + _MARGIN) << 12, ((_GLYPH + 2 * _MARGIN - 2) << 12) + 4095
    x = np.minimum(np.maximum(across * 64 // narrow + (down * (turn + slant) >> 6) + centre, 0), last)
    y = np.minimum(np.maximum(down - (across * turn >> 6) + centre, 0), last)
    right, below = x & 4095, y & 4095
    glyph = _glyph(scan)
    flat, pitch = glyph.ravel(), glyph.shape[1]
    at = (y >> 12) * pitch + (x >> 12)
    top = flat[at] * (4096 - right) + flat[at + 1] * right
    at += pitch
    bottom = flat[at] * (4096 - right) + flat[at + 1] * right
    coverage = ((top >> 6) * (4096 - below) + (bottom >> 6) * below) >> 18
    ink = coverage >= 96
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _background(split: Split, draws: _Draws) -> np.ndarray:
    """A piece of one photograph, (160, 160, 3) uint8: mirrored, recoloured and flattened by chance."""
    which = draws.below(2)
    y0, y1, x0, x1 = _REGIONS[split][which]
    side = draws.between(80, min(y1 - y0, x1 - x0))
    y, x = draws.between(y0, y1 - side), draws.between(x0, x1 - side)
    crop = sources().photographs[which][y : y + side, x : x + side]
    crop = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR_EXACT)
    if draws.below(2):
        crop = crop[:, ::-1]
    channels = tuple(itertools.permutations(range(3)))[draws.below(6)]
    gain = draws.between(96, 256)  # in 1/256: less is a flatter picture
    lift = draws.between(0, 255) * (256 - gain)
    table = ((np.arange(256) * gain + lift) >> 8).astype(np.uint8)
    chosen: np.ndarray = crop[..., channels]
    return np.take(table, chosen)


def _colour(behind: np.ndarray, draws: _Draws) -> np.ndarray:
    """A colour that stands out from the mean of `behind`, (3,) int32 BGR: dark on light or light on dark."""
    luma = np.array([29, 150, 77], np.int64)
    ground = int(behind.reshape(-1, 3).sum(0, dtype=np.int64) @ luma) // (len(behind) * behind.shape[1] * 256)
    for _ in range(12):
        colour = np.array([draws.below(256), draws.below(256), draws.below(256)], np.int64)
        if abs(int(colour @ luma) // 256 - ground) >= _CONTRAST:
            return colour.astype(np.int32)
    return np.full(3, 0 if ground >= 128 else 255, np.int32)


def _place(width: int, height: int, taken: list[_Box], draws: _Draws) -> tuple[int, int] | None:
    """The upper left corner of a spot where a box overlaps none that is taken by much, or None."""
    for _ in range(12):
        x, y = draws.between(1, SIZE - 1 - width), draws.between(1, SIZE - 1 - height)
        for left, top, w, h in taken:
            across, down = min(x + width, left + w) - max(x, left), min(y + height, top + h) - max(y, top)
            if max(0, across) * max(0, down) * MOST_OVERLAP > min(width * height, w * h):
                break
        else:
            return x, y
    return None


def _weather(image: np.ndarray, draws: _Draws) -> np.ndarray:
    """Mild blur (one scene in three) and mild noise, on (160, 160, 3) uint8."""
    if draws.below(3) == 0:
        padded = np.pad(image.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        image = ((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:] + 8) >> 4).astype(np.uint8)
    strength = draws.below(10)  # up to +-9 levels
    if strength:
        noise = draws.octets(image.size).reshape(image.shape).astype(np.int16) * (2 * strength + 1) >> 8
        image = np.clip(image.astype(np.int16) + (noise - strength), 0, 255).astype(np.uint8)
    return image


class Digits:
    """A split of the embedded ten-class detection set; satisfies `calibration.datasets.Dataset`.

    A scene has 2 to 7 digits whose boxes' longer side is 20 to 64 pixels, in any colours of enough contrast.

    Args:
        split: "train" (6,000 scenes), "validation" (200; to choose schedules by), "calibration" (128) or
            "test" (300; only ever scored).
        count: a different number of scenes; the first ones stay what they are.

    Raises:
        UsageError: no such split, a count below 1, or scikit-learn is missing.
    """

    names: tuple[str, ...] = tuple("0123456789")

    def __init__(self, split: Split = "train", count: int | None = None) -> None:
        if split not in get_args(Split):
            raise UsageError(f"no split {split!r} of the digits", hint=f"one of {', '.join(get_args(Split))}")
        if count is not None and count < 1:
            raise UsageError(f"{count} scenes of the digits", hint="ask for at least 1")
        self.split: Split = split
        self._count = _SCENES[split] if count is None else count
        self._scans, self._sources = split_scans(split), sources()

    def __len__(self) -> int:
        """Number of scenes."""
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Draws one scene.

        Returns:
            A Sample: image (160, 160, 3) uint8 BGR; boxes tight around the ink, cx, cy, w, h of the image.

        Raises:
            IndexError: index outside 0..len-1; a plain loop over the set ends by it.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        draws = _Draws(_VERSION, get_args(Split).index(self.split), index)
        image = _background(self.split, draws)
        taken: list[_Box] = []
        classes: list[int] = []
        wanted = draws.between(2, 7)
        for attempt in itertools.count():
            if len(taken) >= wanted or (attempt >= wanted and len(taken) >= 2):
                break
            scan = int(self._scans[draws.below(len(self._scans))])
            ink = _draw_digit(scan, draws.between(24, LARGEST), draws)
            height, width = ink.shape
            if not SMALLEST <= max(height, width) <= LARGEST:
                continue
            corner = _place(width, height, taken, draws)
            if corner is None:
                continue
            x, y = corner
            behind = image[y : y + height, x : x + width]
            colour = _colour(behind, draws)
            cover = ink[..., None]
            behind[...] = (behind * (255 - cover) + colour * cover + 127) // 255
            taken.append((x, y, width, height))
            classes.append(int(self._sources.labels[scan]))
        corners = np.array(taken, np.float32)
        boxes = np.concatenate([corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]], axis=1)
        return Sample(
            name=f"digits-{self.split}-{index:05d}",
            image=_weather(image, draws),
            boxes=boxes / np.float32(SIZE),
            classes=np.array(classes, np.int64),
            labelled=True,
        )

    def fingerprint(self) -> str:
        """Names the set's exact content without drawing it.

        A scene is a pure function of the sources, the split, the index and this file's version, so hashing
        those names the same bytes as hashing 6,000 images would. The first scene is hashed too, against a
        changed library.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        first = self[0]
        digest = hashlib.sha256(f"digits {_VERSION} {self.split} {self._count} {self.names}".encode())
        digest.update(self._sources.digest.encode())
        for part in (first.image, first.boxes, first.classes):
            digest.update(part.tobytes())
        return digest.hexdigest()
