"""`.pt2` files of `torch.export.save`, checked before torch opens them: some hold code that it would run."""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from paredown.pipeline.recipe.imports.exported.rebuild import rebuilt
from paredown.pipeline.recipe.imports.imported import Imported
from paredown.targets.errors import InputError

MOST_BYTES, RATIO, FREE = 4 * 2**30, 20, 64 * 2**20
#: torch evaluates these as Python, so that nothing but sums and products of sizes is let through.
EXPRESSION = re.compile(
    r"(?:Symbol\('[su]\d+'|(?:positive|integer|nonnegative)=True|[su]\d+|Integer|Add|Mul|Max|Min|FloorDiv|CeilDiv"
    r"|Mod|PythonMod|\d{1,18}|[\s+\-*/(),])*"
)
NAME = re.compile(r"[\w.]*")
TARGETS = ("torch.ops.aten.", "torch.ops.prims.", "_operator.")
AGAIN = "save it again with this torch: torch.export.save(program, path)"


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads an exported program; see `imports.read`.

    Raises:
        InputError: it is damaged, of an older torch, holds pickled objects or code, or cannot be imported.
    """
    data = _bytes(path)
    _check(data, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # torch's reader raises many kinds for a damaged file
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(f"torch cannot read the program ({type(error).__name__}: {reason})", where=path,
                         hint=AGAIN) from error  # fmt: skip
    return rebuilt(program, shape, path, "torch.export")


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{size / 2**30:.1f} GiB, more than 4", where=path)
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the model: {error.strerror}", where=path) from None


def _check(data: bytes, path: Path) -> None:
    """Refuses what torch would unpickle or evaluate, as its own reader sees it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > RATIO * len(data) + FREE:
                raise InputError("unpacks to far more than its size", where=path)
            if "serialized_exported_program.json" in archive.namelist():
                raise InputError("was written by an older torch", where=path, hint=AGAIN)
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))
        records = set(reader.get_all_records())
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, NotImplementedError) as error:
        raise InputError("not a program of torch.export, or a damaged one", where=path, hint=AGAIN) from error
    models = [name for name in records if name.startswith("models/") and name.endswith(".json")]
    if models != ["models/model.json"]:
        compiled = any(name.startswith("data/aotinductor/") for name in records)
        what = "is compiled: it holds no graph" if compiled else f"holds {len(models)} programs, not one"
        raise InputError(what, where=path, hint=AGAIN)
    for name in records:
        if not name.startswith(("models/", "data/", "archive_", ".data/", "extra/")) and name not in (
            "byteorder", "version"):  # fmt: skip
            raise InputError(f"holds {name[:60]}, which no program of torch.export has", where=path)
        if name.startswith("data/") and name.endswith(".json"):
            _check_payloads(_json(reader, name, path), path)
        if name.startswith("data/sample_inputs/"):
            _check_pickle(reader.get_record(name), path)
    _check_graph(_json(reader, models[0], path), path)


def _json(reader: Any, name: str, path: Path) -> Any:
    try:
        return json.loads(reader.get_record(name))
    except (ValueError, RuntimeError, RecursionError) as error:
        raise InputError(f"its {name} is no JSON", where=path, hint=AGAIN) from error


def _check_payloads(config: Any, path: Path) -> None:
    for key, value in _pairs(config):
        if key == "use_pickle" and value:
            raise InputError("holds pickled objects beside plain tensors, which are not loaded", where=path,
                             hint="export the model without classes of your own")  # fmt: skip


def _check_pickle(data: bytes, path: Path) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        what = "its example inputs are a pickle of more than tensors, which is not loaded"
        raise InputError(what, where=path, hint=AGAIN) from error


def _check_graph(graph: Any, path: Path) -> None:
    for key, value in _pairs(graph):
        if not isinstance(value, str):
            continue
        if key == "expr_str" and not EXPRESSION.fullmatch(value):
            raise InputError(f"a size of its is {value[:40]!r}, no sum or product of sizes", where=path)
        if key == "name" and not NAME.fullmatch(value):
            raise InputError(f"something in it is called {value[:40]!r}, which is no name", where=path)
    nodes = graph.get("graph_module", {}).get("graph", {}).get("nodes", []) if isinstance(graph, dict) else []
    for node in nodes:
        target = str(node.get("target")) if isinstance(node, dict) else ""
        if not target.startswith(TARGETS) or not NAME.fullmatch(target):
            raise InputError(f"calls {target[:60]}, which is no operation of torch itself", where=path,
                             hint="export the model without custom operations and control flow")  # fmt: skip


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, in objects within objects."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            yield from each.items()
            stack += each.values()
        elif isinstance(each, list):
            stack += each
