"""Takes from ExecuTorch's exporter what it does for nothing; its program stays the same, byte by byte.

Lowering is some hundred passes over the graph. Almost each ends by computing all shapes anew, node after
node, whether it changed anything or not, and by writing the graph as Python, which nobody runs: a language
model has ten thousand nodes, and few passes find any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

#: What a pass defines that rewrites nodes while shapes are computed: such a pass is always let.
_HOOKS = (
    "call_operator", "call_getitem", "call_delegate", "call_submodule", "call_cond", "call_map", "call_scan",
    "call_sym", "call_size_operator", "placeholder", "output", "on_attr", "get_attr", "inputs",
)  # fmt: skip


@contextlib.contextmanager
def fast_exporter() -> Iterator[None]:
    """No pass computes shapes that are there, graphs become Python when they run, histories are shared."""
    from executorch.exir.pass_base import ExportPass
    from torch.fx import GraphModule
    from torch.fx.traceback import NodeSource

    with contextlib.ExitStack() as stack:
        for kind, name, value in (
            (ExportPass, "call", _calls(ExportPass)),
            (GraphModule, "recompile", _lazily(GraphModule.recompile)),
            (NodeSource, "__deepcopy__", lambda self, memo: self),  # nobody changes one
        ):
            stack.enter_context(_replaced(kind, name, value))
        yield


@contextlib.contextmanager
def _replaced(kind: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, a class has another method, or one that it had not."""
    own = vars(kind).get(name)
    setattr(kind, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(kind, name)
        else:
            setattr(kind, name, own)


def _calls(base: Any) -> Any:
    from executorch.exir.pass_base import PassResult

    whole = base.call

    def call(self: Any, graph_module: Any) -> Any:
        if _rewrites(type(self), base) or not _computed(graph_module):
            return whole(self, graph_module)
        graph_module.recompile()
        return PassResult(graph_module, True)

    return call


def _rewrites(kind: type, base: type) -> bool:
    """Whether a pass does anything while shapes are computed."""
    return any(getattr(kind, name, None) is not getattr(base, name, None) for name in _HOOKS)


def _computed(graph_module: Any) -> bool:
    """Whether every node has its shape: one that a pass has made has none."""
    nodes = graph_module.graph.nodes
    return all("val" in node.meta for node in nodes if node.op not in ("output", "get_attr"))


def _lazily(whole: Any) -> Any:
    """`GraphModule.recompile`, put off until the graph is run; each graph has a class of its own."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        whole(self)
        return self.forward(*args, **kwargs)

    def recompile(self: Any) -> None:
        information = getattr(self._graph._codegen, "pytree_info", None)
        if information is not None:
            self._in_spec, self._out_spec = information.in_spec, information.out_spec
        self._code = ""  # what logs print
        type(self).forward = forward

    return recompile
