"""A Keras model as a LiteRT model: what serving computes with, without TensorFlow."""

import io
import os
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


class ConversionError(Exception):
    """Why a model can't be converted, in one line."""


def as_float32(model: "keras.Model") -> "keras.Model":
    """The model with the same weights, all of whose layers compute in float32."""
    import keras

    def cloned(layer: "keras.Layer") -> "keras.Layer":
        if isinstance(layer, keras.Model):  # that looks at one view of an image
            return keras.models.clone_model(layer, clone_function=cloned)
        if not isinstance(layer, keras.Layer):  # an operation, which has no type of its own
            return layer
        return type(layer).from_config(layer.get_config() | {"dtype": "float32"})

    inner = [each for layer in model.layers for each in getattr(layer, "layers", [layer])]
    if all(layer.compute_dtype == "float32" for layer in inner):
        return model
    clone = keras.models.clone_model(model, clone_function=cloned)
    clone.set_weights(model.get_weights())
    return clone


def to_litert(model: "keras.Model") -> bytes:
    """A LiteRT model that takes what the Keras model takes.

    Raises:
        ConversionError: If TensorFlow isn't installed, or has no way to convert one of the layers.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    try:
        import tensorflow as tf
    except ImportError:
        raise ConversionError("TensorFlow, which converts to LiteRT, isn't installed") from None
    import keras
    from tensorflow.lite.python.convert import ConverterError

    if keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # the backend has the GPU's memory
    try:
        with redirect_stdout(io.StringIO()):  # Keras prints what it exports
            return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    except (ConverterError, RuntimeError, TypeError, ValueError) as error:
        (reason, *_) = str(error).splitlines() or [type(error).__name__]
        raise ConversionError(f"TensorFlow can't convert it to LiteRT: {reason[:200]}") from None
