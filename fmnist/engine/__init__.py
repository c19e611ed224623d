"""What computes: a whole epoch as one compiled call, over a split that lies on the device as bytes.

`load` gives the engine of a trainer and a backend. An engine knows a model, an optimizer and arrays; it
knows nothing of datasets, early stopping or tracking.
"""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fmnist.engine.result import Pass
from fmnist.recipe import Recipe

if TYPE_CHECKING:
    import keras

    from fmnist.engine.together import SeedsEngine


Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Engine(Protocol):
    """Trains and applies one model on the device of this process."""

    xla: bool
    """Whether XLA compiles a training step."""

    variables: "list[keras.Variable]"
    """All that the next epoch depends on, beside its number."""

    def train_epoch(self, seed: int, epoch: int) -> Pass:
        """Trains for one epoch.

        Every draw (order, dropout, augmentation) depends on `(seed, epoch)` alone. Returns when the device
        is done.
        """

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(batch, classes)` of images `(batch, 28, 28)`."""

    def predictor(self, model: "keras.Model") -> Predict:
        """As `predict`, by another model of the same weights."""


def load(
    trainer: str,
    backend: str,
    model: "keras.Model",
    *,
    recipe: Recipe,
    augment: tuple[str, ...],
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

        timed: Any = partial(torch.TorchEngine, compiled=trainer == "torch_compile")
        make = timed  # which has what a benchmark asks for
    elif backend == "jax":
        from fmnist.engine import jax

        make = jax.JaxEngine
    else:
        from fmnist.engine import tensorflow

        make = tensorflow.TensorFlowEngine

    engine: Engine = _made(
        make, model, recipe=recipe, augment=augment, batch_parts=batch_parts, images=images, labels=labels
    )
    return engine


def load_together(
    model: "keras.Model",
    *,
    recipe: Recipe,
    augment: tuple[str, ...],
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> "SeedsEngine":
    """The engine for several seeds of one training; the model is one of theirs."""
    from fmnist.engine import together

    engine: SeedsEngine = _made(
        together.SeedsEngine, model, recipe=recipe, augment=augment, batch_parts=1, images=images, labels=labels
    )
    return engine


def _made(make: Callable[..., Any], model: "keras.Model", *, recipe: Recipe, **rest: Any) -> Any:
    from fmnist.engine import schedule

    num_updates = recipe.epochs * -(-len(rest["labels"]) // recipe.batch_size)
    dtype = "bfloat16" if any(each.compute_dtype == "bfloat16" for each in model.layers) else "float32"
    return make(model, optimizer=schedule.optimizer(recipe, num_updates, dtype), recipe=recipe, **rest)


def warm_up(train_epoch: Callable[[int], object], restore: Callable[[], None], recipe: Recipe) -> float:
    """Compiles all that a training needs, by an epoch of each kind, and undoes them; gives the seconds.

    Args:
        train_epoch: Of an epoch's number.
        restore: Brings back the state before them.
        recipe: What is trained.
    """
    start = perf_counter()
    for epoch in kinds(recipe):
        train_epoch(epoch)
    restore()
    return perf_counter() - start


def kinds(recipe: Recipe) -> list[int]:
    """Numbers of the epochs that are compiled apart: the first, and the last where images are smaller at first."""
    return sorted({1, recipe.epochs}) if recipe.num_small_epochs else [1]


def wait(backend: str) -> None:
    """Returns when the device has all that was sent to it, and has computed all that was asked for."""
    if backend == "jax":
        import jax

        jax.block_until_ready(jax.live_arrays())  # type: ignore[no-untyped-call]  # JAX has no types for them
    else:
        import tensorflow as tf

        tf.test.experimental.sync_devices()


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
