"""What the compiled engines of both backends share: the pieces of an epoch, and the states of its draws."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fmnist.engine.changes import Changes, mirrored, resized
from fmnist.engine.randomness import draw_states, random_states
from fmnist.engine.result import PREDICT_BATCH, Pass
from fmnist.engine.schedule import rates
from fmnist.errors import FmnistError
from fmnist.recipe import Recipe


class CompiledEngine(ABC):
    """Implements `fmnist.engine.Engine`; a backend adds the epoch and the forward pass."""

    xla: bool

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
        self.model, self.recipe, self.optimizer = model, recipe, optimizer
        # Training works on the logits: their loss is exact where a probability rounds to 0.
        self.logits = keras.Model(model.inputs, model.get_layer("logits").output)
        weights = model.trainable_variables
        if recipe.weight_decay:
            optimizer.exclude_from_weight_decay([each for each in weights if not each.path.endswith("kernel")])
        optimizer.build(weights)
        self.rates = rates(recipe, weights)
        self.batch_size, self.batch_parts = recipe.batch_size, batch_parts
        self.count = len(labels)
        self.num_updates = recipe.epochs * -(-self.count // self.batch_size)
        self.changes = Changes(recipe, augment, model.output_shape[-1], images.shape[1:])
        self._states = random_states(model, self.changes)
        self.averaged: list[keras.Variable] = []
        if recipe.averaging != "none":
            self.averaged = [each for each in model.variables if "seed_generator" not in each.path]
        # Between epochs the model has the mean of the weights, and here is what training goes on with.
        self.held = [keras.Variable(each.numpy(), trainable=False, dtype=each.dtype) for each in self.averaged]
        self.variables = [*model.weights, *optimizer.variables, *self.held]
        self.place(images[..., None], labels)
        self._predict = self.predictor(model)
        if recipe.num_small_epochs:
            small = resized(images, recipe.small_side)
            self.place_small(small[..., None], _at_side(self.logits, recipe.small_side, model.name))

    def train_epoch(self, seed: int, epoch: int) -> Pass:
        start = perf_counter()
        order, *states = draw_states(seed, epoch, 1 + len(self._states))
        for variable, state in zip(self._states, states, strict=True):
            variable.assign(state)
        flipped = mirrored(self.recipe.flip, seed, epoch, self.count)
        self.exchange()
        loss, correct = self.run_epoch(order, flipped, small=epoch <= self.recipe.num_small_epochs)
        self.exchange()
        return Pass(loss / self.count, correct / self.count, perf_counter() - start)

    def exchange(self) -> None:
        """Puts the mean of the weights in the place of those that are trained, and back."""
        for variable, held in zip(self.averaged, self.held, strict=True):
            kept = variable.numpy()
            variable.assign(held)
            held.assign(kept)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._predict(images)

    def predictor(self, model: keras.Model) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        return in_parts(self.forward(model))

    @abstractmethod
    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Puts images `(batch, 28, 28, 1)` and labels `(batch,)` on the device, and compiles."""

    @abstractmethod
    def place_small(self, images: NDArray[np.uint8], logits: keras.Model) -> None:
        """Puts the same images, smaller, beside them, with the model that takes them."""

    @abstractmethod
    def run_epoch(
        self, order: NDArray[np.uint32], flipped: NDArray[np.uint8], *, small: bool
    ) -> tuple[float, float]:
        """One pass in the order that the key `(2,)` gives: the summed loss and the number of right answers.

        `flipped` `(images,)` says which of the images are mirrored. Returns when the device is done.
        """

    @abstractmethod
    def forward(self, model: keras.Model) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Compiled: probabilities `(batch, classes)` of pixels `(batch, 28, 28)`."""


def in_parts(
    forward: Callable[[NDArray[np.float32]], NDArray[np.float32]], *, axis: int = 0
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Answers any number of images by a function of pixels, in whose answers images are along an axis."""

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [images[start : start + PREDICT_BATCH] for start in range(0, len(images), PREDICT_BATCH)]
        return np.concatenate([forward(part.astype(np.float32)) for part in parts], axis=axis)

    return predict


def cut(batch: Any, num_parts: int) -> list[Any]:
    """An array in so many parts along its first axis, the last the smallest; fewer, where it is too short."""
    size = -(-batch.shape[0] // num_parts)
    return [batch[start : start + size] for start in range(0, batch.shape[0], size)]


def _at_side(logits: keras.Model, side: int, name: str) -> keras.Model:
    """The model over images of another side, with the same layers.

    Raises:
        FmnistError: If a layer finds less than a pixel.
    """

    def layer_at(layer: Any) -> Any:
        if layer.name != "channel":
            return layer
        return keras.layers.Reshape((side, side, 1), dtype=layer.dtype_policy)

    pixels = keras.Input((side, side))
    try:
        return keras.models.clone_model(logits, input_tensors=[pixels], clone_function=layer_at)
    except ValueError as error:
        raise FmnistError(f"recipe: small_side={side} is too small for {name}; type a larger one") from error
