"""Operations that a traced graph keeps without knowing them: it runs, and is pruned around them (our design).

Such a node computes what torch.export recorded. What was recorded is for a batch of one, so a larger batch is
computed image by image. Nothing is changed in place: what an operation would overwrite is copied first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Images(tuple[Any, ...]):
    """What an opaque node made for each image, where that is no tensor with the batch first."""


class Folded:
    """Gives each image another shape, of which the first axis is no batch."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, x: Tensor) -> Any:
        """A tensor of one image, or `Images`."""
        found = [image.reshape(self.shape) for image in x]
        return found[0] if len(found) == 1 else Images(found)


class Opaque:
    """Computes an operation of an exported program.

    Args:
        node: of the exported graph.
        feeds: the arguments that the network computes from its input, and whether they hold the batch first.
        constants: values of the arguments that it does not.

    Raises:
        LookupError: an argument is neither.
    """

    def __init__(self, node: Any, feeds: Mapping[str, bool], constants: Mapping[str, Any]) -> None:
        from torch.utils._pytree import tree_flatten

        self.target = node.target
        flat, self.layout = tree_flatten((node.args, node.kwargs))
        self.given = [constants.get(getattr(a, "name", ""), a) for a in flat]
        names = [getattr(a, "name", "") for a in flat]
        self.places = [i for i, name in enumerate(names) if name in feeds]
        self.names = [names[i] for i in self.places]
        self.batched = [feeds[name] for name in self.names]
        for index, value in enumerate(self.given):
            if isinstance(value, torch.fx.Node) and index not in self.places:
                raise LookupError(value.name)
        made = node.meta.get("val")
        self.stays = isinstance(made, Tensor) and tuple(made.shape[:1]) == (1,)
        self.written = written(node)

    def __call__(self, *values: Any) -> Any:
        """Tensors with the batch first (or `Images`) in; a tensor with the batch first out, or `Images`."""
        counts = [len(v) for v, b in zip(values, self.batched, strict=True) if b or isinstance(v, Images)]
        if max(counts, default=1) == 1:
            return self._one(values)
        found = [
            self._one([v[i] if isinstance(v, Images) else v[i : i + 1] for v in values])
            for i in range(max(counts))
        ]
        return torch.cat(found) if self.stays else Images(found)

    def _one(self, values: Sequence[Any]) -> Any:
        from torch.utils._pytree import tree_unflatten

        flat = list(self.given)
        for index, value in zip(self.places, values, strict=True):
            flat[index] = value
        args, kwargs = tree_unflatten(flat, self.layout)
        args = [a.clone() if i in self.written else a for i, a in enumerate(args)]
        return self.target(*args, **kwargs)

    def text(self) -> str:
        """The constants, so that two operations of one kind can be told apart."""
        return ", ".join("tensor" if i in self.places else text(value) for i, value in enumerate(self.given))


def written(node: Any) -> list[int]:
    """Which arguments an operation changes in place."""
    schema = getattr(node.target, "_schema", None)
    arguments = schema.arguments if schema else []
    return [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]


def text(value: Any) -> str:
    """An argument, so that it can be told from others: of a tensor a digest."""
    if not isinstance(value, Tensor):
        return repr(value)
    digest = hashlib.sha256(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{value.dtype}{list(value.shape)} {digest.hexdigest()[:16]}"
