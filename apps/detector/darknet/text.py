"""The sections of a darknet .cfg as text, each with its line. `darknet.py` gives them their meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from paredown.targets.errors import InputError

SUPPORTED = (
    "net", "convolutional", "maxpool", "route", "shortcut", "upsample", "reorg", "avgpool", "dropout", "crop",
    "softmax", "cost", "region", "yolo",
)  # fmt: skip
#: Sections that darknet has, and whose results are not computed here.
_REFUSED = (
    "Gaussian_yolo activation batchnorm connected contrastive conv_lstm crnn detection "
    "deconvolutional empty gru history implicit iseg local local_avgpool logistic lrn lstm l2norm "
    "normalization reorg3d reorg_old rnn sam scale_channels silence"
)
_SPELLINGS = {
    "network": "net", "conv": "convolutional", "max": "maxpool", "avg": "avgpool", "conn": "connected",
    "soft": "softmax", "local_avg": "local_avgpool", "deconv": "deconvolutional",
}  # fmt: skip
Options = Mapping[str, str]


@dataclass(frozen=True)
class Section:
    """One [section]: its kind, its line, its options as text and the line of each."""

    kind: str
    line: int
    where: str
    options: Options
    lines: Mapping[str, int]

    def at(self, key: str | None = None) -> str:
        """Returns "file:line" of a key, or of the section where the key is absent."""
        return f"{self.where}:{self.lines.get(key, self.line) if key else self.line}"

    def text(self, key: str, default: str) -> str:
        """Returns the value of a key, white space removed."""
        return self.options.get(key, default)

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Returns the value of a key as an integer within [low, high]; InputError otherwise."""
        raw = self.options.get(key)
        if raw is None:
            return default
        value = whole(raw)
        if value is None or not low <= value <= high:
            raise InputError(
                f"{key}={raw[:40]} in [{self.kind}] is not a whole number from {low} to {high}",
                where=self.at(key),
            )
        return value

    def real(self, key: str, default: float) -> float:
        """Returns the value of a key as a finite number; InputError otherwise."""
        raw = self.options.get(key)
        return default if raw is None else real(raw, key, self)


def whole(raw: str) -> int | None:
    """Returns a decimal integer of at most nine digits, or None: int() would also take "1_0" and "\u0661"."""
    digits = raw[1:] if raw[:1] in ("-", "+") else raw
    return int(raw) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def real(raw: str, key: str, section: Section) -> float:
    """Returns one number of a key's value, which may be a list; InputError unless it is finite."""
    try:
        value = float(raw) if "_" not in raw else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{key}: {raw[:40]!r} is not a finite number", where=section.at(key))
    return value


def scan(text: str, where: str) -> list[Section]:
    """Returns the sections of a .cfg in order.

    Raises:
        InputError: naming the line, for an unknown section or a line that is no option.
    """
    found: list[tuple[str, int, dict[str, str], dict[str, int]]] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        line = "".join(raw.partition("#")[0].split())  # darknet drops all white space, inside a value too
        if not line or line.startswith(";"):
            continue
        if line.startswith("["):
            name = line[1:-1] if line.endswith("]") else line
            kind = _SPELLINGS.get(name, name)
            if kind not in SUPPORTED:
                known = ", ".join(f"[{k}]" for k in SUPPORTED)
                what = (
                    f"[{kind}] is not supported"
                    if kind in _REFUSED.split()
                    else f"unknown section {line[:40]}"
                )
                raise InputError(what, where=f"{where}:{number}", hint=f"known: {known}")
            found.append((kind, number, {}, {}))
            continue
        key, equals, value = line.partition("=")
        if not (key and equals and value):
            raise InputError(f"{line[:40]!r} is not key=value", where=f"{where}:{number}")
        if not found:
            raise InputError(f"{key[:40]}= stands before any [section]", where=f"{where}:{number}")
        found[-1][2].setdefault(key, value)  # darknet uses the first of two equal keys
        found[-1][3].setdefault(key, number)
    return [Section(kind, line, where, options, lines) for kind, line, options, lines in found]
