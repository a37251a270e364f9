"""What each ATen operation of an exported program becomes in a `pipeline.graph.graph.Graph`.

One method per operation, `_op_` and its name; `pipeline.graph.trace` calls them in running order. What is
folded:
batch normalization, explicit padding.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paredown.pipeline.graph.graph import KINDS, Node
from paredown.targets.errors import InputError


class Operations:
    """The nodes made so far, and what makes the next.

    Attributes:
        exported: the program that is read.
        constants: name in the program -> value of what does not depend on the input.
        paths: name in the program -> name in the state dict, one for a tensor under two names.
        origins: name of a constant -> the parameters that it is, or was computed from.
        nodes: by name, in running order.
        alias: name in the program -> name of the node.
    """

    exported: torch.export.ExportedProgram
    constants: dict[str, Tensor]
    paths: dict[str, str]
    origins: dict[str, tuple[str, ...]]
    nodes: dict[str, Node]
    alias: dict[str, str]

    def _add(self, node: Any, kind: str, inputs: tuple[str, ...], *, name: str = "", **fields: Any) -> None:
        self._keep(node, kind, inputs, tuple(node.meta["val"].shape), name=name, **fields)

    def _keep(
        self,
        node: Any,
        kind: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        name: str = "",
        **fields: Any,
    ) -> None:
        name = name or _module_path(node) or node.name
        if name in self.nodes:
            count = sum(1 for n in self.nodes if n == name or n.startswith(f"{name}#"))
            name = f"{name}#{count + 1}"
        attrs = fields.pop("attrs", {})
        self.nodes[name] = Node(name, kind, inputs, shape, attrs, source=source_line(node), **fields)
        self.alias[node.name] = name

    def _replace_input(self, node: Any, **changes: Any) -> None:
        """Folds this operation into the one that feeds it."""
        name = self.alias[node.args[0].name]
        self.nodes[name] = replace(self.nodes[name], **changes)
        self.alias[node.name] = name

    def _const(self, node: Any, argument: Any) -> Tensor | None:
        if argument is None:
            return None
        if getattr(argument, "name", "") not in self.constants:
            raise self._unknown(node, "has weights that the network computes; make them parameters")
        return self.constants[argument.name]

    def _names(self, **arguments: Any) -> dict[str, str]:
        """Role -> state-dict name of what these arguments are; see `Node.parameters`."""
        names: dict[str, str] = {}
        for role, name in ((role, getattr(a, "name", "")) for role, a in arguments.items()):
            if name in self.paths:
                names[role] = self.paths[name]
            elif name:
                names |= {f"computed {role} {i}": p for i, p in enumerate(self.origins[name] or ("",))}
        return names

    def _feed(self, node: Any, index: int = 0) -> str:
        return self._tensor(node, node.args[index])

    def _tensor(self, node: Any, argument: Any) -> str:
        if getattr(argument, "name", "") not in self.alias:
            raise self._unknown(node, "reads a constant or a value that is not a tensor")
        if not batched(argument):
            raise self._unknown(node, "reads a tensor whose first dim is not the batch")
        return self.alias[argument.name]

    def _unknown(self, node: Any, why: str = "is not one that paredown can carry") -> InputError:
        return InputError(
            f"operation {target(node)} {why}",
            where=source_line(node) or node.name,
            hint=f"use one of: {', '.join(KINDS[1:])}",
        )

    def _sole_use(self, node: Any) -> bool:
        """Whether nothing else reads what this operation reads, under another name neither."""
        feed = self.alias[node.args[0].name]
        aliases = [n for n in self.exported.graph.nodes if self.alias.get(n.name) == feed]
        return sum(len(alias.users) for alias in aliases) == len(aliases)

    # -- operations --------------------------------------------------------------------------------------

    def _op_conv2d(self, node: Any) -> None:
        x, w, b, stride, padding, dilation, groups = _fill(node, None, None, None, [1, 1], [0, 0], [1, 1], 1)
        if tuple(dilation) not in {(1,), (1, 1)}:
            raise self._unknown(node, f"has dilation {tuple(dilation)}, which no integer kernel here runs")
        weight, bias = self._const(node, w), self._const(node, b)
        assert weight is not None
        if len(node.meta["val"].shape) != 4:
            raise self._unknown(node, "must read (batch, channels, height, width)")
        if isinstance(padding, str):
            total = [k - 1 if padding == "same" else 0 for k in weight.shape[2:]]
            pads = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
        else:
            vertical, horizontal = _pair(padding)
            pads = (horizontal, horizontal, vertical, vertical)
        feed = self._feed(node)
        producer = self.nodes[feed]
        if producer.kind == "pad" and self._sole_use(node):  # an explicit zero pad costs nothing in the conv
            pads = tuple(a + b for a, b in zip(pads, producer.attrs["padding"], strict=True))
            feed = producer.inputs[0]
        attrs = {"stride": _pair(stride), "padding": pads, "groups": int(groups)}
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        names = self._names(weight=w, bias=b)
        self._add(node, "conv2d", (feed,), attrs=attrs, weight=weight, bias=bias, parameters=names)

    def _op_linear(self, node: Any) -> None:
        _, w, b = _fill(node, None, None, None)
        weight, bias = self._const(node, w), self._const(node, b)
        assert weight is not None
        if len(node.meta["val"].shape) != 2:
            raise self._unknown(node, "must read (batch, features); flatten before it")
        bias = torch.zeros(weight.shape[0]) if bias is None else bias
        names = self._names(weight=w, bias=b)
        self._add(node, "linear", (self._feed(node),), weight=weight, bias=bias, parameters=names)

    def _op_batch_norm(self, node: Any) -> None:
        _, gamma, beta, mean, var, training, _, eps, _ = _fill(
            node, None, None, None, None, None, False, 0.1, 1e-5, True
        )
        feed = self.nodes[self._feed(node)]
        if feed.kind not in {"conv2d", "linear"} or not self._sole_use(node):
            raise self._unknown(node, "does not directly follow a convolution of its own")
        mean_t, var_t = self._const(node, mean), self._const(node, var)
        if training or mean_t is None or var_t is None:
            raise self._unknown(node, "has no running statistics and so normalizes by the batch")
        assert feed.weight is not None and feed.bias is not None
        gamma_t, beta_t = self._const(node, gamma), self._const(node, beta)
        # Fold in double: the folded network then differs from the original only by float32 rounding.
        scale = (var_t.double() + eps).rsqrt()
        scale = scale if gamma_t is None else gamma_t.double() * scale
        shift = torch.zeros_like(mean_t).double() if beta_t is None else beta_t.double()
        weight = feed.weight.double() * scale.reshape(-1, *[1] * (feed.weight.dim() - 1))
        bias = shift + (feed.bias.double() - mean_t.double()) * scale
        names = self._names(bn_weight=gamma, bn_bias=beta, bn_mean=mean, bn_var=var)
        names = {**feed.parameters, **names}
        attrs = {**feed.attrs, "bn_eps": float(eps)}
        self._replace_input(node, weight=weight.float(), bias=bias.float(), parameters=names, attrs=attrs)

    def _op_relu(self, node: Any) -> None:
        self._add(node, "relu", (self._feed(node),))

    def _op_hardtanh(self, node: Any) -> None:
        _, low, high = _fill(node, None, -1.0, 1.0)
        if (low, high) != (0, 6):
            raise self._unknown(node, f"clamps to {low}..{high}; only 0..6 (ReLU6) is known")
        self._add(node, "relu6", (self._feed(node),))

    def _op_relu6(self, node: Any) -> None:
        self._add(node, "relu6", (self._feed(node),))

    def _op_leaky_relu(self, node: Any) -> None:
        self._add(node, "leaky_relu", (self._feed(node),), attrs={"slope": float(_fill(node, None, 0.01)[1])})

    def _op_max_pool2d(self, node: Any) -> None:
        _, kernel, stride, padding, dilation, ceil = _fill(node, None, None, [], [0, 0], [1, 1], False)
        kernel = _pair(kernel)
        stride = _pair(stride) if stride else kernel
        vertical, horizontal = _pair(padding)
        if ceil or _pair(dilation) != (1, 1):
            raise self._unknown(node, "uses ceil_mode or dilation; pad explicitly instead")
        pads = (horizontal, horizontal, vertical, vertical)
        feed = self._feed(node)
        producer = self.nodes[feed]
        if producer.kind == "pad" and producer.attrs["value"] != 0:
            pads = tuple(a + b for a, b in zip(pads, producer.attrs["padding"], strict=True))
            feed = producer.inputs[0]
        if max(pads[:2]) >= kernel[1] or max(pads[2:]) >= kernel[0]:
            raise self._unknown(node, f"of {kernel} is padded by {pads}: a window would see only padding")
        attrs = {"kernel": kernel, "stride": stride, "padding": pads}
        self._add(node, "max_pool2d", (feed,), attrs=attrs)

    def _op_pad(self, node: Any) -> None:
        _, padding, *rest = node.args
        value = rest[-1] if rest and not isinstance(rest[-1], str) else 0.0
        value = 0.0 if value is None else float(value)
        mode = rest[0] if rest and isinstance(rest[0], str) else "constant"
        lowest = value == float("-inf")
        pooled = all(target(user) == "max_pool2d" for user in node.users)
        if mode != "constant" or (value != 0 and not (lowest and pooled)):
            raise self._unknown(node, f"({mode}, {value}) is known with zeros, or -inf before max_pool2d")
        if len(padding) not in {2, 4} or min(padding) < 0 or len(node.meta["val"].shape) != 4:
            raise self._unknown(node, f"by {tuple(padding)} is known outwards, over height and width only")
        padding = tuple(padding) + (0,) * (4 - len(padding))
        self._add(node, "pad", (self._feed(node),), attrs={"padding": padding, "value": value})

    _op_constant_pad_nd = _op_pad

    def _op_add(self, node: Any) -> None:
        if node.kwargs.get("alpha", 1) != 1:
            raise self._unknown(node, "scales its second input (alpha)")
        feeds = (self._feed(node, 0), self._feed(node, 1))
        if self.nodes[feeds[0]].shape != self.nodes[feeds[1]].shape:
            raise self._unknown(node, "broadcasts; both sides must have one shape")
        self._add(node, "add", feeds)

    def _op_cat(self, node: Any) -> None:
        tensors, dim = _fill(node, None, 0)
        feeds = tuple(self._tensor(node, t) for t in tensors)
        self._add(node, "concat", feeds, attrs={"dim": dim % len(node.meta["val"].shape)})

    def _op_mean(self, node: Any) -> None:
        _, dims, keep = _fill(node, None, None, False)
        rank = len(node.args[0].meta["val"].shape)
        if rank != 4 or not isinstance(dims, (list, tuple)) or sorted(d % rank for d in dims) != [2, 3]:
            raise self._unknown(node, "is known over height and width only")
        self._global_mean(node, keep)

    def _op_adaptive_avg_pool2d(self, node: Any) -> None:
        if _pair(node.args[1]) != (1, 1):
            raise self._unknown(node, "is known with an output of 1x1 only")
        self._global_mean(node, keep=True)

    def _op_avg_pool2d(self, node: Any) -> None:
        _, kernel, _, padding, _, _, divisor = _fill(node, None, None, [], [0, 0], False, True, None)
        whole = tuple(node.args[0].meta["val"].shape[2:])
        if _pair(kernel) != whole or any(_pair(padding)) or divisor is not None:
            raise self._unknown(node, "is known over the whole map only, without padding or divisor")
        self._global_mean(node, keep=True)

    def _global_mean(self, node: Any, keep: bool) -> None:
        feed = self._feed(node)
        shape = (*self.nodes[feed].shape[:2], 1, 1)
        self._add(node, "mean", (feed,))
        name = self.alias[node.name]
        self.nodes[name] = replace(self.nodes[name], shape=shape)
        if not keep:
            flat = f"{name}.flat"
            attrs = {"shape": shape[:2]}
            self.nodes[flat] = Node(flat, "reshape", (name,), shape[:2], attrs, source=source_line(node))
            self.alias[node.name] = flat

    def _op_view(self, node: Any) -> None:
        shape = tuple(node.meta["val"].shape)
        self._add(node, "reshape", (self._feed(node),), attrs={"shape": shape})

    _op_reshape = _op__unsafe_view = _op_flatten = _op_squeeze = _op_unsqueeze = _op_view

    def _op_pixel_shuffle(self, node: Any) -> None:
        _, c, h, w = node.args[0].meta["val"].shape
        r = int(node.args[1])
        self._rearranged(node, (1, c // r**2, r, r, h, w), (0, 1, 4, 2, 5, 3))

    def _op_pixel_unshuffle(self, node: Any) -> None:
        _, c, h, w = node.args[0].meta["val"].shape
        r = int(node.args[1])
        self._rearranged(node, (1, c, h // r, r, w // r, r), (0, 1, 3, 5, 2, 4))

    def _op_channel_shuffle(self, node: Any) -> None:
        _, c, *rest = node.args[0].meta["val"].shape
        groups = int(node.args[1])
        dims = (0, 2, 1, *range(3, 3 + len(rest)))
        self._rearranged(node, (1, groups, c // groups, *rest), dims)

    def _rearranged(self, node: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
        """An operation that is a reshape, a permute and a reshape."""
        name = _module_path(node) or node.name
        moved = tuple(shape[d] for d in dims)
        self._keep(node, "reshape", (self._feed(node),), shape, f"{name}.split", attrs={"shape": shape})
        self._keep(node, "permute", (self.alias[node.name],), moved, f"{name}.move", attrs={"dims": dims})
        made = tuple(node.meta["val"].shape)
        self._keep(node, "reshape", (self.alias[node.name],), made, name, attrs={"shape": made})

    def _op_permute(self, node: Any) -> None:
        self._permuted(node, [d % len(node.args[1]) for d in node.args[1]])

    def _op_transpose(self, node: Any) -> None:
        rank = len(node.meta["val"].shape)
        dims = list(range(rank))
        a, b = (d % rank for d in node.args[1:3])
        dims[a], dims[b] = dims[b], dims[a]
        self._permuted(node, dims)

    def _permuted(self, node: Any, dims: list[int]) -> None:
        if dims[0] != 0:
            raise self._unknown(node, f"moves the batch ({dims})")
        self._add(node, "permute", (self._feed(node),), attrs={"dims": tuple(dims)})

    def _same(self, node: Any) -> None:
        self.alias[node.name] = self._feed(node)

    def _op_dropout(self, node: Any) -> None:
        if _fill(node, None, 0.5, True)[2]:
            raise self._unknown(node, "is told to drop values in evaluation too (training=True)")
        self._same(node)

    _op_feature_dropout = _op_dropout

    _op_clone = _op_contiguous = _op_alias = _op_detach = _same


def target(node: Any) -> str:
    """`aten.leaky_relu_.default` -> `leaky_relu`."""
    name = getattr(node.target, "_opname", "") or getattr(node.target, "__name__", "") or str(node.target)
    return name.rstrip("_")


def _fill(node: Any, *defaults: Any) -> list[Any]:
    """Positional arguments, completed from the keywords and the defaults of the operation's schema."""
    names = [a.name for a in node.target._schema.arguments]
    values = []
    for index, default in enumerate(defaults):
        name = names[index] if index < len(names) else ""
        values.append(node.args[index] if index < len(node.args) else node.kwargs.get(name, default))
    return values


def _pair(value: Any) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0], values[-1])


def _module_path(node: Any) -> str:
    """The path of the innermost module that made a node (`layers.3.conv`)."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return re.sub(r"@\d+$", "", paths[-1]) if paths else ""


def source_line(node: Any) -> str:
    """`net.py:12`, where the user's code calls an operation."""
    return user_line(node.meta.get("stack_trace") or "")


def batched(node: Any) -> bool:
    """Whether an operation makes one tensor with the batch of one first."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and tuple(value.shape[:1]) == (1,)


def user_line(text: str) -> str:
    """The last `File "x.py", line N` of a stack trace that is not torch's own."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [f"{path}:{line}" for path, line in frames if "/torch/" not in path]
    return own[-1] if own else ""
