"""Low-bit matrices: their bytes, their modules, and the gradient through both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.pipeline.compress.blockwise.modules import (
    BlockEmbedding,
    BlockLinear,
    BlockTensor,
    LatentTensor,
    ScaledTensor,
    fake_int8,
    held,
    hold,
    put,
    some_outputs,
)
from paredown.pipeline.compress.grids.weight import BITS, BlockWeight, code_range, pack, unpack
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def random_weight(rows: int, columns: int, block: int, bits: int = 4, seed: int = 0) -> BlockWeight:
    low, high = code_range(bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator).to(torch.int8)
    powers = torch.randint(-6, 2, (rows, columns // block), generator=generator).float()
    return BlockWeight(codes, 2.0**powers, bits, block)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_packing_comes_back_and_is_dense(bits: int, rows: int, columns: int, seed: int) -> None:
    low, high = code_range(bits)
    codes = np.random.default_rng(seed).integers(low, high + 1, (rows, columns)).astype(np.int8)
    packed = pack(torch.from_numpy(codes), bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    whole = [int.from_bytes(bytes(row), "little") for row in packed.numpy()]
    read = [[(row >> (bits * i)) % 2**bits for i in range(columns)] for row in whole]
    assert read == (codes.astype(int) % 2**bits).tolist()
    assert torch.equal(unpack(packed, bits, columns), torch.from_numpy(codes))


def test_bytes_are_those_of_the_packed_codes_and_the_scales() -> None:
    weight = random_weight(6, 64, 32)
    assert weight.bytes == pack(weight.codes, 4).numel() + 6 * 2 * 2
    assert random_weight(6, 64, 64).bytes == 6 * 32 + 6 * 4


def test_dequantized_is_a_plain_loop() -> None:
    weight = random_weight(3, 12, 4)
    loop = [
        [float(weight.codes[r, c]) * float(weight.scales[r, c // 4]) for c in range(12)] for r in range(3)
    ]
    assert weight.dequantized().tolist() == loop
    rows = torch.tensor([[2, 0], [0, 1]])
    assert BlockTensor(weight)(rows).tolist() == [[loop[2], loop[0]], [loop[0], loop[1]]]


@pytest.mark.parametrize(
    ("codes", "scales", "bits", "said"),
    [
        (torch.full((1, 4), 8, dtype=torch.int8), torch.ones(1, 2), 4, "beyond -8..7"),
        (torch.zeros(1, 4, dtype=torch.int8), torch.zeros(1, 2), 4, "not a positive number"),
        (torch.zeros(1, 4, dtype=torch.int8), torch.full((1, 2), 0.1), 4, "no bfloat16"),
        (torch.zeros(1, 4, dtype=torch.int8), torch.ones(1, 1), 4, "shape"),
        (torch.zeros(1, 3, dtype=torch.int8), torch.ones(1, 1), 4, "blocks of 2"),
        (torch.zeros(1, 4, dtype=torch.int8), torch.ones(1, 2), 5, "bits = 5"),
    ],
)
def test_what_no_program_can_hold_is_refused(
    codes: torch.Tensor, scales: torch.Tensor, bits: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        BlockWeight(codes, scales, bits, 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 33), st.floats(1e-4, 1e4), st.integers(0, 2**31))
def test_activations_are_rounded_as_the_runtime_rounds_them(n: int, d: int, size: float, seed: int) -> None:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers the operations

    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * size
    q = torch.ops.quantized_decomposed
    scale, zero = q.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = q.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    theirs = q.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)
    # A value in the middle between two codes may go either way: float32 here, float64 there.
    assert (fake_int8(x) - theirs).abs().max() <= scale.max() * 1.001
    assert ((fake_int8(x) - theirs).abs() > scale * 0.01).float().mean() <= 0.1


def test_gradient_goes_straight_through_and_scales_learn() -> None:
    weight = random_weight(2, 8, 4)
    weight = BlockWeight(weight.codes.clamp(-7, 6), weight.scales, 4, 4)
    latent = weight.dequantized() + 0.2 * weight.scales.repeat_interleave(4, 1)
    latent[0, 0] = 100.0  # beyond the range: its gradient is cut off
    layer = BlockLinear(LatentTensor(latent, weight))
    assert torch.equal(layer.tensor.weight.codes[1], weight.codes[1])
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    layer(x).sum().backward()
    straight = x.sum(0).expand(2, 8).clone()
    straight[0, 0] = 0.0
    assert torch.allclose(layer.tensor.latent.grad, straight, atol=1e-5)
    assert layer.tensor.scales.grad.shape == (2, 2)
    # Row 1, block 0: each code is 0.2 below its weight in units of the scale.
    slope = -0.2 * x.sum(0)[:4].sum() / (4 * 7) ** 0.5
    assert torch.allclose(layer.tensor.scales.grad[1, 0], slope, atol=1e-4)


def test_a_trained_tensor_ships_what_it_computed() -> None:
    start = random_weight(4, 64, 32)
    tensor = LatentTensor(torch.randn(4, 64, generator=torch.Generator().manual_seed(2)), start)
    with torch.no_grad():
        tensor.scales.mul_(1.0371)  # no bfloat16 number any more
    assert torch.equal(tensor.weight.dequantized(), tensor().detach())
    ids = torch.tensor([3, 1])
    assert torch.equal(tensor(ids), tensor()[ids])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight
        self.middle = nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embed(ids)))


def test_codes_that_are_zero_stay_so_where_that_is_wanted() -> None:
    start = random_weight(4, 64, 32)
    zeros = start.codes == 0
    latent = start.dequantized() + start.scales.amax()
    free, bound = LatentTensor(latent, start), LatentTensor(latent, start, keep_zeros=True)
    assert zeros.any() and free.weight.codes[zeros].any() and not bound.weight.codes[zeros].any()
    bound().sum().backward()
    assert not bound.latent.grad[zeros].any() and bound.latent.grad[~zeros].any()


def test_scales_are_learned_under_codes_that_stay() -> None:
    start = random_weight(4, 64, 32)
    tensor = ScaledTensor(start)
    rows = torch.tensor([[3, 1]])
    assert torch.equal(tensor(), start.dequantized()) and torch.equal(tensor(rows), tensor()[rows])
    upstream = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    (tensor() * upstream).sum().backward()
    expected = (start.codes * upstream).unflatten(1, (2, 32)).sum(2)
    assert torch.allclose(tensor.scales.grad, expected, atol=1e-5)
    with torch.no_grad():
        tensor.scales *= 1.001
    shipped = tensor.weight  # BlockWeight refuses scales that bfloat16 cannot hold
    assert torch.equal(shipped.codes, start.codes) and torch.equal(tensor(), shipped.dequantized())


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_some_outputs_are_those_of_the_whole_layer(activation_bits: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 3, 64, generator=generator), torch.randn(6, generator=generator)
    rows = torch.tensor([4, 0, 5])
    low = BlockLinear(BlockTensor(random_weight(6, 64, 32)), bias, activation_bits)
    for layer in (low, nn.Linear(64, 6)):
        assert torch.allclose(some_outputs(layer, x, rows), layer(x)[..., rows], atol=1e-5)


def test_modules_that_shared_a_weight_share_its_codes() -> None:
    network, ids = Tied(), torch.arange(10)
    weights = {"embed": random_weight(10, 8, 4, 8), "middle": random_weight(8, 8, 8)}
    put(network, weights, activation_bits=None)
    assert isinstance(network.embed, BlockEmbedding) and isinstance(network.head, BlockLinear)
    assert network.embed.tensor is network.head.tensor
    plain = weights["embed"].dequantized()
    middle = plain @ weights["middle"].dequantized().T + network.middle.bias
    assert torch.allclose(network(ids), middle @ plain.T, atol=1e-4)
    assert set(held(network)) == {"embed", "middle"}
    hold(network, {"embed": LatentTensor(plain * 1.01, weights["embed"])})
    assert network.embed.tensor is network.head.tensor
    network(ids).sum().backward()
    assert network.head.tensor.latent.grad.abs().sum() > 0


def test_put_names_what_it_cannot_replace() -> None:
    with pytest.raises(InputError, match=r"nowhere is missing"):
        put(Tied(), {"nowhere": random_weight(8, 8, 8)})
    with pytest.raises(InputError, match=r"\(8, 8\)"):
        put(Tied(), {"middle": random_weight(4, 8, 8)})
