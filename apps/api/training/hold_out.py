"""A part of the training images is held out where a data set has no images to validate on."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from paredown.apps.api.training.source import Source
from paredown.calibration.datasets import ImageSet, open_dataset
from paredown.calibration.readers.images import is_dir
from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError

SHARE = 0.2  # of the labelled images
FEWEST = 8  # labelled images that can be parted at all


def hold_out(source: Source, out: Path, seed: int = 0) -> Source:
    """Writes two lists beside the weights, of the images to train on and of those held out.

    Args:
        source: without images to validate on.
        out: the weights' file; the lists are called after it.
        seed: of the choice.

    Returns:
        The source with these lists.

    Raises:
        InputError: too few labelled images.
    """
    data = opened(source, source.train)
    labelled = [index for index, record in enumerate(data.records) if record.labelled]
    if len(labelled) < FEWEST:
        raise InputError(
            f"{len(labelled)} labelled images, too few to hold some out", where=source.train,
            hint=f"label at least {FEWEST}, or give --validation",
        )  # fmt: skip
    order = np.random.default_rng(seed).permutation(labelled)
    count = max(1, round(SHARE * len(labelled)))
    parts = {"train": sorted(order[count:].tolist()), "val": sorted(order[:count].tolist())}
    suffix = {"coco": ".json", "imagefolder": ".csv"}.get(source.format, ".txt")
    files = {name: out.with_name(f"{out.stem}.{name}{suffix}") for name in parts}
    for name, chosen in parts.items():
        write_atomic(files[name], _written(source, data, chosen, files[name].parent).encode())
    images, labels = _folders(source, data)
    return replace(source, train=files["train"], validation=files["val"], images=images, labels=labels)


def opened(source: Source, path: Path) -> ImageSet:
    """One split of a source; all of its labels are checked."""
    data = open_dataset(
        source.format, path, names=source.names, images=source.images, labels=source.labels,
        require_labels=True,
    )  # fmt: skip
    assert isinstance(data, ImageSet)  # a source has no other format
    return data


def _written(source: Source, data: ImageSet, chosen: Sequence[int], folder: Path) -> str:
    """The list of some images, as the format has it."""
    records = [data.records[index] for index in chosen]
    if source.format == "voc":
        return "".join(f"{record.name}\n" for record in records)
    paths = [
        Path(os.path.relpath(record.image.absolute(), folder.absolute())).as_posix() for record in records
    ]
    if source.format == "yolo":
        return "".join(f"{path}\n" for path in paths)
    if source.format == "imagefolder":
        text = io.StringIO()
        rows = zip(paths, records, strict=True)
        csv.writer(text).writerows([(path, source.names[record.classes[0]]) for path, record in rows])
        return text.getvalue()
    document = json.loads(source.train.read_text(encoding="utf-8-sig"))
    images = [document["images"][index] for index in chosen]
    kept = {entry["id"] for entry in images}
    annotations = [entry for entry in document["annotations"] if entry["image_id"] in kept]
    return json.dumps({**document, "images": images, "annotations": annotations})


def _folders(source: Source, data: ImageSet) -> tuple[Path | None, Path | None]:
    """Where the images and labels of a list lie, for formats that do not say it in the list."""
    if source.format == "coco":
        first = data.records[0]
        return Path(first.image.as_posix().removesuffix(first.name)), None
    if source.format != "voc":
        return source.images, source.labels
    root = source.train if is_dir(source.train) else source.train.absolute().parent.parent.parent
    if is_dir(root / "JPEGImages"):
        return root / "JPEGImages", root / "Annotations"
    return root, root
