"""What is written out in smaller operations becomes one: the network itself says what is right."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace

MAPS, TOKENS = (1, 6, 5, 4), (1, 7, 6)


class Network(nn.Module):
    """A layer, what is tried, a layer."""

    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor], maps: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        layer = (lambda: nn.Conv2d(6, 6, 1)) if maps else (lambda: nn.Linear(6, 6))
        self.first, self.last, self.middle = layer(), layer(), middle
        self.gain, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.rand(6))
        self.register_buffer("halved", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x)))


def traced(middle: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, ...]) -> Graph:
    """The graph, which computes what the network does."""
    network = Network(middle, len(shape) == 4).eval()
    graph = trace(network, shape)
    x = 3 * torch.randn((2, *shape[1:]))
    with torch.no_grad():
        found, wanted = graph.run(x)[graph.outputs[0]], network(x)
    assert torch.allclose(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5)
    return graph


def kinds(graph: Graph) -> list[str]:
    """What runs between the layers, but for what only moves values."""
    moves = {"input", "permute", "reshape"}
    return [node.kind for node in graph if node.kind not in moves and node.name not in {"first", "last"}]


def called(graph: Graph) -> list[str]:
    """The same, with the names of functions."""
    names = [str(node.attrs.get("op", node.kind)) for node in graph]
    return [name.removeprefix("aten::").removesuffix(".default") for name in names]


def standardized(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim, keepdim=True) + 1e-5)


NORMS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]] = {
    "of tokens, as exporters of ONNX write it": (lambda _, x: standardized(x, -1), TOKENS),
    "of pixels": (lambda _, x: standardized(x, 1), MAPS),
    "of maps": (lambda _, x: standardized(x, (2, 3)), MAPS),
    "with rsqrt and a product": (
        lambda _, x: (
            (x - x.mean(-1, keepdim=True))
            * torch.rsqrt((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + 1e-6)
        ),
        TOKENS,
    ),
    "with var": (
        lambda _, x: (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6) ** 0.5,
        MAPS,
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_by_hand(name: str) -> None:
    assert kinds(traced(*NORMS[name])) == ["normalize"]


def test_a_norm_with_weights_stays_in_the_delegate() -> None:
    graph = traced(lambda m, x: standardized(x, -1) * m.gain + m.shift, TOKENS)
    assert "island" not in kinds(graph) and "normalize" in kinds(graph)


OTHERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a sample's variance": lambda _, x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-5),
    "another tensor's variance": lambda m, x: (
        (x - x.mean(1, True)) / torch.sqrt(m.first(x).var(1, unbiased=False, keepdim=True) + 1e-5)
    ),
    "another axis": lambda _, x: (
        (x - x.mean(1, True)) / torch.sqrt(x.var(2, unbiased=False, keepdim=True) + 1e-5)
    ),
    "no epsilon": lambda _, x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_norm(name: str) -> None:
    assert "normalize" not in kinds(traced(OTHERS[name], MAPS))


FUNCTIONS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "gelu": (lambda _, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "gelu of ONNX": (lambda m, x: x * (torch.erf(x / 1.4142135) + 1) * m.halved, "gelu"),
    "gelu by tanh": (
        lambda _, x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu",
    ),
    "hardswish": (lambda _, x: x * F.relu6(x + 3) / 6, "hardsigmoid"),
    "hardsigmoid": (lambda _, x: torch.clamp(x + 3, 0, 6) * (1 / 6), "hardsigmoid"),
    "sigmoid": (lambda _, x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "swish": (lambda _, x: x / (1 + torch.exp(-x)), "sigmoid"),
    "mish": (lambda _, x: x * torch.tanh(torch.log(1 + torch.exp(x))), "mish"),
    "softplus": (lambda _, x: torch.log(1 + torch.exp(x)), "softplus"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_by_hand(name: str) -> None:
    middle, wanted = FUNCTIONS[name]
    graph = traced(middle, TOKENS)
    assert wanted in called(graph)
    assert not {"island", "erf", "exp", "log", "add", "affine"} & set(called(graph))


def test_a_function_within_a_longer_expression() -> None:
    def middle(_: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return torch.tanh(y / (1 + torch.exp(-y)))

    graph = traced(middle, TOKENS)
    assert {"relu", "sigmoid", "tanh"} <= set(called(graph)) and "exp" not in called(graph)


def test_what_is_nearly_a_function_is_not_it() -> None:
    graph = traced(lambda _, x: x * 0.5 * (1 + torch.erf(x / 1.414)), TOKENS)  # 3e-5 away
    assert "gelu" not in called(graph)


def test_a_number_that_is_trained_is_none_of_a_function() -> None:
    def middle(m: nn.Module, x: Tensor) -> Tensor:
        return x * (torch.erf(x / 1.4142135) + 1) * m.learned

    network = Network(middle, False).eval()
    network.learned = nn.Parameter(torch.tensor(0.5))
    assert "gelu" not in called(trace(network, TOKENS))


def test_two_tensors_are_no_function() -> None:
    graph = traced(lambda m, x: x * torch.sigmoid(m.first(x)), TOKENS)
    assert "mul" in kinds(graph)


@pytest.mark.parametrize(("shape", "dim"), [((1, 6, 5, 4), 1), ((1, 7, 6), -1)])
def test_a_gated_linear_unit_is_split(shape: tuple[int, ...], dim: int) -> None:
    def middle(_: nn.Module, x: Tensor) -> Tensor:
        return F.glu(torch.cat([x, 2 * x], dim), dim)

    assert {"sigmoid", "mul"} <= set(kinds(traced(middle, shape)))


def test_the_largest_along_an_axis() -> None:
    graph = traced(lambda _, x: x * torch.sigmoid(x.max(1, keepdim=True)[0]), MAPS)
    assert "island" not in kinds(graph) and "max_pool2d" in kinds(graph)


def test_the_place_of_the_largest_is_no_value() -> None:
    graph = traced(lambda _, x: x * x.max(1, keepdim=True)[1].float(), MAPS)
    assert "island" in kinds(graph)
