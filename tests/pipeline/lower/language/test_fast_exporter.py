"""The exporter without what it does for nothing: the same program, and nothing of it stays behind."""

from __future__ import annotations

import contextlib

import pytest
import torch
from language_networks import FACTS, Codes, network
from torch import fx

from paredown.apps.chat.network.network import Stateful
from paredown.pipeline.lower.language import executorch
from paredown.pipeline.lower.language.fast_exporter import fast_exporter


class Twice(torch.nn.Module):
    def forward(self, x):
        return x + x


@pytest.mark.slow
def test_the_program_is_the_exporter_s_own_byte_by_byte(monkeypatch):
    sizes = (network(Codes(4, 32, rows=True)), FACTS.context, FACTS.chunk)
    networks = (Stateful(*sizes), Stateful(*sizes, keep="none"))
    fast = executorch.lower_language(*networks, FACTS)
    monkeypatch.setattr(executorch, "fast_exporter", contextlib.nullcontext)
    assert executorch.lower_language(*networks, FACTS) == fast


def test_a_graph_that_was_changed_runs_as_it_is_now():
    with fast_exporter():
        graph = fx.symbolic_trace(Twice())
        (add,) = (node for node in graph.graph.nodes if node.op == "call_function")
        add.target = torch.mul
        graph.recompile()
        assert str(graph)  # logs print graphs
        assert graph(torch.tensor(3.0)) == 9
    assert graph(torch.tensor(4.0)) == 16


def test_shapes_are_computed_where_a_pass_made_a_node_or_rewrites_them():
    from executorch.exir.pass_base import ExportPass

    class Adding(ExportPass):
        def call(self, graph_module):
            (out,) = graph_module.graph.find_nodes(op="output")
            with graph_module.graph.inserting_before(out):
                made = graph_module.graph.call_function(torch.ops.aten.neg.default, (out.args[0][0],))
            out.args = ((made,),)
            return super().call(graph_module)

    class Rewriting(ExportPass):
        def call_operator(self, op, args, kwargs, meta):
            return super().call_operator(torch.ops.aten.abs.default, args, kwargs, meta)

    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(2, 3)
    graph.output((x,))
    with fast_exporter():
        found = ExportPass()(fx.GraphModule({}, graph)).graph_module
        assert found.graph is graph
        found = Adding()(found).graph_module
        (made,) = found.graph.find_nodes(op="call_function", target=torch.ops.aten.neg.default)
        assert made.meta["val"].shape == (2, 3)
        found = Rewriting()(found).graph_module
        assert found.graph.find_nodes(op="call_function", target=torch.ops.aten.abs.default)


def test_it_leaves_the_classes_as_they_were():
    from executorch.exir.pass_base import ExportPass
    from torch.fx.traceback import NodeSource

    kinds = (ExportPass, fx.GraphModule, NodeSource)
    before = [dict(vars(kind)) for kind in kinds]
    with contextlib.suppress(ZeroDivisionError), fast_exporter():
        assert fx.GraphModule.recompile is not before[1]["recompile"]
        raise ZeroDivisionError
    assert [dict(vars(kind)) for kind in kinds] == before
