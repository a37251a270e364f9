"""Keys and values of the positions so far: a ring for each local layer, a whole context for each global one.

Every layer's memory is a ring: position p lies in slot p modulo the number of slots. A global layer's is as
long as the context and never comes round. A local layer's can be as short as its window, and for chunks of
more than one token a little longer: all tokens of a chunk are written before the first of them looks back,
which needs the `window - 1` positions before itself, so `window + chunk - 1` have to lie side by side.
Our design; the masks follow from the positions alone, so no count of what is filled has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paredown.apps.chat.network.config import GemmaConfig

#: For each layer its keys and its values, (1, kv_heads, slots, head_dim) each.
Cache = tuple[tuple[Tensor, Tensor], ...]
#: What puts new rows into a memory: (memory, dimension, slots, rows) to the memory with them.
#: `Tensor.index_copy` makes a new one, `Tensor.index_copy_` writes into the one it is given.
Write = Callable[[Tensor, int, Tensor, Tensor], Tensor]
#: A score that leaves nothing after softmax, and that a float16 can hold.
UNSEEN = -30_000.0


def slots(config: GemmaConfig, local: bool, context: int, chunk: int) -> int:
    """How many positions a layer's memory holds."""
    return min(context, config.window + chunk - 1) if local else context


def empty_cache(
    config: GemmaConfig, context: int, chunk: int = 1, ring: bool = True, dtype: torch.dtype = torch.float32
) -> Cache:
    """A cache in which nothing is written yet.

    Args:
        config: whose.
        context: the most positions that a text can have.
        chunk: the most tokens that will be given at once.
        ring: False gives every layer the whole context, to compare with.
        dtype: of keys and values.
    """

    def memory(local: bool) -> Tensor:
        length = slots(config, local and ring, context, chunk)
        return torch.zeros(1, config.kv_heads, length, config.head_dim, dtype=dtype)

    return tuple((memory(local), memory(local)) for local in config.local)


def cache_bytes(cache: Cache) -> int:
    """How many bytes its tensors hold."""
    return sum(part.numel() * part.element_size() for layer in cache for part in layer)


def slot_of(positions: Tensor, length: int) -> Tensor:
    """Where each position lies in a memory of `length` slots; int64 like `positions`."""
    return positions.remainder(length)


def mask(positions: Tensor, length: int, window: int | None) -> Tensor:
    """What is added to the scores: 0 where a query sees a slot, `UNSEEN` where it does not.

    Right once the positions' own keys are written. A slot holds the latest position that belongs there: the
    last one of this chunk, less how many steps the ring has to be turned back to get from it to the slot.

    Args:
        positions: int64 (T,), ascending by one, below the context.
        length: slots of the memory.
        window: how many positions a query sees; None for all.

    Returns:
        float32 (T, length).
    """
    last = positions[-1:]
    back = (last.remainder(length) + length - torch.arange(length, device=positions.device)).remainder(length)
    held = last - back
    distance = positions[:, None] - held[None, :]
    seen = (held >= 0)[None, :] & (distance >= 0)
    if window is not None:
        seen = seen & (distance < window)
    return torch.where(seen, 0.0, UNSEEN)
