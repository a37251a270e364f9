from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paredown.pipeline.bundle.archive import extract, pack, unpack
from paredown.pipeline.bundle.manifest import FORMAT, MANIFEST, PACKED, wire_bytes
from paredown.pipeline.bundle.packed.packing import pack_programs
from paredown.pipeline.recipe.schema import Recipe
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError
from paredown.targets.runners.expand import expand_programs

PROGRAM = bytes(range(256)) * 8
MEMBERS = {"model.tflite": PROGRAM, "labels.txt": b"a\nb\n", "apps/x.py": b"", "noise": bytes(range(40))}


def manifest(**changes):
    tensor = {"name": "x", "shape": [1, 3, 8, 8], "scale": 0.5, "zero_point": -128}
    model = {"runtime": "litert", "file": "model.tflite", "dtype": "int8", "layout": "nchw"}
    plain = {"mode": "json", "exclude_none": True}
    return {
        "name": "small",
        "target": "host",
        "card": load_card("host").model_dump(**plain),
        "app": "apps.detector",
        "network": {"cfg": "0" * 64},
        "recipe": Recipe().model_dump(**plain),
        "models": [{**model, "input": tensor, "outputs": [tensor]}],
        "preprocess": {"width": 8, "height": 8},
        "preprocess_hash": "0" * 64,
        "test": {"images": 2, "fingerprint": "0" * 64},
        "figures": [],
        "versions": {},
        "licences": {},
        **changes,
    }


def opened(tmp_path, data):
    path = tmp_path / "x.paredown"
    path.write_bytes(data)
    return unpack(path)


def sealed(entries: dict[str, bytes]) -> bytes:
    """A zip file of any entries with the seal of a bundle: what someone else's tool could make."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        archive.comment = bytes(80)
    body = buffer.getvalue()[:-80]
    return body + b"paredown sha256 " + hashlib.sha256(body).hexdigest().encode()


def test_packing_twice_gives_the_same_bytes_whatever_the_order():
    first = pack(manifest(), MEMBERS)
    assert pack(dict(reversed(manifest().items())), dict(reversed(MEMBERS.items()))) == first
    assert pack(manifest(name="other"), MEMBERS) != first


def test_any_tool_lists_it_and_the_manifest_names_every_hash(tmp_path):
    data = pack(manifest(), MEMBERS)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST, "apps/x.py", "labels.txt", "model.tflite.zst", "noise"]
        document = json.loads(archive.read(MANIFEST))
    assert document["format"] == FORMAT
    for name, content in MEMBERS.items():
        assert document["members"][name]["sha256"] == hashlib.sha256(content).hexdigest()
    assert data[-64:].decode() == hashlib.sha256(data[:-80]).hexdigest()
    assert len(data) < len(PROGRAM) + 8000


NAMES = st.lists(st.text("abz0_-", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=300), max_size=6))
def test_members_come_back(tmp_path_factory, members):
    members = {**members, "model.tflite": PROGRAM}
    assume(not any(other.startswith(f"{name}/") for name in members for other in members))
    tmp_path = tmp_path_factory.mktemp("round")
    data = pack(manifest(), members)
    assert data == pack(manifest(), members)
    bundle = opened(tmp_path, data)
    assert bundle.members == members
    assert bundle.manifest.models[0].input.scale == 0.5


def test_every_flipped_bit_of_every_byte_is_found(tmp_path):
    data = bytearray(
        pack(manifest(card=load_card("host").model_dump(mode="json", exclude_none=True)), MEMBERS)
    )
    path = tmp_path / "x.paredown"
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            unpack(path)
        data[position] ^= 1 << position % 8
    path.write_bytes(data)
    assert unpack(path).members == MEMBERS


@settings(max_examples=150, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_every_change_of_a_byte_of_a_real_bundle_is_found(tiny, tmp_path_factory, at, value):
    data = bytearray(tiny.bundle.read_bytes())
    data[int(at * len(data))] ^= value
    with pytest.raises(InputError, match="damaged"):
        opened(tmp_path_factory.mktemp("flip"), data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_cut_extended_and_spliced_bundles_are_refused(tmp_path_factory, data):
    good = pack(manifest(), MEMBERS)
    at, end = sorted(data.draw(st.tuples(*[st.integers(0, len(good))] * 2)))
    bad = good[:at] + data.draw(st.binary(max_size=200)) + good[end:]
    tmp_path = tmp_path_factory.mktemp("cut")
    if bad == good:
        assert opened(tmp_path, bad).members == MEMBERS
        return
    with pytest.raises(InputError) as raised:
        opened(tmp_path, bad)
    assert "\n" not in str(raised.value)


def test_what_is_no_bundle_says_so(tmp_path):
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("a", b"b")
    for data, expected in (
        (b"", r"empty \(0 bytes\)"),
        (b"garbage" * 50, r"not a bundle, or truncated or damaged \(350 bytes\)"),
        (plain.getvalue(), "a zip file but not a paredown bundle"),
        (sealed({"a": b"b"}), "not a bundle: .*manifest.json"),
        (sealed({MANIFEST: b"{"}), "not a bundle"),
        (sealed({MANIFEST: b"[]"}), "bundle format None"),
        (sealed({MANIFEST: b"[" * 100000}), "not a bundle"),
        (sealed({MANIFEST: b"\xff"}), "not a bundle"),
    ):
        with pytest.raises(InputError, match=expected):
            opened(tmp_path, data)
    with pytest.raises(InputError, match="cannot read this bundle: No such file"):
        unpack(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot read this bundle: Is a directory"):
        unpack(tmp_path)
    with pytest.raises(InputError, match="cannot read this bundle"):
        unpack("a\0b")


def test_a_bundle_of_another_format_is_named():
    text = json.dumps({**manifest(), "format": 99, "members": {}})
    with pytest.raises(InputError, match="bundle format 99, this version reads 3 and 4; make it again"):
        opened_sealed(text)


def opened_sealed(text, tmp=None, **members):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return opened(Path(folder), sealed({MANIFEST: text, **members}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"models": []}, "models"),
        ({"models": [{}]}, "models.0.runtime` is missing"),
        ({"card": {}}, "card.name` is missing"),
        ({"recipe": {"bench": {"runs": 0}}}, "recipe.bench.runs = 0` is not accepted"),
        ({"test": None}, "test"),
        ({"figures": 3}, "figures"),
        ({"surprise": 1}, "unknown key `surprise`"),
        ({"members": {"a": {"bytes": -1}}}, "members.a.bytes"),
    ],
)
def test_a_sealed_manifest_that_makes_no_sense_names_its_key(change, expected):
    document = {**manifest(), "format": FORMAT, "members": {}, **change}
    with pytest.raises(InputError, match=expected):
        opened_sealed(json.dumps(document))


def test_members_that_are_not_what_a_sealed_manifest_says():
    entry = {"bytes": 2, "sha256": hashlib.sha256(b"ab").hexdigest(), "stored": "m", "stored_bytes": 2}
    document = {**manifest(), "format": FORMAT}
    for members, files in (
        ({"m": entry}, {"m": b"xy"}),
        ({"m": {**entry, "stored": "m.zst"}}, {"m.zst": b"no zstd"}),
        (
            {"m": {**entry, "stored": "m.zst"}},
            {"m.zst": b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8},
        ),  # 2**64 bytes
    ):
        with pytest.raises(InputError, match="m is not what the manifest says"):
            opened_sealed(json.dumps({**document, "members": members}), **files)
    with pytest.raises(InputError, match="not a bundle: .*no item named"):
        opened_sealed(json.dumps({**document, "members": {"m": entry}}))
    with pytest.raises(InputError, match="has no member model.tflite"):
        opened_sealed(json.dumps({**document, "members": {"m": entry}}), m=b"ab")


def test_members_that_would_collide_are_refused():
    with pytest.raises(ValueError, match="stored as manifest.json"):
        pack(manifest(), {MANIFEST: b"x"})
    with pytest.raises(ValueError, match="stored as a.zst"):
        pack(manifest(), {"a": PROGRAM, "a.zst": b"x"})


def test_extracting_gives_the_members_and_the_manifest(tmp_path):
    extract(opened(tmp_path, pack(manifest(), MEMBERS)), tmp_path / "out")
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert set(found) == {*MEMBERS, MANIFEST}
    assert all(found[name].read_bytes() == data for name, data in MEMBERS.items())
    assert json.loads(found[MANIFEST].read_bytes())["members"]["labels.txt"]["bytes"] == 4


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    bundle = opened(tmp_path, pack(manifest(), MEMBERS))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write here"):
        extract(bundle, tmp_path / "file")


# -- models that are packed together -------------------------------------------------------------------------

WEIGHT = np.random.default_rng(0).choice(np.array([0, 0, 0, 0, -9, 9, 50], np.int8), (40, 20, 3, 3))
MODELS = {
    "model.pte": b"pte" + bytes(range(200)) + WEIGHT.tobytes(),
    "model.tflite": b"tflite" + WEIGHT.transpose(0, 2, 3, 1).tobytes() + bytes(range(200)),
}
OTHERS = {name: data for name, data in MEMBERS.items() if name not in MODELS}


def two_models():
    (model,) = manifest()["models"]
    return manifest(models=[model, {**model, "runtime": "executorch", "file": "model.pte"}])


def test_models_are_stored_together_where_that_is_smaller(tmp_path):
    data = pack(two_models(), {**OTHERS, **MODELS}, [WEIGHT])
    assert data == pack(two_models(), {**MODELS, **OTHERS}, [WEIGHT])
    bundle = opened(tmp_path, data)
    assert bundle.members == {**OTHERS, **MODELS}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == [MANIFEST, "apps/x.py", "labels.txt", PACKED, "noise"]
        stream = archive.read(PACKED)
    assert expand_programs(stream) == MODELS
    assert wire_bytes(bundle.manifest) == {"shared": len(stream)}
    for name in MODELS:
        member = bundle.manifest.members[name]
        assert (member.stored, member.stored_bytes) == (PACKED, len(stream))
    alone = pack(two_models(), {**OTHERS, **MODELS})
    assert opened(tmp_path, alone).members == bundle.members
    sizes = wire_bytes(opened(tmp_path, alone).manifest)
    assert set(sizes) == {"executorch", "litert"} and len(stream) < 0.6 * sum(sizes.values())
    extract(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "model.pte").read_bytes() == MODELS["model.pte"]


def test_one_model_is_packed_under_its_own_runtime(tmp_path):
    members = {**OTHERS, "model.tflite": MODELS["model.tflite"]}
    bundle = opened(tmp_path, pack(manifest(), members, [WEIGHT]))
    assert bundle.members == members
    member = bundle.manifest.members["model.tflite"]
    assert member.stored == PACKED and wire_bytes(bundle.manifest) == {"litert": member.stored_bytes}


def test_models_that_are_larger_packed_are_not(tmp_path):
    noise = np.random.default_rng(1).bytes(3000)
    members = {**OTHERS, "model.tflite": noise}
    bundle = opened(tmp_path, pack(manifest(), members, [np.frombuffer(noise, np.int8)[:2000]]))
    assert bundle.manifest.members["model.tflite"].stored == "model.tflite"
    assert bundle.members == members and wire_bytes(bundle.manifest) == {"litert": 3000}


def test_a_member_of_the_packed_streams_name(tmp_path):
    members = {**OTHERS, **MODELS, PACKED: b"mine"}
    assert opened(tmp_path, pack(two_models(), members)).members == members
    with pytest.raises(ValueError, match=f"stored as {PACKED}"):
        pack(two_models(), members, [WEIGHT])


def test_packed_models_that_are_not_what_a_sealed_manifest_says():
    data = pack(two_models(), MODELS, [WEIGHT])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        text, stream = archive.read(MANIFEST), archive.read(PACKED)
    for bad, expected in (
        (stream[:-1], rf"{PACKED}: packed programs, truncated or damaged"),
        (b"", rf"{PACKED}: empty \(0 bytes\)"),
        (pack_programs({"model.pte": MODELS["model.pte"]}, []), "model.tflite is not what the manifest says"),
        (pack_programs({**MODELS, "model.pte": b""}, []), "model.pte is not what the manifest says"),
    ):
        with pytest.raises(InputError, match=expected):
            opened_sealed(text, **{PACKED: bad})
    with pytest.raises(InputError, match="not a bundle: .*no item named"):
        opened_sealed(text)


def test_a_real_bundle_expands_on_a_device_that_has_only_its_packed_stream(tiny, tmp_path):
    bundle = unpack(tiny.bundle)
    assert set(wire_bytes(bundle.manifest)) == {"shared"}
    with zipfile.ZipFile(tiny.bundle) as archive:
        (tmp_path / PACKED).write_bytes(archive.read(PACKED))
    board = tmp_path / "board"
    extract(bundle, board)
    for name in ("model.pte", "model.tflite"):
        (board / name).unlink()
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'zstandard', 'paredown.pipeline', 'pydantic', 'cv2'):\n"
        "    sys.modules[name] = None\n"
        "sys.path.insert(0, '.')\n"
        "runpy.run_module('paredown.targets.runners.expand', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-I", "-c", code, tmp_path / PACKED, "."]
    done = subprocess.run(command, cwd=board, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("model.pte", "model.tflite"):
        assert (board / name).read_bytes() == bundle.members[name]
