"""Low-bit weights of matrices: integer codes with one scale per row, or per block of a row.

The programs hold exactly what is here. ExecuTorch: XNNPACK's int4 linear layers (`8da4w`, codes -8..7, one
float scale per row or one bfloat16 scale per block of 32) and the quantized embeddings. LiteRT: int4 and int8
per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paredown.targets.errors import InputError

BITS = (2, 3, 4, 8)
BLOCK = 32  # of both runtimes' int4 kernels, and of GGUF's Q4_0
ROW_SCALE = 4  # bytes: float32
BLOCK_SCALE = 2  # bytes: bfloat16


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """A matrix in codes.

    Attributes:
        codes: int8 (out, in), each from -2**(bits - 1) to 2**(bits - 1) - 1.
        scales: float32 (out, in / block), the real value of code 1, more than 0. With several blocks in a row
            they are such as bfloat16 holds.
        bits: 2, 3, 4 or 8.
        block: codes of a row that share a scale; `in` where the whole row does.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    block: int

    def __post_init__(self) -> None:
        """Checks that the parts fit each other.

        Raises:
            InputError: a shape, a type, a code or a scale that cannot be.
        """
        low, high = code_range(self.bits)
        if self.codes.dtype != torch.int8 or self.codes.ndim != 2:
            raise InputError(
                f"codes are {self.codes.dtype} of shape {tuple(self.codes.shape)}",
                where="BlockWeight",
                hint="int8 (out, in) is needed",
            )
        wanted = (self.codes.shape[0], blocks_of(self.codes.shape[1], self.block))
        if self.scales.dtype != torch.float32 or self.scales.shape != wanted:
            raise InputError(
                f"scales are {self.scales.dtype} of shape {tuple(self.scales.shape)}",
                where="BlockWeight",
                hint=f"blocks of {self.block} in codes {tuple(self.codes.shape)} need float32 {wanted}",
            )
        if self.codes.numel() and not (low <= int(self.codes.min()) and int(self.codes.max()) <= high):
            raise InputError(
                f"codes beyond {low}..{high}", where="BlockWeight", hint=f"{self.bits} bits hold no others"
            )
        if not bool((torch.isfinite(self.scales) & (self.scales > 0)).all()):
            raise InputError(
                "a scale is not a positive number", where="BlockWeight", hint="1 for a block of zeros"
            )
        if not self.per_row and not torch.equal(self.scales, stored_scales(self.scales)):
            raise InputError(
                "a block's scale is no bfloat16 number", where="BlockWeight", hint="round it before the codes"
            )

    @property
    def per_row(self) -> bool:
        """Whether a whole row shares one scale ("per channel")."""
        return self.block == self.codes.shape[1]

    @property
    def bytes(self) -> int:
        """Of the codes, packed, and the scales: float32 per row, bfloat16 per block."""
        scale = ROW_SCALE if self.per_row else BLOCK_SCALE
        return weight_bytes(self.codes.shape[0], self.codes.shape[1], self.bits) + scale * self.scales.numel()

    def dequantized(self) -> Tensor:
        """The weights that the codes stand for: float32 (out, in)."""
        return times_scales(self.codes.to(torch.float32), self.scales)


def code_range(bits: int) -> tuple[int, int]:
    """The smallest and the largest code.

    Raises:
        InputError: no such number of bits.
    """
    if bits not in BITS:
        raise InputError(f"bits = {bits}", where="BlockWeight", hint=f"one of {', '.join(map(str, BITS))}")
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def blocks_of(columns: int, block: int) -> int:
    """How many blocks a row has.

    Raises:
        InputError: the blocks do not fill the row.
    """
    if block < 1 or columns % block:
        raise InputError(
            f"rows of {columns} weights cannot be cut into blocks of {block}",
            where="BlockWeight",
            hint="the block must divide the row; one scale per row always works",
        )
    return columns // block


def weight_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of packed codes; every row begins with a byte of its own."""
    return rows * -(-columns * bits // 8)


def stored_scales(scales: Tensor) -> Tensor:
    """The scales of blocks as XNNPACK stores them: rounded to bfloat16, given as float32."""
    return scales.to(torch.bfloat16).to(torch.float32)


def times_scales(codes: Tensor, scales: Tensor) -> Tensor:
    """Codes (out, in), as floats, times the scales (out, blocks) of their blocks."""
    blocks = codes.unflatten(1, (scales.shape[1], -1))
    return (blocks * scales.unsqueeze(2)).flatten(1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packs codes row by row, the first one in the lowest bits, as two's complement of so many bits.

    Args:
        codes: int8 (out, in).
        bits: of each.

    Returns:
        uint8 (out, bytes of a row).
    """
    low, high = code_range(bits)
    if codes.numel() and not (low <= int(codes.min()) and int(codes.max()) <= high):
        raise InputError(
            f"codes beyond {low}..{high}", where="pack", hint="give the bits they were made with"
        )
    rows, columns = codes.shape
    places = (codes.to(torch.int16).unsqueeze(2) >> torch.arange(bits)) & 1
    padded = torch.zeros(rows, weight_bytes(1, columns, bits) * 8, dtype=torch.uint8)
    padded[:, : columns * bits] = places.flatten(1)
    return (padded.unflatten(1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack`.

    Args:
        packed: uint8 (out, bytes of a row).
        bits: of a code.
        columns: codes of a row.

    Returns:
        int8 (out, in).
    """
    _, high = code_range(bits)
    if packed.shape[1] != weight_bytes(1, columns, bits):
        raise InputError(
            f"rows of {packed.shape[1]} bytes",
            where="unpack",
            hint=f"{columns} codes of {bits} bits have not",
        )
    places = (packed.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)) & 1
    codes = places.flatten(1)[:, : columns * bits].unflatten(1, (columns, bits)).to(torch.int16)
    values = (codes << torch.arange(bits, dtype=torch.int16)).sum(2, dtype=torch.int16)
    return torch.where(values > high, values - 2**bits, values).to(torch.int8)
