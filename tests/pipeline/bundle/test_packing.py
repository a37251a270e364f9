"""Packed codes against entropy (scipy's), packed programs against the programs of both runtimes."""

from __future__ import annotations

import hashlib
import lzma

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import entropy
from torch import nn

from paredown.pipeline.bundle.packed.packing import (
    Digest,
    Hole,
    Product,
    find_holes,
    find_weights,
    pack_codes,
    pack_program,
    pack_programs,
)
from paredown.pipeline.lower.integer import Parameters
from paredown.targets.runners.expand import expand_program, expand_programs, unpack_codes

INT8 = st.sampled_from(
    [st.integers(-128, 127), st.just(-7), st.sampled_from([0, 0, 0, 5, -5]), st.integers(-2, 2)]
).flatmap(
    lambda values: arrays.arrays(
        np.int8, arrays.array_shapes(min_dims=0, min_side=0, max_side=9), elements=values
    )
)


def entropy_bytes(*layers):
    """Order-0 entropy of layers, each with its own distribution; by scipy."""
    counts = [np.unique(layer, return_counts=True)[1] for layer in layers]
    return sum(count.sum() * entropy(count, base=2) for count in counts) / 8


def sparse(rng, shape, zeros, values, spread=60):
    """Codes as SQuantizer makes them: so many zeros, so many other levels, the smaller ones more often."""
    levels = np.unique(np.rint(np.linspace(spread - 50, 127, values // 2))).astype(np.int8)
    chance = np.exp(-np.arange(len(levels)) / 3)
    picked = rng.choice(levels, shape, p=chance / chance.sum()) * rng.choice(
        np.array([-1, 1], np.int8), shape
    )
    return np.where(rng.random(shape) < zeros, 0, picked).astype(np.int8)


@settings(max_examples=200, deadline=None)
@given(st.lists(INT8, max_size=4))
def test_codes_come_back(layers):
    packed = pack_codes(*layers)
    assert packed == pack_codes(*layers)
    found = unpack_codes(packed)
    assert found.dtype == np.int8 and found.ndim == 1
    assert found.tobytes() == b"".join(layer.tobytes() for layer in layers)


@pytest.mark.parametrize("kinds", [1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 63, 64, 65, 127, 254, 255, 256])
@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 4001])
def test_alphabets_of_every_size_come_back(kinds, size):
    rng = np.random.default_rng(kinds * 10_000 + size)
    codes = rng.choice(rng.choice(np.arange(-128, 128, dtype=np.int8), kinds, replace=False), size)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes)), codes)


def test_layers_that_are_views_come_back_in_their_own_order():
    codes = np.arange(-60, 60, dtype=np.int8).reshape(2, 3, 4, 5)
    for view in (codes.transpose(0, 2, 3, 1), codes[:, ::-1], codes[..., ::2]):
        np.testing.assert_array_equal(unpack_codes(pack_codes(view)), view.ravel())


@pytest.mark.parametrize(
    ("zeros", "values"),
    [(0.6, 16), (0.84, 16), (0.7, 4), (0.9, 8), (0.95, 4), (0.6, 32), (0.5, 2), (0.98, 2)],
)
def test_a_network_of_sparse_codes_packs_to_its_entropy(zeros, values):
    rng = np.random.default_rng(1)
    shapes = [(16, 16, 3, 3)] * 6 + [(32, 32, 3, 3)] * 6 + [(64, 64, 3, 3)] * 5
    layers = [sparse(rng, shape, zeros, values) for shape in shapes]
    assert len(pack_codes(*layers)) < 1.05 * entropy_bytes(*layers)


def test_dense_codes_pack_to_their_entropy():
    rng = np.random.default_rng(2)
    layers = [
        np.clip(np.rint(rng.normal(0, 35, size)), -127, 127).astype(np.int8) for size in (2304, 9216, 36864)
    ]
    assert len(pack_codes(*layers)) < 1.05 * entropy_bytes(*layers)
    noise = rng.integers(-128, 128, 20_000).astype(np.int8)
    assert len(pack_codes(noise)) < 1.02 * noise.size


@pytest.mark.parametrize("size", [1, 254, 255, 256, 509, 510, 511, 512, 1021, 5000])
def test_gaps_of_every_length_come_back(size):
    for places in (
        [0],
        [size - 1],
        [size // 2],
        [0, size - 1],
        [],
        [min(254, size - 1)],
        [min(255, size - 1)],
    ):
        codes = np.zeros(size, np.int8)
        codes[places] = 9
        np.testing.assert_array_equal(unpack_codes(pack_codes(codes, codes[::-1])), [*codes, *codes[::-1]])


def test_layers_without_information_take_no_room():
    assert len(pack_codes(np.zeros(10**6, np.int8), np.full(10**6, -7, np.int8))) < 300


def test_what_is_no_code_is_refused():
    with pytest.raises(ValueError, match="int8"):
        pack_codes(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="int8"):
        pack_program(bytes(100), [np.zeros(100, np.int16)])


# -- programs ------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Every layout of a runtime: full, strided, depthwise and pointwise convolutions, a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pointwise = nn.Conv2d(16, 24, 1)
        self.full = nn.Conv2d(24, 32, 3, 1, 1)
        self.last = nn.Linear(32 * 8 * 8, 10)

    def forward(self, x):
        x = self.pointwise(self.depthwise(self.first(x).relu()).relu()).relu()
        return self.last(self.full(x).relu().flatten(1))


@pytest.fixture(scope="module")
def lowered():
    """Programs of both runtimes, and the weights of their integer graph."""
    from paredown.pipeline.graph.trace import trace
    from paredown.pipeline.lower.integer import quantize
    from paredown.pipeline.lower.runtimes import RUNTIMES, runtime

    torch.manual_seed(3)
    network = Net().eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight *= weight.abs() > weight.abs().mean()
    image = torch.rand(1, 3, 16, 16)
    graph = trace(network, (1, 3, 16, 16))
    ranges = {name: (float(v.min()), float(v.max())) for name, v in graph.run(image).items()}
    integer = quantize(graph, ranges, input_range=(0.0, 1.0))
    programs = {f"model.{name}": runtime(name).lower_integer(integer).data for name in RUNTIMES}
    return programs, integer.weights, integer.layer_parameters


def test_every_weight_is_found_in_both_runtimes_programs(lowered):
    programs, weights, _ = lowered
    assert len(weights) == 5
    for program in programs.values():
        holes = find_weights(program, weights)
        assert sorted(hole.layer for hole in holes) == [0, 1, 2, 3, 4]
        for hole in holes:
            moved = weights[hole.layer].transpose([int(axis) for axis in hole.form])
            assert program[hole.at : hole.end] == moved.tobytes()
        assert all(a.end <= b.at for a, b in zip(holes, holes[1:], strict=False))


def test_programs_come_back_and_share_their_codes(lowered):
    programs, weights, _ = lowered
    packed = pack_programs(programs, weights)
    assert packed == pack_programs(dict(reversed(programs.items())), weights)
    assert expand_programs(packed) == programs
    alone = {name: pack_program(program, weights) for name, program in programs.items()}
    for name, program in programs.items():
        assert expand_program(alone[name]) == program
        assert len(alone[name]) < len(lzma.compress(program, preset=9 | lzma.PRESET_EXTREME))
    codes = len(pack_codes(*weights))
    assert len(packed) < sum(map(len, alone.values())) - 0.9 * codes


def test_scales_of_biases_and_names_that_are_hashes_are_not_stored(lowered):
    programs, weights, parameters = lowered
    large = sum(layer.scale.size >= 16 for layer in parameters)  # smaller ones stay
    assert large
    for name, program in programs.items():
        holes = find_holes(program, weights, parameters)
        assert all(a.end <= b.at for a, b in zip(holes, holes[1:], strict=False))
        products = [hole for hole in holes if isinstance(hole, Product)]
        derived = "openvino" not in name  # whose biases are whole numbers, without scales of their own
        assert len(products) == (large if derived else 0)
        for hole in products:
            numbers = np.frombuffer(program, "<f4", (hole.end - hole.at) // 4, hole.base)
            assert (numbers * np.float32(hole.factor)).tobytes() == program[hole.at : hole.end]
        digests = [hole for hole in holes if isinstance(hole, Digest)]
        for hole in digests:
            part = program[hole.base : hole.base + hole.size]
            assert hashlib.sha256(part).hexdigest().encode() == program[hole.at : hole.end]
        # every constant of a .pte is named by its hash: weights, their scales, biases, and theirs
        assert len({program[d.at : d.end] for d in digests}) >= (3 * len(weights) if "torch" in name else 0)
        packed = pack_program(program, weights, parameters)
        assert expand_program(packed) == program
        assert (len(packed) < len(pack_program(program, weights))) == derived
    packed = pack_programs(programs, weights, parameters)
    assert expand_programs(packed) == programs and len(packed) < len(pack_programs(programs, weights))


def hexadecimal(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


@pytest.mark.parametrize("before, after", [(b"", b"xyz" * 9), (b"xyz" * 9, b""), (b"xyz", b"xyz")])
def test_a_digest_inside_a_weight_array_is_left_to_the_array(before, after):
    """Codes may look like text: both would fill the same bytes."""
    other = np.random.default_rng(0).integers(-128, 128, 900).astype(np.int8)
    weight = np.frombuffer(before + hexadecimal(other.tobytes()) + after, np.int8)
    program = b"a" + weight.tobytes() + b"b" + other.tobytes() + b"c"
    holes = find_holes(program, [other, weight])
    assert [type(hole) for hole in holes] == [Hole, Hole]
    assert expand_program(pack_program(program, [other, weight])) == program


@pytest.mark.parametrize("side", ["begins", "ends"])
def test_a_digest_that_overlaps_a_weight_array_by_one_byte_is_left_out(side):
    other = np.random.default_rng(0).integers(-128, 128, 900).astype(np.int8)
    digest, rest = hexadecimal(other.tobytes()), b"~" * 90
    weight, text = (
        (digest[-1:] + rest, digest[:-1] + digest[-1:] + rest)
        if side == "begins"
        else (rest + digest[:1], rest + digest)
    )
    program = other.tobytes() + b"-" + text
    weights = [other, np.frombuffer(weight, np.int8)]
    assert [type(hole) for hole in find_holes(program, weights)] == [Hole, Hole]
    assert expand_program(pack_program(program, weights)) == program
    # side by side is not one in the other
    apart = other.tobytes() + b"-" + digest + b"~" * 91
    holes = find_holes(apart, [other, np.frombuffer(b"~" * 91, np.int8)])
    assert [type(hole) for hole in holes] == [Hole, Digest, Hole]


def test_a_digest_inside_the_numbers_of_a_product_is_left_to_them():
    """Numbers are made from scales in the program before digests are written into it."""
    weight = np.random.default_rng(0).integers(-128, 128, 900).astype(np.int8)
    scale = np.frombuffer(hexadecimal(weight.tobytes()), "<f4")
    layer = Parameters(scale, 0.5, np.arange(16, dtype="<i4"))
    program = weight.tobytes() + b"abc" + scale.tobytes() + b"def" + (scale * np.float32(0.5)).tobytes()
    holes = find_holes(program, [weight], [layer])
    assert [type(hole) for hole in holes] == [Hole, Product]
    assert expand_program(pack_program(program, [weight], [layer])) == program


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_program_with_scales_comes_back(data):
    numbers = arrays.arrays("<f4", st.integers(0, 20), elements=st.floats(width=32))
    factor = st.floats(width=32, allow_nan=False)
    layers = [
        Parameters(data.draw(numbers), data.draw(factor), np.arange(index, 17, dtype="<i4"))
        for index in range(2)
    ]
    weight = np.tile(np.array([0, 3], np.int8), 40)
    with np.errstate(all="ignore"):
        known = [(scale * np.float32(factor)).tobytes() for scale, factor, _ in layers]
    known += [scale.tobytes() for scale, _, _ in layers] + [layer.bias.tobytes() for layer in layers]
    known += [hashlib.sha256(each).hexdigest().encode() for each in [*known, weight.tobytes()]]
    piece = st.one_of(st.binary(max_size=9), st.sampled_from([*known, weight.tobytes()]))
    program = data.draw(st.lists(piece, max_size=12).map(b"".join))
    holes = find_holes(program, [weight], layers)
    assert all(a.end <= b.at for a, b in zip(holes, holes[1:], strict=False))
    assert expand_program(pack_program(program, [weight], layers)) == program


def test_weights_that_are_in_one_program_only_and_in_none(lowered):
    programs, weights, _ = lowered
    other = np.random.default_rng(0).integers(-9, 9, (40, 5, 3, 3)).astype(np.int8)
    programs = {**programs, "with other": b"head" + other.tobytes() + b"tail", "without": b"nothing"}
    packed = pack_programs(programs, [*weights, other])
    assert expand_programs(packed) == programs
    absent = np.random.default_rng(1).integers(-9, 9, (40, 5, 3, 3)).astype(np.int8)
    assert pack_programs(programs, [*weights, other, absent]) == packed


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 5, 3, 3), (0, 1, 2, 3)), ((8, 5, 3, 3), (0, 2, 3, 1)), ((20, 1, 3, 3), (1, 2, 3, 0)),
        ((8, 5, 3, 3), (2, 3, 1, 0)), ((30, 40), (0, 1)), ((30, 40), (1, 0)), ((100,), (0,)),
    ],
)  # fmt: skip
def test_each_layout_is_found(shape, axes):
    rng = np.random.default_rng(4)
    weight = rng.integers(-128, 128, shape).astype(np.int8)
    program = rng.bytes(77) + weight.transpose(axes).tobytes() + rng.bytes(33)
    (hole,) = find_weights(program, [weight])
    assert hole.at == 77 and program[77 : hole.end] == weight.transpose(axes).tobytes()
    assert expand_program(pack_program(program, [weight])) == program


def test_arrays_never_overlap_and_equal_ones_find_places_of_their_own():
    zeros = np.zeros(500, np.int8)
    program = b"a" + bytes(1700) + b"b"
    holes = find_weights(program, [zeros, zeros, zeros, zeros, np.zeros(600, np.int8)])
    assert [(hole.at, hole.end) for hole in holes] == [(1, 601), (601, 1101), (1101, 1601)]
    weight = np.random.default_rng(5).integers(-128, 128, 300).astype(np.int8)
    twice = weight.tobytes() + b"between" + weight.tobytes()
    assert [hole.at for hole in find_weights(twice, [weight, weight, weight])] == [0, 307]
    assert [hole.at for hole in find_weights(twice, [weight[100:200], weight])] == [0, 407]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_program_comes_back(data):
    weights = data.draw(st.lists(INT8, max_size=3)) + [np.tile(np.array([0, 3], np.int8), 40)]
    piece = st.one_of(st.binary(max_size=99), st.sampled_from([weight.tobytes() for weight in weights]))
    program = st.lists(piece, max_size=6).map(b"".join)
    programs = data.draw(st.dictionaries(st.text(max_size=5), program, max_size=3))
    packed = pack_programs(programs, weights)
    assert expand_programs(packed) == programs
    assert len(packed) <= len(pack_programs(programs, []))


def test_where_codes_of_their_own_do_not_pay_a_program_is_compressed_whole():
    rng = np.random.default_rng(6)
    block = rng.integers(-128, 128, (50, 40)).astype(np.int8)
    program = (
        block.tobytes() * 5 + block.T.tobytes()
    )  # LZMA sees the repetition, a hole for one saves nothing
    packed = pack_program(program, [block[:, :3], block])
    assert expand_program(packed) == program
    assert len(packed) <= len(pack_program(program, [])) < len(program)
    noise = rng.bytes(5000)
    assert len(pack_program(noise, [])) < len(noise) + 300
    assert (
        hashlib.sha256(noise).hexdigest()
        == hashlib.sha256(expand_program(pack_program(noise, []))).hexdigest()
    )
