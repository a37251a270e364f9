"""Errors of labels are kept and told together."""

from __future__ import annotations

import pytest

from paredown.calibration.readers.reading import Reading
from paredown.targets.errors import InputError


def read(faults: int) -> Reading:
    reading = Reading()
    for number in range(faults):
        with reading.collected():
            raise InputError("wrong", where=f"a.txt:{number}")
    return reading


def test_one_error_is_told_as_it_is_and_none_is_none():
    read(0).check()
    with pytest.raises(InputError, match=r"^a\.txt:0: wrong$"):
        read(1).check()


def test_ten_errors_are_told_and_the_rest_counted_in_one_line():
    with pytest.raises(InputError) as error:
        read(13).check()
    text = str(error.value)
    assert text.startswith("13 errors in the labels: a.txt:0: wrong | a.txt:1: wrong") and "\n" not in text
    assert text.endswith("a.txt:9: wrong | and 3 more") and "a.txt:10" not in text


def test_other_errors_are_not_kept():
    with pytest.raises(ZeroDivisionError), Reading().collected():
        print(1 / 0)
