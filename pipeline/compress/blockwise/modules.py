"""Linear layers and embeddings on low-bit weights, and how they are put into a network.

`BlockLinear` and `BlockEmbedding` compute what the runtimes compute: the codes times their scales, then a
matrix product or a look-up; on request with activations rounded to int8, token by token, as XNNPACK's
dynamically quantized kernels do. Where the weights come from is a module of its own, so that an embedding and
a head can share one: `BlockTensor` holds codes; in training `LatentTensor` makes them of weights, every time,
and `ScaledTensor` learns the scales of codes that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.compress.grids.weight import BlockWeight, code_range, stored_scales, times_scales
from paredown.targets.errors import InputError


class BlockTensor(nn.Module):
    """The weights of a layer, held as codes.

    Args:
        weight: what it gives back.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: BlockWeight) -> None:
        super().__init__()
        self.bits, self.block = weight.bits, weight.block
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales)

    @property
    def weight(self) -> BlockWeight:
        """Codes and scales."""
        return BlockWeight(self.codes, self.scales, self.bits, self.block)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The weights that the codes stand for.

        Args:
            rows: whole numbers of shape (...): which rows; all where None.

        Returns:
            (out, in), or (..., in) of the chosen rows.
        """
        if rows is None:
            return times_scales(self.codes.to(self.scales.dtype), self.scales)
        flat = rows.flatten()
        chosen = times_scales(self.codes[flat].to(self.scales.dtype), self.scales[flat])
        return chosen.unflatten(0, rows.shape)


class LatentTensor(nn.Module):
    """The weights of a layer in training: codes of float weights and of scales that are learned too.

    Args:
        latent: float (out, in), what is trained.
        start: gives bits, blocks and the scales to start from.
        keep_zeros: whether codes that are zero at the start stay so.
    """

    survives: Tensor | None

    def __init__(self, latent: Tensor, start: BlockWeight, keep_zeros: bool = False) -> None:
        super().__init__()
        if latent.shape != start.codes.shape:
            raise InputError(
                f"weights of shape {tuple(latent.shape)}",
                where="LatentTensor",
                hint=f"the codes have the shape {tuple(start.codes.shape)}",
            )
        self.bits, self.block = start.bits, start.block
        self.latent = nn.Parameter(latent.detach().clone())
        self.scales = nn.Parameter(start.scales.clone())
        self.register_buffer("survives", start.codes != 0 if keep_zeros else None)

    @property
    def weight(self) -> BlockWeight:
        """The codes and scales of the present weights."""
        with torch.no_grad():
            scales = _shipped(self.scales)
            codes = _codes(self._latent, scales, self.bits)
        return BlockWeight(codes.to(torch.int8), scales, self.bits, self.block)

    @property
    def _latent(self) -> Tensor:
        return self.latent if self.survives is None else self.latent * self.survives

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """As `BlockTensor.forward`; differentiable straight through."""
        if rows is None:
            return _FakeCodes.apply(self._latent, _shipped(self.scales), self.bits)
        flat = rows.flatten()
        found = _FakeCodes.apply(self._latent[flat], _shipped(self.scales)[flat], self.bits)
        return found.unflatten(0, rows.shape)


class ScaledTensor(nn.Module):
    """The weights of a layer in training: codes that stay, on scales that are learned.

    Args:
        start: the codes, and the scales to start from.
    """

    codes: Tensor

    def __init__(self, start: BlockWeight) -> None:
        super().__init__()
        self.bits, self.block = start.bits, start.block
        self.register_buffer("codes", start.codes)
        self.scales = nn.Parameter(start.scales.clone())

    @property
    def weight(self) -> BlockWeight:
        """Codes and present scales."""
        return BlockWeight(self.codes, _shipped(self.scales.detach()), self.bits, self.block)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """As `BlockTensor.forward`; differentiable."""
        if rows is None:
            return times_scales(self.codes.to(self.scales.dtype), _shipped(self.scales))
        flat = rows.flatten()
        chosen = times_scales(self.codes[flat].to(self.scales.dtype), _shipped(self.scales)[flat])
        return chosen.unflatten(0, rows.shape)


#: What a low-bit layer can hold.
AnyTensor = BlockTensor | LatentTensor | ScaledTensor


class BlockLinear(nn.Module):
    """A linear layer on low-bit weights.

    Args:
        tensor: its weights, (out, in).
        bias: (out,); None for none.
        activation_bits: 8 rounds its inputs as dynamically quantized kernels do; None leaves them float.
    """

    def __init__(
        self,
        tensor: AnyTensor,
        bias: Tensor | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        _check_activation(activation_bits)
        self.tensor, self.activation_bits = tensor, activation_bits
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for, (out, in)."""
        return self.tensor()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.activation_bits:
            x = fake_int8(x)
        return F.linear(x, self.tensor(), self.bias)


class BlockEmbedding(nn.Module):
    """An embedding on low-bit weights.

    Args:
        tensor: its weights, (vocabulary, width).
    """

    def __init__(self, tensor: AnyTensor) -> None:
        super().__init__()
        self.tensor = tensor

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for, (vocabulary, width): for a head that shares them."""
        return self.tensor()

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (...) -> (..., width)."""
        return self.tensor(ids)


class ResidualEmbedding(nn.Module):
    """An embedding on low-bit weights, and a second look-up of what rounding took from some tokens' rows.

    Args:
        embedding: the first look-up.
        places: whole numbers (vocabulary,), a token's row in `residual`; several can have the same.
        residual: (rows, width), added to the first.
    """

    places: Tensor

    def __init__(self, embedding: BlockEmbedding, places: Tensor, residual: BlockWeight) -> None:
        super().__init__()
        self.embedding, self.residual = embedding, BlockEmbedding(BlockTensor(residual))
        self.register_buffer("places", places.unsqueeze(1))

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (...) -> (..., width)."""
        places = F.embedding(ids, self.places).flatten(-2)
        rows: Tensor = self.embedding(ids) + self.residual(places.to(torch.int64))
        return rows


def fake_int8(x: Tensor) -> Tensor:
    """Activations rounded to int8 with a scale and a zero point per token; gradient straight through.

    The scale as `torch.ops.quantized_decomposed.choose_qparams_per_token_asymmetric` has it.

    Args:
        x: (..., features).
    """
    with torch.no_grad():
        low, high = (
            edge.clamp(*ends)
            for edge, ends in zip(x.aminmax(dim=-1, keepdim=True), ((None, 0), (0, None)), strict=True)
        )
        scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).eps)
        below, above = low / scale - 128, high / scale + 127
        zero = torch.where(below + above > 0, -128 - low / scale, 127 - high / scale).clamp(-128, 127).round()
        rounded = ((x / scale + zero).round().clamp(-128, 127) - zero) * scale
    return x + (rounded - x).detach() if x.requires_grad else rounded


def some_outputs(layer: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
    """What a linear layer, low-bit or not, gives for some of its outputs alone.

    Args:
        layer: `BlockLinear` or `nn.Linear`.
        x: (..., in).
        rows: int64 (outputs,), which.

    Returns:
        (..., outputs).
    """
    if isinstance(layer, BlockLinear):
        weight = layer.tensor(rows)
        x = fake_int8(x) if layer.activation_bits else x
    else:
        assert isinstance(layer, nn.Linear)
        weight = layer.weight[rows]
    return F.linear(x, weight, None if layer.bias is None else layer.bias[rows])


def plain_weight(network: nn.Module, name: str) -> Tensor:
    """The weights of a linear layer or embedding that is not in codes, (out, in).

    Raises:
        InputError: the network has none of that name.
    """
    module = dict(network.named_modules(remove_duplicate=False)).get(name)
    if not isinstance(module, (nn.Linear, nn.Embedding)):
        kind = "missing" if module is None else type(module).__name__
        raise InputError(
            f"{name} is {kind}", where="the network", hint="codes are for linear layers and embeddings"
        )
    return module.weight


def put(network: nn.Module, weights: Mapping[str, BlockWeight], activation_bits: int | None = None) -> None:
    """Replaces linear layers and embeddings by low-bit ones, in place.

    Modules that shared a weight share the codes.

    Args:
        network: changed in place.
        weights: module's name -> its codes. Of modules that share a weight one is enough.
        activation_bits: of the linear layers, see `BlockLinear`.

    Raises:
        InputError: a name that is no linear layer or embedding, or a shape that does not fit.
    """
    named = dict(network.named_modules(remove_duplicate=False))
    for name, weight in weights.items():
        given = plain_weight(network, name)
        if given.shape != weight.codes.shape:
            raise InputError(
                f"{name} has weights of shape {tuple(given.shape)}",
                where="put",
                hint=f"the codes have the shape {tuple(weight.codes.shape)}",
            )
        tensor = BlockTensor(weight)
        for other, module in named.items():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight is given:
                network.set_submodule(other, _on(tensor, module, activation_bits))


def held(network: nn.Module) -> dict[str, AnyTensor]:
    """The low-bit weights of a network: module's name -> what holds them; of sharing modules the first."""
    found: dict[int, tuple[str, AnyTensor]] = {}
    for name, module in network.named_modules():
        if isinstance(module, (BlockLinear, BlockEmbedding)):
            found.setdefault(id(module.tensor), (name, module.tensor))
    return dict(found.values())


def hold(network: nn.Module, tensors: Mapping[str, AnyTensor]) -> None:
    """Gives low-bit modules other weights, in place; those that shared them share the new ones.

    Args:
        network: changed in place.
        tensors: a name of `held` -> the new weights.
    """
    present = held(network)
    fresh = {id(present[name]): tensor for name, tensor in tensors.items()}
    for module in network.modules():
        if isinstance(module, (BlockLinear, BlockEmbedding)) and id(module.tensor) in fresh:
            module.tensor = fresh[id(module.tensor)]


def _on(
    tensor: BlockTensor, module: nn.Linear | nn.Embedding, activation_bits: int | None
) -> BlockLinear | BlockEmbedding:
    if isinstance(module, nn.Linear):
        return BlockLinear(tensor, module.bias, activation_bits)
    return BlockEmbedding(tensor)


def _check_activation(bits: int | None) -> None:
    if bits not in (None, 8):
        raise InputError(f"activation_bits = {bits}", where="BlockLinear", hint="8, or none for float")


def _shipped(scales: Tensor) -> Tensor:
    """Learned scales as they are shipped, with a gradient straight through."""
    scales = scales.clamp_min(torch.finfo(torch.bfloat16).tiny)
    if scales.shape[1] == 1:
        return scales
    return scales + (stored_scales(scales.detach()) - scales.detach())


def _codes(latent: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest codes, as floats."""
    blocks = latent.unflatten(1, (scales.shape[1], -1))
    return (blocks / scales.unsqueeze(2)).round_().clamp_(*code_range(bits)).flatten(1)


class _FakeCodes(torch.autograd.Function):
    """Codes times scales forward; backward straight through, for the scales too.

    As learned step size quantization does it (Esser et al., arXiv 1902.08153): a weight within the range has
    the gradient of what it became, one beyond it none; a scale has the rounding error, or the outermost code,
    as its slope, and its gradient is divided by sqrt(weights of the block * largest code).
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scales: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(latent, scales)
        ctx.bits = bits
        return times_scales(_codes(latent, scales, bits), scales)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        latent, scales = ctx.saved_tensors
        low, high = code_range(ctx.bits)
        units = (latent.unflatten(1, (scales.shape[1], -1)) / scales.unsqueeze(2)).flatten(1)
        codes = units.round().clamp_(low, high)
        inside = (units >= low) & (units <= high)
        of_scales = None
        if ctx.needs_input_grad[1]:
            slope = (codes - units * inside).mul_(gradient).unflatten(1, (scales.shape[1], -1)).sum(2)
            of_scales = slope / (latent.shape[1] / scales.shape[1] * high) ** 0.5
        return gradient * inside if ctx.needs_input_grad[0] else None, of_scales, None
