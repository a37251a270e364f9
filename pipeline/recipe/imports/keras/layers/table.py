"""Every layer of Keras that is imported, by its class; and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paredown.pipeline.recipe.imports.keras.layers.activations import (
    activation,
    elu,
    leaky_relu,
    prelu,
    relu,
    softmax,
)
from paredown.pipeline.recipe.imports.keras.layers.convolutions import (
    conv,
    dense,
    depthwise,
    separable,
    transposed,
)
from paredown.pipeline.recipe.imports.keras.layers.merges import (
    MERGES,
    OPERATIONS,
    arithmetic,
    concatenate,
    merge,
)
from paredown.pipeline.recipe.imports.keras.layers.moves import (
    cropping,
    flatten,
    permute,
    repeat,
    reshape,
    zero_padding,
)
from paredown.pipeline.recipe.imports.keras.layers.norms import (
    activity,
    batch_norm,
    group_norm,
    layer_norm,
    layer_scale,
    normalization,
    rescaling,
)
from paredown.pipeline.recipe.imports.keras.layers.pools import global_pool, pool, resizing, upsampling
from paredown.pipeline.recipe.imports.keras.layers.recurrent import KINDS, bidirectional, recurrent
from paredown.pipeline.recipe.imports.keras.maker import Value

#: What does nothing once it is trained.
IDENTITIES = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout",
    "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom", "RandomContrast",
    "RandomBrightness", "RandomTranslation", "RandomSharpness", "RandomHue", "RandomSaturation",
    "RandomErasing", "RandomGaussianBlur", "RandomGrayscale", "RandomInvert", "RandomPosterization",
    "RandomShear", "RandomPerspective", "RandomColorJitter", "RandomColorDegeneration",
    "RandomElasticTransform", "StochasticDepth",
)  # fmt: skip
LAYERS: Mapping[str, Callable[..., Value]] = {
    **{name: activity for name in IDENTITIES},
    **{f"{kind}Pooling{axes}": pool for kind in ("Max", "Average") for axes in ("1D", "2D")},
    **{f"Global{kind}Pooling{axes}": global_pool for kind in ("Max", "Average") for axes in ("1D", "2D")},
    **{kind: merge for kind in (*MERGES, "Average")},
    **{f"{kind} of keras.ops": arithmetic for kind in OPERATIONS},
    **{kind: recurrent for kind in KINDS},
    "Activation": activation, "BatchNormalization": batch_norm, "Bidirectional": bidirectional,
    "Concatenate": concatenate, "Conv1D": conv, "Conv1DTranspose": transposed, "Conv2D": conv,
    "Conv2DTranspose": transposed, "Cropping1D": cropping, "Cropping2D": cropping, "Dense": dense,
    "DepthwiseConv1D": depthwise, "DepthwiseConv2D": depthwise, "ELU": elu, "Flatten": flatten,
    "GroupNormalization": group_norm, "LayerNormalization": layer_norm, "LayerScale": layer_scale,
    "LeakyReLU": leaky_relu,
    "Normalization": normalization, "PReLU": prelu, "Permute": permute, "ReLU": relu, "RepeatVector": repeat,
    "Rescaling": rescaling, "Reshape": reshape, "Resizing": resizing, "SeparableConv1D": separable,
    "SeparableConv2D": separable, "Softmax": softmax, "UpSampling1D": upsampling, "UpSampling2D": upsampling,
    "ZeroPadding1D": zero_padding, "ZeroPadding2D": zero_padding,
}  # fmt: skip
#: Other spellings of a class.
ALIASES = {
    "Convolution1D": "Conv1D", "Convolution2D": "Conv2D", "Convolution2DTranspose": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D", "MaxPool1D": "MaxPooling1D", "MaxPool2D": "MaxPooling2D",
    "AvgPool1D": "AveragePooling1D", "AvgPool2D": "AveragePooling2D",
    "GlobalAvgPool2D": "GlobalAveragePooling2D", "GlobalMaxPool2D": "GlobalMaxPooling2D",
    "BatchNormalizationV1": "BatchNormalization",
}  # fmt: skip
EXPORT = "export the model as ONNX with tf2onnx, and import that"
#: Class -> why it is not imported, and what to do.
REFUSED = {
    "Embedding": ("looks words up by number, and a network here takes floats", "give it the embedded values"),
    "Lambda": ("holds Python code, which is not run", f"write it with layers, or {EXPORT}"),
    "TFOpLambda": ("is an operation of TensorFlow outside a layer", f"write it with layers, or {EXPORT}"),
    "SlicingOpLambda": (
        "is an operation of TensorFlow outside a layer",
        f"write it with layers, or {EXPORT}",
    ),
    "TensorFlowOpLayer": (
        "is an operation of TensorFlow outside a layer",
        f"write it with layers, or {EXPORT}",
    ),
}
