"""What the instruction counter wrote, read by hand-made examples."""

from __future__ import annotations

import pytest

from paredown.targets.devices.counts import Counts, read_counts
from paredown.targets.errors import DeviceError

pytestmark = pytest.mark.unit

#: Empty brackets that cost 10, 7 and 7, inferences that cost 1010, 1007 and 990.
TEXT = """\
0 100 1 2 3 94 0
1 110 3 2 5 100 0
0 200 3 2 5 190 0
1 207 4 2 6 195 0
0 300 4 2 6 288 0
1 307 5 2 7 293 0
2 1000 4 2 6 988 0
3 2010 404 302 106 1198 0
2 3000 404 302 106 2188 0
3 4007 803 602 205 2396 1
2 5000 900 600 200 3300 0
3 5990 1000 700 300 3990 0
"""


def test_the_median_inference_less_the_median_empty_bracket():
    assert read_counts(TEXT) == Counts(
        total=1007 - 7,
        load_store=399 - 1,
        simd=300 - 0,
        branch=99 - 1,
        integer=208 - 5,
        other=1 - 0,
    )


LINES = TEXT.splitlines()


@pytest.mark.parametrize(
    "lines",
    [[], LINES[:6], LINES[6:], LINES[:-1], LINES[1:], [*LINES, "x"], [line[:-2] for line in LINES]]
    + [[*LINES, "8 1 1 1 1 1 1", "9 1 1 1 1 1 1"], [*LINES, "", ""]],
)
def test_anything_else_is_refused(lines):
    with pytest.raises(
        DeviceError, match=r"^c\.txt: these are no counts of marked inferences; run with --marks"
    ):
        read_counts("\n".join(lines), "c.txt")
