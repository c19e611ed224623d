"""What the compiled engines of both backends share: the pieces of an epoch, and the states of its draws."""

from abc import ABC, abstractmethod
from time import perf_counter

import keras
import numpy as np
from numpy.typing import NDArray

from fmnist.engine.randomness import augmenter, draw_states, random_states
from fmnist.engine.result import PREDICT_BATCH, Pass


class CompiledEngine(ABC):
    """Implements `fmnist.engine.Engine`; a backend adds the epoch and the forward pass."""

    xla: bool

    def __init__(
        self,
        model: keras.Model,
        *,
        optimizer: keras.optimizers.Optimizer,
        augment: tuple[str, ...],
        batch_size: int,
        batch_parts: int,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
    ) -> None:
        self.model = model
        # Training works on the logits: their loss is exact where a probability rounds to 0.
        self.logits = keras.Model(model.inputs, model.get_layer("logits").output)
        self.optimizer = optimizer
        self.optimizer.build(model.trainable_variables)
        self.batch_size, self.batch_parts = batch_size, batch_parts
        self.count = len(labels)
        self.augment = augmenter(augment) if augment else None
        if self.augment:
            self.augment.build((None, *images.shape[1:], 1))
        self._states = random_states(*([model, self.augment] if self.augment else [model]))
        self.place(images[..., None], labels)

    def train_epoch(self, seed: int, epoch: int) -> Pass:
        start = perf_counter()
        order, *states = draw_states(seed, epoch, 1 + len(self._states))
        for variable, state in zip(self._states, states, strict=True):
            variable.assign(state)
        loss, correct = self.run_epoch(order)
        return Pass(loss / self.count, correct / self.count, perf_counter() - start)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [images[start : start + PREDICT_BATCH] for start in range(0, len(images), PREDICT_BATCH)]
        return np.concatenate([self.forward(part.astype(np.float32)) for part in parts])

    @abstractmethod
    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Puts images `(batch, 28, 28, 1)` and labels `(batch,)` on the device, and compiles."""

    @abstractmethod
    def run_epoch(self, order: NDArray[np.uint32]) -> tuple[float, float]:
        """One pass in the order that the key `(2,)` gives: the summed loss and the number of right answers.

        Returns when the device is done.
        """

    @abstractmethod
    def forward(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities `(batch, classes)` of pixels `(batch, 28, 28)`."""
