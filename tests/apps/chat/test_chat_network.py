"""Gemma's network against transformers' Gemma3ForCausalLM; ring buffers against caches of full length."""

from __future__ import annotations

import pytest
import torch
from gemma_models import oracle, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paredown.apps.chat.network.cache import Cache, empty_cache
from paredown.apps.chat.network.network import Gemma, Stateful

CLOSE = 1e-4  # of logits of about 10


@pytest.fixture(scope="module")
def reference():
    return oracle()


@pytest.fixture(scope="module")
def network(reference) -> Gemma:
    return ours(reference)


@pytest.fixture(scope="module")
def text() -> Tensor:
    return torch.randint(4, 96, (1, 60), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(reference, text) -> Tensor:
    return reference(text).logits


def read(network: Gemma, tokens: Tensor, pieces: list[int], cache: Cache, **options: object) -> Tensor:
    """Logits of all positions, the text given in pieces of these lengths."""
    found, start = [], 0
    for length in pieces:
        positions = torch.arange(start, start + length)
        logits, cache = network(tokens[:, start : start + length], positions, cache, **options)
        found.append(logits)
        start += length
    return torch.cat(found, 1)


def test_state_dicts_have_the_same_names(reference, network):
    assert network.state_dict().keys() == reference.state_dict().keys()
    assert network.lm_head.weight is network.model.embed_tokens.weight


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"sliding_window": 1},
        {"sliding_window": 200},  # longer than the text
        {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2},
        {"head_dim": 6, "query_pre_attn_scalar": 6, "rms_norm_eps": 1e-5},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(text, changed):
    reference = oracle(**changed)
    network = ours(reference)
    cache = empty_cache(network.config, 60, 25)
    found = read(network, text, [25, 1, 10, 24], cache)
    torch.testing.assert_close(found, reference(text).logits, atol=CLOSE, rtol=0)


def test_the_embedding_is_scaled_as_transformers_rounds_it(text):
    """In bfloat16 the scale itself is rounded first: 5.65625, not the root of 32."""
    reference = oracle(num_hidden_layers=1).bfloat16()
    network = ours(reference).bfloat16()
    found = network.model.embed_tokens(text) * network.model.embed_scale
    assert torch.equal(found, reference.model.embed_tokens(text))


def test_positions_far_into_a_text(reference, network):
    long = torch.randint(4, 96, (1, 2000), generator=torch.Generator().manual_seed(2))
    found = read(network, long, [200] * 10, empty_cache(network.config, 2000, 200))
    torch.testing.assert_close(found[:, -100:], reference(long).logits[:, -100:], atol=5e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 30), min_size=1, max_size=12), in_place=st.booleans(), ring=st.booleans()
)
def test_any_pieces_give_the_same(network, text, expected, pieces, in_place, ring):
    """Chunks shorter than, equal to and longer than the window, and single tokens, in any order."""
    while sum(pieces) > 60:
        pieces.pop()
    pieces = [*pieces, 60 - sum(pieces)] if sum(pieces) < 60 else pieces
    cache = empty_cache(network.config, 64, max(pieces), ring=ring)
    write = Tensor.index_copy_ if in_place else Tensor.index_copy
    found = read(network, text, pieces, cache, write=write)
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)


def test_a_cache_that_is_not_written_into_stays_as_it_is(network, text):
    cache = empty_cache(network.config, 64, 8)
    network(text[:, :8], torch.arange(8), cache)
    assert not any(part.any() for layer in cache for part in layer)


def test_what_fills_a_chunk_up_is_never_seen(network, text, expected):
    """A program of fixed length: 45 tokens in chunks of 20, the last one filled up, then one by one."""
    chunk, prompt = 20, 45
    cache = empty_cache(network.config, 64, chunk)
    padded = torch.cat([text[:, :prompt], torch.full((1, 15), 7)], 1)
    for start in range(0, 60, chunk):
        positions = torch.arange(start, start + chunk)
        logits, cache = network(padded[:, start : start + chunk], positions, cache)
    found = [logits[:, prompt - 40 - 1]]
    for position in range(prompt, 60):
        logits, cache = network(text[:, position : position + 1], torch.tensor([position]), cache)
        found.append(logits[:, 0])
    torch.testing.assert_close(torch.cat(found), expected[0, prompt - 1 :], atol=CLOSE, rtol=0)


def test_a_ring_too_short_for_the_chunk_would_be_wrong(network, text, expected):
    """Why there are window + chunk - 1 slots: with one less, the chunk's first token misses its farthest."""
    cache = empty_cache(network.config, 64, 9)
    found = read(network, text, [10] * 6, cache)
    assert (found - expected).abs().max() > 100 * CLOSE


@pytest.mark.parametrize("keep, rows", [("all", 5), ("last", 1), ("none", 0)])
def test_logits_of_the_positions_wanted(network, text, expected, keep, rows):
    logits, _ = network(text[:, :5], torch.arange(5), empty_cache(network.config, 64, 5), keep)
    assert logits.shape == (1, rows, 96)
    torch.testing.assert_close(logits, expected[:, 5 - rows : 5], atol=CLOSE, rtol=0)


def greedy(network: Gemma, prompt: Tensor, cache: Cache, count: int) -> list[int]:
    logits, cache = network(prompt, torch.arange(prompt.shape[1]), cache, "last")
    said = []
    for position in range(prompt.shape[1], prompt.shape[1] + count):
        said.append(int(logits[0, -1].argmax()))
        logits, cache = network(torch.tensor([said[-1:]]), torch.tensor([position]), cache)
    return said


def test_generation_with_rings_is_that_of_the_full_cache_and_of_transformers(text):
    """100 tokens past a prompt of 11, more than twelve windows of 8."""
    reference = oracle()
    reference.model.embed_tokens.weight.mul_(0.2)  # or it only repeats its last token
    network, prompt = ours(reference), text[:, :11]
    rings = greedy(network, prompt, empty_cache(network.config, 128, 11), 100)
    full = greedy(network, prompt, empty_cache(network.config, 128, 11, ring=False), 100)
    said = reference.generate(prompt, max_new_tokens=100, do_sample=False, eos_token_id=None)[0, 11:]
    assert rings == full == said.tolist()
    assert len(set(rings)) > 5  # not one token over and over, which any cache would give


def exported(module: torch.nn.Module, arguments: tuple, shapes: tuple) -> torch.nn.Module:
    return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False).module()


def test_exported_with_its_state_it_starts_over_at_position_0(network, text, expected):
    stateful = Stateful(network, 64, 6).eval()
    length = torch.export.Dim("length", min=1, max=6)
    program = exported(stateful, (text[:, :4], torch.tensor([0])), ({1: length}, None))
    for _ in range(2):  # the second time over what the first has left behind
        found = [program(text[:, at : at + 6], torch.tensor([at])) for at in range(0, 60, 6)]
        torch.testing.assert_close(torch.cat(found), expected[0, 5::6], atol=CLOSE, rtol=0)


def test_exported_with_the_cache_as_input_and_output(network, text, expected):
    cache = empty_cache(network.config, 64, 6)
    length = torch.export.Dim("length", min=1, max=6)
    shapes = ({1: length}, {0: length}, tuple((None, None) for _ in cache))
    program = exported(network, (text[:, :4], torch.arange(4), cache), shapes)
    found = read(program, text, [6, 1, 5] * 5, cache)
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
