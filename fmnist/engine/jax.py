"""The engine on JAX: a `lax.scan` over batches inside one jitted call, through Keras's stateless API.

On a CPU, XLA runs what is inside a loop of its own on one thread, so there the batches follow one another as
calls of one jitted step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fmnist.engine.compiled import CompiledEngine

Values = list[Any]
# Values of the weights, of the model's other variables, of the optimizer's and of the augmentation's.
State = tuple[Values, Values, Values, Values]
# A state, the summed loss and the number of right answers so far.
Carry = tuple[State, Any, Any]


def _begin(state: State) -> Carry:
    return state, jnp.float32(0), jnp.float32(0)


class JaxEngine(CompiledEngine):
    """One call of a jitted function an epoch."""

    xla = True

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images, self._labels = jnp.asarray(images), jnp.asarray(labels)
        self._variables = (
            self.model.trainable_variables,
            self.model.non_trainable_variables,
            self.optimizer.variables,
            self.augment.variables if self.augment else [],
        )
        on_cpu = jax.default_backend() == "cpu"
        self._step_jitted = jax.jit(self._add_step, donate_argnums=0)
        self._order = jax.jit(self._shuffled)
        self._epoch: Callable[..., Carry] = (
            self._train_epoch_by_steps if on_cpu else jax.jit(self._train_epoch, donate_argnums=0)
        )
        self._forward = jax.jit(
            lambda weights, others, pixels: self.model.stateless_call(weights, others, pixels, training=False)[0]
        )

    def run_epoch(self, order: NDArray[np.uint32]) -> tuple[float, float]:
        before = tuple([variable.value for variable in group] for group in self._variables)
        after, loss, correct = self._epoch(before, self._images, self._labels, order)
        for group, values in zip(self._variables, after, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        return float(loss), float(correct)  # float() waits for the device

    def forward(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        weights, others, *_ = ([variable.value for variable in group] for group in self._variables)
        return np.asarray(self._forward(weights, others, pixels))

    def _train_epoch(self, state: State, images: Any, labels: Any, key: Any) -> Carry:
        batches, rest = self._shuffled(key)
        carry, _ = jax.lax.scan(
            lambda carry, batch: (self._add_step(carry, images, labels, batch), None), _begin(state), batches
        )
        return self._add_step(carry, images, labels, rest) if len(rest) else carry

    def _train_epoch_by_steps(self, state: State, images: Any, labels: Any, key: Any) -> Carry:
        batches, rest = self._order(key)
        carry = _begin(state)
        for batch in [*np.asarray(batches), *([rest] if len(rest) else [])]:
            carry = self._step_jitted(carry, images, labels, batch)
        return carry

    def _shuffled(self, key: Any) -> tuple[Any, Any]:
        """Indices of the full batches `(batches, batch)`, and of the rest."""
        num_full = self.count // self.batch_size
        order = jax.random.permutation(jax.random.wrap_key_data(key, impl="threefry2x32"), self.count)
        full = num_full * self.batch_size
        return order[:full].reshape(num_full, self.batch_size), order[full:]

    def _add_step(self, carry: Carry, images: Any, labels: Any, batch: Any) -> Carry:
        state, loss, correct = carry
        state, batch_loss, batch_correct = self._step(state, images[batch], labels[batch])
        return state, loss + batch_loss, correct + batch_correct

    def _step(self, state: State, images: Any, labels: Any) -> tuple[State, Any, Any]:
        """One update; gives the summed loss and the number of right answers of the batch."""
        weights, others, optimizer, random = state
        pixels = images.astype(jnp.float32)
        if self.augment:
            pixels, random = self.augment.stateless_call([], random, pixels, training=True)

        def loss_of(weights: Values) -> tuple[Any, tuple[Values, Any, Any]]:
            logits, new_others = self.logits.stateless_call(weights, others, pixels[..., 0], training=True)
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None].astype(int), axis=1)
            return losses.mean(), (new_others, losses.sum(), (logits.argmax(axis=1) == labels).sum())

        (_, (others, loss, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        weights, optimizer = self.optimizer.stateless_apply(optimizer, gradients, weights)
        return (weights, others, optimizer, random), loss, correct.astype(jnp.float32)
