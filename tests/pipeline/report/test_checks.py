"""A validation has passed when every check has and nothing is over the budget."""

from __future__ import annotations

import pytest

from paredown.pipeline.report.budget import Violation
from paredown.pipeline.report.checks import Check, Validation

pytestmark = pytest.mark.unit
GOOD, BAD = Check("hashes", True, "all right"), Check("litert vectors", False, "3 of 9 differ")
UNDONE = Check("latency", None, "emulated")
OVER = Violation("litert", "bundle_kib", 10, 12)


@pytest.mark.parametrize(
    ("checks", "violations", "passed"),
    [
        ((GOOD,), (), True),
        ((GOOD, UNDONE), (), True),
        ((GOOD, BAD), (), False),
        ((BAD, GOOD), (), False),
        ((GOOD,), (OVER,), False),
    ],
)
def test_one_failure_is_enough(checks, violations, passed) -> None:
    assert Validation(checks, (), violations).passed == passed


def test_a_check_that_was_not_done_is_never_ok() -> None:
    assert [check.state for check in (GOOD, BAD, UNDONE)] == ["ok", "FAIL", "skipped"]
