"""What computes: a whole epoch as one compiled call, over a split that lies on the device as bytes.

`load` gives the engine of a trainer and a backend. An engine knows a model, an optimizer and arrays; it
knows nothing of datasets, early stopping or tracking.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fmnist.engine.result import Pass

if TYPE_CHECKING:
    import keras


class Engine(Protocol):
    """Trains and applies one model on the device of this process."""

    xla: bool
    """Whether XLA compiles a training step."""

    def train_epoch(self, seed: int, epoch: int) -> Pass:
        """Trains for one epoch.

        Every draw (order, dropout, augmentation) depends on `(seed, epoch)` alone. Returns when the device
        is done.
        """

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(batch, classes)` of images `(batch, 28, 28)`."""


def load(
    trainer: str,
    backend: str,
    model: "keras.Model",
    *,
    optimizer: "keras.optimizers.Optimizer",
    augment: tuple[str, ...],
    batch_size: int,
    batch_parts: int,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> Engine:
    """The engine for a model and the split that it is trained on.

    `batch_parts` says in how many parts a batch is worked on side by side, see `fmnist.device.batch_parts`.
    """
    make: Callable[..., Engine]
    if trainer == "fit":
        from fmnist.engine import fit

        make = fit.FitEngine
    elif backend == "torch":
        from fmnist.engine import torch

        make = partial(torch.TorchEngine, compiled=trainer == "torch_compile")
    elif backend == "jax":
        from fmnist.engine import jax

        make = jax.JaxEngine
    else:
        from fmnist.engine import tensorflow

        make = tensorflow.TensorFlowEngine

    return make(
        model,
        optimizer=optimizer,
        augment=augment,
        batch_size=batch_size,
        batch_parts=batch_parts,
        images=images,
        labels=labels,
    )


def optimizer(name: str, learning_rate: float) -> "keras.optimizers.Optimizer":
    """A fresh Keras optimizer, by a name of `fmnist.settings.OPTIMIZERS`."""
    from keras import optimizers

    if name == "momentum":
        return optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    return optimizers.get({"class_name": name, "config": {"learning_rate": learning_rate}})


def peak_device_memory(backend: str) -> int | None:
    """The most bytes of the GPU that this process has held, where the backend tells."""
    if backend == "jax":
        import jax

        statistics = jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
    if backend == "torch":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
