"""What is in a data set: images, labels, and what was left out, counted once it is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paredown.calibration.readers.reading import Reading
from paredown.calibration.readers.records import Record

SHOWN = 8  # classes that a line names
#: Suffixes of pictures that are not read, with what to do.
UNREAD: Mapping[str, str] = {
    ".heic": "convert them to JPEG", ".heif": "convert them to JPEG", ".avif": "convert them to JPEG",
    ".gif": "convert them to PNG", ".raw": "convert them to JPEG", ".dng": "convert them to JPEG",
    ".cr2": "convert them to JPEG", ".nef": "convert them to JPEG", ".arw": "convert them to JPEG",
    ".svg": "convert them to PNG", ".pdf": "convert them to PNG", ".mp4": "save their frames as images",
    ".mov": "save their frames as images", ".avi": "save their frames as images",
    ".jfif": "rename them to .jpg", ".jpe": "rename them to .jpg", ".jp2": "convert them to JPEG",
}  # fmt: skip


@dataclass(frozen=True)
class Census:
    """The count of a data set.

    Attributes:
        images: all of them.
        labelled: those that somebody labelled.
        objects: class -> boxes, or images of it where there are no boxes; every class of the network.
        boxes: whether objects are boxes.
        ignored: objects that no score counts.
        left_out: what was left out and why, in words.
        used: images that are used, where that is not all.
        kind: of objects that are no boxes, in words.
    """

    images: int
    labelled: int
    objects: Mapping[str, int] = field(default_factory=dict)
    boxes: bool = False
    ignored: int = 0
    left_out: tuple[str, ...] = ()
    used: int | None = None
    kind: str = "classes"

    def line(self) -> str:
        """One sentence."""
        parts = [f"{self.images:,} images, {self.labelled:,} labelled"]
        if self.used is not None:
            parts[0] += f", the first {self.used:,} used"
        if self.labelled and self.objects:
            some = sorted(self.objects.items(), key=lambda item: -item[1])
            there = [f"{name} {count:,}" for name, count in some if count]
            more = f" and {len(there) - SHOWN} more classes" if len(there) > SHOWN else ""
            what = f"{sum(self.objects.values()):,} boxes" if self.boxes else self.kind
            parts.append(f"{what}: {', '.join(there[:SHOWN])}{more}")
            if missing := [name for name, count in some if not count]:
                more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
                parts.append(f"none of {', '.join(missing[:SHOWN])}{more}")
        if self.ignored:
            parts.append(f"{self.ignored:,} objects ignored in scores")
        parts += self.left_out
        return "; ".join(parts)

    def rows(self) -> list[tuple[str, float]]:
        """Its figures: metric and value."""
        counts = {"images": self.images, "labelled": self.labelled, "ignored": self.ignored}
        counts |= {f"objects_{name}": count for name, count in self.objects.items()}
        return [(name, float(count)) for name, count in counts.items()]


def count_records(records: Sequence[Record], names: Sequence[str], reading: Reading) -> Census:
    """Counts records that were read.

    Args:
        records: of the set.
        names: of the network's classes.
        reading: what was noticed meanwhile.
    """
    objects = dict.fromkeys(names, 0)
    for record in records:
        for index in record.classes.tolist():
            objects[names[index]] += 1
    boxes = any(len(record.boxes) for record in records)
    ignored = sum(len(record.ignored) for record in records)
    return Census(len(records), sum(r.labelled for r in records), objects, boxes, ignored, _left_out(reading))


def count_classes(classes: Sequence[int | None], names: Sequence[str]) -> Census:
    """Counts samples of one class each, None of those without."""
    objects = dict.fromkeys(names, 0)
    for index in classes:
        if index is not None:
            objects[names[index]] += 1
    return Census(len(classes), sum(index is not None for index in classes), objects)


def _left_out(reading: Reading) -> tuple[str, ...]:
    parts = []
    if reading.clipped:
        parts.append(f"{reading.clipped:,} boxes clipped to the image")
    parts += [f"{count:,} {what}" for what, count in reading.left_out.items()]
    if reading.turned:
        how = {
            "upright": 'turned upright by EXIF (data.orientation = "stored" leaves them)',
            "stored": "with an EXIF flag left as they are stored",
        }[reading.orientation]
        parts.append(f"{reading.turned:,} images {how}")
    for suffix, count in sorted(reading.skipped.items()):
        advice = UNREAD.get(suffix)
        why = f"not read: {advice}" if advice else "no known kind of image"
        parts.append(f"{count:,} {suffix} files left out ({why})")
    return tuple(parts)
