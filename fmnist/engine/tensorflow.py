"""The engine on TensorFlow: a `tf.while_loop` over batches inside one `tf.function`."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist.engine.compiled import CompiledEngine


class TensorFlowEngine(CompiledEngine):
    """One call of a `tf.function` an epoch."""

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        self._epoch = tf.function(self._train_epoch, autograph=False)
        self._forward = tf.function(
            lambda pixels: self.model(pixels, training=False), autograph=False, reduce_retracing=True
        )

    def run_epoch(self, order: NDArray[np.uint32]) -> tuple[float, float]:
        loss, correct = self._epoch(tf.constant(order.astype(np.int32)))
        return float(loss.numpy()), float(correct.numpy())  # numpy() waits for the device

    def forward(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = self._forward(tf.constant(pixels)).numpy()
        return probabilities

    def _train_epoch(self, key: Any) -> tuple[Any, Any]:
        num_full = self.count // self.batch_size
        order = tf.random.experimental.stateless_shuffle(tf.range(self.count), key)
        batches = tf.reshape(order[: num_full * self.batch_size], (num_full, self.batch_size))

        def body(index: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            batch_loss, batch_correct = self._step(batches[index])
            return index + 1, loss + batch_loss, correct + batch_correct

        start = (tf.constant(0), tf.constant(0.0), tf.constant(0.0))
        _, loss, correct = tf.while_loop(lambda index, *_: index < num_full, body, start)
        if self.count % self.batch_size:
            batch_loss, batch_correct = self._step(order[num_full * self.batch_size :])
            loss, correct = loss + batch_loss, correct + batch_correct
        return loss, correct

    def _step(self, batch: Any) -> tuple[Any, Any]:
        """One update; gives the summed loss and the number of right answers of the batch."""
        pixels = tf.cast(tf.gather(self._images, batch), tf.float32)
        labels = tf.cast(tf.gather(self._labels, batch), tf.int32)
        if self.augment:
            pixels = self.augment(pixels, training=True)
        with tf.GradientTape() as tape:
            logits = self.logits(pixels[..., 0], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            mean = tf.reduce_mean(losses)
        weights = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(mean, [weight.value for weight in weights]), weights)
        correct = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.float32))
