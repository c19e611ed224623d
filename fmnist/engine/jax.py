"""The engine on JAX: a `lax.scan` over batches inside one jitted call, through Keras's stateless API."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fmnist.engine.compiled import CompiledEngine

Values = list[Any]
# Values of the weights, of the model's other variables, of the optimizer's and of the augmentation's.
State = tuple[Values, Values, Values, Values]


class JaxEngine(CompiledEngine):
    """One call of a jitted function an epoch."""

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images, self._labels = jnp.asarray(images), jnp.asarray(labels)
        self._variables = (
            self.model.trainable_variables,
            self.model.non_trainable_variables,
            self.optimizer.variables,
            self.augment.variables if self.augment else [],
        )
        self._epoch = jax.jit(self._train_epoch, donate_argnums=0)
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

    def _train_epoch(self, state: State, images: Any, labels: Any, key: Any) -> tuple[State, Any, Any]:
        def step(carry: tuple[State, Any, Any], batch: Any) -> tuple[tuple[State, Any, Any], None]:
            state, loss, correct = carry
            state, batch_loss, batch_correct = self._step(state, images[batch], labels[batch])
            return (state, loss + batch_loss, correct + batch_correct), None

        num_full = self.count // self.batch_size
        order = jax.random.permutation(jax.random.wrap_key_data(key, impl="threefry2x32"), self.count)
        batches = order[: num_full * self.batch_size].reshape(num_full, self.batch_size)
        carry, _ = jax.lax.scan(step, (state, jnp.float32(0), jnp.float32(0)), batches)
        if self.count % self.batch_size:
            carry, _ = step(carry, order[num_full * self.batch_size :])
        return carry

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
