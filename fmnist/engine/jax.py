"""The engine on JAX: a `lax.scan` over batches inside one jitted call, through Keras's stateless API.

On a CPU, XLA runs what is inside a loop of its own on one thread, so there the batches follow one another as
calls of one jitted step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from numpy.typing import NDArray

from fmnist.engine.compiled import CompiledEngine, cut
from fmnist.engine.schedule import average_share

Values = list[Any]
# Values of the weights, the model's other variables, the optimizer's, the draws', and of the weights' mean.
State = tuple[Values, Values, Values, Values, Values]
# A state, the summed loss and the number of right answers so far.
Carry = tuple[State, Any, Any]


def probabilities(model: keras.Model) -> Callable[[Values, Values, Any], Any]:
    """A pure function of a model's weights, its other variables, and pixels `(batch, 28, 28)`."""
    return lambda weights, others, pixels: model.stateless_call(weights, others, pixels, training=False)[0]


class JaxEngine(CompiledEngine):
    """One call of a jitted function an epoch."""

    xla = True

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images, self._labels = jnp.asarray(images), jnp.asarray(labels)
        self.groups = (
            self.model.trainable_variables,
            self.model.non_trainable_variables,
            self.optimizer.variables,
            self.changes.variables,
            self.held,
        )
        self._places = self.places_of(self.averaged)
        (self._iterations,) = (
            place for place, each in enumerate(self.optimizer.variables) if each is self.optimizer.iterations
        )
        self._epoch = self._compiled(self.logits)
        self._small_images, self._small_epoch = self._images, self._epoch

    def place_small(self, images: NDArray[np.uint8], logits: keras.Model) -> None:
        self._small_images, self._small_epoch = jnp.asarray(images), self._compiled(logits)

    def _compiled(self, logits: keras.Model) -> Callable[..., Carry]:
        step = partial(self.add_step, logits)
        if jax.default_backend() == "cpu":
            order, compiled = jax.jit(self.shuffled), jax.jit(step, donate_argnums=0)
            return partial(self.train_epoch_by_steps, order, compiled)
        return jax.jit(partial(self.train_epoch_by_scan, step), donate_argnums=0)

    def exchange(self) -> None:
        for variable, held in zip(self.averaged, self.held, strict=True):
            kept, mean = variable.value, held.value  # stay on the device
            variable.assign(mean)
            held.assign(kept)

    def run_epoch(
        self, order: NDArray[np.uint32], flipped: NDArray[np.uint8], *, small: bool
    ) -> tuple[float, float]:
        after, loss, correct = self.run_from(self.values(), order, flipped, small=small)
        for group, values in zip(self.groups, after, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return float(loss), float(correct)  # float() waits for the device

    def places_of(self, variables: Sequence[keras.Variable]) -> list[tuple[int, int]]:
        """Group, and place in it, of variables."""
        places = {
            id(variable): (number, place)
            for number, group in enumerate(self.groups)
            for place, variable in enumerate(group)
        }
        return [places[id(each)] for each in variables]

    def values(self) -> State:
        """The state that the variables hold."""
        weights, others, optimizer, draws, held = ([each.value for each in group] for group in self.groups)
        return weights, others, optimizer, draws, held

    def run_from(
        self, before: State, order: NDArray[np.uint32], flipped: NDArray[np.uint8], *, small: bool
    ) -> Carry:
        """As `run_epoch`, from a state, which is used up, to the next."""
        epoch, images = (self._small_epoch, self._small_images) if small else (self._epoch, self._images)
        return epoch(before, images, self._labels, jnp.asarray(flipped), order)

    def forward(self, model: keras.Model) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        compiled = jax.jit(probabilities(model))

        def forward(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            weights, others, *_ = self.values()
            return np.asarray(compiled(weights, others, pixels))

        return forward

    def train_epoch_by_scan(
        self, step: Callable[..., Carry], state: State, images: Any, labels: Any, flipped: Any, key: Any
    ) -> Carry:
        batches, rest = self.shuffled(key)
        carry, _ = jax.lax.scan(
            lambda carry, batch: (step(carry, images, labels, flipped, batch), None),
            (state, jnp.float32(0), jnp.float32(0)),
            batches,
        )
        return step(carry, images, labels, flipped, rest) if len(rest) else carry

    def train_epoch_by_steps(
        self,
        order: Callable[[Any], tuple[Any, Any]],
        step: Callable[..., Carry],
        state: State,
        images: Any,
        labels: Any,
        flipped: Any,
        key: NDArray[np.uint32],
    ) -> Carry:
        batches, rest = order(key)
        carry = state, jnp.zeros(key.shape[:-1]), jnp.zeros(key.shape[:-1])
        for batch in [*np.asarray(batches), *([rest] if rest.size else [])]:
            carry = step(carry, images, labels, flipped, batch)
        return carry

    def shuffled(self, key: Any) -> tuple[Any, Any]:
        """Indices of the full batches `(batches, batch)`, and of the rest."""
        num_full = self.count // self.batch_size
        order = jax.random.permutation(jax.random.wrap_key_data(key, impl="threefry2x32"), self.count)
        full = num_full * self.batch_size
        return order[:full].reshape(num_full, self.batch_size), order[full:]

    def add_step(
        self, logits: keras.Model, carry: Carry, images: Any, labels: Any, flipped: Any, batch: Any
    ) -> Carry:
        state, loss, correct = carry
        state, batch_loss, batch_correct = self._step(
            logits, state, images[batch], labels[batch].astype(jnp.int32), flipped[batch]
        )
        return state, loss + batch_loss, correct + batch_correct

    def _step(
        self, logits: keras.Model, state: State, images: Any, labels: Any, flipped: Any
    ) -> tuple[State, Any, Any]:
        """One update; gives the summed loss and the number of right answers of the batch."""
        weights, others, optimizer, random, held = state
        pixels = images.astype(jnp.float32)
        (pixels, targets), random = self.changes.stateless_call([], random, pixels, labels, flipped)

        def loss_of(weights: Values) -> tuple[Any, tuple[Values, Any, Any]]:
            answers, new_others = self._answers(logits, weights, others, pixels[..., 0])
            chances = jax.nn.log_softmax(answers)
            if self.changes.soft:
                losses = -(targets * chances).sum(axis=1)
            else:
                losses = -jnp.take_along_axis(chances, targets[:, None], axis=1)
            return losses.mean(), (new_others, losses.sum(), (answers.argmax(axis=1) == labels).sum())

        (_, (others, loss, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        gradients = [each if rate == 1 else rate * each for each, rate in zip(gradients, self.rates, strict=True)]
        weights, optimizer = self.optimizer.stateless_apply(optimizer, gradients, weights)
        if self.averaged:
            weights, others, held = self._averaged(weights, others, held, optimizer)
        return (weights, others, optimizer, random, held), loss, correct.astype(jnp.float32)

    def _answers(self, logits: keras.Model, weights: Values, others: Values, pixels: Any) -> tuple[Any, Values]:
        """Logits `(batch, classes)` in training, and the model's other variables after it."""
        answers = []
        for part in cut(pixels, self.recipe.norm_parts):
            answer, others = logits.stateless_call(weights, others, part, training=True)
            answers.append(answer)
        return jnp.concatenate(answers), others

    def _averaged(self, weights: Values, others: Values, held: Values, optimizer: Values) -> tuple[Values, ...]:
        """The same after an update, where the mean of the weights is due with it."""
        done = optimizer[self._iterations]
        due = done % self.recipe.average_every == 0
        share = average_share(self.recipe, done, self.num_updates)
        groups, means = (list(weights), list(others)), []
        for (group, place), mean in zip(self._places, held, strict=True):
            value = groups[group][place]
            new = jnp.where(due, value + (mean - value) * share, mean)
            means.append(new)
            if self.recipe.averaging == "lookahead":
                groups[group][place] = jnp.where(due, new, value)
        return *groups, means
