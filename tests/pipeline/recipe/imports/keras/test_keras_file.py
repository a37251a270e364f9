"""Keras's files: what is read of them, and those that are damaged or something else."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras_models import filled, keras, saved

from paredown.pipeline.recipe.imports.keras.file import CONFIG, FREE, WEIGHTS, Place, read_keras
from paredown.pipeline.recipe.imports.keras.graph import read_model
from paredown.pipeline.recipe.imports.keras.load import load
from paredown.targets.errors import InputError

L = keras.layers


@pytest.fixture(scope="module")
def made() -> keras.Model:
    return filled(
        keras.Sequential(
            [keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="c"), L.Flatten(), L.Dense(2, name="d")]
        )
    )


@pytest.fixture(scope="module", params=[".keras", ".h5"])
def good(request, made, tmp_path_factory) -> Path:
    return saved(made, tmp_path_factory.mktemp("good"), request.param)


def line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


def test_weights_come_by_their_layer_and_role(good: Path, made: keras.Model):
    with read_keras(good) as found:
        assert found.major == 3 and found.config["class_name"] == "Sequential"
        model = read_model("Sequential", found.config["config"])
        kernel = found.weights.of(model.layers["c"].place, ("kernel", "bias"))["kernel"]
        assert np.array_equal(kernel.numpy(), made.get_layer("c").get_weights()[0])
        assert found.weights.of(Place(("none",), "layers/none"), ("kernel",)) == {}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_read_or_are_one_line(good: Path, tmp_path: Path, data: st.DataObject):
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 8))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"x{good.suffix}"
    path.write_bytes(content)
    try:
        load(path)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def kernel_of(group: h5py.Group) -> str:
    names = [each.decode() if isinstance(each, bytes) else each for each in group.attrs["weight_names"]]
    return next(name for name in names if "kernel" in name)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_archives_that_are_no_keras_file(tmp_path: Path):
    path = tmp_path / "x.keras"
    path.write_bytes(b"")
    assert "is empty" in line(path)
    path.write_bytes(b"hello")
    assert "neither a zip archive nor HDF5" in line(path)
    assert f"without {CONFIG} and {WEIGHTS}" in line(archive(path, **{"data.pkl": b"1"}))
    assert "no JSON" in line(archive(path, **{CONFIG: b"{", WEIGHTS: b"1"}))
    assert "no JSON object" in line(archive(path, **{CONFIG: b"[1]", WEIGHTS: b"1"}))
    assert "no JSON" in line(archive(path, **{CONFIG: b"[" * 100_000, WEIGHTS: b"1"}))
    assert "cannot read" in line(archive(path, **{CONFIG: b"{}", WEIGHTS: b"not HDF5"}))
    assert "cannot read" in line(tmp_path / "none.keras")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    path = archive(tmp_path / "x.keras", **{CONFIG: b"{}", WEIGHTS: b"\0" * (4 * FREE)})
    assert path.stat().st_size < FREE // 50
    assert "unpacks to more than" in line(path)


def test_weights_that_unpack_to_far_more_than_the_file(tmp_path: Path, made: keras.Model):
    path = saved(made, tmp_path, ".h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/c"]
        name = kernel_of(group)
        del group[name]
        group.create_dataset(name, (200, 200, 3, 400), "f4", chunks=(200, 200, 3, 1), compression="gzip")
    assert "far more weights than its bytes" in line(path)


def test_links_and_outer_data_lead_nowhere(tmp_path: Path, made: keras.Model):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((3, 3, 3, 4), np.float32)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4 * 108))

    def put(group, name: str, kind: str) -> None:
        if kind == "external link":
            group[name] = h5py.ExternalLink(str(secret), "kernel")
        elif kind == "soft link":
            group[name] = h5py.SoftLink("/model_weights/d")
        elif kind == "external data":
            group.create_dataset(name, (3, 3, 3, 4), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "kernel", (3, 3, 3, 4))
            group.create_virtual_dataset(name, layout)

    for kind in ("external link", "soft link", "external data", "virtual"):
        path = saved(made, tmp_path, ".h5")
        with h5py.File(path, "r+") as file:
            group = file["model_weights/c"]
            name = kernel_of(group)
            del group[name]
            put(group, name, kind)
        assert "is not in the file" in line(path) or "lies in another file" in line(path)


def test_weights_that_are_missing_or_broken(tmp_path: Path, made: keras.Model):
    for change, words in {
        "gone": "is not in the file", "shape": "does not fit", "nan": "NaN or infinite",
        "text": "not numbers",
        "all": "kernel and bias are not in the file",
    }.items():  # fmt: skip
        path = saved(made, tmp_path, ".h5")
        with h5py.File(path, "r+") as file:
            group = file["model_weights/c"]
            name = kernel_of(group)
            if change == "all":
                del file["model_weights/c"]
                assert words in line_after(file, path)
                continue
            del group[name]
            if change == "shape":
                group[name] = np.zeros((3, 3, 2, 4), np.float32)
            if change == "nan":
                group[name] = np.full((3, 3, 3, 4), np.nan, np.float32)
            if change == "text":
                group[name] = np.full((3, 3, 3, 4), b"x")
        assert words in line(path)


def line_after(file: h5py.File, path: Path) -> str:
    file.close()
    return line(path)


def test_weights_alone_and_other_hdf5(tmp_path: Path, made: keras.Model):
    path = tmp_path / "x.weights.h5"
    made.save_weights(path)
    assert "no model of Keras" in line(path) or "weights only" in line(path)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["a"] = 1
    assert "no model of Keras" in line(tmp_path / "y.h5")


def test_weights_in_half_precision_arrive_as_float32(tmp_path: Path, made: keras.Model):
    path = saved(made, tmp_path, ".h5")
    with h5py.File(path, "r+") as file:
        group = file["model_weights/c"]
        name = kernel_of(group)
        half = group[name][()].astype(np.float16)
        del group[name]
        group[name] = half
    kernel = load(path).module.get_parameter("c.weight").detach().numpy()
    assert kernel.dtype == np.float32 and np.array_equal(
        kernel, half.astype(np.float32).transpose(3, 2, 0, 1)
    )


def test_a_folder_of_version_2_is_found_too(tmp_path: Path, made: keras.Model):
    path = saved(made, tmp_path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    old = io.BytesIO(members[WEIGHTS])
    with h5py.File(old, "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    members[WEIGHTS] = old.getvalue()
    members["metadata.json"] = json.dumps({"keras_version": "2.12.0"}).encode()
    found = load(archive(tmp_path / "old.keras", **members))
    assert found.format == "Keras 2.12.0"
    shutil.rmtree(tmp_path)
