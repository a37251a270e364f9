"""Reads ONNX files: bounded, checked, tensors of the file's own folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paredown.targets.errors import InputError

#: protobuf reads no more in one message.
MOST_BYTES = 2**31 - 1
OPSETS = (7, 22)
STANDARD = ("", "ai.onnx")
HALVES = ("FLOAT16", "BFLOAT16")


def read_model(path: Path) -> Any:
    """Reads and checks an ONNX file.

    Returns:
        The `onnx.ModelProto`, its local functions put in their places.

    Raises:
        InputError: no ONNX package or file, a file that is too large, damaged, or of an unknown opset.
    """
    onnx = _package(path)
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    if not size:
        raise InputError("the file is empty", where=path)
    if size > MOST_BYTES:
        raise InputError(
            f"{size / 2**30:.1f} GiB, and an ONNX file has at most 2",
            where=path,
            hint="save it with external data: onnx.save(..., save_as_external_data=True)",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from None
    if not model.graph.node and not model.graph.output:
        raise InputError(
            "not an ONNX file, or a damaged one: it holds no graph", where=path, hint="export the model again"
        )
    opset(model, path)
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _check_sizes(model, path)
        for value in (*model.graph.input, *model.graph.output):
            if value.type.HasField("tensor_type"):  # a shape that is not said is no damage
                value.type.tensor_type.shape.SetInParent()
        _check(model)
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise damaged(path, error) from None
    return model


def _check(model: Any) -> None:
    """The check of onnx itself; where external data lies is checked when it is read."""
    import onnx

    outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    kept = [type(tensor)() for tensor in outside]
    for tensor, copy in zip(outside, kept, strict=True):
        copy.CopyFrom(tensor)
        del tensor.external_data[:]
        del tensor.dims[:]
        tensor.dims.append(0)
        tensor.data_location, tensor.raw_data = onnx.TensorProto.DEFAULT, b""
    try:
        onnx.checker.check_model(model)
    finally:
        for tensor, copy in zip(outside, kept, strict=True):
            tensor.CopyFrom(copy)


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside an ONNX file that hold tensors of it, sorted; none of a file that cannot be read."""
    onnx = _package(path)
    model = onnx.ModelProto()
    try:
        if path.stat().st_size <= MOST_BYTES:
            model.ParseFromString(path.read_bytes())
    except Exception:  # a damaged file can fail in any way, and is refused when it is imported
        return ()
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = sorted(path.parent / name for name in names)
    return tuple(each for each in found if each.is_file())


def _package(path: Path) -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.inliner
    except ImportError:
        raise InputError("ONNX files need the package onnx", where=path, hint="pip install onnx") from None
    return onnx


def damaged(path: Path, error: Exception) -> InputError:
    """The error of a file that is not what it should be."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f" ({lines[0][:160]})" if lines else ""
    return InputError(f"not an ONNX file, or a damaged one{text}", where=path, hint="export the model again")


def opset(model: Any, path: Path) -> int:
    """The version of the standard operations.

    Raises:
        InputError: none, or one that is not read here.
    """
    found = [each.version for each in model.opset_import if each.domain in STANDARD]
    low, high = OPSETS
    if not found or not low <= found[0] <= high:
        said = f"opset {found[0]}" if found else "no opset"
        raise InputError(
            f"{said}, and {low} to {high} are read",
            where=path,
            hint=f"export the model with opset_version={high if not found else 17}",
        )
    return int(found[0])


def _check_sizes(model: Any, path: Path) -> None:
    """Refuses tensors that declare more than the file holds, before anybody makes room for them."""
    import onnx

    for tensor in model.graph.initializer:
        count = int(np.prod([max(int(size), 0) for size in tensor.dims], dtype=np.float64))
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if external or not tensor.HasField("raw_data"):
            continue
        held = len(tensor.raw_data)
        bits = _bits(tensor.data_type)
        if bits and (count * bits + 7) // 8 != held:
            raise InputError(
                f"not an ONNX file, or a damaged one: {tensor.name} declares "
                f"{list(tensor.dims)}, {(count * bits + 7) // 8:,} bytes, and holds {held:,}",
                where=path,
                hint="export the model again",
            )


def _bits(kind: int) -> int:
    import onnx

    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except (KeyError, ValueError, TypeError):
        return 0
    return dtype.itemsize * 8 if dtype.itemsize > 1 or dtype.name in ("int8", "uint8", "bool") else 0


class Tensors:
    """Turns the tensors of a file into torch's: floats are float32, whole numbers int64.

    Args:
        path: of the ONNX file, for errors and for the folder of external data.

    Attributes:
        halves: names of types other than float32 that were converted, and how many tensors had them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.halves: dict[str, int] = {}

    def read(self, tensor: Any) -> Tensor:
        """The values of a TensorProto.

        Raises:
            InputError: they are not all there, lie outside the file's folder, or are of another type.
        """
        import onnx
        from onnx import numpy_helper

        name = tensor.name or "a constant"
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        try:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            values = self._external(tensor, name) if external else numpy_helper.to_array(tensor)
        except InputError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            raise damaged(self.path, error) from None
        if values.dtype.kind not in "fiub" and kind not in HALVES:
            raise InputError(
                f"{name} is of the type {kind.lower()}",
                where=self.path,
                hint="only numbers and truth values are read",
            )
        if kind in (*HALVES, "DOUBLE"):
            self.halves[kind.lower()] = self.halves.get(kind.lower(), 0) + 1
        return as_torch(values)

    def _external(self, tensor: Any, name: str) -> np.ndarray:
        from onnx import helper

        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = facts.get("location", "")
        folder = self.path.parent.resolve()
        file = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not file.is_relative_to(folder):
            raise InputError(
                f"{name} names the file {location or '(none)'}, outside the model's folder",
                where=self.path,
                hint="keep the model and its data in one folder",
            )
        if not file.is_file():
            raise InputError(
                f"the external data of {name} is missing: no file {location}",
                where=self.path,
                hint=f"copy {location} beside the model",
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        shape = tuple(int(size) for size in tensor.dims)
        wanted = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
        offset, held = int(facts.get("offset", 0)), file.stat().st_size
        if min(shape, default=0) < 0 or offset < 0 or offset + wanted > held:
            raise InputError(
                f"the external data of {name} is cut off: {offset + wanted:,} bytes are declared, and "
                f"{location} holds {held:,}",
                where=self.path,
                hint="copy the file again",
            )
        return np.fromfile(file, dtype, int(np.prod(shape)), offset=offset).reshape(shape)


def as_torch(values: np.ndarray) -> Tensor:
    """An array as a tensor: floats are float32, whole numbers int64, truth values bool."""
    if values.dtype == np.bool_:
        return torch.from_numpy(np.array(values))
    whole = values.dtype.kind in "iu"
    return torch.from_numpy(np.array(values.astype(np.int64 if whole else np.float32)))
