"""The reader of arrays: folders and files, labels, and what is refused with its file."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from paredown.calibration.array_input import ArrayInput
from paredown.calibration.datasets import open_dataset
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.readers.arrays import ArraySet, array_shape
from paredown.calibration.run import calibrate
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit
NAMES = ("yes", "no")


def opened(path, names=NAMES, **options) -> ArraySet:
    found = open_dataset("arrays", path, names=names, **options)
    assert isinstance(found, ArraySet)
    return found


def save(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.fixture
def folder(tmp_path):
    """Two words, three samples each."""
    for word, offset in (("yes", 0), ("no", 10)):
        for index in range(3):
            save(tmp_path / "set" / word / f"{index}.npy", np.full((2, 5), offset + index, np.float32))
    return tmp_path / "set"


def test_a_folder_per_class_takes_turns(folder):
    data = opened(folder, require_labels=True)
    assert data.names == NAMES and data.shape == array_shape(folder) == (2, 5) and len(data) == 6
    assert [int(data.classes_of(i)[0]) for i in range(6)] == [1, 0] * 3
    assert [float(data[i].image[0, 0]) for i in range(6)] == [10, 0, 11, 1, 12, 2]
    assert data[0].name == "no/0.npy" and data[0].labelled and data[0].image.dtype == np.float32
    assert [int(opened(folder, ("no",), label_names=NAMES).classes_of(i)[0]) for i in range(3)] == [0] * 3
    plain = opened(folder, ())
    assert len(plain) == 6 and plain.classes_of(0) is None and not plain[0].labelled


def test_files_of_many_samples(tmp_path):
    inputs = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    np.save(tmp_path / "x.npy", inputs)
    np.savez(tmp_path / "x.npz", inputs=inputs, labels=np.array([0, 1, 1, 0]))
    plain, labelled = opened(tmp_path / "x.npy"), opened(tmp_path / "x.npz")
    assert plain.shape == labelled.shape == array_shape(tmp_path / "x.npz") == (2, 3)
    for data in (plain, labelled):
        assert all(np.array_equal(data[i].image, inputs[i]) for i in range(4))
    assert plain.classes_of(0) is None and [int(labelled[i].classes[0]) for i in range(4)] == [0, 1, 1, 0]
    assert opened(tmp_path / "x.npz", ()).classes_of(0) is None
    with pytest.raises(InputError, match="no labels for any of the 4 arrays"):
        opened(tmp_path / "x.npy", require_labels=True)


def test_the_fingerprint_follows_values_labels_and_names(folder, tmp_path):
    first = opened(folder).fingerprint()
    assert first == opened(folder).fingerprint() != opened(folder, ()).fingerprint()
    save(folder / "yes" / "0.npy", np.full((2, 5), 99, np.float32))
    assert opened(folder).fingerprint() != first


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        (
            "yes/9.npy",
            np.zeros((2, 6), np.float32),
            r"yes/9.npy: an array of shape \(2, 6\), and 0.npy before it",
        ),
        ("yes/9.npy", np.zeros((2, 5)), "yes/9.npy: an array of float64, not float32"),
        ("yes/9.npy", np.array([{}], object), "yes/9.npy: cannot read this array"),
        ("maybe/9.npy", np.zeros((2, 5), np.float32), "class 'maybe' is not one of the network's"),
        ("9.npy", np.zeros((2, 5), np.float32), "9.npy: an array beside the 2 class folders"),
    ],
)
def test_a_wrong_file_is_named_on_opening(folder, file, array, message):
    save(folder / file, array)
    with pytest.raises(InputError, match=message):
        opened(folder)


def test_values_that_are_no_numbers_name_their_file_and_row(folder, tmp_path):
    save(folder / "no" / "0.npy", np.full((2, 5), np.nan, np.float32))
    with pytest.raises(InputError, match=r"no/0\.npy: an array with a value that is not finite"):
        opened(folder)[0]
    inputs = np.zeros((3, 2, 5), np.float32)
    inputs[1, 0, 0] = np.inf
    np.save(tmp_path / "x.npy", inputs)
    with pytest.raises(InputError, match=r"x\.npy, row 1: an array with a value"):
        opened(tmp_path / "x.npy")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3), np.float32)}, "no array 'inputs' in this file; it holds data"),
        ({"inputs": np.zeros(3, np.float32)}, "not of samples along its first axis"),
        (
            {"inputs": np.zeros((2, 3), np.float32), "labels": np.zeros(3, int)},
            "a whole number for each of the 2",
        ),
        ({"inputs": np.zeros((2, 3), np.float32), "labels": np.zeros(2)}, "'labels' is"),
        (
            {"inputs": np.zeros((2, 3), np.float32), "labels": np.array([0, 2])},
            "row 1: class 2 is out of range",
        ),
        ({"inputs": np.zeros((2, 1, 1, 1, 1), np.float32)}, "no network's input"),
        ({"inputs": np.zeros((0, 3), np.float32)}, "no arrays of the network's classes"),
    ],
)
def test_a_wrong_archive_is_named(tmp_path, content, message):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value) or "network's input" in message


def test_what_is_there_is_no_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.bin").write_bytes(b"1")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for name, message in (
        ("empty", "no .npy files"), ("x.bin", "neither a .npy nor a .npz"), ("none", "no such file"),
        ("cut.npy", "cut.npy: cannot read"), ("cut.npz", "cut.npz: cannot read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            opened(tmp_path / name)
    with pytest.raises(UsageError, match="has no 'labels'"):
        opened(tmp_path / "empty", labels=tmp_path)


def test_calibration_finds_an_array_s_range(folder):
    data = opened(folder)
    forward = lambda batch: {"input": batch}  # noqa: E731
    ranges = calibrate(forward, data, ArrayInput((2, 5)))
    assert ranges.ranges == {"input": (0.0, 12.0)} and ranges.images == 6
    with pytest.raises(InputError, match="another preprocessing"):
        ranges.check(Preprocess(width=2, height=5))
    silent = np.zeros((2, 5), np.float32)
    for file in folder.rglob("*.npy"):
        np.save(file, silent)
    with pytest.raises(InputError, match=r"the 6 calibration array\(s\) are 0 everywhere"):
        calibrate(forward, opened(folder), ArrayInput((2, 5)))
    silent[0] = 1.0  # one channel of two says nothing, and may
    for index, file in enumerate(folder.rglob("*.npy")):
        np.save(file, silent * index)
    assert calibrate(forward, opened(folder), ArrayInput((2, 5))).ranges["input"] == (0.0, 5.0)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_packed_file_is_one_line(tmp_path, method):
    """Of each way of packing the library has an error of its own."""
    data = io.BytesIO()
    np.save(data, np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("inputs.npy", data.getvalue())
    whole = (tmp_path / "x.npz").read_bytes()
    for place in range(60, len(whole) - 100, 17):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="x.npz: cannot read this array"):
            opened(tmp_path / "x.npz")
