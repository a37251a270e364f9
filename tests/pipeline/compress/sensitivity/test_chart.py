"""The sensitivity report: what the table says, and that the plot shows it."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from prune_networks import conv, network
from rich.console import Console

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.compress.sensitivity.chart import plot, table
from paredown.pipeline.compress.sensitivity.sensitivity import GIVEN_UP, NOT_ASKED, Curve, Point, Sensitivity
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace

EARLY = f"{GIVEN_UP} 64 images: 0.4 at most (95 %), 0.9 unpruned"


@pytest.fixture(scope="module")
def made() -> tuple[tuple[Group, ...], Graph]:
    net = network(
        lambda self, x: self.c(self.b(self.a(x)).relu()).relu(),
        a=conv(3, 4, 3), b=conv(4, 8, 3), c=conv(8, 1024),
    )  # fmt: skip
    graph = trace(net, (1, 3, 8, 8))
    return couple(graph), graph


def sensitivity(skip: str = EARLY) -> Sensitivity:
    base = Point(0, 0.9, 0.85, 0.94)
    full = Point(4, 0.9, 0.85, 0.94)
    a = Curve(
        "a", 4, (full, Point(3, 0.875, 0.8, 0.9), Point(2, 0.4, 0.3, 0.5), Point(1, None, None, None, skip))
    )
    b = Curve("b", 8, (Point(8, 0.9, 0.85, 0.94), Point(4, 1.0, 0.95, 1.0)))
    return Sensitivity("top1", 512, base, (a, b))


def text(found: Sensitivity, made: tuple[tuple[Group, ...], Graph]) -> str:
    """As a terminal of a hundred columns shows it."""
    console = Console(width=100, highlight=False, file=io.StringIO())
    console.print(table(found, *made))
    return console.file.getvalue()


def test_the_table_says_everything(made):
    shown = text(sensitivity(), made)
    words = " ".join(shown.split())
    assert "top1 on 512 images, 0.9000 (95 % interval 0.8500 to 0.9400)" in words
    a = next(line for line in shown.splitlines() if line.strip().startswith("a (4)"))
    assert "3: .875" in a and "2: .400" in a and "1: -" in a
    b = next(line for line in shown.splitlines() if line.strip().startswith("b (8)"))
    assert "4: 1.00" in b and ":" not in b.replace("4: 1.00", "")
    macs = {node.name: node.macs for node in made[1]}
    assert f"{macs['a'] / sum(macs.values()):.1%}" in a
    assert "stopped early, not part of the answer (1 points)" in words and "did not need it" not in shown


def test_the_two_reasons_to_skip_are_told_apart(made):
    shown = text(sensitivity(NOT_ASKED), made)
    words = " ".join(shown.split())
    assert "1: ·" in words and "did not need it (1 points)" in words and "cannot be" not in words


def test_eight_widths_fit_a_hundred_columns(made):
    """Of a thousand channels, with a long name."""
    groups, graph = made
    points = tuple(Point(128 * k, 0.5, 0.4, 0.6) for k in range(8, 0, -1))
    groups = tuple(g for g in groups if g.name != "c") + (
        Group("layers.12.conv", next(g for g in groups if g.name == "c").members, ()),
    )
    shown = text(
        Sensitivity("map50", 32, points[0], (Curve("layers.12.conv", 1024, points),)), (groups, graph)
    )
    row = next(line for line in shown.splitlines() if "(1024)" in line)
    assert "896: .500" in row and "128: .500" in row and "…" not in row
    assert len(row) <= 100


@pytest.mark.parametrize("curves", [1, 2, 12])
def test_the_plot_has_a_pane_per_group(made, tmp_path, curves):
    found = sensitivity()
    found = Sensitivity("top1", 512, found.baseline, (found.curves * 15)[:curves])
    plot(found, *made, tmp_path / "p.png")
    picture = cv2.imread(str(tmp_path / "p.png")).astype(int)
    blue = (picture[..., 0] > 150) & (picture[..., 2] < 80)
    red = (picture[..., 2] > 180) & (picture[..., 0] < 80)
    panes, rows = min(curves, 5), -(-curves // 5)
    for row in range(rows):
        for column in range(min(panes, curves - 5 * row)):
            h, w = picture.shape[0] // rows, picture.shape[1] // panes
            part = np.s_[row * h : (row + 1) * h, column * w : (column + 1) * w]
            assert blue[part].sum() > 50
    assert red.sum() > 20 and (picture < 250).any()
