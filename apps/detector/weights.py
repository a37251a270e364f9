"""Weights in and out: darknet's .weights bit for bit; .safetensors and torch checkpoints, tensors only."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from apps.detector.checkpoint import write_atomically
from apps.detector.network import ConvLayer, Header, RegionHead, YoloV2
from targets.errors import InputError

_VERSION = struct.Struct("<iii")
_SEEN = {False: struct.Struct("<i"), True: struct.Struct("<Q")}
_HEADER_BYTES = {False: 16, True: 20}
TORCH_SUFFIXES = (".pt", ".pth", ".th")


def head_rows(anchors: int, classes: int) -> np.ndarray:
    """Returns, for each filter of darknet's head, its row in the stack of our xy, wh, obj and cls.

    Darknet's order is x, y, w, h, objectness, classes for anchor 0, then for anchor 1 and so on.

    Returns:
        int64 (anchors * (5 + classes),), a permutation.
    """
    a = np.arange(anchors)[:, None]
    two, per_class = np.arange(2)[None], np.arange(classes)[None]
    parts = (2 * a + two, 2 * anchors + 2 * a + two, 4 * anchors + a, 5 * anchors + classes * a + per_class)
    return np.concatenate(parts, axis=1).ravel()


def _head_convs(head: RegionHead) -> tuple[nn.Conv2d, ...]:
    return head.xy, head.wh, head.obj, head.cls


def _biased(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # a convolution without batch norm, and the head's, always has one
    return conv.bias


def _tensors(network: YoloV2) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) in a .weights file's order; the head's merged tensors are copies."""
    for index, layer in enumerate(network.layers):
        if not isinstance(layer, ConvLayer):
            continue
        where = f"layer {index} [convolutional]"
        if layer.bn is None:
            yield f"{where} biases", _biased(layer.conv)
        else:
            yield f"{where} biases", layer.bn.bias
            yield f"{where} scales", layer.bn.weight
            yield f"{where} means", layer.bn.get_buffer("running_mean")
            yield f"{where} variances", layer.bn.get_buffer("running_var")
        yield f"{where} weights", layer.conv.weight
    rows = torch.from_numpy(head_rows(len(network.anchors), network.classes))
    where = f"layer {len(network.layers)} [convolutional] before [region]"
    convs = _head_convs(network.head)
    yield f"{where} biases", torch.cat([_biased(conv) for conv in convs])[rows]
    yield f"{where} weights", torch.cat([conv.weight for conv in convs])[rows]


def _check(name: str, values: np.ndarray, where: object) -> None:
    broken = ~np.isfinite(values)
    if broken.any():
        raise InputError(f"{name} hold {int(broken.sum())} values that are NaN or infinite", where=where)
    if name.endswith("variances") and (values < 0).any():
        raise InputError(f"{name} hold {int((values < 0).sum())} negative values", where=where)


def weights_bytes(network: YoloV2, wide: bool) -> int:
    """Returns the size of the network's .weights file with a 20-byte (wide) or a 16-byte header."""
    return _HEADER_BYTES[wide] + 4 * sum(tensor.numel() for _, tensor in _tensors(network))


def _says_wide(major: int, minor: int) -> bool:
    return 0 <= major < 1000 and 0 <= minor < 1000 and major * 10 + minor >= 2  # darknet's own test


def _header(start: bytes, size: int, network: YoloV2, path: Path) -> Header:
    """Decides the header by the file's size; a version that says otherwise needs a second witness.

    Version and size disagree in a file that some converter wrote, or in one that lost or gained a float.
    Bytes 16 to 20 tell which: they are the upper half of a count of images, always zero, or the first bias.
    """
    sizes = {wide: weights_bytes(network, wide) for wide in (False, True)}
    wide = size == sizes[True]
    consistent = size in sizes.values()
    if consistent:
        major, minor, revision = _VERSION.unpack_from(start)
        upper_half = not any(start[16:20])
        consistent = wide == _says_wide(major, minor) or wide == upper_half
    if not consistent:
        raise InputError(
            f"holds {size:,} bytes, this network's .weights {sizes[False]:,} (16-byte header, version 0.1) "
            f"or {sizes[True]:,} (20-byte header, version 0.2)",
            where=path,
            hint="check that it is complete and belongs to this .cfg",
        )
    (seen,) = _SEEN[wide].unpack_from(start, _VERSION.size)
    return Header(major, minor, revision, seen, wide)


def _cannot(do: str, path: Path, error: Exception) -> InputError:
    return InputError(f"cannot {do}: {getattr(error, 'strerror', None) or error}", where=path)


def read_weights(path: str | Path, network: YoloV2) -> None:
    """Reads a darknet .weights file into the network, and its header into `network.header`.

    The network is changed only if the whole file is good.

    Raises:
        InputError: if the file cannot be read, is of another size than the network's (both are named), or
            holds NaN, infinite values or negative variances (the layer is named).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _header(file.read(20), size, network, path)  # before reading gigabytes of something else
            file.seek(_HEADER_BYTES[header.wide])
            values = np.frombuffer(file.read(), dtype="<f4").astype(np.float32)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or the file shrank meanwhile
        raise _cannot("read the weights", path, error) from None
    if 4 * values.size != size - _HEADER_BYTES[header.wide]:
        raise InputError("changed while it was read", where=path)
    read: list[np.ndarray] = []
    start = 0
    for name, tensor in _tensors(network):
        part = values[start : start + tensor.numel()].reshape(tuple(tensor.shape))
        _check(name, part, path)
        read.append(part)
        start += tensor.numel()
    with torch.no_grad():
        for (_, tensor), part in zip(_tensors(network), read, strict=True):
            tensor.copy_(torch.from_numpy(part))  # for the head: into a copy, set below
        convs = _head_convs(network.head)
        rows = head_rows(len(network.anchors), network.classes)
        for attribute, merged in (("bias", read[-2]), ("weight", read[-1])):
            stacked = np.empty_like(merged)
            stacked[rows] = merged
            begin = 0
            for conv in convs:
                tensor = getattr(conv, attribute)
                tensor.copy_(torch.from_numpy(stacked[begin : begin + len(tensor)]))
                begin += len(tensor)
    network.header = header


def write_weights(path: str | Path, network: YoloV2) -> None:
    """Writes a darknet .weights file; one that was read comes back byte for byte, header included.

    Raises:
        InputError: if the network holds NaN or infinite values, or the file cannot be written.
    """
    path = Path(path)
    header = network.header
    if not header.wide and not -(2**31) <= header.seen < 2**31:  # trained on since: needs the longer header
        header = Header(0, 2, 0, header.seen, wide=True)
    wide = header.wide
    parts = [_VERSION.pack(header.major, header.minor, header.revision), _SEEN[wide].pack(header.seen)]
    for name, tensor in _tensors(network):
        values = tensor.detach().cpu().numpy().astype("<f4")
        _check(name, values, path)
        parts.append(values.tobytes())
    write_atomically(path, lambda file: file.writelines(parts))


def _torch_state(path: Path) -> Mapping[str, object]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _cannot("read the checkpoint", path, error) from None
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(
            f"not a torch checkpoint of tensors only ({reason})",
            where=path,
            hint="save network.state_dict(), or use .safetensors",
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise InputError(f"holds a {type(loaded).__name__}, not a dict of tensors", where=path)
    return loaded


def _safetensors_state(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, ValueError) as error:
        raise _cannot("read the checkpoint", path, error) from None
    except SafetensorError as error:
        raise InputError(f"not a .safetensors file ({error})", where=path) from None


def _load_state(state: Mapping[str, object], network: YoloV2, path: Path) -> None:
    own = network.state_dict()
    if state and all(isinstance(name, str) and name.startswith("module.") for name in state):
        state = {
            name.removeprefix("module."): value for name, value in state.items()
        }  # saved by DataParallel
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    missing, extra = sorted(needed - set(state)), sorted(str(name) for name in set(state) - set(own))
    if missing or extra:
        what, names = ("lacks", missing) if missing else ("has the unknown", extra)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(f"{what} {names[0]}{more}: not a checkpoint of {network.cfg.where}", where=path)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.shape != own[name].shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"{name} is {got}, not {tuple(own[name].shape)}", where=path)
        if own[name].is_floating_point():
            if not value.is_floating_point():
                raise InputError(f"{name} is {value.dtype}, not floating point", where=path)
            kind = "variances" if name.endswith("running_var") else "values"
            _check(f"{name} {kind}", value.float().numpy(), path)
    network.load_state_dict(dict(state), strict=False)  # strict but for num_batches_tracked: checked above


def load_checkpoint(path: str | Path, network: YoloV2) -> None:
    """Loads .weights (darknet), .safetensors, or .pt / .pth / .th (torch, tensors only) into the network.

    Raises:
        InputError: for another suffix, a file that cannot be read, a pickle that holds more than tensors, and
            tensors that are missing, unknown, of another shape, NaN or infinite.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".weights":
        read_weights(path, network)
    elif suffix == ".safetensors":
        _load_state(_safetensors_state(path), network, path)
    elif suffix in TORCH_SUFFIXES:
        _load_state(_torch_state(path), network, path)
    else:
        known = ", ".join((".weights", ".safetensors", *TORCH_SUFFIXES))
        raise InputError(f"unknown kind of weights {suffix or path.name!r}", where=path, hint=f"use {known}")
