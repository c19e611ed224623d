"""Layers of Keras by operations of TensorFlow that Keras doesn't use, and that are faster.

`-e benchmark -P models=resnet` shows an epoch of both trainers, of which `fit` has Keras's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import gcd
from typing import Any

import keras
import tensorflow as tf

TILE = 32
"""So many numbers of bfloat16 a row of AMX's tiles takes at once, which rows of packed images fill."""


@contextmanager
def faster(model: keras.Model) -> Iterator[None]:
    """Has layers of a model computed so, while this is open; what is traced keeps it."""
    calls = [(layer, call) for layer in model.layers if (call := _call(layer))]
    for layer, call in calls:
        layer.call = partial(call, layer)
    try:
        yield
    finally:
        for layer, _ in calls:
            del layer.call


def _call(layer: keras.Layer) -> Callable[..., Any] | None:
    """What to compute instead of a layer's own `call`, if there is something faster."""
    if type(layer) is keras.layers.BatchNormalization:
        # Keras 3.12 has no renorm.
        known = layer.axis in (-1, 3) and len(layer.output.shape) == 4 and not getattr(layer, "renorm", False)
        return _normalize if known else None
    if type(layer) is not keras.layers.Conv2D or layer.compute_dtype != "bfloat16":
        return None
    known = (layer.padding, layer.groups, layer.data_format) == ("same", 1, "channels_last")
    dense = set(layer.strides) == set(layer.dilation_rate) == {1}
    on_cpu = not tf.config.get_visible_devices("GPU")  # whose libraries have no such rows
    return _convolve if known and dense and on_cpu and layer.output.shape[2] < TILE // 2 else None


def _normalize(
    layer: keras.layers.BatchNormalization, inputs: Any, training: bool = False, mask: Any = None
) -> Any:
    """As `BatchNormalization.call`: inputs `(batch, height, width, channels)`, bfloat16 or float32."""
    size = inputs.shape[-1]
    scale = layer.gamma.value if layer.scale else tf.ones(size)
    offset = layer.beta.value if layer.center else tf.zeros(size)
    learns = training and layer.trainable
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=tf.zeros(0) if learns else layer.moving_mean.value,
        variance=tf.zeros(0) if learns else layer.moving_variance.value,
        epsilon=layer.epsilon,
        is_training=learns,
    )
    if learns:
        count = tf.cast(tf.size(inputs) // size, tf.float32)
        variance *= (count - 1) / count  # TensorFlow's is of a sample, Keras's of all
        for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + value * (1 - layer.momentum))
    return outputs


def _convolve(layer: keras.layers.Conv2D, inputs: Any) -> Any:
    """As `Conv2D.call`, over images side by side: inputs `(batch, height, width, channels)`, bfloat16.

    oneDNN goes row by row. Where it does so in AMX's tiles of 32 numbers, a row of 3 pixels takes as long as one
    of 32.
    """
    kernel = layer.kernel.value
    count, _, width, _ = inputs.shape
    gap = kernel.shape[1] // 2  # of zeros after each image, so that none sees its neighbour
    per_row = gcd(count or 1, max(TILE // (width + gap), 1))
    if per_row > 1:
        rows = tf.split(inputs, per_row)
        zeros = tf.zeros_like(rows[0][:, :, :gap])
        inputs = tf.concat([part for row in rows for part in (row, zeros)], axis=2)
    outputs = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    if per_row > 1:
        outputs = tf.concat(tf.split(outputs, [width, gap] * per_row, axis=2)[::2], axis=0)
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, layer.bias.value)
    return layer.activation(outputs) if layer.activation else outputs
