"""What makes the very tensor that it reads: it is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from paredown.pipeline.graph.aten import arguments
from paredown.pipeline.graph.operations.operation import Traced

if TYPE_CHECKING:
    from paredown.pipeline.graph.tracer import Tracer


class Identity(Traced):
    """Another name or another place in memory for the same values."""

    folds = True
    aten: ClassVar[tuple[str, ...]] = ("clone", "contiguous", "alias", "detach")

    def trace(self, tracer: Tracer, node: Any) -> None:
        tracer.skip(node)


class Same(Identity):
    """A conversion to the type that a value has, or a spread to the shape that it has."""

    aten = ("to", "_to_copy", "type_as", "expand", "expand_as", "float")

    def trace(self, tracer: Tracer, node: Any) -> None:
        before, after = node.args[0].meta["val"], node.meta["val"]
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            what = f"makes {after.dtype} {tuple(after.shape)} of {before.dtype} {tuple(before.shape)}"
            raise tracer.unknown(node, f"{what}; only what stays as it is, is known")
        tracer.skip(node)


class Dropout(Identity):
    """Drops nothing in evaluation."""

    aten = ("dropout", "feature_dropout")

    def trace(self, tracer: Tracer, node: Any) -> None:
        if arguments(node, None, 0.5, True)[2]:
            why = "is told to drop values in evaluation too (training=True)"
            raise tracer.unknown(node, why, "give it training=self.training, or use nn.Dropout")
        super().trace(tracer, node)
