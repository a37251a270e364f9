"""The residual of an embedding's look-ups: whose it is, what it gives back, its bytes and its file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.pipeline.compress.blockwise.codes import (
    find_residual,
    frequent_tokens,
    put_residual,
    read_residual,
    residual_bytes,
    write_residual,
)
from paredown.pipeline.compress.blockwise.modules import put
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


class Tied(nn.Module):
    """An embedding and an output layer that share their weights."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight


def in_codes(vocabulary: int, width: int, block: int | None) -> tuple[Tied, torch.Tensor, Any]:
    torch.manual_seed(0)
    network = Tied(vocabulary, width).requires_grad_(False)
    plain = network.embed.weight.clone()
    weight = nearest(plain, BlockGrid(4, block))
    put(network, {"head": weight})
    return network, plain, weight


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.sampled_from([8, 32, 64]), st.booleans(), st.data())
def test_chosen_tokens_get_back_what_rounding_took_and_others_keep_their_rows(
    vocabulary: int, width: int, blocks: bool, data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, vocabulary - 1), min_size=1)))
    network, plain, weight = in_codes(vocabulary, width, 32 if blocks and width % 32 == 0 else None)
    everyone, x = torch.arange(vocabulary), torch.randn(3, width)
    before, logits = network.embed(everyone), network.head(x)
    put_residual(network, find_residual(torch.tensor(chosen), plain, weight))
    after = network.embed(everyone[None])[0]
    others = [token for token in range(vocabulary) if token not in chosen]
    assert torch.equal(after[others], before[others]) and torch.equal(network.head(x), logits)
    step = (plain - before)[chosen].abs().amax(1) / 7  # at most, of a second rounding that clips nothing
    assert ((after - plain)[chosen].square().mean(1) <= (step / 2).square() * 1.02 + 1e-9).all()


@pytest.mark.parametrize(("width", "tokens"), [(32, 5), (64, 40), (24, 7)])
def test_its_bytes_are_known_before_and_its_file_gives_it_back(
    tmp_path: Path, width: int, tokens: int
) -> None:
    _, plain, weight = in_codes(100, width, None)
    residual = find_residual(torch.arange(tokens), plain, weight)
    assert residual_bytes(tokens, width, 100) == residual.bytes
    for name in ("one", "two"):
        write_residual(tmp_path / name, residual)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = read_residual(tmp_path / "one")
    assert torch.equal(back.places, residual.places)
    assert torch.equal(back.weight.dequantized(), residual.weight.dequantized())


@pytest.mark.parametrize("content", [None, b"", b"x" * 64])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "residual").write_bytes(content)
    with pytest.raises(InputError, match="no file of a residual"):
        read_residual(tmp_path / "residual")


def test_places_are_wider_where_there_are_more_than_int16_counts() -> None:
    assert residual_bytes(2**15, 64, 10) - residual_bytes(2**15 - 1, 64, 10) == 36 + 2 * 10


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 19), min_size=4, max_size=80), st.integers(1, 25))
def test_the_most_frequent_tokens_are_counted_without_the_first_of_a_piece(
    ids: list[int], wanted: int
) -> None:
    ids = ids[: len(ids) // 4 * 4]
    pieces = np.concatenate((np.full((len(ids) // 4, 1), 7), np.reshape(ids, (-1, 4))), 1)
    task: Any = SimpleNamespace(vocabulary=20, pieces=lambda split: {"train": pieces}[split])
    found, counts = frequent_tokens(task, wanted).tolist(), Counter(ids)
    assert found == sorted(found) and len(found) == min(wanted, len(counts))
    least = min(counts[token] for token in found)
    assert all(counts[token] <= least for token in counts if token not in found)


def test_a_network_without_an_embedding_in_codes_is_refused() -> None:
    _, plain, weight = in_codes(10, 32, None)
    with pytest.raises(InputError, match="0 embeddings in codes; a residual is for one"):
        put_residual(Tied(10, 32), find_residual(torch.arange(3), plain, weight))
