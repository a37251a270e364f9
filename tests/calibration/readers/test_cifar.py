from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.calibration.datasets import First, classes_of, open_dataset
from paredown.calibration.readers.cifar import read_cifar, read_cifar_names
from paredown.calibration.readers.records import Classes
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit

NAMES = ("plane", "car", "bird")
TEN = Classes(NAMES)
HUNDRED = Classes(tuple(f"class{i}" for i in range(100)))
COARSE = Classes(tuple(f"super{i}" for i in range(20)))


def scenes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """RGB images (N, 32, 32, 3) and labels (N,)."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, len(NAMES), count)


def rows(images: np.ndarray) -> np.ndarray:
    """The documented layout: 1024 red values, 1024 green, 1024 blue, row by row."""
    return np.stack([np.concatenate([i[..., c].ravel() for c in range(3)]) for i in images])


def binary(images: np.ndarray, *labels: np.ndarray) -> bytes:
    columns = [np.asarray(label, np.uint8)[:, None] for label in labels]
    return np.concatenate([*columns, rows(images)], axis=1).tobytes()


def python(images: np.ndarray, protocol: int, **labels: np.ndarray) -> bytes:
    lists = {name: [int(v) for v in values] for name, values in labels.items()}
    return pickle.dumps({"batch_label": "one", **lists, "data": rows(images)}, protocol)


def python2(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What cPickle of Python 2 wrote: byte strings everywhere, NumPy's modules by their old names."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = rows(images).tobytes()
    dtype = b"cnumpy\ndtype\n(" + text("u1") + whole(0) + whole(1) + b"tR("
    dtype += whole(3) + text("|") + b"NNN" + whole(-1) + whole(-1) + whole(0) + b"tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + whole(0) + b"\x85" + text("b") + b"tR("
    )
    shape = b"(" + whole(len(images)) + whole(3072) + b"t"
    array += whole(1) + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(whole(int(v)) for v in labels) + b"e"
    return b"\x80\x02}(" + text("labels") + numbers + text("data") + array + b"u."


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_binary_version_comes_back_pixel_by_pixel(tmp_path):
    images, labels = scenes(5)
    data = open_dataset("cifar", put(tmp_path / "some.bin", binary(images, labels)), names=NAMES)
    assert len(data) == 5 and data.names == NAMES
    for index in range(5):
        sample = data[index]
        np.testing.assert_array_equal(sample.image, images[index][..., ::-1])
        assert sample.image.flags.c_contiguous and sample.image.dtype == np.uint8
        assert sample.labelled and sample.boxes.shape == (0, 4) and sample.classes.tolist() == [labels[index]]
        assert classes_of(data, index).tolist() == [labels[index]]
    assert data[3].name == "some/3"
    with pytest.raises(IndexError):
        data[5]
    assert len(First(data, 2)) == 2 and First(data, 2).fingerprint() != data.fingerprint()


def test_the_python_version_says_the_same_whoever_wrote_it(tmp_path):
    images, labels = scenes(4)
    expected = read_cifar(put(tmp_path / "data_batch_1.bin", binary(images, labels)), TEN)
    contents = [python(images, protocol, labels=labels) for protocol in range(2, 6)]
    contents.append(python2(images, labels))
    old = pickle.loads(contents[-1], encoding="latin1")  # NumPy itself reads what we made by hand
    np.testing.assert_array_equal(old["data"], rows(images))
    for number, content in enumerate(contents):
        found = read_cifar(put(tmp_path / f"{number}" / "data_batch_1", content), TEN)
        assert found.fingerprint() == expected.fingerprint()
        np.testing.assert_array_equal(found[3].image, expected[3].image)
        assert [found[i].classes[0] for i in range(4)] == labels.tolist()


def test_a_fingerprint_sees_pixels_labels_and_names(tmp_path):
    images, labels = scenes(3)
    path = tmp_path / "x.bin"
    seen = {read_cifar(put(path, binary(images, labels)), TEN).fingerprint()}
    seen.add(read_cifar(path, Classes(("a", "b", "c"))).fingerprint())
    seen.add(read_cifar(put(path, binary(images, (labels + 1) % 3)), TEN).fingerprint())
    images[0, 0, 0, 0] ^= 1
    seen.add(read_cifar(put(path, binary(images, labels)), TEN).fingerprint())
    assert len(seen) == 4


def test_a_published_folder_is_split_by_its_files(tmp_path):
    for number in range(1, 6):
        put(tmp_path / f"data_batch_{number}.bin", binary(*scenes(2, number)))
    put(tmp_path / "test_batch.bin", binary(*scenes(3, 9)))
    train, test = (open_dataset("cifar", tmp_path, names=NAMES, split=split) for split in ("train", "test"))
    assert len(train) == 10 and len(test) == 3 and len(read_cifar(tmp_path, TEN)) == 13
    np.testing.assert_array_equal(train[9].image, scenes(2, 5)[0][1][..., ::-1])
    assert len(open_dataset("cifar", tmp_path, names=NAMES, split="calibration")) == 10
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match="data_batch_3 is missing"):
        read_cifar(tmp_path, TEN, "train")
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(InputError, match="no test files here.*test_batch"):
        read_cifar(tmp_path, TEN, "test")


def test_both_labels_of_cifar_100(tmp_path):
    images, _ = scenes(4)
    fine, coarse = np.array([99, 0, 50, 7]), np.array([19, 3, 0, 4])
    put(tmp_path / "bin" / "train.bin", binary(images, coarse, fine))
    put(tmp_path / "any.bin", binary(images, coarse, fine))
    put(tmp_path / "py" / "train", python(images, 2, fine_labels=fine, coarse_labels=coarse))
    for path in (tmp_path / "bin", tmp_path / "py", tmp_path / "any.bin"):
        for classes, labels in ((HUNDRED, fine), (COARSE, coarse)):
            data = read_cifar(path, classes, "train")
            assert [int(data[i].classes[0]) for i in range(4)] == labels.tolist()
            np.testing.assert_array_equal(data[2].image, images[2][..., ::-1])


def test_images_of_classes_that_the_network_does_not_have_are_left_out(tmp_path):
    images, _ = scenes(4)
    path = put(tmp_path / "x.bin", binary(images, np.array([0, 1, 2, 1])))
    data = open_dataset("cifar", path, names=("bird", "Car"), label_names=NAMES)
    assert [data[i].classes.tolist() for i in range(len(data))] == [[1], [0], [1]]
    np.testing.assert_array_equal(data[1].image, images[2][..., ::-1])
    put(path, binary(images, np.zeros(4)))
    with pytest.raises(InputError, match="not one image of the network's classes"):
        open_dataset("cifar", path, names=("bird",), label_names=NAMES)


def test_names_beside_the_data(tmp_path):
    put(tmp_path / "10" / "batches.meta.txt", b"plane\ncar\nbird\n\n")
    (tmp_path / "none").mkdir()
    assert read_cifar_names([tmp_path / "10"]) == NAMES
    assert read_cifar_names([tmp_path / "none", tmp_path / "10" / "test_batch.bin"]) == NAMES
    put(tmp_path / "py" / "batches.meta", pickle.dumps({"num_vis": 3072, "label_names": list(NAMES)}, 2))
    assert read_cifar_names([tmp_path / "py"]) == NAMES
    both = {b"coarse_label_names": ["x"], b"fine_label_names": ["a", "b"]}
    put(tmp_path / "100" / "meta", pickle.dumps(both))
    assert read_cifar_names([tmp_path / "100"]) == ("a", "b")
    put(tmp_path / "bad" / "meta", pickle.dumps({"fine_label_names": [1]}))
    put(tmp_path / "twice" / "meta", pickle.dumps({"fine_label_names": ["a", "a"]}))
    for folder, message in (
        ("bad", "no list of class"),
        ("twice", "second time"),
        ("none", "set data.names"),
    ):
        with pytest.raises(InputError, match=message):
            read_cifar_names([tmp_path / folder])


def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path):
    images, labels = scenes(2)
    whole = binary(images, labels)
    array = {"data": rows(images), "labels": [0, 1]}
    cases = {
        "holds 6,145 bytes, which is 1 images of 3,073 bytes and 3,072 bytes more": whole[:-1],
        "holds 0 bytes": b"",
        "class 3 is out of range: there are 3 classes": binary(images, [0, 3]),
    }
    for message, content in cases.items():
        check(put(tmp_path / "test_batch.bin", content), message)
    for message, content in {
        "not a CIFAR file of the Python version": b"",
        "files of the binary version end in .bin": b"hello\n",
        "holds a list": pickle.dumps([1]),
        "no array `data` and list `labels`": pickle.dumps({"data": 3}),
        "shape (2, 3072) with 1 labels": pickle.dumps({**array, "labels": [0]}),
        "shape (2, 3071)": pickle.dumps({**array, "data": rows(images)[:, 1:]}),
        "no array of 8-bit pixels in this file (dtype i8)": pickle.dumps(
            {**array, "data": rows(images).astype("<i8")}
        ),
        "class -1 is out of range": pickle.dumps({**array, "labels": [0, -1]}),
        "a label that is no class": pickle.dumps({**array, "labels": [0, 2**70]}),
        "no array `data` and list": pickle.dumps({**array, "labels": [0, "1"]}),
    }.items():
        check(put(tmp_path / "test_batch", content), message)
    check(tmp_path / "none.bin", "no such file")
    check(put(tmp_path / "cifar-10-python.tar.gz", b"x"), "an archive")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", "no CIFAR files here")
    for option in ("images", "labels"):
        with pytest.raises(UsageError, match=f"has no '{option}'"):
            open_dataset("cifar", put(tmp_path / "x.bin", whole), names=NAMES, **{option: tmp_path})


def check(path: Path, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_cifar(path, TEN)
    line = str(caught.value)
    assert message in line and path.name in line and "\n" not in line, line


class Reducer:
    """A pickle of this runs code where it is opened without care."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.mkdir, np.fromfile, np.load, eval, getattr])
def test_a_pickle_that_would_run_code_does_not(tmp_path, protocol, function):
    trap = tmp_path / "ran"
    content = pickle.dumps({"data": Reducer(function, str(trap)), "labels": [0]}, protocol)
    check(put(tmp_path / "test_batch", content), "it would call")
    assert not trap.exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_is_an_input_error(tmp_path, data):
    images, labels = scenes(1)
    contents = [python(images, protocol, labels=labels) for protocol in (2, 4, 5)] + [python2(images, labels)]
    content = bytearray(data.draw(st.sampled_from(contents)))
    header = [i for i in range(len(content)) if i < 150 or i > len(content) - 150]
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.sampled_from(header))] = data.draw(st.integers(0, 255))
    path = put(tmp_path / "test_batch", bytes(content))
    try:
        found = read_cifar(path, TEN)
    except InputError as error:
        assert "\n" not in str(error) and "test_batch" in str(error)
    else:
        assert len(found) == 1 and found[0].image.shape == (32, 32, 3) and 0 <= found[0].classes[0] < 3
