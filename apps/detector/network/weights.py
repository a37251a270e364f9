"""Weights in and out: darknet's .weights bit for bit; .safetensors and torch checkpoints, tensors only."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from paredown.apps.detector.network import ConvLayer, Header, RegionHead, Yolo
from paredown.pipeline.recipe import weights
from paredown.pipeline.recipe.weights import cannot, check_values
from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError

_VERSION = struct.Struct("<iii")
_SEEN = {False: struct.Struct("<i"), True: struct.Struct("<Q")}
_HEADER_BYTES = {False: 16, True: 20}


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


#: A tensor's name, itself, and what stores another one in its place.
_Entry = tuple[str, Tensor, Callable[[Tensor], object]]


def _head_convs(head: RegionHead) -> tuple[nn.Conv2d, ...]:
    return head.xy, head.wh, head.obj, head.cls


def _biased(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None  # a convolution without batch norm, and the head's, always has one
    return conv.bias


def _stored(head: RegionHead, attribute: str, merged: Tensor, rows: Tensor) -> None:
    """Puts darknet's one tensor of a head into its four convolutions."""
    stacked = torch.empty_like(merged)
    stacked[rows] = merged
    for conv, part in zip(
        _head_convs(head), stacked.split([conv.out_channels for conv in _head_convs(head)]), strict=True
    ):
        getattr(conv, attribute).copy_(part)


def _head_tensors(network: Yolo, index: int, head: RegionHead) -> Iterator[_Entry]:
    rows = torch.from_numpy(head_rows(head.obj.out_channels, network.classes))
    kind = "region" if network.cfg.region else "yolo"
    where = f"layer {index} [convolutional] before [{kind}]"
    convs = _head_convs(head)
    biases = torch.cat([_biased(conv) for conv in convs])[rows]
    yield f"{where} biases", biases, lambda part: _stored(head, "bias", part, rows)
    weights_ = torch.cat([conv.weight for conv in convs])[rows]
    yield f"{where} weights", weights_, lambda part: _stored(head, "weight", part, rows)


def _tensors(network: Yolo) -> Iterator[_Entry]:
    """Yields (name, tensor, how to store another) in a .weights file's order; heads' tensors are copies."""
    heads = network.heads
    for index in range(len(network.cfg.layers)):
        if index in heads:
            yield from _head_tensors(network, index, heads[index])
            continue
        layer = network.layers[index]
        if not isinstance(layer, ConvLayer):
            continue
        where = f"layer {index} [convolutional]"
        tensors = {"biases": layer.conv.bias}
        if layer.bn is not None:
            tensors = {
                "biases": layer.bn.bias, "scales": layer.bn.weight,
                "means": layer.bn.get_buffer("running_mean"),
                "variances": layer.bn.get_buffer("running_var"),
            }  # fmt: skip
        for name, tensor in {**tensors, "weights": layer.conv.weight}.items():
            assert tensor is not None  # a convolution without batch norm has a bias
            yield f"{where} {name}", tensor, tensor.copy_


def weights_bytes(network: Yolo, wide: bool) -> int:
    """Returns the size of the network's .weights file with a 20-byte (wide) or a 16-byte header."""
    return _HEADER_BYTES[wide] + 4 * sum(tensor.numel() for _, tensor, _ in _tensors(network))


def _says_wide(major: int, minor: int) -> bool:
    return 0 <= major < 1000 and 0 <= minor < 1000 and major * 10 + minor >= 2  # darknet's own test


def _header(start: bytes, size: int, network: Yolo, path: Path) -> Header:
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


def read_weights(path: str | Path, network: Yolo) -> None:
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
        raise cannot("read the weights", path, error) from None
    if 4 * values.size != size - _HEADER_BYTES[header.wide]:
        raise InputError("changed while it was read", where=path)
    read: list[np.ndarray] = []
    start = 0
    for name, tensor, _ in _tensors(network):
        part = values[start : start + tensor.numel()].reshape(tuple(tensor.shape))
        check_values(name, part, path)
        read.append(part)
        start += tensor.numel()
    with torch.no_grad():
        for (_, _, store), part in zip(_tensors(network), read, strict=True):
            store(torch.from_numpy(part))
    network.header = header


def write_weights(path: str | Path, network: Yolo) -> None:
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
    for name, tensor, _ in _tensors(network):
        values = tensor.detach().cpu().numpy().astype("<f4")
        check_values(name, values, path)
        parts.append(values.tobytes())
    write_atomic(path, b"".join(parts))


def load_checkpoint(path: str | Path, network: Yolo) -> tuple[str, ...]:
    """Loads .weights (darknet), .safetensors, or .pt / .pth / .th (torch, tensors only) into the network.

    Returns:
        How a checkpoint was read, in a line; none for a plain state dict and for .weights.

    Raises:
        InputError: for another suffix, a file that cannot be read, a pickle that holds more than tensors, and
            tensors that are missing, unknown, of another shape, NaN or infinite.
    """
    path = Path(path)
    if path.suffix.lower() == ".weights":
        read_weights(path, network)
        return ()
    return weights.load_checkpoint(path, network, network.cfg.where, known=(".weights",))
