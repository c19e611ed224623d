"""The engine on TensorFlow: a loop over batches inside one `tf.function`."""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fmnist.engine.randomness import augmenter, draw_states, random_states

PREDICT_BATCH = 1000


class TensorFlowEngine:
    """Implements `fmnist.engine.Engine`."""

    def __init__(
        self,
        model: keras.Model,
        *,
        optimizer: keras.optimizers.Optimizer,
        augment: tuple[str, ...],
        batch_size: int,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
    ) -> None:
        self._model = model
        # Training works on the logits: their loss is exact where a probability rounds to 0.
        self._logits = keras.Model(model.inputs, model.get_layer("logits").output)
        self._optimizer = optimizer
        self._optimizer.build(model.trainable_variables)
        self._batch_size = batch_size
        self._images = tf.constant(images[..., None])
        self._labels = tf.constant(labels)
        self._augment = augmenter(augment) if augment else None
        if self._augment:
            self._augment.build((None, *images.shape[1:], 1))
        self._states = random_states(*([model, self._augment] if self._augment else [model]))
        self._epoch = tf.function(self._train_epoch, reduce_retracing=True)
        self._forward = tf.function(lambda pixels: model(pixels, training=False), reduce_retracing=True)

    def train_epoch(self, seed: int, epoch: int) -> tuple[float, float]:
        states = draw_states(seed, epoch, len(self._states) + 1)
        for variable, state in zip(self._states, states[1:], strict=True):
            variable.assign(state)
        loss, correct = self._epoch(tf.constant(states[0].astype(np.int32)))
        # .numpy() waits for the device
        return float(loss.numpy()) / len(self._labels), float(correct.numpy()) / len(self._labels)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [images[start : start + PREDICT_BATCH] for start in range(0, len(images), PREDICT_BATCH)]
        return np.concatenate([self._forward(tf.cast(part, tf.float32)).numpy() for part in parts])

    def _train_epoch(self, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = len(self._labels)
        num_full = count // self._batch_size
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
        batches = tf.reshape(order[: num_full * self._batch_size], (num_full, self._batch_size))
        loss, correct = tf.constant(0.0), tf.constant(0.0)
        for index in tf.range(num_full):
            batch_loss, batch_correct = self._step(batches[index])
            loss, correct = loss + batch_loss, correct + batch_correct
        if count % self._batch_size:
            batch_loss, batch_correct = self._step(order[num_full * self._batch_size :])
            loss, correct = loss + batch_loss, correct + batch_correct
        return loss, correct

    def _step(self, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One update; gives the summed loss and the number of right answers of the batch."""
        pixels = tf.cast(tf.gather(self._images, batch), tf.float32)
        labels = tf.cast(tf.gather(self._labels, batch), tf.int32)
        if self._augment:
            pixels = self._augment(pixels, training=True)
        with tf.GradientTape() as tape:
            logits = self._logits(pixels[..., 0], training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            mean = tf.reduce_mean(losses)
        weights = self._model.trainable_variables
        self._optimizer.apply(tape.gradient(mean, [weight.value for weight in weights]), weights)
        correct = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.float32))
