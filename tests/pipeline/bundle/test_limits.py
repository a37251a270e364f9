from __future__ import annotations

import io
import json
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from paredown.pipeline.bundle.archive import extract, pack, unpack
from paredown.pipeline.bundle.limits import MEMBERS, bounded, check_names, check_sizes, json_document
from paredown.pipeline.bundle.manifest import MANIFEST
from paredown.targets.errors import InputError
from paredown.targets.runners.expand import LEAST, RATIO
from tests.helpers.forge import COMMENT, forged, listed, resealed, sealed
from tests.pipeline.bundle.test_archive import MEMBERS as GOOD
from tests.pipeline.bundle.test_archive import manifest, opened

pytestmark = pytest.mark.unit


def refused(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        opened(tmp_path, data)
    assert "\n" not in str(raised.value)


def test_a_forged_bundle_of_good_members_opens(tmp_path):
    """Otherwise the refusals below could be for another reason."""
    bundle = opened(tmp_path, forged(manifest(), GOOD))
    assert bundle.members == GOOD
    extract(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "apps/x.py").read_bytes() == GOOD["apps/x.py"]


def bombs(sizes: list[int], stored: list[str]) -> bytes:
    """Members of zeros, stored as zstd."""
    members, extra = listed(GOOD), []
    for index, (size, file) in enumerate(zip(sizes, stored, strict=True)):
        small = zstandard.ZstdCompressor(level=1, write_content_size=True).compress(bytes(size))
        entry = {"bytes": size, "sha256": "0" * 64, "stored": file, "stored_bytes": len(small)}
        members[f"bomb{index}"] = entry
        extra.append((file, small, 0))
    unique = {name: (name, data, kind) for name, data, kind in extra}
    return forged(manifest(), GOOD, unique.values(), lambda document: document.update(members=members))


def test_little_does_not_become_much(tmp_path):
    refused(tmp_path, bombs([LEAST + (1 << 22)], ["a.zst"]), "would expand to [0-9,]+ bytes, more than")
    refused(tmp_path, bombs([LEAST // 2] * 3, ["a.zst", "b.zst", "c.zst"]), "would expand to")
    refused(tmp_path, bombs([1000] * 2, ["a.zst"] * 2), "members that are stored as one")


def test_a_large_bundle_may_expand_to_more():
    check_sizes([LEAST, RATIO * 1000], 1000)
    with pytest.raises(InputError, match="would expand"):
        check_sizes([LEAST, RATIO * 1000, 1], 1000)


def test_a_manifest_of_megabytes_is_not_read(tmp_path):
    text = json.dumps({**manifest(), "format": 4, "members": listed(GOOD)}).encode() + b" " * (9 << 20)
    entries = [(MANIFEST, text, 8), *((name, data, 0) for name, data in GOOD.items())]
    refused(tmp_path, sealed(entries), "manifest.json is larger than")


def test_many_members(tmp_path):
    many = {f"m{index}": b"" for index in range(MEMBERS)}
    refused(tmp_path, forged(manifest(), GOOD | many), "members, more than")


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_the_manifest_is_compressed_by_the_zip(tmp_path, kind):
    members = GOOD | {"more": bytes(1000)}
    text = json.dumps({**manifest(), "format": 4, "members": listed(members)}).encode()
    entries = [(name, data, kind if name == "more" else 0) for name, data in members.items()]
    refused(tmp_path, sealed([(MANIFEST, text, 8), *entries]), "'more' is compressed")
    plain = [(name, data, 0) for name, data in members.items()]
    if kind != zipfile.ZIP_DEFLATED:
        refused(tmp_path, sealed([(MANIFEST, text, kind), *plain]), "'manifest.json' is compressed")


def central(field: int, value: int, form: str = "<H", name: bytes | None = None) -> bytes:
    """A good bundle with one number of its zip directory changed."""
    body = bytearray(forged(manifest(), GOOD)[:-COMMENT])
    at = body.find(b"PK\x01\x02") if name is None else body.rfind(name) - 46
    struct.pack_into(form, body, at + field, value)
    return resealed(bytes(body))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (central(10, 99), "compressed|not a bundle"),
        (central(8, 1), "encrypted"),
        (central(6, 255), "not a bundle"),
        (central(24, 2**32 - 2, "<I"), "larger than"),
        (central(20, 2**32 - 2, "<I"), "lies over"),
        (central(42, 2**31, "<I"), "lies over|not a bundle"),
        (central(16, 5, "<I"), "not a bundle"),
        (central(38, 0o120777 << 16, "<I", b"noise"), "no plain file"),
        (central(42, 0, "<I", b"noise"), "lies over"),
    ],
    ids=["method", "encrypted", "version", "size", "packed size", "offset", "crc", "link", "overlap"],
)
def test_a_directory_that_lies(tmp_path, data, expected):
    refused(tmp_path, data, expected)


def test_names_twice_and_members_that_nobody_names(tmp_path):
    refused(tmp_path, forged(manifest(), GOOD, [(MANIFEST, b"{}", 0)]), "two members called 'manifest.json'")
    refused(tmp_path, forged(manifest(), GOOD, [("labels.txt", b"x", 0)]), "two members called")
    refused(
        tmp_path, forged(manifest(), GOOD, [("hidden", b"x", 0)]), "'hidden', which its manifest does not"
    )


OUT = ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", ".", "..", "a\\..\\x", "", "a\0b"]
ODD = ["con", "nul.txt", "a:b", "trail. ", "trail.", "a//b", "./a", "a\x1b[2J", "a" * 201, "sub/AUX.x", "b?"]


@pytest.mark.parametrize("name", [*OUT, *ODD])
def test_names_that_some_system_cannot_write(tmp_path, name):
    with pytest.raises(InputError):
        check_names(["labels.txt", name])
    with pytest.raises(ValueError):
        pack(manifest(), GOOD | {name: b"evil"})
    try:
        data = forged(manifest(), GOOD | {name: b"evil"})
    except ValueError:
        return  # no zip has it
    refused(tmp_path, data, "x.paredown: ")
    assert [path.name for path in tmp_path.iterdir()] == ["x.paredown"]


@pytest.mark.parametrize(
    "names",
    [
        ("labels.txt", "LABELS.TXT"), ("Stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("a", "a/b"),
        ("a/b", "A"), ("x/a", "X/b"), ("Manifest.json",),
    ],
)  # fmt: skip
def test_names_that_are_one_file_on_some_system(tmp_path, names):
    for order in (names, names[::-1]):
        refused(tmp_path, forged(manifest(), {**dict.fromkeys(order, b""), **GOOD}), "x.paredown: ")


@given(st.lists(st.text(), max_size=4))
def test_names_that_pass_are_written_where_they_say(tmp_path_factory, names):
    """Whatever is let through becomes a file of its own below the folder."""
    try:
        check_names([*names, MANIFEST])
    except InputError:
        return
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    files = [path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert sorted(path.read_text() for path in files) == sorted(set(names))


def test_what_has_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(InputError, match="no regular file"):
            unpack(path)
    (tmp_path / "file").write_bytes(bytes(100))
    assert bounded(tmp_path / "file", 100) == bytes(100)
    with pytest.raises(ValueError, match="more than 99"):
        bounded(tmp_path / "file", 99)


@pytest.mark.parametrize("text", [b'{"a": NaN}', b"[Infinity]", b"[-Infinity]", b"3" * 10000, b"{"])
def test_numbers_that_are_none(text):
    with pytest.raises(ValueError):
        json_document(text)


def scale(value: object) -> bytes:
    def fix(document: dict) -> None:
        document["models"][0]["input"]["scale"] = value

    return forged(manifest(), GOOD, fix=fix)


def shape(value: object) -> bytes:
    def fix(document: dict) -> None:
        document["models"][0]["input"]["shape"] = value

    return forged(manifest(), GOOD, fix=fix)


@pytest.mark.parametrize(
    "data",
    [scale(float("nan")), scale(float("inf")), scale(0), shape([1, 3, 10**9, 10**9]), shape([1, 0, 8, 8]),
     shape([1, -3, 8, 8])],
)  # fmt: skip
def test_tensors_that_cannot_be(tmp_path, data):
    refused(tmp_path, data, "NaN is no number|Infinity is no number|scale|shape")


def test_a_deep_manifest(tmp_path):
    text = json.dumps({**manifest(), "format": 4, "members": listed(GOOD)}).encode()
    deep = text[:-1] + b', "x": ' + b"[" * 100000 + b"]" * 100000 + b"}"
    refused(tmp_path, sealed([(MANIFEST, deep, 8)]), "not a bundle")
    buffer = io.BytesIO(forged(manifest(), GOOD))
    assert zipfile.ZipFile(buffer).testzip() is None


@pytest.mark.parametrize("bad", ["\x1b[2J", "a\x07", "\x9b31m", "\u202eabc", "\x00", "a\rb", "\ud800"])
def test_what_steers_a_terminal_is_in_no_text(tmp_path, bad):
    for key in ("name", "target"):
        refused(tmp_path, forged(manifest(**{key: bad}), GOOD), "manifest.json holds the control character")
    refused(tmp_path, forged(manifest(licences={bad: "x"}), GOOD), "holds the control character")
    if bad.isascii() or bad != "\ud800":
        labels = {"labels.txt": bad.encode(errors="surrogatepass")}
        refused(tmp_path, forged(manifest(), GOOD | labels), "labels.txt holds|not a bundle")


def test_texts_of_every_language_pass(tmp_path):
    labels = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\n\u0e01\u0e32\n\U0001f469\u200d\U0001f52c\n"
    made = opened(tmp_path, forged(manifest(name="\u00e9t\u00e9"), GOOD | {"labels.txt": labels.encode()}))
    assert made.read("labels.txt").decode() == labels


@pytest.mark.parametrize("app", ["os; import x", "apps.detector\n", "a b", "", "a..b", "../x", "-c"])
def test_an_app_is_a_name_of_python(tmp_path, app):
    refused(tmp_path, forged(manifest(app=app), GOOD), "app")
