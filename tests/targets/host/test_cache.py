"""What is made once and kept: whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from paredown.targets.errors import DeviceError
from paredown.targets.host.cache import cache_folder, key_of, made_once


def fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_the_folder_is_the_users_own_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PAREDOWN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "paredown"


def test_it_is_made_once(tmp_path):
    folder = tmp_path / "kind" / "key"
    assert made_once(folder, fill) == folder
    assert made_once(folder, lambda _: pytest.fail("made again")) == folder
    assert (folder / "file").read_text() == "whole"
    assert list(folder.parent.iterdir()) == [folder]


def test_what_fails_on_the_way_leaves_nothing(tmp_path):
    def half(folder: Path) -> None:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "key", half)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_end_with_one_whole(tmp_path):
    together = threading.Barrier(2)

    def slowly(folder: Path) -> None:
        fill(folder)
        together.wait(10)  # both have found nothing

    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(made_once(tmp_path / "key", slowly))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [tmp_path / "key"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_is_a_device_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="the cache cannot be written: Not a directory; make room, or set"):
        made_once(tmp_path / "file" / "kind" / "key", fill)


def test_a_key_tells_its_parts_apart():
    assert key_of("a", b"b") == key_of("a", "b")
    assert len({key_of("ab"), key_of("a", "b"), key_of("", "ab"), key_of("b", "a")}) == 4
