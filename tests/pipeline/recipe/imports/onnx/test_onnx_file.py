"""Bad ONNX files: one line each, with what to do."""

from __future__ import annotations

import random
import resource
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import compared, floats, model_of, saved, small_net

from paredown.pipeline.recipe.imports.read import files, read
from paredown.targets.errors import InputError


def refused(path: Path, shape: tuple[int, ...] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(path, shape)
    line = str(caught.value)
    assert "\n" not in line and str(path.name) in line and ";" in line
    return line


def test_a_truncated_file_is_refused(tmp_path):
    whole = small_net(tmp_path).read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.onnx"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value) and "cut.onnx" in str(caught.value)


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_imported_or_refused_in_one_line(tmp_path, seed):
    whole = bytearray(small_net(tmp_path).read_bytes())
    draw = random.Random(seed)
    for _ in range(1 + seed % 3):
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    path = tmp_path / "flipped.onnx"
    path.write_bytes(whole)
    try:
        found = read(path)
    except InputError as error:
        assert "\n" not in str(error) and "flipped.onnx" in str(error)
    else:
        assert found.shape[0] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + b"\0" * 40, "zip"),
        (b"\x80\x04\x95" + b"\0" * 40, "pickle"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"<html></html>", "HTML"),
        (b"hello, this is a text", "damaged"),
        (b"", "empty"),
    ],
)
def test_what_is_no_onnx_file_is_named(tmp_path, content, said):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read(path)


def test_a_zip_that_holds_a_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    inner = small_net(tmp_path, tensors={})
    content = inner.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.onnx", content)
    assert "zip" in refused(path)


@pytest.mark.parametrize("opset", [6, 23])
def test_another_opset_is_refused(tmp_path, opset):
    assert f"opset {opset}, and 7 to 22" in refused(small_net(tmp_path, opset=opset))


def test_operations_of_others_are_named(tmp_path):
    node = helper.make_node("FusedConv", ["x"], ["y"], "fast", domain="com.microsoft")
    model = model_of([node], (1, 3, 8, 8))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "com.microsoft.FusedConv" in refused(saved(tmp_path, model))


def test_a_cyclic_graph_is_refused(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Relu", ["a"], ["b"], "two")]
    assert "damaged" in refused(saved(tmp_path, model_of(nodes, (1, 4), outputs=("b",))))


def test_a_loop_is_named(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
        ],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Loop", ["n", "t"], ["z"], "again", body=body),
    ]
    tensors = {"n": np.array(3), "t": np.array(True)}
    model = model_of(nodes, (1, 4), tensors)
    assert "again is a loop" in refused(saved(tmp_path, model))


def test_a_quantized_model_is_refused_with_what_to_do(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "d"),
    ]
    tensors = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    line = refused(saved(tmp_path, model_of(nodes, (1, 4), tensors)))
    assert "quantized already" in line and "give the float model" in line


@pytest.mark.parametrize("kind", [TensorProto.BOOL, TensorProto.STRING, TensorProto.COMPLEX64])
def test_an_input_without_numbers_is_refused(tmp_path, kind):
    node = helper.make_node("Identity", ["x"], ["y"])
    assert "holds no numbers" in refused(saved(tmp_path, model_of([node], (1, 4), kind=kind)))


def test_two_inputs_are_refused_by_name(tmp_path):
    model = model_of([helper.make_node("Add", ["x", "other"], ["y"])], (1, 4))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 4]))
    assert "takes 2 inputs (x, other)" in refused(saved(tmp_path, model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    weight = floats(4, 3, 3, 3)
    weight[1, 2, 0, 0] = value
    line = refused(small_net(tmp_path, tensors={"conv.weight": weight}))
    assert "conv.weight" in line and "NaN" in line


def test_a_tensor_that_declares_more_than_it_holds_makes_no_room_for_it(tmp_path):
    model = onnx.load(small_net(tmp_path))
    model.graph.initializer[0].dims[0] = 3 * 2**30 // 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = refused(saved(tmp_path, model))
    assert "conv.weight declares" in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_value_of_billions_of_numbers_is_refused(tmp_path):
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["c"], "huge"),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    line = refused(saved(tmp_path, model_of(nodes, (1, 4), {"s": np.array([100_000, 100_000, 4])})))
    assert "huge (ConstantOfShape)" in line


def test_open_sizes_are_asked_for(tmp_path):
    path = saved(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], ("n", 3, "h", "w")))
    assert "--shape 3x224x224" in refused(path)
    assert read(path, (8, 6)).shape == (1, 3, 8, 6)
    assert read(path, (3, 8, 6)).shape == read(path, (1, 3, 8, 6)).shape == (1, 3, 8, 6)
    assert "does not fit" in refused(path, (1, 1, 3, 8, 6))


# -- external data -------------------------------------------------------------------------------------------


def external(folder: Path, location: str = "weights.bin", **facts: int) -> Path:
    """The small network with one weight in a file of its own."""
    model = onnx.load(small_net(folder))
    tensor = model.graph.initializer[0]
    raw = tensor.raw_data
    (folder / "weights.bin").write_bytes(b"\0" * 8 + raw)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 8, "length": len(raw), **facts}.items():
        tensor.external_data.add(key=key, value=str(value))
    return saved(folder, model, "outside.onnx")


def test_external_data_is_read_and_counts_as_the_model(tmp_path):
    path = external(tmp_path)
    found, far = compared(path)
    assert far < 1e-6
    assert [file.name for file in files(path)] == ["outside.onnx", "weights.bin"]


def test_external_data_that_is_missing_is_named(tmp_path):
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="no file weights.bin"):
        read(path)


def test_external_data_that_is_cut_off_is_refused(tmp_path):
    path = external(tmp_path)
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(whole[:-4])
    assert "cut off" in refused(path)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../weights.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder, location)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4096)
    with pytest.raises(InputError) as caught:
        read(path)
    assert "outside" in str(caught.value) or "damaged" in str(caught.value)


def test_external_data_behind_a_link_is_refused(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InputError):
        read(path)


# -- types ---------------------------------------------------------------------------------------------------


def test_halves_become_float32_and_it_is_said(tmp_path):
    model = onnx.load(small_net(tmp_path))
    weight = numpy_helper.to_array(model.graph.initializer[0])
    plain = read(small_net(tmp_path)).module.conv.weight.detach().numpy()
    half = numpy_helper.from_array(weight.astype(np.float16), "half")
    del model.graph.initializer[0]
    model.graph.initializer.append(half)
    model.graph.node.insert(
        0, helper.make_node("Cast", ["half"], ["conv.weight"], "up", to=TensorProto.FLOAT)
    )
    found, far = compared(saved(tmp_path, model, "half.onnx"))
    assert any("1 tensors of float16 were made float32" in note for note in found.notes)
    assert far < 1e-6
    weight = next(found.module.parameters())
    assert weight.dtype.is_floating_point and weight.dtype.itemsize == 4
    assert np.abs(weight.detach().numpy() - plain).max() < 1e-3


def test_bfloat16_weights_become_float32(tmp_path):
    model = model_of(
        [helper.make_node("Cast", ["w"], ["v"], to=1), helper.make_node("Mul", ["x", "v"], ["y"])], (1, 3)
    )
    values = np.array([1.5, -2.0, 0.25], np.float32)
    model.graph.initializer.append(
        helper.make_tensor(
            "w",
            TensorProto.BFLOAT16,
            [3],
            (values.view(np.uint32) >> 16).astype(np.uint16).tobytes(),
            raw=True,
        )
    )
    found = read(saved(tmp_path, model))
    assert any("bfloat16" in note for note in found.notes)
    assert found.module(np_ones()).tolist() == [values.tolist()]


def np_ones():
    import torch

    return torch.ones(1, 3)


def test_whole_numbers_are_constants(tmp_path):
    nodes = [helper.make_node("Cast", ["w"], ["v"], to=1), helper.make_node("Mul", ["x", "v"], ["y"])]
    found, far = compared(saved(tmp_path, model_of(nodes, (1, 3), {"w": np.array([1, 2, 3])})))
    assert far == 0
