"""Surgery: removes the units that are not kept, from the graph and from the user's own module (our design).

`mask` makes them zero and keeps every shape; `thin` takes them out of the graph; `cut` takes them out of the
module that the user gave. All three compute the same. A cut is proved: the smaller module is traced again and
must be the thin graph, its reshapes must put every value in its place. So a forward() that holds a channel
count of its own is refused, never cut wrongly.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.coupling.flow import Flow, Group, Kept
from paredown.pipeline.compress.coupling.reshapes import unit_axes
from paredown.pipeline.compress.coupling.thin_graph import LayerSlice, Thinner
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError

ROLES = frozenset({"weight", "bias", "bn_weight", "bn_bias", "bn_mean", "bn_var", "slope", "factor", "shift"})
#: What modules call the number of their attention's heads, and the features of all of them.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
HEADS_WIDTH = ("all_head_size", "inner_dim")
FIXED = "its forward() holds a channel count as a number: read it from the tensor's shape instead"


def mask(graph: Graph, groups: Sequence[Group], kept: Kept) -> Graph:
    """The same graph with the removed channels made zero where they are made.

    Raises:
        InputError: `kept` does not fit the groups.
    """
    check(groups, kept)
    gone: dict[str, list[int]] = {}
    for group in groups:
        removed = sorted(set(range(group.units)) - set(kept.get(group.name, range(group.units))))
        for member in (*group.makers, *group.carriers):
            gone.setdefault(member.node, []).extend(c for unit in removed for c in member.channels[unit])
    axes = unit_axes(graph)
    nodes = (
        operation(n.kind).masked(n, gone[n.name], axes[n.name]) if gone.get(n.name) else n for n in graph
    )
    return replace(graph, nodes=tuple(nodes))


def thin(graph: Graph, groups: Sequence[Group], kept: Kept) -> Graph:
    """The graph without the removed channels; its output is that of `mask` up to float rounding.

    Raises:
        InputError: `kept` does not fit the groups, or a reshape has no legal form at these widths.
    """
    check(groups, kept)
    return Thinner(Flow(graph), groups, kept).graph()


def cut(network: nn.Module, graph: Graph, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A smaller copy of a network: plain modules with fewer channels, nothing of ours left behind.

    Args:
        network: what `graph` was traced from.
        graph: its trace, with parameter names.
        groups: those of `couple(graph)`.
        kept: what stays.

    Returns:
        A deep copy with sliced parameters and buffers, as frozen and in training or evaluation as it was.

    Raises:
        InputError: `kept` does not fit the groups, or the network's forward() does not follow the new widths.
    """
    check(groups, kept)
    flow = Flow(graph)
    thinner = Thinner(flow, groups, kept)
    thinner.graph()  # is there a legal form at all?
    smaller = copy.deepcopy(network)
    done: set[str] = set()
    for node in graph:
        if node.weight is not None:
            _slice_layer(network, smaller, node, thinner.part(node), done)
        else:
            _slice_other(network, smaller, node, thinner, done)
    _set_heads(smaller, {node.name: node for node in graph}, groups, kept)
    opaque = any(node.kind == "opaque" for node in graph)
    try:
        found = trace(smaller, graph.nodes[0].shape, opaque=opaque)
        shapes = {node.name: node.shape for node in found if node.kind == "reshape"}
        expected = Thinner(flow, groups, kept, shapes).graph()
    except InputError as error:
        hint = _unread(network, graph) or FIXED
        raise InputError(f"the network does not run with fewer channels: {error}", hint=hint) from error
    if difference := _difference(expected, found):
        raise InputError(f"the network's forward() does not follow its new widths: {difference}", hint=FIXED)
    return smaller


def check(groups: Sequence[Group], kept: Kept) -> None:
    """Checks what is to be kept against the groups.

    Raises:
        InputError: an unknown group, a unit that it does not have, nothing left, a locked group, or a width
            that the network's reshapes do not allow.
    """
    known = {group.name: group for group in groups}
    for name, units in kept.items():
        if name not in known:
            raise InputError(f"no channel group `{name}`", hint="`paredown groups` lists them")
        group, chosen = known[name], sorted(set(units))
        if not chosen:
            raise InputError(
                "would lose all of its channels", where=f"group {name}", hint="keep at least one"
            )
        if list(units) != chosen or chosen[0] < 0 or chosen[-1] >= group.units:
            raise InputError(
                f"keeps units that are not rising within 0..{group.units - 1}", where=f"group {name}"
            )
        if group.locked and len(chosen) < group.units:
            raise InputError(f"cannot be cut: it {group.locked}", where=f"group {name}")
        if len(chosen) % group.step and len(chosen) < group.units:
            raise InputError(
                f"{len(chosen)} units, and the network reshapes them by {group.step}", where=f"group {name}"
            )


def save_pruned(network: nn.Module, path: Path) -> None:
    """Writes a state dict as .safetensors, with the groups of its convolutions as metadata."""
    from safetensors.torch import save_file

    convs = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.modules.conv._ConvNd))
    groups = {name: module.groups for name, module in convs if module.groups > 1}
    heads = {name: words for name, module in network.named_modules() if (words := _heads(module))}
    # A tensor under two names is written twice: the format knows no sharing.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    said = {"conv_groups": json.dumps(groups, sort_keys=True)}
    save_file(state, path, said | ({"heads": json.dumps(heads, sort_keys=True)} if heads else {}))


def load_pruned(network: nn.Module, path: Path) -> nn.Module:
    """Makes the whole network the pruned one that a file holds.

    Args:
        network: of the architecture that was pruned; changed in place.
        path: what `save_pruned` wrote.

    Returns:
        The same network, thinner, in evaluation mode.

    Raises:
        InputError: the file is damaged, or of another network.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            groups, heads = (json.loads(said.get(word, "{}")) for word in ("conv_groups", "heads"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"cannot read the pruned network: {error}", where=path) from error
    own = network.state_dict(keep_vars=True)
    if wrong := sorted(own.keys() ^ state.keys()):
        raise InputError(f"is of another network: {wrong[0]} is in one of them only", where=path)
    for name, tensor in state.items():
        if own[name].ndim != tensor.ndim:
            raise InputError(f"is of another network: {name} has {tensor.ndim} dimensions", where=path)
        _set_tensor(network, network, own[name], tensor, groups.get(name.removesuffix(".weight"), 1))
    modules = dict(network.named_modules())
    for name, words in heads.items():
        for word, value in words.items() if name in modules else ():
            setattr(modules[name], word, value)
    return network.eval()


# -- the user's module ---------------------------------------------------------------------------------------


@torch.no_grad()
def _unread(network: nn.Module, graph: Graph) -> str:
    """A hint where forward() runs layers that no output hangs on, which are in no group; else nothing."""
    ran: list[str] = []
    traced = {name for node in graph for name in node.parameters.values()}
    layers = nn.modules.conv._ConvNd | nn.Linear
    hooks = [
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, module in network.named_modules()
        if isinstance(module, layers) and f"{path}.weight" not in traced
    ]
    network(torch.zeros(graph.nodes[0].shape))
    for hook in hooks:
        hook.remove()
    first = f"{ran[0]} runs, and no output hangs on it" if ran else ""
    return f"{first}: leave it out of forward(), or its channels cannot follow" if ran else ""


def _slice_layer(whole: nn.Module, smaller: nn.Module, node: Node, part: LayerSlice, done: set[str]) -> None:
    for role, name in node.parameters.items():
        if name in done or not (role in ROLES or role.startswith("row ")):
            continue
        done.add(name)
        owner, _, attribute = name.rpartition(".")
        old: Tensor = getattr(whole.get_submodule(owner), attribute)
        if role == "weight":
            kind, before = operation(node.kind), int(node.attrs.get("groups", 1))
            new = kind.own(old.detach(), before)[part.rows][:, part.columns]
            new = kind.theirs(new, part.groups, old.ndim)
        else:
            new = old.detach()[part.rows]
        if new.shape != old.shape:
            _set_tensor(whole, smaller, old, new.contiguous(), part.groups)


def _slice_other(whole: nn.Module, smaller: nn.Module, node: Node, thinner: Thinner, done: set[str]) -> None:
    """A constant's parameter, or what a norm without parameters says about its channels."""
    if (node.name, "in") not in thinner.flow.sides:
        return
    rows, axis = thinner.rows(node.name), thinner.flow.axes[node.name]
    if node.value is None:
        path = node.name.partition("#")[0]
        norm = dict(smaller.named_modules()).get(path)
        if norm is not None:
            _set_norm_sizes(norm, node.shape[1], len(rows))
    elif len(rows) < node.shape[axis] and (name := node.parameters.get("value", "")) not in (*done, ""):
        done.add(name)
        owner, _, attribute = name.rpartition(".")
        old: Tensor = getattr(whole.get_submodule(owner), attribute)
        new = old.detach().index_select(node.attrs["axes"][axis], torch.tensor(rows))
        _set_tensor(whole, smaller, old, new.contiguous(), 1)


def _set_norm_sizes(norm: nn.Module, was: int, becomes: int) -> None:
    """Corrects the sizes of a layer norm."""
    sizes = getattr(norm, "normalized_shape", None)
    if isinstance(sizes, (tuple, list)) and sizes[:1] == type(sizes)([was]):
        object.__setattr__(norm, "normalized_shape", type(sizes)([becomes, *sizes[1:]]))


def _set_tensor(whole: nn.Module, smaller: nn.Module, old: Tensor, new: Tensor, groups: int) -> None:
    """Puts a tensor in the place of one of the whole network's, under every name that it has there."""
    made: dict[int, Tensor] = {}  # two tensors may share their memory, which a deep copy undoes
    for path, module in whole.named_modules():
        twin = smaller.get_submodule(path)
        for table, place in ((module._parameters, twin._parameters), (module._buffers, twin._buffers)):
            places: dict[str, Any] = place
            for name, tensor in list(table.items()):
                if tensor is old or (tensor is not None and _memory(tensor) == _memory(old) != 0):
                    value = nn.Parameter(new, tensor.requires_grad) if table is module._parameters else new
                    places[name] = made.setdefault(id(tensor), value)
                    _set_counts(twin, old.shape, new.shape, groups)
        if isinstance(twin, (nn.RNNBase, nn.RNNCellBase)):
            _set_recurrent_sizes(twin)


def _set_recurrent_sizes(owner: nn.RNNBase | nn.RNNCellBase) -> None:
    """Corrects what a recurrent layer says of itself, and the list of parameters that it computes with."""
    suffix = "_l0" if isinstance(owner, nn.RNNBase) else ""
    owner.input_size = int(owner.get_parameter(f"weight_ih{suffix}").shape[1])
    owner.hidden_size = int(owner.get_parameter(f"weight_hh{suffix}").shape[1])
    if isinstance(owner, nn.RNNBase):
        owner._flat_weights = [owner.get_parameter(name) for name in owner._flat_weights_names]


def _heads(module: nn.Module) -> dict[str, int]:
    found = {word: getattr(module, word, None) for word in (*HEADS, *HEADS_WIDTH)}
    return {word: value for word, value in found.items() if isinstance(value, int)}


def _set_heads(smaller: nn.Module, nodes: Mapping[str, Node], groups: Sequence[Group], kept: Kept) -> None:
    """Corrects what a module says about the heads that its layers make: by usual names, proved behind."""
    for group in groups:
        each, left = group.channels // group.units, len(kept.get(group.name, range(group.units)))
        for member in group.makers if each > 1 and left < group.units else ():
            path = nodes[member.node].parameters.get("weight", "").rpartition(".")[0].rpartition(".")[0]
            owner = smaller.get_submodule(path)
            counts = [(name, group.units, left) for name in HEADS]
            counts += [(name, group.units * each, left * each) for name in HEADS_WIDTH]
            for name, was, becomes in counts:
                if _heads(owner).get(name) == was:
                    setattr(owner, name, becomes)


def _memory(tensor: Tensor) -> object:
    return tensor.data_ptr() and (tensor.data_ptr(), tensor.shape, tensor.stride())


def _set_counts(owner: nn.Module, old: torch.Size, new: torch.Size, groups: int) -> None:
    """Corrects what a module says, and computes with, about its own channels."""
    if old == new:
        return
    alone = ("num_features", "num_parameters", "num_channels") if len(old) == 1 else ()
    counts = {name: (old[0], new[0]) for name in alone}
    if alone:
        if getattr(owner, "num_groups", None) == old[0]:  # a group per channel
            counts["num_groups"] = (old[0], new[0])
        _set_norm_sizes(owner, old[0], new[0])
    if len(old) > 1:
        before = int(getattr(owner, "groups", 1))
        first, second = (old[0], new[0]), (old[1] * before, new[1] * groups)
        outputs, inputs = (second, first) if getattr(owner, "transposed", False) else (first, second)
        counts = {
            "out_channels": outputs, "out_features": outputs,
            "in_channels": inputs, "in_features": inputs, "groups": (before, groups), "embedding_dim": inputs,
        }  # fmt: skip
    for name, (was, becomes) in counts.items():
        if getattr(owner, name, None) == was != becomes:
            setattr(owner, name, becomes)


def _difference(expected: Graph, found: Graph) -> str:
    """Where two graphs differ, in words; empty where they are the same."""
    for want, have in zip(expected, found, strict=False):
        if want.value is not None and (have.value is None or not torch.equal(want.value, have.value)):
            return f"{want.name} is another constant ({have.source or have.name})"
        place = have.source or have.name
        if (want.name, want.kind, want.inputs) != (have.name, have.kind, have.inputs):
            return f"{have.name} runs where {want.name} did ({place})"
        if want.shape != have.shape:
            return f"{want.name} should make {want.shape}, it makes {have.shape} ({place})"
        if want.value is None and dict(want.attrs) != dict(have.attrs):
            return f"{want.name} computes with other numbers ({place})"
        for a, b in ((want.weight, have.weight), (want.bias, have.bias)):
            if a is not None and (b is None or a.shape != b.shape or not torch.allclose(a, b, 1e-4, 1e-6)):
                return f"{want.name} has other weights ({place})"
    if len(expected.nodes) != len(found.nodes) or expected.outputs != found.outputs:
        return "it has other operations or outputs"
    return ""
