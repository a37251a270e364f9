"""A file on its way here: kept where it is the one that was promised, and nothing of it where it is not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from paredown.targets.devices.errors import PullDamagedError
from paredown.targets.devices.shell.arrival import Arrival
from paredown.targets.errors import InputError

DATA = bytes(range(256)) * 40


def header(data: bytes, size: int | None = None) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()} {len(data) if size is None else size}\n".encode()


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 70, 1 << 16])
def test_it_is_kept_whole_however_it_comes(tmp_path: Path, size: int) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"older")
    with Arrival(target) as arrival:
        for piece in pieces(header(DATA) + DATA, size):
            arrival.take(piece)
            assert target.read_bytes() == b"older"
        arrival.keep("local:", "there")
    assert target.read_bytes() == DATA and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("wrong", [bytearray(DATA[:-1]) + b"!", DATA[::-1], bytes(len(DATA))])
def test_a_file_of_the_right_size_and_another_sha256_is_refused(tmp_path: Path, wrong: bytes) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"older")
    expected = rf"pull arrived different: there, {len(DATA)} bytes, with another sha256"
    with pytest.raises(PullDamagedError, match=expected), Arrival(target) as arrival:
        arrival.take(header(DATA) + bytes(wrong))
        arrival.keep("local:", "there")
    assert target.read_bytes() == b"older" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (header(DATA) + DATA[:-1], f"{len(DATA)} bytes, of which {len(DATA) - 1} came"),
        (header(DATA, len(DATA) + 1) + DATA, f"{len(DATA) + 1} bytes, of which {len(DATA)} came"),
        (b"no shell here\n" + DATA, f"a file, of which {len(DATA)} came"),
        (header(DATA)[:-1], "a file, of which 0 came"),
        (b"", "a file, of which 0 came"),
    ],
)
def test_what_was_not_promised_is_refused_and_leaves_nothing(
    tmp_path: Path, stream: bytes, words: str
) -> None:
    with pytest.raises(PullDamagedError, match=words), Arrival(tmp_path / "file") as arrival:
        arrival.take(stream)
        arrival.keep("local:", "there")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_arrives(tmp_path: Path) -> None:
    with Arrival(tmp_path / "file") as arrival:
        arrival.take(header(b""))
        arrival.keep("local:", "there")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write here: No such file"):
        Arrival(tmp_path / "no folder" / "file")
