"""What computes: a whole epoch as one compiled call, over a split that lies on the device as bytes.

`load` gives the engine of a backend. An engine knows a model, an optimizer and arrays; it knows nothing of
datasets, early stopping or tracking.
"""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras


class Engine(Protocol):
    """Trains and applies one model on the device of this process."""

    def train_epoch(self, seed: int, epoch: int) -> tuple[float, float]:
        """Trains for one epoch; gives the mean loss and the accuracy over its batches as they were met.

        Every draw (order, dropout, augmentation) depends on `(seed, epoch)` alone. Returns when the device
        is done.
        """

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(batch, classes)` of images `(batch, 28, 28)`."""


def load(
    model: "keras.Model",
    *,
    optimizer: "keras.optimizers.Optimizer",
    augment: tuple[str, ...],
    batch_size: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> Engine:
    """The engine for a model and the split that it is trained on."""
    from fmnist.engine.tensorflow import TensorFlowEngine

    return TensorFlowEngine(
        model, optimizer=optimizer, augment=augment, batch_size=batch_size, images=images, labels=labels
    )


def optimizer(name: str, learning_rate: float) -> "keras.optimizers.Optimizer":
    """A fresh Keras optimizer, by a name of `fmnist.settings.OPTIMIZERS`."""
    from keras import optimizers

    if name == "momentum":
        return optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    return optimizers.get({"class_name": name, "config": {"learning_rate": learning_rate}})


def augmenter(names: tuple[str, ...]) -> "keras.Sequential":
    """Keras layers that change images `(batch, 28, 28, 1)`, 0-255, at random: 36 degrees, a tenth of a
    side, up to a quarter of the area erased in half of the images."""
    from keras import Sequential, layers

    fill: dict[str, Any] = {"fill_mode": "constant", "fill_value": 0.0, "dtype": "float32"}
    make = {
        "flip_horizontal": lambda: layers.RandomFlip("horizontal", dtype="float32"),
        "flip_vertical": lambda: layers.RandomFlip("vertical", dtype="float32"),
        "rotate": lambda: layers.RandomRotation(0.1, **fill),
        "shift": lambda: layers.RandomTranslation(0.1, 0.1, **fill),
        "erase": lambda: layers.RandomErasing(0.5, scale=(0.02, 0.25), fill_value=0.0, dtype="float32"),
    }
    return Sequential([make[name]() for name in names], name="augment")


def random_states(*models: "keras.Model") -> "list[keras.Variable]":
    """The states of the random layers of the models, in a fixed order."""
    return [variable for model in models for variable in model.variables if "seed_generator" in variable.path]


def draw_states(seed: int, epoch: int, count: int) -> NDArray[np.uint32]:
    """Fresh states `(count, 2)` of random layers, for one epoch."""
    draws = np.random.SeedSequence((seed, epoch)).generate_state(count)
    return np.stack([draws, np.zeros(count, np.uint32)], axis=1)
