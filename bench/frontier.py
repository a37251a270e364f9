"""Draws the tables of bench/squantizer.py: how much smaller against what it costs.

    python bench/squantizer.py resnet20 --cifar CIFAR squantize.weight_bits=8,4,2 ... >resnet20.md
    python bench/frontier.py resnet20.md OUT.png

Every row of the tables is a point in the pane of its network; those that no other row beats on both axes are
joined.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def rows(text: str) -> list[dict[str, str]]:
    """The cells of Markdown tables that all have the first one's heads."""
    lines = [
        [cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if "|" in line
    ]
    heads = lines[0]
    return [
        dict(zip(heads, cells, strict=True)) for cells in lines if cells != heads and "---" not in cells[0]
    ]


def draw(pane: Axes, name: str, found: list[dict[str, str]]) -> None:
    """One network's points, and the line of the best."""
    points = sorted((float(row["rate"].rstrip("x")), 100 * float(row["int8"]), row) for row in found)
    best = [p for p in points if not any(q[0] >= p[0] and q[1] > p[1] for q in points)]
    pane.plot([p[0] for p in best], [p[1] for p in best], "-", color="0.7", lw=1, zorder=1)
    for bits, marker in (("8", "s"), ("4", "o"), ("2", "^")):
        part = [p for p in points if p[2]["bits"] == bits]
        pane.plot([p[0] for p in part], [p[1] for p in part], marker, label=f"{bits}-bit weights")
    for rate, score, row in points:
        low = "" if row["act."] == "8" else f", {row['act.']}-bit act."
        note, place = f"{100 * float(row['zeros']):.0f} %{low}", (4, -11 if low else 5)
        pane.annotate(note, (rate, score), place, textcoords="offset points", fontsize=7)
    pane.axhline(100 * float(found[0]["fp32"]), ls=":", color="0.4", lw=1, label="float32")
    pane.set_title(name, fontsize=10)
    pane.set_xlabel("times smaller, in a bundle (labels: zeros)")
    pane.set_ylabel("score, int8, %")
    pane.margins(0.1)
    pane.grid(lw=0.3)
    pane.legend(fontsize=8, loc="upper right")


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    found = [row for path in arguments.tables for row in rows(path.read_text())]
    networks = list(dict.fromkeys(row["network"] for row in found))
    figure = Figure((6.5 * len(networks), 4.2), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for pane, name in zip(figure.subplots(1, len(networks), squeeze=False)[0], networks, strict=True):
        draw(pane, name, [row for row in found if row["network"] == name])
    canvas.print_png(str(arguments.picture))


if __name__ == "__main__":
    main()
