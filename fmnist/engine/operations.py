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
    if tf.config.get_visible_devices("GPU"):  # where none of this was measured
        return None
    if type(layer) is keras.layers.AveragePooling2D:
        apart = (layer.strides, layer.data_format) == (layer.pool_size, "channels_last")
        whole = not any(side % size for side, size in zip(layer.input.shape[1:3], layer.pool_size, strict=True))
        return _average if apart and whole else None
    if type(layer) is not keras.layers.Conv2D or layer.compute_dtype != "bfloat16":
        return None
    known = (layer.padding, layer.groups, layer.data_format) == ("same", 1, "channels_last")
    dense = set(layer.strides) == set(layer.dilation_rate) == {1}
    return _convolve if known and dense and layer.output.shape[2] < TILE // 2 else None


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


def _average(layer: keras.layers.AveragePooling2D, inputs: Any) -> Any:
    """As `AveragePooling2D.call`, of rectangles side by side: inputs `(batch, height, width, channels)`.

    oneDNN's gradient of few channels takes twice as long as copies do.
    """
    rows, columns = layer.pool_size

    @tf.custom_gradient  # type: ignore[untyped-decorator]  # TensorFlow has no type for it
    def average(images: Any) -> tuple[Any, Callable[[Any], Any]]:
        def gradient(upstream: Any) -> Any:
            count, height, width, channels = upstream.shape
            share = upstream / (rows * columns)
            lines = tf.reshape(tf.stack([share] * columns, axis=3), (count, height, columns * width * channels))
            return tf.reshape(tf.stack([lines] * rows, axis=2), images.shape)

        return tf.nn.avg_pool2d(images, layer.pool_size, layer.strides, "VALID"), gradient

    return average(inputs)


def _convolve(layer: keras.layers.Conv2D, inputs: Any) -> Any:
    """As `Conv2D.call`: inputs `(batch, height, width, channels)`, bfloat16."""
    outputs = _convolution(inputs, layer.kernel.value)
    if layer.use_bias:
        outputs = tf.nn.bias_add(outputs, layer.bias.value)
    return layer.activation(outputs) if layer.activation else outputs


@tf.custom_gradient  # type: ignore[untyped-decorator]  # TensorFlow has no type for it
def _convolution(images: Any, kernel: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """Of stride 1, padded to the same side; the kernel's gradient is that over packed images.

    oneDNN sums that gradient row by row. Where it does so in AMX's tiles of 32 numbers, a row of 3 pixels takes as
    long as one of 32.
    """
    same = {"strides": [1, 1, 1, 1], "padding": "SAME"}

    def gradient(upstream: Any) -> tuple[Any, Any]:
        gap = kernel.shape[1] // 2
        of_images = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **same
        )
        of_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=_packed(images, gap), filter_sizes=kernel.shape, out_backprop=_packed(upstream, gap), **same
        )
        return of_images, of_kernel

    return tf.raw_ops.Conv2D(input=images, filter=kernel, **same), gradient


def _packed(images: Any, gap: int) -> Any:
    """Images `(batch, height, width, channels)` side by side in wider ones, each with a gap of zeros after it."""
    count, height, width, channels = images.shape
    per_row = gcd(count, max(TILE // (width + gap), 1))
    zeros = tf.zeros((count // per_row, height, gap, channels), images.dtype)
    return tf.concat([part for each in tf.split(images, per_row) for part in (each, zeros)], axis=2)
