"""Sizes, places and made-up constants of ONNX."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.recipe.imports.onnx.builder import MOST, Builder, Live, Node, Value
from paredown.pipeline.recipe.imports.onnx.operations.moves import shaped, sliced


def shape_of(b: Builder, node: Node, x: Value) -> Any:
    """The sizes, which are constants here."""
    shape = b.shape(x)
    return torch.tensor(shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))], dtype=torch.int64)


def size_of(b: Builder, node: Node, x: Value) -> Any:
    """How many numbers."""
    return torch.tensor(prod(b.shape(x)), dtype=torch.int64)


def gather(b: Builder, node: Node, x: Value, indices: Value) -> Any:
    """The parts at some places of an axis; one place takes the axis away."""
    shape = b.shape(x)
    axis = node.attrs.get("axis", 0) % max(len(shape), 1)
    if not isinstance(indices, Tensor):
        return b.call(node, _gathered, x, axis, indices)
    size = shape[axis]
    places = torch.where(indices < 0, indices + size, indices)
    if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < size:
        raise node.error(f"takes place {int(places.max())} of {size}")
    if not isinstance(x, Live):
        return _gathered(b.known(node, x, "data"), axis, places)
    if places.dim() == 0:
        return b.call(node, torch.select, x, axis, int(places))
    flat = places.reshape(-1)
    steps = set(flat.diff().tolist())
    if len(steps) == 1 and (step := steps.pop()) > 0 or len(flat) == 1:
        step = step if len(flat) > 1 else 1
        found = b.call(node, sliced, x, axis, int(flat[0]), int(flat[-1]) + 1, step)
    else:
        found = b.call(node, torch.index_select, x, axis, flat)
    if places.dim() == 1:
        return found
    return shaped(b, node, found, [*shape[:axis], *places.shape, *shape[axis + 1 :]])


def _gathered(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    flat = indices.reshape(-1).long()
    if axis == 0 and x.dim() == 2 and indices.dim():
        return F.embedding(torch.where(indices < 0, indices + len(x), indices).long(), x)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    return x.index_select(axis, flat).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def gather_elements(b: Builder, node: Node, x: Value, indices: Value) -> Any:
    """One value for each index, along an axis."""
    return b.call(node, _gather_elements, x, node.attrs.get("axis", 0), indices)


def _gather_elements(x: Tensor, axis: int, indices: Tensor) -> Tensor:
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def constant_of_shape(b: Builder, node: Node, shape: Value) -> Any:
    """One number, everywhere."""
    sizes = b.ints(node, shape, "shape")
    value = node.attrs.get("value", torch.zeros(1))
    if prod(sizes) > MOST or min(sizes, default=0) < 0:
        raise node.error(f"makes the shape {tuple(sizes)}", f"at most {MOST:,} numbers are taken")
    return value.reshape(-1)[:1].expand(prod(sizes)).reshape(sizes).clone()


def ranged(b: Builder, node: Node, start: Value, limit: Value, delta: Value) -> Any:
    """Numbers from start to limit."""
    known = [b.known(node, v, n).reshape(-1)[0].item()
             for v, n in ((start, "start"), (limit, "limit"), (delta, "delta"))]  # fmt: skip
    if not known[2] or abs((known[1] - known[0]) / known[2]) > MOST:
        raise node.error(f"counts from {known[0]} to {known[1]} by {known[2]}")
    return torch.arange(*known, dtype=b.dtype(start))


def gather_nd(b: Builder, node: Node, x: Value, indices: Value) -> Any:
    """The parts at places of several axes."""
    if node.attrs.get("batch_dims"):
        raise node.error("has batch_dims")
    return b.call(node, _gather_nd, x, indices)


def _gather_nd(x: Tensor, indices: Tensor) -> Tensor:
    return x[tuple(indices.long().unbind(-1))]


def scatter_nd(b: Builder, node: Node, x: Value, indices: Value, updates: Value) -> Any:
    """Other values at some places."""
    if node.attrs.get("reduction", "none") != "none":
        raise node.error("adds to what is there")
    return b.call(node, _scatter_nd, x, b.known(node, indices, "indices"), updates)


def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return x.index_put(tuple(indices.unbind(-1)), updates)


def non_zero(b: Builder, node: Node, x: Value) -> Any:
    """The places of what is not zero, of a constant."""
    return b.known(node, x, "input").nonzero().t().contiguous()


def one_hot(b: Builder, node: Node, indices: Value, depth: Value, values: Value) -> Any:
    """One of two values: at an index, and elsewhere."""
    count = b.ints(node, depth, "depth")[0]
    rank = len(b.shape(indices))
    axis = node.attrs.get("axis", -1)
    if axis % (rank + 1) != rank:
        raise node.error(f"makes the axis {axis}", "known is the last")
    off, on = b.known(node, values, "values").tolist()
    return b.call(node, _one_hot, indices, torch.arange(count), on, off)


def _one_hot(indices: Tensor, places: Tensor, on: float, off: float) -> Tensor:
    return (indices.unsqueeze(-1) == places).to(torch.float32) * (on - off) + off


def eye_like(b: Builder, node: Node, x: Value) -> Any:
    """Ones on a diagonal."""
    rows, columns = b.shape(x)
    return torch.ones(rows, columns).tril(node.attrs.get("k", 0)).triu(node.attrs.get("k", 0))


def trilu(b: Builder, node: Node, x: Value, k: Value = None) -> Any:
    """The values above a diagonal, or below it."""
    place = 0 if k is None else b.ints(node, k, "k")[0]
    return b.call(node, torch.triu if node.attrs.get("upper", 1) else torch.tril, x, place)


def einsum(b: Builder, node: Node, *values: Value) -> Any:
    """A sum of products, as torch has it."""
    return b.call(node, torch.einsum, node.attrs["equation"], list(values))
