"""The engine on JAX for several seeds of one training: each epoch of all of them is one vectorized call.

What differs from seed to seed (weights, optimizer, draws, order) has a first axis for the seeds; images and labels
lie on the device once. Each seed goes through what it would go through alone, to rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from numpy.typing import NDArray

from fmnist import machine
from fmnist.engine.changes import mirrored
from fmnist.engine.compiled import in_parts
from fmnist.engine.jax import Carry, JaxEngine, State, probabilities
from fmnist.engine.randomness import draw_states
from fmnist.engine.result import PREDICT_BATCH, Pass

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
_BY_SEED = (0, None, None, 0, 0)  # a state or carry, images, labels, which of them are mirrored, a key or batch


def free_bytes() -> int:
    """Of the memory that the device of this process computes in."""
    statistics = jax.devices()[0].memory_stats()
    if not statistics:  # of a CPU
        return machine.free_memory_bytes()
    return int(statistics["bytes_limit"] - statistics["bytes_in_use"])


def _bytes(lowered: Any) -> int:
    """What a compiled call takes, beside what goes in and comes out at the same place."""
    found = lowered.compile().memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + new + found.temp_size_in_bytes)


class SeedsEngine(JaxEngine):
    """As `JaxEngine`, for the seeds that `begin` is given; its model is one of them, or like them."""

    def begin(self, seeds: Sequence[int], states: Sequence[list[NDArray[Any]]]) -> None:
        """Takes for each seed the values of all that `variables` holds, in their order."""
        self.seeds = seeds
        places = {id(variable): place for place, variable in enumerate(self.variables)}

        def stacked(variable: keras.Variable) -> Any:
            if id(variable) in places:
                return jnp.asarray(np.stack([state[places[id(variable)]] for state in states]))
            return jnp.asarray(np.stack([variable.numpy()] * len(states)))  # of a draw; each epoch has its own

        self._state: State = tuple([stacked(variable) for variable in group] for group in self.groups)  # type: ignore[assignment]
        self._draws = self.places_of(self._states)
        self._pairs = list(zip(self.places_of(self.averaged), self.places_of(self.held), strict=True))
        self._predict_all = jax.jit(jax.vmap(probabilities(self.model), in_axes=(0, 0, None)))

    def fresh_state(self, model: keras.Model) -> list[NDArray[Any]]:
        """Of a seed that begins with the weights of this model, for `begin`."""
        weights = model.get_weights()
        optimizer = [variable.numpy() for variable in self.optimizer.variables]
        return [*weights, *optimizer, *(weights if self.averaged else [])]

    def train_epochs(self, epoch: int) -> list[Pass]:
        """Trains each seed for one epoch; the seconds of each are those of all."""
        start = perf_counter()
        drawn = np.stack([draw_states(seed, epoch, 1 + len(self._draws)) for seed in self.seeds], axis=1)
        for (group, place), draws in zip(self._draws, drawn[1:], strict=True):
            self._state[group][place] = jnp.asarray(draws)
        flipped = np.stack([mirrored(self.recipe.flip, seed, epoch, self.count) for seed in self.seeds])
        self._exchange_all()
        small = epoch <= self.recipe.num_small_epochs
        self._state, *sums = self.run_from(self._state, drawn[0], flipped, small=small)
        losses, corrects = (np.asarray(each) / self.count for each in sums)  # waits for the device
        self._exchange_all()
        seconds = perf_counter() - start
        return [Pass(float(loss), float(right), seconds) for loss, right in zip(losses, corrects, strict=True)]

    def predict_all(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(seeds, batch, classes)` of images `(batch, 28, 28)`."""
        weights, others, *_ = self._state
        return in_parts(lambda pixels: np.asarray(self._predict_all(weights, others, pixels)), axis=1)(images)

    def predictors(self, model: keras.Model, weighted: Sequence[keras.Model]) -> list[Predict]:
        """As `predictor`, once compiled, with the weights of each of other models."""
        compiled = jax.jit(probabilities(model))

        def forward(own: keras.Model, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            groups = (own.trainable_variables, own.non_trainable_variables)
            return np.asarray(compiled(*([each.value for each in group] for group in groups), pixels))

        return [in_parts(partial(forward, own)) for own in weighted]

    def bytes_each(self) -> int:
        """How much memory a seed takes while it trains or is validated, as XLA reckons it of two."""

        def of_both(values: Any) -> Any:
            return jax.ShapeDtypeStruct((2, *values.shape), values.dtype)  # type: ignore[no-untyped-call]  # JAX has none

        state = jax.tree.map(of_both, self.values())
        sums, batch = of_both(jnp.float32(0)), of_both(np.zeros(self.batch_size, np.int32))
        flipped, pixels = of_both(np.zeros(self.count, np.uint8)), self._images[:PREDICT_BATCH, ..., 0]
        answers = jax.jit(jax.vmap(probabilities(self.model), in_axes=(0, 0, None)))
        images, key = (self._images, self._labels, flipped), of_both(np.zeros(2, np.uint32))
        if jax.default_backend() == "cpu":
            step = jax.jit(jax.vmap(partial(self.add_step, self.logits), in_axes=_BY_SEED), donate_argnums=0)
            training = _bytes(step.lower((state, sums, sums), *images, batch))
        else:
            training = _bytes(self._epoch.lower(state, *images, key))  # type: ignore[attr-defined]  # jitted
        predicting = _bytes(answers.lower(state[0], state[1], pixels.astype(np.float32)))
        return max(training - self._images.nbytes - self._labels.nbytes, predicting) // 2

    def states(self) -> list[list[NDArray[Any]]]:
        """What `begin` takes, as it is now."""
        values = jax.device_get(self._state)
        found = [values[group][place] for group, place in self.places_of(self.variables)]
        return [[each[index] for each in found] for index in range(len(self.seeds))]

    def _compiled(self, logits: keras.Model) -> Callable[..., Carry]:
        step = partial(self.add_step, logits)
        if jax.default_backend() == "cpu":
            order = jax.jit(jax.vmap(self.shuffled, out_axes=(1, 0)))  # batches first
            compiled = jax.jit(jax.vmap(step, in_axes=_BY_SEED), donate_argnums=0)
            return partial(self.train_epoch_by_steps, order, compiled)
        epoch = jax.vmap(partial(self.train_epoch_by_scan, step), in_axes=_BY_SEED)
        return jax.jit(epoch, donate_argnums=0)

    def _exchange_all(self) -> None:
        """As `exchange`, of all seeds."""
        state = self._state
        for (group, place), (means, mean) in self._pairs:
            state[group][place], state[means][mean] = state[means][mean], state[group][place]
