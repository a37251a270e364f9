"""Expanding on the device: streams written by hand, damage, forgeries, and the command without our tools."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pipeline.bundle.packed.packing import pack_codes, pack_program, pack_programs
from paredown.pipeline.lower.integer import Parameters
from paredown.targets.errors import InputError
from paredown.targets.runners.expand import expand_program, expand_programs, main, unpack_codes

ROOT = Path(__file__).parents[3]
SCALE = np.linspace(1e-4, 3e-3, 16, dtype="<f4")
LAYER = Parameters(SCALE, 0.037, np.arange(-8, 8, dtype="<i4") * 1000)
WEIGHT = np.array([0, 0, 5, -5, 0, 0, 0, 9] * 40, np.int8).reshape(8, 10, 2, 2)
PROGRAM = b"TFL3" + bytes(30) + WEIGHT.transpose(0, 2, 3, 1).tobytes() + b"the end"
NAMED = b"".join(
    (
        hashlib.sha256(WEIGHT.tobytes()).hexdigest().encode(), PROGRAM, WEIGHT.tobytes(), SCALE.tobytes(),
        LAYER.bias.tobytes(), (SCALE * np.float32(LAYER.factor)).tobytes(),
        hashlib.sha256(LAYER.bias.tobytes()).hexdigest().encode(), b".",
    )
)  # fmt: skip


def compressed(data, lc=0, lp=0, pb=0):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16, "lc": lc, "lp": lp, "pb": pb}]
    return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


def sealed(magic, body):
    return magic + struct.pack("<I", zlib.crc32(body)) + body


def codes_stream(data, lc=0):
    """A stream of codes by the description of the format: what someone else could write."""
    return sealed(b"pdc1", bytes([lc]) + compressed(data, lc))


def programs_stream(directory, skeletons=b"", codes=b""):
    line = directory if isinstance(directory, bytes) else json.dumps(directory).encode()
    first = compressed(line + b"\n" + skeletons, 1, 2, 2)
    return sealed(b"pdp1", struct.pack("<I", len(first)) + first + codes)


# -- written out by hand -------------------------------------------------------------------------------------


def test_codes_as_the_description_of_the_format_has_them():
    data = struct.pack("<I", 6)
    data += struct.pack("<IIB3b", 10, 0, 3, -7, 1, 9)  # bitmap, an alphabet of three
    data += struct.pack("<IIB1b", 600, 4, 1, 5)  # gaps, an alphabet of one
    data += struct.pack("<IIB", 3, 0, 0)  # bitmap, no alphabet
    data += struct.pack("<IIB2b", 0, 0, 2, 1, 2)  # nothing
    data += struct.pack("<IIB2b", 4, 0, 2, 1, 2)  # only zeros
    data += struct.pack("<IIB2b", 600, 3, 2, -1, 1)  # gaps, zeros at the end
    data += bytes([0b11101000, 0b11000000]) + bytes([2, 255, 0, 100]) + bytes([0b01100000])
    data += bytes([0]) + bytes([3, 255, 255])
    data += bytes([0 + 1 * 3 + 2 * 9 + 0 * 27 + 2 * 81, 1])  # digits 0 1 2 0 2, then 1
    data += struct.pack("2b", -128, 127) + bytes([1])
    expected = [-7, 1, 9, 0, -7, 0, 0, 0, 9, 1]
    second = np.zeros(600, np.int8)
    second[[2, 258, 359]] = 5
    last = np.zeros(600, np.int8)
    last[3] = 1
    np.testing.assert_array_equal(
        unpack_codes(codes_stream(data)), [*expected, *second, 0, -128, 127, 0, 0, 0, 0, *last]
    )
    assert unpack_codes(codes_stream(struct.pack("<I", 0), lc=3)).size == 0


@pytest.mark.parametrize(
    ("kinds", "digits"),
    [(2, 8), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (15, 2), (16, 2), (17, 1), (64, 1)],
)
def test_so_many_digits_are_in_a_byte_as_the_description_of_the_format_says(kinds, digits):
    """By hand, since packing and expanding ask one function: 2, 4 and 16 kinds fill a whole byte."""
    alphabet = [code for code in range(-(kinds // 2), kinds - kinds // 2 + 1) if code]
    count = 2 * digits + 1
    places = [(7 * place + kinds - 1) % kinds for place in range(count)]
    data = struct.pack("<I", 1) + struct.pack(f"<IIB{kinds}b", count, 0, kinds, *alphabet)
    data += np.packbits(np.ones(count, np.uint8)).tobytes()
    for start in range(0, count, digits):
        data += bytes([sum(p * kinds**i for i, p in enumerate(places[start : start + digits]))])
    expected = [alphabet[place] for place in places]
    np.testing.assert_array_equal(unpack_codes(codes_stream(data)), expected)
    np.testing.assert_array_equal(unpack_codes(pack_codes(np.array(expected, np.int8))), expected)


def entry(name, data, holes=()):
    return {
        "name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "holes": list(holes),
    }  # fmt: skip


def test_programs_as_the_description_of_the_format_has_them():
    weight = np.arange(12, dtype=np.int8).reshape(3, 4)
    one, two = b"ab" + weight.T.tobytes() + b"c" + weight.tobytes(), b"plain"
    directory = {
        "layers": [[3, 4]],
        "programs": [entry("one", one, [[2, 0, "10"], [1, 0, "01"]]), entry("two", two)],
    }
    stream = programs_stream(directory, b"abcplain", pack_codes(weight))
    assert expand_programs(stream) == {"one": one, "two": two}
    with pytest.raises(InputError, match="holds 2 programs, not one"):
        expand_program(stream)
    assert expand_programs(programs_stream({"layers": [], "programs": []})) == {}


def test_what_follows_from_the_rest_as_the_description_of_the_format_has_it():
    weight, scale = np.arange(12, dtype=np.int8).reshape(3, 4), np.array([0.1, 3e-5, -7.0, 1e-30], "<f4")
    product = (scale * np.float32(0.3)).tobytes()
    digests = [hashlib.sha256(data).hexdigest().encode() for data in (product, weight.tobytes())]
    program = b"x" + digests[0] + product + b"yy" + scale.tobytes() + weight.tobytes() + digests[1]
    holes = [[1, 65, 16], [0, 83, 4, float(np.float32(0.3))], [18, 0, "01"], [0, 99, 12]]
    directory = {"layers": [[3, 4]], "programs": [entry("p", program, holes)]}
    stream = programs_stream(directory, b"xyy" + scale.tobytes(), pack_codes(weight))
    assert expand_program(stream) == program


# -- damage --------------------------------------------------------------------------------------------------

STREAMS = (
    (unpack_codes, pack_codes(WEIGHT)),
    (unpack_codes, pack_codes(np.arange(-90, 90, dtype=np.int8))),
    (expand_programs, pack_program(PROGRAM, [WEIGHT])),
    (expand_programs, pack_programs({"a": PROGRAM, "b": PROGRAM[::-1]}, [WEIGHT])),
    (expand_program, pack_program(NAMED, [WEIGHT], [LAYER])),
    (expand_program, pack_program(b"", [])),
)


@pytest.mark.parametrize(("expand", "good"), STREAMS)
def test_every_changed_byte_and_every_cut_is_refused(expand, good):
    expand(good)
    for position in range(len(good)):
        for change in (1, 0x80, 0xFF):
            bad = bytearray(good)
            bad[position] ^= change
            with pytest.raises(InputError, match="damaged|no packed"):
                expand(bytes(bad))
        with pytest.raises(InputError, match="empty|damaged|no packed"):
            expand(good[:position])
        with pytest.raises(InputError, match="empty|damaged|no packed"):
            expand(good[position + 1 :])
    with pytest.raises(InputError, match="damaged"):
        expand(good + b"\0")


@pytest.mark.parametrize(("expand", "good"), STREAMS)
def test_every_changed_byte_behind_a_right_crc_is_refused_or_gives_the_right_result(expand, good):
    """What a CRC does not find: a forger, or chance."""
    right = expand(good)
    for position in range(8, len(good)):
        for change in (1, 0x10, 0x80, 0xFF):
            body = bytearray(good[8:])
            body[position - 8] ^= change
            try:
                found = expand(sealed(good[:4], bytes(body)))
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert expand is unpack_codes or found == right


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), magic=st.sampled_from([b"", b"pdc1", b"pdp1"]), crc=st.booleans())
def test_anything_else_is_refused(data, magic, crc):
    data = sealed(magic, data) if crc else magic + data
    for expand in (unpack_codes, expand_programs):
        with pytest.raises(InputError) as raised:
            expand(data, "here.packed")
        assert str(raised.value).startswith("here.packed: ") and "\n" not in str(raised.value)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=120), codes=st.booleans())
def test_anything_that_is_well_compressed_is_refused_or_is_codes(data, codes):
    try:
        unpack_codes(codes_stream(data)) if codes else expand_programs(programs_stream(data))
    except InputError as error:
        assert "\n" not in str(error)


def test_each_kind_names_what_it_is_not():
    for expand, other, kind in (
        (unpack_codes, pack_program(PROGRAM, []), "codes"),
        (expand_programs, pack_codes(WEIGHT), "programs"),
        (expand_program, PROGRAM, "programs"),
    ):
        with pytest.raises(InputError, match=rf"no packed {kind} \(\d+ bytes\); copy it again"):
            expand(other)
        with pytest.raises(InputError, match=r"empty \(0 bytes\); copy it again"):
            expand(b"")


# -- forgeries: a right CRC, and sizes that would ask for all memory -----------------------------------------

HUGE = 0xFFFFFFFF


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", HUGE),
        struct.pack("<IIIB", 1, HUGE, 0, 0),
        struct.pack("<IIIB", 1, HUGE, 1, 0) + b"\0",
        struct.pack("<IIIB", 1, HUGE, HUGE, 0),
        struct.pack("<IIIB", 1, 8, 0, 255),
        struct.pack("<IIIB", 1, 8, 0, 0) + b"\xff",
        struct.pack("<IIIBb", 1, 8, 2, 1, 3) + bytes([200, 200]),
        struct.pack("<IIIBb", 1, 8, 0, 1, 3) + b"\xff" + b"more",
        struct.pack("<I", 1000) + struct.pack("<IIB", HUGE, 0, 0) * 1000,
        b"",
    ],
)
def test_false_sizes_of_codes_are_refused_without_their_memory(data):
    with limited_memory(), pytest.raises(InputError, match="no packed codes"):
        unpack_codes(codes_stream(data))


def false_directories():
    weight = np.zeros((50, 40), np.int8)
    good = {"layers": [[50, 40]], "programs": [entry("p", b"ab" + bytes(2000), [[2, 0, "01"]])]}
    program = good["programs"][0]
    changes = [{"bytes": each} for each in (HUGE, HUGE + 9, -1, "2002", 2002.5, None)]
    holes = ([2, 1, "01"], [2, 0, "00"], [2, 0, "012"], [-1, 0, "01"], [3, 0, "01"], [2, 0], [2, "0", "01"])
    holes += (
        [2, 0, HUGE],
        [2, 0, HUGE, 1.0],
        [2, -1, 4, 1.0],
        [2, 0, -1, 1.0],
        [2, 0, 1, "x"],
        [2, 0, 400, 1e300],
    )
    holes += ([2, 0, 10**30], [2, 0, 501, 1.0], [2, 0, 5, None], [2, 0, 4, 5, 6])
    changes += [{"holes": each} for each in ([[2, 0, "01"]] * 10**5, 7, None, *([hole] for hole in holes))]
    changes += [{"sha256": "0" * 64}, {"sha256": None}, {"name": None}, {"name": []}, {"name": "\ud800"}]
    found = [{**good, "programs": [{**program, **change}]} for change in changes]
    found += [
        {**good, "layers": layers} for layers in ([], [[50]], [[-1, 40]], [[50, 40], [HUGE, HUGE]], [None], 5)
    ]
    found += [{**good, "layers": [[50, 40], [-5, 5], [5, 5]]}, {**good, "programs": None}]
    found += [{**good, "programs": [program, program]}, {**good, "programs": []}, [], None, 3, {}]
    texts = [json.dumps(each).encode() for each in found]
    texts += [b"", b"{", b"\xff", b"[" * 100_000, b'{"layers": [[' + b"9" * 5000 + b"]]}"]
    return [programs_stream(text, b"ab", pack_codes(weight)) for text in texts]


def test_false_directories_are_refused_without_their_memory():
    for stream in false_directories():
        with limited_memory(), pytest.raises(InputError, match="these are no packed programs") as raised:
            expand_programs(stream)
        assert len(str(raised.value)) < 400


def test_a_stream_that_expands_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("paredown.targets.runners.expand.LIMIT", 10**6)
    bomb = sealed(b"pdc1", b"\0" + compressed(bytes(10**6 + 1)))
    with pytest.raises(InputError, match="more than 1000000 bytes"):
        unpack_codes(bomb)


def limited_memory():
    """Fails where Python or numpy asks for more than 200 MB."""
    import contextlib
    import tracemalloc

    @contextlib.contextmanager
    def watched():
        tracemalloc.start()
        try:
            yield
            assert tracemalloc.get_traced_memory()[1] < 200e6
        finally:
            tracemalloc.stop()

    return watched()


# -- the command ---------------------------------------------------------------------------------------------

ALONE = """
import runpy, sys
folder = sys.argv.pop(1)
for name in ("torch", "zstandard", "pydantic", "pipeline", "ai_edge_litert", "executorch", "cv2"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, folder)
runpy.run_module("paredown.targets.runners.expand", run_name="__main__", alter_sys=True)
"""


def test_the_command_needs_python_and_numpy_alone(tmp_path):
    board = tmp_path / "board"
    for name in ("__init__.py", "errors.py", "runners/__init__.py", "runners/expand.py"):
        (board / "targets" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "targets" / name, board / "targets" / name)
    packed = tmp_path / "models.packed"
    packed.write_bytes(pack_programs({"model.pte": PROGRAM, "below/model.tflite": PROGRAM * 2}, [WEIGHT]))
    command = [sys.executable, "-I", "-c", ALONE, str(board)]
    done = subprocess.run([*command, packed, tmp_path / "out"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "out" / "model.pte").read_bytes() == PROGRAM
    assert (tmp_path / "out" / "below" / "model.tflite").read_bytes() == PROGRAM * 2
    assert f"{tmp_path / 'out' / 'model.pte'}: {len(PROGRAM)} bytes" in done.stdout
    packed.write_bytes(packed.read_bytes()[:-1])
    done = subprocess.run([*command, packed, tmp_path / "no"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4 and done.stdout == "" and not (tmp_path / "no").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{packed}: packed programs, truncated or damaged")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..", "a\\..\\x", ".", "", "a\0b"])
def test_programs_that_lead_out_of_the_folder_are_refused_before_anything_is_written(tmp_path, capsys, name):
    packed = tmp_path / "packed"
    packed.write_bytes(pack_programs({"good": b"x", name: b"evil"}, []))
    assert main([str(packed), str(tmp_path / "out")]) == 4
    assert "leads out of the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()


def test_what_cannot_be_read_or_written_is_one_line(tmp_path, capsys):
    packed = tmp_path / "packed"
    packed.write_bytes(pack_programs({"model.pte": PROGRAM}, []))
    for arguments, expected in (
        ((tmp_path / "absent", tmp_path), "cannot read this file: No such file"),
        ((tmp_path, tmp_path), "cannot read this file: Is a directory"),
        ((packed, packed), "cannot write here: "),
    ):
        assert main([str(argument) for argument in arguments]) == 4
        assert expected in capsys.readouterr().err
