"""The engine on TensorFlow: a `tf.while_loop` over batches inside one `tf.function`."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist.device import whole_batches_only
from fmnist.engine.compiled import CompiledEngine


class TensorFlowEngine(CompiledEngine):
    """One call of a `tf.function` an epoch."""

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        # XLA joins the many small kernels of a step where each costs a launch; on a CPU it is slower. It
        # has no kernel for the image transformations of Keras's augmentation layers.
        self.xla = bool(tf.config.get_visible_devices("GPU")) and not self.augment
        self._epoch = tf.function(self._train_epoch, autograph=False, jit_compile=self.xla)
        self._forward = tf.function(self._predict, autograph=False)
        if self.batch_parts > 1 and self._looks_across_batch():
            raise whole_batches_only(self.model.name)
        # Keras sums gradients over replicas, of which there is one, by an operation that TensorFlow keeps, with
        # its graph and all that the graph holds, for as long as the process lives: 16 MB a training.
        self.optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars

    def _looks_across_batch(self) -> bool:
        """Whether what becomes of an image depends on others of its batch, or is remembered for the next batch."""
        states = [each for each in self.model.non_trainable_variables if "seed_generator" not in each.path]
        before = [each.numpy() for each in states]
        first, second = (tf.cast(self._images[start : start + 2, ..., 0], tf.float32) for start in (0, 2))
        with tf.GradientTape() as tape:
            tape.watch(second)
            logits = self.logits(tf.concat([first, second], axis=0), training=True)[:2]
        others = tape.gradient(logits, second)
        remembers = any((each.numpy() != value).any() for each, value in zip(states, before, strict=True))
        return remembers or (others is not None and bool(tf.reduce_any(others != 0)))

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

    def _predict(self, pixels: Any) -> Any:
        return tf.concat([self.model(part, training=False) for part in self._parts(pixels)], axis=0)

    def _parts(self, batch: Any) -> list[Any]:
        size = -(-batch.shape[0] // self.batch_parts)
        return [batch[start : start + size] for start in range(0, batch.shape[0], size)]

    def _step(self, batch: Any) -> tuple[Any, Any]:
        """One update; gives the summed loss and the number of right answers of the batch."""
        parts = [self._gradients(part, batch.shape[0]) for part in self._parts(batch)]
        gradients, losses, corrects = zip(*parts, strict=True)
        # AddN of more than two begins with whichever buffer it may overwrite, so its last bits are left to chance;
        # and TensorFlow makes one AddN of a chain of additions, as of the losses over the batches.
        add = tf.add_n if len(parts) <= 2 else lambda each: tf.reduce_sum(tf.stack(each), axis=0)
        summed = [add(each) for each in zip(*gradients, strict=True)]
        self.optimizer.apply(summed, self.model.trainable_variables)
        return tf.reduce_sum(tf.stack(losses)), tf.reduce_sum(tf.stack(corrects))

    def _gradients(self, batch: Any, batch_size: int) -> tuple[list[Any], Any, Any]:
        """Of a part of a batch: its share of the gradients, the summed loss, the number of right answers."""
        pixels = tf.cast(tf.gather(self._images, batch), tf.float32)
        labels = tf.cast(tf.gather(self._labels, batch), tf.int32)
        if self.augment:
            pixels = self.augment(pixels, training=True)
        with tf.GradientTape() as tape:
            logits = self.logits(pixels[..., 0], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            share = tf.reduce_sum(losses) / batch_size
        gradients = tape.gradient(share, [weight.value for weight in self.model.trainable_variables])
        correct = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)
        return gradients, tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.float32))
