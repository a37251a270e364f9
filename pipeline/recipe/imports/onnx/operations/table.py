"""The table of ONNX's operations: adding one is a function of its own, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paredown.pipeline.recipe.imports.onnx.operations import elementwise as e
from paredown.pipeline.recipe.imports.onnx.operations import layers as l
from paredown.pipeline.recipe.imports.onnx.operations import moves as m
from paredown.pipeline.recipe.imports.onnx.operations import others as o
from paredown.pipeline.recipe.imports.onnx.operations import pooling as p
from paredown.pipeline.recipe.imports.onnx.operations.recurrent import recurrent
from paredown.pipeline.recipe.imports.onnx.operations.resize import grid_sample, resize

#: Kind -> function of the builder, the node and its inputs; those with a dot are made in `patterns`.
OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **{name: e.module for name in e.MODULES},
    **{name: e.function for name in e.FUNCTIONS},
    **{name: e.pair for name in e.PAIRS},
    "Div": e.div,
    "Pow": e.power,
    "Mod": e.mod,
    **{name: e.several for name in ("Sum", "Mean", "Max", "Min")},
    "Clip": e.clip,
    "HardSigmoid": e.hard_sigmoid,
    "Selu": e.selu,
    "ThresholdedRelu": e.thresholded,
    "Shrink": e.shrink,
    "Where": e.where,
    "IsInf": e.is_inf,
    "Cast": e.cast,
    "CastLike": e.cast,
    "PRelu": e.prelu,
    "Dropout": e.dropout,
    "Conv": l.conv,
    "ConvTranspose": l.conv_transpose,
    "Gemm": l.gemm,
    "MatMul": l.matmul,
    "fused.Linear": l.fused_linear,
    "BatchNormalization": l.batch_norm,
    "InstanceNormalization": l.instance_norm,
    "LayerNormalization": l.layer_norm,
    "GroupNormalization": l.group_norm,
    "LRN": l.lrn,
    "LpNormalization": l.lp_normalize,
    "MaxPool": p.max_pool,
    "AveragePool": p.average_pool,
    "GlobalAveragePool": p.global_pool,
    "GlobalMaxPool": p.global_pool,
    **{f"Reduce{name}": p.reduce for name in p.REDUCTIONS},
    "ArgMax": p.arg,
    "ArgMin": p.arg,
    "Softmax": p.softmax,
    "LogSoftmax": p.softmax,
    "TopK": p.top_k,
    "CumSum": p.cumsum,
    "Reshape": m.reshape,
    "Flatten": m.flatten,
    "Squeeze": m.squeeze,
    "Unsqueeze": m.unsqueeze,
    "Transpose": m.transpose,
    "Concat": m.concat,
    "Split": m.split,
    "Slice": m.slices,
    "Expand": m.expand,
    "Tile": m.tile,
    "Pad": m.pad,
    "DepthToSpace": m.depth_to_space,
    "SpaceToDepth": m.space_to_depth,
    "Shape": o.shape_of,
    "Size": o.size_of,
    "Gather": o.gather,
    "GatherElements": o.gather_elements,
    "GatherND": o.gather_nd,
    "ScatterND": o.scatter_nd,
    "ConstantOfShape": o.constant_of_shape,
    "Range": o.ranged,
    "NonZero": o.non_zero,
    "OneHot": o.one_hot,
    "EyeLike": o.eye_like,
    "Trilu": o.trilu,
    "Einsum": o.einsum,
    "Resize": resize,
    "Upsample": resize,
    "GridSample": grid_sample,
    **{name: recurrent for name in ("LSTM", "GRU", "RNN")},
}
