"""Named bytes in every kind of place: the same verbs, and errors of one kind."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry
from shared_stores import KEYS, Failing

from paredown.pipeline.store.shared.objects import Objects, Trouble
from paredown.targets.errors import DeviceError, UsageError


def test_bytes_are_what_they_were(url, tmp_path):
    objects = Objects(url)
    assert objects.read("a/b") is None and not objects.has("a/b")
    assert not objects.read_file("a/b", tmp_path / "none")
    objects.write("a/b", b"one")
    assert objects.read("a/b") == b"one" and objects.has("a/b")
    objects.write("a/b", b"other")
    (tmp_path / "from").write_bytes(b"of a file")
    objects.write_file("c", tmp_path / "from")
    assert objects.read_file("c", tmp_path / "to") and (tmp_path / "to").read_bytes() == b"of a file"
    assert Objects(url).read("a/b") == b"other"
    objects.remove("a/b")
    objects.remove("a/b")
    assert objects.read("a/b") is None and objects.read("c") == b"of a file"
    assert objects.count == {"get": 8, "put": 3, "delete": 2}
    assert objects.moved == {"in": 3 + 9 + 9, "out": 3 + 5 + 9}


def test_a_name_is_created_once(url):
    first, second = Objects(url), Objects(url)
    assert first.create("lock", b"1") and not second.create("lock", b"2") and not first.create("lock", b"3")
    assert second.read("lock") == b"1"
    first.remove("lock")
    assert second.create("lock", b"2") and first.read("lock") == b"2"


def test_no_half_file_is_left_in_a_folder(tmp_path):
    objects = Objects(str(tmp_path / "store"))
    with pytest.raises(OSError):
        objects.write_file("a", tmp_path / "none")
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("gopher://host/x", "`gopher://host/x` has a protocol that nothing here knows; give a folder"),
        ("s3://", "`s3://` is no store; give a folder, or a URL as s3://bucket/folder"),
        ("", "`` is no store"),
        ("simplecache::s3://bucket/x", "is no store"),
    ],
)
def test_a_wrong_url_is_one_line(url, line):
    with pytest.raises(UsageError) as raised:
        Objects(url)
    assert str(raised.value).startswith("--store: ") and line in str(raised.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.delitem(_registry, "s3", raising=False)  # those that were imported before
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"--store s3://b/x needs s3fs, .*; pip install 'paredown\[s3\]'"):
        Objects("s3://b/x")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "full", "no space is left; free some space there"),
        (OSError(errno.EIO, "QuotaExceeded"), "full", "no space is left"),
        (PermissionError("Access Denied"), "denied", "access is denied (Access Denied); look at the keys"),
        (OSError(errno.EROFS, "Read-only file system"), "denied", "access is denied"),
        (PermissionError("The difference between the request time and the current time is too large."),
         "denied", "the server refuses this machine's clock; set this machine's clock"),
        (ConnectionRefusedError("refused"), "away", "cannot be reached (refused); look at the address"),
        (TimeoutError("timed out"), "away", "cannot be reached"),
        (RuntimeError("odd\nlines"), "odd", "odd lines; look at the URL"),
    ],
)  # fmt: skip
def test_every_error_is_one_kind_of_trouble(broken, error, kind, words):
    objects = Objects(broken)
    Failing.writes = Failing.reads = error
    for do in (
        lambda: objects.write("a", b"x"),
        lambda: objects.create("b", b"x"),
        lambda: objects.read("a"),
    ):
        with pytest.raises(Trouble) as raised:
            do()
        assert raised.value.kind == kind and f"{broken}: {words}" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_full_disk_of_ours_is_no_trouble_of_the_store(bucket):
    objects = Objects(f"{bucket}/full")
    objects.write("a", bytes(100))
    with pytest.raises(OSError) as raised:
        objects.read_file("a", Path("/dev/full"))
    assert raised.value.errno == errno.ENOSPC


def test_a_bucket_that_is_not_there_and_a_server_that_is_away(bucket, monkeypatch):
    with pytest.raises(Trouble, match="there is no such bucket or folder") as raised:
        Objects("s3://no-such-bucket-here/x").write("a", b"x")
    assert raised.value.kind == "odd"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else it is tried for ten seconds
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(Trouble, match="cannot be reached") as raised:
            Objects(f"{bucket}/x").read("a")
    assert raised.value.kind == "away"
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", os.devnull)
    with pytest.raises(Trouble) as raised:
        Objects(f"{bucket}/x").read("a")
    assert raised.value.kind == "denied"
