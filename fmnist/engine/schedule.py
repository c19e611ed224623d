"""The optimizer of a recipe, and the size of its step over the updates of a training."""

from typing import Any

import keras
from keras import ops

from fmnist.engine.muon import Muon
from fmnist.recipe import GRADIENT_DESCENT, Recipe


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras ships no types
    """A step that rises along a straight line, and falls along one or along half a wave of a cosine."""

    def __init__(self, recipe: Recipe, num_updates: int) -> None:
        self.peak, self.final_share, self.kind = recipe.learning_rate, recipe.final_rate, recipe.schedule
        self.num_updates, self.num_rising = num_updates, round(recipe.warmup * num_updates)

    def __call__(self, step: Any) -> Any:
        """The step's size at an update, counted from 0."""
        done = ops.cast(step, "float32") + 0.5  # in the middle of the update, so that neither end is 0
        rise = done / max(self.num_rising, 1)
        fallen = ops.clip((done - self.num_rising) / max(self.num_updates - self.num_rising, 1), 0.0, 1.0)
        if self.kind == "cosine":
            fallen = 0.5 - 0.5 * ops.cos(fallen * 3.141592653589793)
        fall = 1 - (1 - self.final_share) * fallen
        return self.peak * ops.where(done < self.num_rising, rise, fall)

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(
            "a recipe's text says what the schedule is"
        )  # Keras asks when it saves optimizers


def optimizer(recipe: Recipe, num_updates: int, dtype: str) -> keras.optimizers.Optimizer:
    """A fresh Keras optimizer for a training of so many updates, of a model whose layers compute in a dtype."""
    rate = recipe.learning_rate if recipe.schedule == "constant" else Schedule(recipe, num_updates)
    more = {"weight_decay": recipe.weight_decay} if recipe.weight_decay else {}
    if recipe.muon:
        share = recipe.muon / recipe.learning_rate
        return Muon(rate, kernel_rate=share, dtype=dtype, momentum=recipe.momentum, **more)
    if recipe.optimizer == "momentum":
        return keras.optimizers.SGD(rate, momentum=recipe.momentum, nesterov=True, **more)
    made = {
        "sgd": keras.optimizers.SGD,
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "rmsprop": keras.optimizers.RMSprop,
    }
    return made[recipe.optimizer](rate, **more)


def rates(recipe: Recipe, variables: list[keras.Variable]) -> list[float]:
    """By how much each variable's gradient is multiplied; with `GRADIENT_DESCENT` its step is, too."""
    own = {"bias": recipe.bias_rate, "beta": recipe.norm_rate, "gamma": recipe.norm_rate}
    factors = [own.get(variable.path.rpartition("/")[2], 1.0) for variable in variables]
    return factors if recipe.optimizer in GRADIENT_DESCENT else [1.0] * len(variables)


def average_share(recipe: Recipe, num_done: Any, num_updates: int) -> Any:
    """The share of the mean of the weights that the update of this number, from 1, leaves in it."""
    done = ops.cast(num_done, "float32")
    if recipe.averaging == "lookahead":
        return recipe.average_decay * (done / num_updates) ** 3
    taken = ops.floor(done / recipe.average_every)
    return ops.minimum(recipe.average_decay, (1 + taken) / (10 + taken))  # the first weights are soon forgotten
