"""LiteRT: a language model as a .tflite whose signatures take its cache and give it back.

`prefill` reads a whole chunk and gives the cache; `decode` reads one token and gives its logits too, and
`decode_N` likewise while the token's position is below N: it reads the first N slots of the cache alone,
which take as long as the weights where the context is long. All share every constant of the file. Names and
types are those that LiteRT-LM asks for. Low-bit layers keep their codes and scales; the kernels round
activations to int8 as they come ("dynamic range").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.lower.executorch.program import quiet_toolchain
from paredown.pipeline.lower.language import aten_operations
from paredown.pipeline.lower.language.aten_litert import Subgraph, Writer
from paredown.pipeline.lower.language.network import LanguageFacts, without_codes
from paredown.pipeline.lower.litert.program import aligned_builder

Memory = Sequence[tuple[Tensor, Tensor]]
REACH = 256  # positions of a short text


def lower_language(
    network: nn.Module, memory: Memory, facts: LanguageFacts, reach: int | None = None
) -> bytes:
    """Writes a network with an explicit cache.

    Args:
        network: forward(tokens int64 (1, T), positions int64 (T,), cache, keep, reach=) -> (logits, cache),
            `keep` "last" or "none": of which positions logits are computed. It is left as it is.
        memory: an empty cache of `facts.context` positions, for chunks of `facts.chunk`: for each layer keys
            and values, (1, kv_heads, slots, head_dim), whatever number of slots each has.
        facts: sizes; vocabulary and ids are not in the file, LiteRT-LM has them beside it.
        reach: N of a `decode_N`; None = none is written.

    Raises:
        InputError: an operation or a weight that the file has no way to say.
    """
    plain, weights = without_codes(network)
    writer = Writer()
    _add(writer, plain, memory, weights, facts.chunk, "prefill")
    _add(writer, plain, memory, weights, 1, "decode")
    if reach is not None:
        _add(writer, plain, memory, weights, 1, f"decode_{reach}", reach)
    builder = aligned_builder(once=True)
    builder.Finish(writer.model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _add(
    writer: Writer,
    network: nn.Module,
    memory: Memory,
    weights: Mapping[str, BlockWeight],
    length: int,
    key: str,
    reach: int | None = None,
) -> None:
    flat = [part for layer in memory for part in layer]
    decodes = key != "prefill"
    step = _Step(network, "last" if decodes else "none", reach).eval()
    example: tuple[Any, ...] = (
        torch.zeros(1, length, dtype=torch.int64), torch.zeros(length, dtype=torch.int64), *flat
    )  # fmt: skip
    with torch.no_grad(), quiet_toolchain():
        program = torch.export.export(step, example, strict=False)
    held = {f"network.{name}": weight for name, weight in weights.items()}
    sub = Subgraph(writer, program, held, aten_operations, key)
    names = [f"kv_cache_{part}_{layer}" for layer in range(len(memory)) for part in "kv"]
    outputs = sub.outputs(lambda number: decodes or number > 0)
    given = ["tokens", "input_pos", *names]
    made = ["logits", *names] if decodes else names
    writer.sign(
        key,
        {name: ref.index for name, ref in zip(given, sub.inputs, strict=True)},
        {name: ref.index for name, ref in zip(made, outputs, strict=True)},
    )


class _Step(nn.Module):
    """The network with its cache laid flat; positions follow the first, whatever stands behind it.

    LiteRT-LM leaves zeros as the positions of the tokens that fill up a chunk.
    """

    def __init__(self, network: nn.Module, keep: str, reach: int | None) -> None:
        super().__init__()
        self.network, self.keep, self.reach = network, keep, reach

    def forward(self, tokens: Tensor, input_pos: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        positions = input_pos[:1] + torch.arange(tokens.shape[1])
        cache = tuple(zip(flat[::2], flat[1::2], strict=True))
        logits, cache = self.network(tokens, positions, cache, self.keep, reach=self.reach)
        return logits, *(part for layer in cache for part in layer)
