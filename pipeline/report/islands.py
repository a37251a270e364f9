"""The operations that stay in float, for people: which, where, and what each costs on each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What a report has for each of them: see `pipeline.lower.predict.islands.facts`, and parity's difference.
Row = Mapping[str, Any]


def island_report(rows: Sequence[Row]) -> list[str]:
    """A table of them.

    Args:
        rows: of every runtime; empty where all is int8.
    """
    if not rows:
        return []
    lines = [
        "No integer kernel computes these. Each stands between a dequantize and a quantize, or is a table of "
        "256 codes. Codes that differ: alone, on random codes, from the integer graph's.",
        "",
        "| operation | name | in | runtime | values | float bytes | beside the delegate "
        "| codes that differ, by up to | ms alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = 100 * row["differing"] / row["values"] if row["values"] else 0.0
        cells = (
            row["op"], row["name"], row["line"] or "-", row["runtime"], f"{row['elements']:,}",
            f"{row['float_bytes']:,}", _outside(row), f"{share:.4g} %, {row['max_lsb']} LSB",
            f"{row['ms']:.3f}" if row.get("ms") is not None else "-",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def island_note(row: Row) -> str:
    """One of them, in a sentence."""
    place = f" ({row['line']})" if row["line"] else ""
    time = f", {row['ms']:.3f} ms alone" if row.get("ms") is not None else ""
    outside = "within the delegate" if not row["outside"] else f"beside the delegate: {_outside(row)}"
    return f"{row['runtime']} computes {row['name']}, {row['op']}{place}, in float: {outside}{time}"


def _outside(row: Row) -> str:
    return ", ".join(dict.fromkeys(row["outside"])) or "nothing"
