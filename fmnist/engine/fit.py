"""The reference: stock Keras, `model.fit` over float arrays in the host's memory, as a tutorial has it.

The same model, optimizer, batch size and augmentation as the compiled engines; the order of the images is
Keras's own. It is here to be measured against.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fmnist.engine.randomness import augmenter, draw_states, random_states
from fmnist.engine.result import PREDICT_BATCH, Pass
from fmnist.recipe import Recipe


class FitEngine:
    """Implements `fmnist.engine.Engine` by one call of `fit` an epoch.

    Its clock runs from the beginning of the epoch to its end as Keras tells callbacks, so that the making
    of the data set, which a single call over many epochs does once, stays outside.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        optimizer: keras.optimizers.Optimizer,
        recipe: Recipe,
        augment: tuple[str, ...],
        batch_parts: int,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
    ) -> None:
        self.model = model
        self._fitted = model
        if augment:
            pixels = keras.Input(images.shape[1:])
            channel = keras.layers.Reshape((*images.shape[1:], 1))(pixels)
            changed = keras.layers.Reshape(images.shape[1:])(augmenter(augment)(channel))
            self._fitted = keras.Model(pixels, model(changed))
        optimizer.build(model.trainable_variables)
        self._fitted.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        self.xla = bool(self._fitted.jit_compile)
        self._states = random_states(self._fitted)
        self._batch_size = recipe.batch_size
        self._images, self._labels = images.astype(np.float32), labels
        self.variables = [*model.weights, *optimizer.variables]

    def train_epoch(self, seed: int, epoch: int) -> Pass:
        (order, _), *states = draw_states(seed, epoch, 1 + len(self._states))
        for variable, state in zip(self._states, states, strict=True):
            variable.assign(state)
        if keras.backend.backend() == "tensorflow":
            keras.utils.set_random_seed(int(order))
        else:  # the call above would import TensorFlow
            np.random.seed(order)
        clock = _Clock()
        arrays = (self._images, self._labels)
        fitted = self._fitted.fit(*arrays, batch_size=self._batch_size, verbose=0, callbacks=[clock])
        return Pass(fitted.history["loss"][0], fitted.history["accuracy"][0], clock.seconds)

    def input_wait(self) -> float:
        """Trains one more epoch; gives the seconds of it that were spent waiting for batches."""
        stock, waits = self._fitted.train_function, []
        step = _tensorflow_step(self._fitted) if keras.backend.backend() == "tensorflow" else None

        def train_function(*arguments: Any) -> Any:
            *state, iterator = arguments
            start = perf_counter()
            batch = next(iterator)
            waits.append(perf_counter() - start)
            return step(batch) if step else stock(*state, iter([batch]))

        self._fitted.train_function = train_function
        self.train_epoch(0, 0)
        self._fitted.train_function = stock
        return sum(waits)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.predictor(self.model)(images)

    def predictor(self, model: keras.Model) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            probabilities: NDArray[np.float32] = model.predict(
                images.astype(np.float32), batch_size=PREDICT_BATCH, verbose=0
            )
            return probabilities

        return predict


def _tensorflow_step(model: keras.Model) -> Any:
    import tensorflow as tf

    return tf.function(model.train_step)


class _Clock(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
    """Seconds of an epoch, read after the device is done."""

    seconds: float

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        keras.ops.convert_to_numpy(self.model.trainable_variables[-1])  # waits for the last update
        self.seconds = perf_counter() - self._start
