"""Trains a model by its recipe, stops on validation if asked, and tests once at the end."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmnist.data import Splits
from fmnist.errors import FmnistError
from fmnist.evaluation import Evaluation, evaluate
from fmnist.models import Model, Recipe, resolve
from fmnist.registry import MODELS
from fmnist.settings import Train, parse_augment

if TYPE_CHECKING:
    import keras

    from fmnist.engine import Engine


@dataclass(frozen=True)
class Plan:
    """All that decides a training run, resolved: nothing is left to a default."""

    model: Model
    hyperparameters: dict[str, Any]
    recipe: Recipe
    augment: tuple[str, ...]
    backend: str
    precision: str
    patience: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split and the validation after it."""

    number: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    """Loss and accuracy as the batches were met: with dropout, augmentation and moving weights."""
    validation_loss: float
    validation_accuracy: float
    seconds: float
    """Of the training pass alone, read after the device was done; the first holds the compilation."""
    images_per_second: float


@dataclass(frozen=True)
class Trained:
    """What training gives."""

    model: "keras.Model"
    history: tuple[Epoch, ...]
    kept_epoch: int
    """The epoch whose weights the model has."""
    test: Evaluation
    test_probabilities: NDArray[np.float32]


def plan(settings: Train) -> Plan:
    """The settings with the model's own recipe in place of every `auto`; imports nothing heavy.

    Raises:
        FmnistError: If a hyperparameter isn't one of the model's, or out of its bounds.
    """
    model: Model = MODELS[settings.model]
    recipe = resolve(
        model.recipe,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
    )
    return Plan(
        model=model,
        hyperparameters=model.hyperparameters(settings.hyper),
        recipe=recipe,
        augment=parse_augment(settings.augment),
        backend=settings.backend,
        precision=settings.precision,
        patience=settings.patience,
        seed=settings.seed,
    )


def check_fits(plan: Plan, splits: Splits) -> None:
    """Checks a plan against the data that it is for.

    Raises:
        FmnistError: If a batch is larger than the training split.
    """
    if plan.recipe.batch_size > len(splits.train):
        raise FmnistError(
            f"batch_size: expected at most the {len(splits.train)} images of the training split, "
            f"received {plan.recipe.batch_size}"
        )


def train(plan: Plan, splits: Splits, on_epoch: Callable[[Epoch], None]) -> Trained:
    """Trains on the training split, chooses on the validation split, reads the test split once, last.

    With patience, training stops after so many epochs without a better validation accuracy, and the
    weights of the best epoch are kept; without, those of the last.
    """
    from fmnist import engine as engines

    model = plan.model.build(plan.hyperparameters, precision=plan.precision, seed=plan.seed)
    engine = engines.load(
        plan.backend,
        model,
        optimizer=engines.optimizer(plan.recipe.optimizer, plan.recipe.learning_rate),
        augment=plan.augment,
        batch_size=plan.recipe.batch_size,
        images=splits.train.images,
        labels=splits.train.labels,
    )
    background = ThreadPoolExecutor(max_workers=1)
    history: list[Epoch] = []
    kept, weights = 0, model.get_weights()
    for number in range(1, plan.recipe.epochs + 1):
        # Python answers a signal between two of its own instructions, and a compiled epoch can take
        # minutes: waiting for a thread, the main one can be interrupted at once.
        epoch = background.submit(_epoch, engine, plan, number, splits).result()
        history.append(epoch)
        on_epoch(epoch)
        if not plan.patience:
            kept = number
        elif kept == 0 or epoch.validation_accuracy > history[kept - 1].validation_accuracy:
            kept, weights = number, model.get_weights()
        elif number - kept >= plan.patience:
            break
    background.shutdown()
    if plan.patience:
        model.set_weights(weights)
    probabilities = engine.predict(splits.test.images)
    return Trained(model, tuple(history), kept, evaluate(probabilities, splits.test.labels), probabilities)


def _epoch(engine: "Engine", plan: Plan, number: int, splits: Splits) -> Epoch:
    start = perf_counter()
    loss, accuracy = engine.train_epoch(plan.seed, number)
    seconds = perf_counter() - start
    probabilities = engine.predict(splits.validation.images)
    if not np.isfinite(loss) or not np.isfinite(probabilities).all():
        raise FmnistError(
            f"training diverged in epoch {number} (loss {loss}). Type a smaller step, "
            f"for example -P learning_rate={plan.recipe.learning_rate / 10:g}"
        )
    validation = evaluate(probabilities, splits.validation.labels)
    return Epoch(
        number=number,
        train_loss=loss,
        train_accuracy=accuracy,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        seconds=seconds,
        images_per_second=len(splits.train) / seconds,
    )
