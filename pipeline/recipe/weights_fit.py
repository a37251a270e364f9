"""Finds a network's weights in a checkpoint, whatever they are wrapped in, and says where they were.

Trainers wrap a state dict: in dicts (`{"model": ...}`) and in prefixes of its names (`module.`). `fit` tries
each dict of the file, and each prefix of its names, and takes the one that has all of the network's tensors.
Where several have, plain weights come before averaged ones (EMA), and otherwise the first; what was not taken
is said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Parts of names that torch's wrappers put anywhere: compile, DataParallel, FSDP, checkpointing.
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Last parts of names that count something, and belong to no network: AveragedModel, thop.
COUNTERS = frozenset({"n_averaged", "total_ops", "total_params"})
#: A moving average of the weights.
AVERAGED = re.compile(r"(^|[^a-z])(ema|swa|shadow|averaged?)([^a-z]|$)|(^|[^a-z])avg(_|$)")
#: Dicts that come before others which fit as well, as they always have.
FIRST = ("state_dict", "model")
DEPTH, DICTS = 5, 2000  # of dicts in dicts, and in all: a file may hold any number


@dataclass(frozen=True)
class Part:
    """A dict of the file, with a way to spell the network's names in it.

    Attributes:
        path: keys of the dicts that lead to it.
        prefix: of its names, which the network's lack.
        lacking: a prefix of the network's names, which its names lack.
        wrappers: parts of its names that were left out, as `_orig_mod`.
        state: the network's name, or what stands for one, -> what the file has there.
        beside: names in the same dict that are not below the prefix, and counters.
    """

    path: tuple[str, ...]
    prefix: str
    lacking: str
    wrappers: tuple[str, ...]
    state: dict[str, Any]
    beside: tuple[str, ...]

    @property
    def averaged(self) -> bool:
        """Whether these are a moving average of the weights."""
        return any(AVERAGED.search(each.lower()) for each in (*self.path, self.prefix)) or any(
            name.endswith("n_averaged") for name in self.beside
        )

    @property
    def place(self) -> str:
        """Where in the file it is, in words."""
        inside = ".".join(self.path)
        if self.prefix:
            return f"`{inside}` below `{self.prefix}`" if inside else f"the names below `{self.prefix}`"
        return f"`{inside}`" if inside else "the file's own names"

    def note(self) -> str:
        """How it was read, in words; nothing for a plain state dict."""
        said = []
        if self.path or self.prefix:
            kind = "averaged weights (EMA)" if self.averaged else "weights"
            said.append(f"{kind} read from {self.place}")
        elif self.averaged:
            said.append("averaged weights (EMA)")
        if self.wrappers:
            said.append(f"{' and '.join(f'`{each}.`' for each in self.wrappers)} taken out of the names")
        if self.lacking:
            said.append(f"`{self.lacking}` put before the names")
        return ", ".join(said)


def fit(
    tree: Mapping[Any, Any], own: Mapping[str, Tensor], needed: Collection[str]
) -> tuple[Part, list[str]]:
    """The part of a checkpoint that is the network's state dict, or comes nearest to it.

    Args:
        tree: what the file holds.
        own: the network's state dict.
        needed: those of its names that a checkpoint must have.

    Returns:
        The part, whose names and shapes still have to be checked, and notes of how it was found.
    """
    parts = [part for path, held in _dicts(tree) for part in _parts(path, held, own, needed)]
    if not any(_fits(part, own, needed) for part in parts):
        parts += [
            part for path, held in _dicts(tree) for part in _parts(path, _joined(held, own), own, needed)
        ]
    if not parts:
        names = {str(name): value for name, value in tree.items() if not isinstance(value, Mapping)}
        return Part((), "", "", (), names, ()), []
    fitting = [part for part in parts if _fits(part, own, needed)]
    if not fitting:
        return max(parts, key=lambda part: len(set(part.state) & set(needed))), []
    fitting.sort(key=_order)
    taken, notes = fitting[0], []
    if note := taken.note():
        notes.append(note)
    others = [part for part in fitting[1:] if part.path != taken.path or part.prefix != taken.prefix]
    differing = [part for part in others if not _equal(part, taken, needed)]
    if differing:
        kinds = [f"{part.place}{' (EMA)' if part.averaged else ''}" for part in differing]
        rule = "plain weights come before averaged ones" if taken.averaged != differing[0].averaged else (
            "the first is taken")  # fmt: skip
        notes.append(f"{' and '.join(kinds)} would fit too, with other values: not taken, since {rule}; save "
                     "them to a file of their own to use them")  # fmt: skip
    if unread := _unread(tree, taken, [*differing, *others]):
        notes.append(f"not read: {_some(unread)}")
    return taken, notes


def tensor_of(value: object) -> Tensor | None:
    """A tensor's values, of a tensor, a parameter or an array; None of anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    return None


def plain(value: Tensor) -> bool:
    """Whether a tensor holds its values one by one: not quantized, sparse, or without any."""
    return not (value.is_quantized or value.is_meta) and value.layout == torch.strided


def _dicts(tree: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every dict of a file with the keys that lead to it, the outermost first, FIRST before others."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), tree)]
    count = 0
    for _ in range(DEPTH):
        deeper = []
        for path, held in level:
            yield path, held
            inner = [(str(key), value) for key, value in held.items() if isinstance(value, Mapping)]
            inner.sort(key=lambda pair: FIRST.index(pair[0]) if pair[0] in FIRST else len(FIRST))
            deeper += [((*path, key), value) for key, value in inner]
        count += len(deeper)
        level = deeper[:DICTS]
        if count > DICTS:
            return


def _parts(
    path: tuple[str, ...], held: Mapping[Any, Any], own: Mapping[str, Tensor], needed: Collection[str]
) -> list[Part]:
    """The ways to find the network's names in a dict's."""
    names = {name: value for name, value in held.items() if isinstance(name, str)}
    tensors = {name for name, value in names.items() if tensor_of(value) is not None}
    if not tensors:
        return []
    ours = {part for name in own for part in name.split(".")}
    spelled, left_out = {}, set()
    for name in names:
        pieces = name.split(".")
        out = {piece for piece in pieces if piece in WRAPPERS - ours}
        left_out |= out
        spelled[name] = ".".join(piece for piece in pieces if piece not in out)
    if len(set(spelled.values())) < len(spelled):  # two names would become one
        spelled, left_out = {name: name for name in names}, set()
    found = []
    for lacking in _common(own):
        wanted = {name.removeprefix(lacking) for name in needed}
        for prefix in _prefixes(spelled.values(), wanted):
            below = {
                name: text.removeprefix(prefix) for name, text in spelled.items() if text.startswith(prefix)
            }
            counted = {name for name, text in below.items() if text.rpartition(".")[2] in COUNTERS
                       and f"{lacking}{text}" not in own}  # fmt: skip
            others = {name for name in below if name not in tensors and below[name] not in wanted}
            state = {f"{lacking}{text}": names[name] for name, text in below.items()
                     if name not in counted | others}  # fmt: skip
            beside = tuple(name for name in names if name not in below or name in counted | others)
            wrappers = tuple(sorted(left_out))
            found.append(Part(path, prefix, lacking, wrappers, state, beside))
    return found


def _common(own: Mapping[str, Tensor]) -> list[str]:
    """Prefixes that all of a network's names have, the empty one first."""
    found, split = [""], [name.split(".")[:-1] for name in own]
    for pieces in zip(*split, strict=False):
        if len(set(pieces)) > 1:
            break
        found.append(f"{found[-1]}{pieces[0]}.")
    return found


def _prefixes(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """What stands before the wanted names, the most frequent first; at most three of them."""
    count: Counter[str] = Counter()
    for name in names:
        pieces = name.split(".")
        for start in range(len(pieces)):
            if ".".join(pieces[start:]) in wanted:
                count["".join(f"{piece}." for piece in pieces[:start])] += 1
    return [prefix for prefix, _ in count.most_common(4)]


def _joined(held: Mapping[Any, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """A dict of state dicts, one for each of the network's parts, as one state dict."""
    parts = {name.partition(".")[0] for name in own}
    found: dict[str, Any] = {}
    for key, value in held.items():
        if key in parts and isinstance(value, Mapping):
            found |= {f"{key}.{name}": each for name, each in value.items() if isinstance(name, str)}
        elif isinstance(key, str):
            found[key] = value
    return found


def _fits(part: Part, own: Mapping[str, Tensor], needed: Collection[str]) -> bool:
    if any(name not in part.state for name in needed) or any(name not in own for name in part.state):
        return False
    found = {name: tensor_of(value) for name, value in part.state.items()}
    return all(value is not None and plain(value) and value.shape == own[name].shape
               for name, value in found.items())  # fmt: skip


def _order(part: Part) -> tuple[bool, int]:
    """Plain weights first; else as the file has them, since sorting is stable."""
    return part.averaged, 0


def _equal(one: Part, other: Part, needed: Collection[str]) -> bool:
    pairs = ((tensor_of(one.state[name]), tensor_of(other.state[name])) for name in needed)
    return all(a is not None and b is not None and torch.equal(a.double(), b.double()) for a, b in pairs)


def _unread(tree: Mapping[Any, Any], taken: Part, others: list[Part]) -> list[str]:
    """What stands in the file beside the part that was taken, by name; what was said already is left out."""
    found, held = [], tree
    named = {part.path for part in others}
    for depth, key in enumerate(taken.path):
        found += [".".join((*taken.path[:depth], str(name))) for name in held
                  if str(name) != key and (*taken.path[:depth], str(name)) not in named]  # fmt: skip
        held = next(value for name, value in held.items() if str(name) == key)
    prefixes = tuple(part.prefix for part in others if part.path == taken.path and part.prefix)
    return found + [name for name in taken.beside if not prefixes or not name.startswith(prefixes)]


def _some(names: list[str]) -> str:
    """The first of these names, and how many more there are."""
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in names[:6]]
    shown = [" ".join(name.split()) for name in shown]
    return ", ".join(shown) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
