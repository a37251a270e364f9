"""Texts for language models: which part of Python's help is for what, and files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from paredown.apps.chat.texts import file_text, fingerprint, pydoc_text
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def test_the_splits_of_pydoc_are_apart_and_together_all_of_it() -> None:
    parts = {split: pydoc_text(split) for split in ("train", "calibration", "test")}
    whole = [topics[name].strip() for name in sorted(topics)]
    assert sum(len(text) for text in parts.values()) == sum(map(len, whole)) + 2 * (len(whole) - 3)
    assert whole[8] in parts["calibration"] and whole[9] in parts["test"]
    assert all(whole[place] in parts["train"] for place in range(8)) and whole[9] not in parts["train"]


def test_a_file_or_the_text_files_of_a_folder_by_name(tmp_path: Path) -> None:
    for name, text in (("b.txt", "two"), ("a.txt", "öne"), ("c.md", "no")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert file_text(tmp_path) == "öne\ntwo" and file_text(tmp_path / "b.txt") == "two"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff", "is no UTF-8 text: byte 0"), (b" \n", "holds no text; a .txt file"), (None, "cannot read")],
)
def test_what_is_no_text_is_one_line(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "x.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        file_text(path)


def test_the_fingerprint_is_sha256() -> None:
    assert fingerprint("ö") == hashlib.sha256(b"\xc3\xb6").hexdigest()
