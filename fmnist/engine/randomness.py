"""The random layers of an epoch, and the states that a seed gives them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras


def augmenter(names: tuple[str, ...]) -> "keras.Sequential":
    """Keras layers that change images `(batch, 28, 28, 1)`, 0-255, at random: 36 degrees, a tenth of a
    side, up to a quarter of the area erased in half of the images; `photo` is `fmnist.engine.photo`."""
    from keras import Sequential, layers

    from fmnist.engine.photo import Photo

    fill: dict[str, Any] = {"fill_mode": "constant", "fill_value": 0.0, "dtype": "float32"}
    make = {
        "flip_horizontal": lambda: layers.RandomFlip("horizontal", dtype="float32"),
        "flip_vertical": lambda: layers.RandomFlip("vertical", dtype="float32"),
        "rotate": lambda: layers.RandomRotation(0.1, **fill),
        "shift": lambda: layers.RandomTranslation(0.1, 0.1, **fill),
        "erase": lambda: layers.RandomErasing(0.5, scale=(0.02, 0.25), fill_value=0.0, dtype="float32"),
        "photo": Photo,
    }
    return Sequential([make[name]() for name in names], name="augment")


def random_states(*models: "keras.Model") -> "list[keras.Variable]":
    """The states of the random layers of the models, in a fixed order."""
    return [variable for model in models for variable in model.variables if "seed_generator" in variable.path]


def draw_states(seed: int, epoch: int, count: int) -> NDArray[np.uint32]:
    """Fresh states `(count, 2)` of random layers, for one epoch."""
    draws = np.random.SeedSequence((seed, epoch)).generate_state(count)
    return np.stack([draws, np.zeros(count, np.uint32)], axis=1)
