"""Programs as ExecuTorch's own tools read and write them."""

from __future__ import annotations

import importlib.resources
import json
import tempfile
from pathlib import Path
from typing import Any

import executorch.backends.xnnpack.serialization as xnnpack
from executorch.exir._serialize._flatbuffer import _flatc_compile, _flatc_decompile
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary, serialize_pte_binary


def opened(data: bytes) -> PTEFile:
    return deserialize_pte_binary(data)


def closed(file: PTEFile) -> bytes:
    return bytes(serialize_pte_binary(file, extract_delegate_segments=True))


def payloads(file: PTEFile) -> list[bytes]:
    """What each delegate is given."""
    return [bytes(part.data) for part in file.program.backend_delegate_data]


def flatbuffer(payload: bytes) -> bytes:
    """XNNPACK's graph within what the delegate is given."""
    start, size = (int.from_bytes(payload[at : at + 4], "little") for at in (10, 14))
    return payload[start : start + size]


def decompiled(data: bytes) -> str:
    """XNNPACK's graph as flatc's JSON."""
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = _files(folder)
        binary.write_bytes(data)
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        return (Path(folder) / "graph.json").read_text()


def compiled(text: str) -> bytes:
    """The inverse of `decompiled`, by flatc."""
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = _files(folder)
        (Path(folder) / "graph.json").write_text(text)
        _flatc_compile(folder, str(schema), str(Path(folder) / "graph.json"))
        return binary.read_bytes()


def graph_of(data: bytes) -> dict[str, Any]:
    """XNNPACK's graph of a program of one delegate, without the numbers that a profile names nodes by."""
    (payload,) = payloads(opened(data))
    graph: dict[str, Any] = json.loads(decompiled(flatbuffer(payload)).replace("inf", "1e39"))
    for node in graph["xnodes"]:
        node.pop("debug_handle", None)
    return graph


def kinds_of(data: bytes) -> list[str]:
    """The nodes of XNNPACK's graph."""
    return [node["xnode_union_type"].removeprefix("XNN") for node in graph_of(data)["xnodes"]]


def planned(data: bytes) -> list[int]:
    """Bytes of memory that a program plans."""
    return list(opened(data).program.execution_plan[0].non_const_buffer_sizes)


def _files(folder: str) -> tuple[Path, Path]:
    schema = Path(folder) / "schema.fbs"
    schema.write_bytes(importlib.resources.files(xnnpack).joinpath("schema.fbs").read_bytes())
    return schema, Path(folder) / "graph.bin"
