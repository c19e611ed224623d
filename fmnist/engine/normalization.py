"""Keras's batch normalization by TensorFlow's fused operation, which Keras doesn't use.

`-e benchmark -P models=resnet` shows an epoch of both trainers, of which `fit` has Keras's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf


@contextmanager
def fused(model: keras.Model) -> Iterator[None]:
    """Has a model's normalizations of images computed so, while this is open; what is traced keeps it."""
    normalizations = [
        layer
        for layer in model.layers
        if type(layer) is keras.layers.BatchNormalization
        and (layer.axis in (-1, 3), len(layer.output.shape)) == (True, 4)
        and not getattr(layer, "renorm", False)  # which Keras 3.12 doesn't have
    ]
    for layer in normalizations:
        layer.call = partial(_call, layer)
    try:
        yield
    finally:
        for layer in normalizations:
            del layer.call


def _call(layer: keras.layers.BatchNormalization, inputs: Any, training: bool = False, mask: Any = None) -> Any:
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
