from __future__ import annotations

import unicodedata

import pytest

from paredown.targets.errors import InputError, visible

pytestmark = pytest.mark.unit

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_every_control_character_is_shown_instead_of_obeyed():
    everything = "".join(map(chr, range(0x3000))) + "\ud800\udfff"
    shown = visible(everything)
    assert len(shown) == len(everything)
    changed = {before for before, after in zip(everything, shown, strict=True) if before != after}
    control = {c for c in everything if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    turning = {c for c in everything if unicodedata.bidirectional(c) in BIDI_CONTROLS}
    assert changed == control | turning
    shown.encode()


def test_an_error_is_one_line_that_moves_no_cursor():
    error = InputError("unknown class \x1b[2J\x1b]0;owned\x07 in\n line 3", where="a\x9bb", hint="x\x00y")
    assert str(error) == "a\ufffdb: unknown class \u241b[2J\u241b]0;owned\u2407 in line 3; x\u2400y"
