"""A calibration run: images through a network, and the range of each of its activations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset
from paredown.calibration.observers import make_observer
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError, UsageError


class Watches(Protocol):
    """What `observe` asks of an observer."""

    def update(self, values: np.ndarray) -> None:
        """Takes the values of one sample."""


W = TypeVar("W", bound=Watches)
_VERSION = 1
_HINT = "calibrate again with `paredown run`"
_CONTENT_HINT = "give images like those the device will see"


@dataclass(frozen=True)
class Ranges:
    """What a calibration run found, and what it is valid for.

    Attributes:
        preprocess_hash: of the preprocessing that the images went through.
        observer: ``minmax``, ``percentile`` or ``mse``.
        images: how many images were seen.
        ranges: tensor name -> (lo, hi), ``lo <= 0 <= hi``.
    """

    preprocess_hash: str
    observer: str
    images: int
    ranges: dict[str, tuple[float, float]]

    def check(self, preprocess: AnyInput) -> None:
        """Makes sure that the ranges are of this preprocessing.

        Raises:
            InputError: they were made for another one, and are worth nothing here.
        """
        if preprocess.hash != self.preprocess_hash:
            raise InputError(
                f"the ranges were calibrated for another preprocessing (hash {self.preprocess_hash[:12]}, "
                f"not {preprocess.hash[:12]})",
                hint=_HINT,
            )

    def to_json(self) -> str:
        """Canonical JSON: equal ranges give equal text, and floats keep every bit."""
        document = {
            "version": _VERSION,
            "preprocess_hash": self.preprocess_hash,
            "observer": self.observer,
            "images": self.images,
            "ranges": {name: list(pair) for name, pair in self.ranges.items()},
        }
        return json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Ranges:
        """The inverse of ``to_json``.

        Raises:
            InputError: malformed JSON, another version, or an entry that is missing or wrong.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            where = f"ranges:{error.lineno}"
            raise InputError(f"malformed JSON: {error.msg}", where=where, hint=_HINT) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"malformed JSON: {error}", where="ranges", hint=_HINT) from error
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise InputError(f"not calibration ranges of version {_VERSION}", where="ranges", hint=_HINT)
        kinds = {"preprocess_hash": str, "observer": str, "images": int, "ranges": dict}
        for key, kind in kinds.items():
            if not isinstance(document.get(key), kind):
                raise InputError(f"{key!r} is missing or wrong", where="ranges", hint=_HINT)
        pairs = {name: _pair(name, pair) for name, pair in document["ranges"].items()}
        return cls(document["preprocess_hash"], document["observer"], document["images"], pairs)


def calibrate(
    forward: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    dataset: Dataset,
    preprocess: AnyInput,
    observer: str = "minmax",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """Runs images through a network, and gives the range of each activation; arguments as for `observe`.

    Args:
        forward: as for `observe`, like all that is not named here.
        dataset: representative images.
        preprocess: the network's.
        observer: ``minmax``, ``percentile`` (99.99) or ``mse``.
        limit: at most this many images. None: all.
        progress: told after each.

    Raises:
        UsageError: an unknown observer, or a limit below 1.
        InputError: as `observe`.
    """
    make_observer(observer)  # an unknown name fails before an empty set does, and before any work
    chosen = spread(len(dataset), limit)
    found = observe(forward, dataset, preprocess, lambda: make_observer(observer), chosen, progress)
    ranges = {name: watcher.range() for name, watcher in found.items()}
    return Ranges(preprocess.hash, observer, len(chosen), ranges)


def spread(images: int, limit: int | None) -> list[int]:
    """The indices of at most so many images, spread evenly: neighbours in a video are alike.

    Raises:
        UsageError: a limit below 1.
        InputError: an empty set.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} images; it takes at least one to calibrate")
    total = images if limit is None else min(limit, images)
    if total == 0:
        raise InputError("no images to calibrate with: the data set is empty")
    return [done * images // total for done in range(total)]


def observe(
    forward: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    dataset: Dataset,
    preprocess: AnyInput,
    observer: Callable[[], W],
    chosen: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, W]:
    """Runs images through a network, one at a time, and observes its activations.

    Args:
        forward: takes a batch of one, float32 of ``preprocess.input_shape`` whatever its ``layout`` is, and
            gives the activations to observe by name, the input among them if its range is wanted.
        dataset: representative images; labels are not needed.
        preprocess: the network's.
        observer: makes a fresh one.
        chosen: indices of the images.
        progress: called with (images done, images in all) after each.

    Returns:
        Activation -> its observer.

    Raises:
        InputError: a broken image; an activation that is NaN or infinite (tensor and image are named); images
            that say nothing: each of one colour only, or an input channel that never changes.
    """
    observers: dict[str, W] = {}
    flat = 0
    images, channels = isinstance(preprocess, Preprocess), preprocess.input_shape[1]
    lowest, highest = np.full(channels, np.inf), np.full(channels, -np.inf)
    for done, index in enumerate(chosen, start=1):
        sample = dataset[index]
        flat += bool((sample.image == sample.image[:1, :1]).all()) if images else 0
        batch = preprocess(sample.image)[None]
        if preprocess.layout == "nhwc":
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        rest = (0, *range(2, batch.ndim))
        lowest = np.minimum(lowest, batch.min(axis=rest))
        highest = np.maximum(highest, batch.max(axis=rest))
        for name, values in forward(batch).items():
            if name not in observers:
                observers[name] = observer()
            try:
                observers[name].update(values)
            except InputError as error:
                raise InputError(
                    f"{error} in activation {name!r}, on image {sample.name!r}",
                    hint="check the weights and the preprocessing",
                ) from error
        if progress is not None:
            progress(done, len(chosen))
    if images:
        _check_content(len(chosen), flat, lowest, highest)
    elif lowest.min() == highest.max():  # a single band or sensor may well be silent
        what = f"the {len(chosen)} calibration array(s) are {lowest[0]:g} everywhere"
        raise InputError(
            f"{what}, and say nothing about ranges", hint="give arrays like those the device will see"
        )
    if not observers:
        raise InputError("the network gave no activations to observe")
    return observers


def _check_content(total: int, flat: int, lowest: np.ndarray, highest: np.ndarray) -> None:
    if flat == total:
        raise InputError(
            f"each of the {total} calibration image(s) is of one colour only, and says nothing about ranges",
            hint=_CONTENT_HINT,
        )
    for channel in np.flatnonzero(lowest == highest):
        raise InputError(
            f"input channel {channel} is {lowest[channel]:g} everywhere on the {total} calibration image(s)",
            hint=_CONTENT_HINT,
        )


def _pair(name: str, pair: Any) -> tuple[float, float]:
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in pair)
        or not -1e300 < pair[0] <= 0 <= pair[1] < 1e300
    ):
        what = f"{str(pair)[:80]} is not a range of finite values about zero"
        raise InputError(what, where=f"ranges of {name!r}")
    return float(pair[0]), float(pair[1])
