"""The engine on TensorFlow: a `tf.while_loop` over batches inside one `tf.function`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist.device import whole_batches_only
from fmnist.engine.compiled import CompiledEngine, cut
from fmnist.engine.operations import faster
from fmnist.engine.schedule import average_share


class TensorFlowEngine(CompiledEngine):
    """One call of a `tf.function` an epoch."""

    def place(self, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        # XLA joins the many small kernels of a step where each costs a launch; on a CPU it is slower. It
        # has no kernel for the image transformations of Keras's augmentation layers.
        on_gpu = bool(tf.config.get_visible_devices("GPU"))
        self.xla = on_gpu and not self.changes.augment
        # Without XLA, TensorFlow can't gather bytes on a GPU. In bfloat16, 0 to 255 are exact.
        self._kept_as = tf.bfloat16 if on_gpu and not self.xla else tf.uint8
        self._images, self._labels = (tf.cast(each, self._kept_as) for each in (images, labels))
        self._epoch = self._compiled(self._images, self.logits)
        self._small_epoch = self._epoch
        if self.batch_parts > 1 and self.recipe.norm_parts == 1 and self._looks_across_batch():
            raise whole_batches_only(self.model.name)
        # Keras sums gradients over replicas, of which there is one, by an operation that TensorFlow keeps, with
        # its graph and all that the graph holds, for as long as the process lives: 16 MB a training.
        self.optimizer._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars

    def place_small(self, images: NDArray[np.uint8], logits: keras.Model) -> None:
        self._small_epoch = self._compiled(tf.cast(images, self._kept_as), logits)

    def _compiled(self, images: Any, logits: keras.Model) -> Any:
        return tf.function(partial(self._train_epoch, images, logits), autograph=False, jit_compile=self.xla)

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

    def run_epoch(
        self, order: NDArray[np.uint32], flipped: NDArray[np.uint8], *, small: bool
    ) -> tuple[float, float]:
        epoch = self._small_epoch if small else self._epoch
        key = tf.constant(order.astype(np.int32))
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(self.count), key)  # XLA has no kernel for it
        with faster(self.model):  # when it is traced, in the first call
            loss, correct = epoch(shuffled, tf.cast(flipped, self._kept_as))
        return float(loss.numpy()), float(correct.numpy())  # numpy() waits for the device

    def forward(self, model: keras.Model) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        def probabilities(pixels: Any) -> Any:
            parts = cut(pixels, self.batch_parts)
            return tf.concat([model(part, training=False) for part in parts], axis=0)

        compiled = tf.function(probabilities, autograph=False)

        def forward(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            with faster(self.model):
                answers: NDArray[np.float32] = compiled(tf.constant(pixels)).numpy()
            return answers

        return forward

    def _train_epoch(self, images: Any, logits: keras.Model, order: Any, flipped: Any) -> tuple[Any, Any]:
        num_full = self.count // self.batch_size
        batches = tf.reshape(order[: num_full * self.batch_size], (num_full, self.batch_size))

        def step(batch: Any) -> tuple[Any, Any]:
            return self._step(batch, images, logits, flipped)

        def body(index: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            batch_loss, batch_correct = step(batches[index])
            return index + 1, loss + batch_loss, correct + batch_correct

        start = (tf.constant(0), tf.constant(0.0), tf.constant(0.0))
        _, loss, correct = tf.while_loop(lambda index, *_: index < num_full, body, start)
        if self.count % self.batch_size:
            batch_loss, batch_correct = step(order[num_full * self.batch_size :])
            loss, correct = loss + batch_loss, correct + batch_correct
        return loss, correct

    def _step(self, batch: Any, images: Any, logits: keras.Model, flipped: Any) -> tuple[Any, Any]:
        """One update; gives the summed loss and the number of right answers of the batch."""
        num_parts = max(self.recipe.norm_parts, self.batch_parts)  # of which one is 1, or both are the same
        parts = cut(batch, num_parts)
        found = [self._gradients(part, batch.shape[0], images, logits, flipped) for part in parts]
        gradients, losses, corrects = zip(*found, strict=True)
        # AddN of more than two begins with whichever buffer it may overwrite, so its last bits are left to chance;
        # and TensorFlow makes one AddN of a chain of additions, as of the losses over the batches.
        add = tf.add_n if num_parts <= 2 else lambda each: tf.reduce_sum(tf.stack(each), axis=0)
        summed = [add(each) for each in zip(*gradients, strict=True)]
        scaled = [each if rate == 1 else rate * each for each, rate in zip(summed, self.rates, strict=True)]
        self.optimizer.apply(scaled, self.model.trainable_variables)
        if self.averaged:
            due = self.optimizer.iterations.value % self.recipe.average_every == 0
            tf.cond(due, self._average, lambda: tf.constant(0))
        return tf.reduce_sum(tf.stack(losses)), tf.reduce_sum(tf.stack(corrects))

    def _average(self) -> Any:
        share = average_share(self.recipe, self.optimizer.iterations.value, self.num_updates)
        for variable, mean in zip(self.averaged, self.held, strict=True):
            new = variable.value + (mean.value - variable.value) * share
            mean.assign(new)
            if self.recipe.averaging == "lookahead":
                variable.assign(new)
        return tf.constant(0)

    def _gradients(
        self, batch: Any, batch_size: int, images: Any, logits: keras.Model, flipped: Any
    ) -> tuple[list[Any], Any, Any]:
        """Of a part of a batch: its share of the gradients, the summed loss, the number of right answers."""
        pixels = tf.cast(tf.gather(images, batch), tf.float32)
        labels = tf.cast(tf.gather(self._labels, batch), tf.int32)
        pixels, targets = self.changes(pixels, labels, tf.gather(flipped, batch))
        with tf.GradientTape() as tape:
            answers = logits(pixels[..., 0], training=True)
            if self.changes.soft:
                losses = tf.nn.softmax_cross_entropy_with_logits(targets, answers)
            else:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, answers)
            share = tf.reduce_sum(losses) / batch_size
        gradients = tape.gradient(share, [weight.value for weight in self.model.trainable_variables])
        correct = tf.equal(tf.argmax(answers, axis=1, output_type=tf.int32), labels)
        return gradients, tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.float32))
