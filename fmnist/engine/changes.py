"""What a recipe does to the images and labels of a batch before a model sees them."""

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from fmnist.engine.randomness import augmenter
from fmnist.recipe import Recipe

ERASED = (0.02, 0.33)  # of an image's area
ERASED_ASPECT = 3.3
NUM_SHARES = 2**16  # of mixed images that there may be


class Changes(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Changes images `(batch, side, side, 1)`, 0-255, and their labels `(batch,)`.

    Gives the images and, where labels are smoothed or mixed, targets `(batch, classes)` that sum to 1, else the
    labels. Every draw is made for each image.
    """

    def __init__(self, recipe: Recipe, augment: tuple[str, ...], num_classes: int, shape: tuple[int, ...]) -> None:
        super().__init__(dtype="float32", name="changes")
        self.recipe, self.num_classes = recipe, num_classes
        if recipe.crop or recipe.erase or recipe.mixup or recipe.cutmix:
            self.seed_generator = keras.random.SeedGenerator(0)
        self.augment = augmenter(augment) if augment else None
        if self.augment:
            self.augment.build((None, *shape, 1))
        self.soft = bool(recipe.label_smoothing or recipe.mixup or recipe.cutmix)
        self.built = True

    def call(self, images: Any, labels: Any, mirrored: Any) -> tuple[Any, Any]:
        """`mirrored` `(batch,)` says which images are, where the recipe flips."""
        recipe = self.recipe
        if recipe.flip != "none":
            images = ops.where(mirrored[:, None, None, None] > 0, ops.flip(images, axis=2), images)
        if recipe.crop:
            images = self._moved(images)
        if self.augment:
            images = self.augment(images, training=True)
        if recipe.erase:
            images = self._erased(images)
        if not self.soft:
            return images, labels
        targets = ops.one_hot(labels, self.num_classes, dtype="float32")
        targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / self.num_classes
        if recipe.mixup and recipe.cutmix:
            mixed, cut = self._mixed(images, targets), self._cut(images, targets)
            chosen = self._uniform(images, 1) < 0.5
            return ops.where(chosen[..., None, None], mixed[0], cut[0]), ops.where(chosen, mixed[1], cut[1])
        if recipe.mixup:
            return self._mixed(images, targets)
        return self._cut(images, targets) if recipe.cutmix else (images, targets)

    def _moved(self, images: Any) -> Any:
        """Each image moved by whole pixels."""
        most, side = self.recipe.crop, images.shape[1]
        padded = ops.pad(images[..., 0], ((0, 0), (most, most), (most, most)))
        wide = side + 2 * most
        corners = ops.cast(ops.floor(self._uniform(images, 2) * (2 * most + 1)), "int32")  # row, column
        pixels = ops.reshape(ops.arange(side)[:, None] * wide + ops.arange(side), (1, side * side))
        places = corners[:, :1] * wide + corners[:, 1:] + pixels
        moved = ops.take_along_axis(ops.reshape(padded, (-1, wide * wide)), places, axis=1)
        return ops.reshape(moved, ops.shape(images))

    def _erased(self, images: Any) -> Any:
        """In some images a rectangle is black."""
        draws = self._uniform(images, 4)
        side = images.shape[1]
        area = (ERASED[0] + (ERASED[1] - ERASED[0]) * draws[:, 0:1]) * side * side
        aspect = ops.exp((2 * draws[:, 1:2] - 1) * float(np.log(ERASED_ASPECT)))
        height, width = ops.sqrt(area * aspect), ops.sqrt(area / aspect)
        top, left = draws[:, 2:3] * (side - height), draws[:, 3:4] * (side - width)
        inside = _box(top, height, left, width, side)
        chosen = self._uniform(images, 1)[..., None, None] < self.recipe.erase
        return ops.where(ops.logical_and(inside, chosen), 0.0, images)

    def _mixed(self, images: Any, targets: Any) -> tuple[Any, Any]:
        share = self._share(images, self.recipe.mixup)
        mixed = _with_other(images, share[..., None, None])
        return mixed, _with_other(targets, share)

    def _cut(self, images: Any, targets: Any) -> tuple[Any, Any]:
        share = self._share(images, self.recipe.cutmix)
        side = images.shape[1]
        length, middle = side * ops.sqrt(1 - share), side * self._uniform(images, 2)
        inside = _box(middle[:, :1] - length / 2, length, middle[:, 1:] - length / 2, length, side)
        cut = ops.where(inside, ops.flip(images, axis=0), images)
        kept = 1 - ops.mean(ops.cast(inside, "float32"), axis=(1, 2))  # a box may stand out over the edge
        return cut, _with_other(targets, kept)

    def _share(self, images: Any, concentration: float) -> Any:
        """Of each image, `(batch, 1)`, what is left of it.

        One of many shares that were drawn once: XLA can't draw them on TensorFlow.
        """
        shares = np.random.default_rng(0).beta(concentration, concentration, NUM_SHARES).astype(np.float32)
        return ops.take(shares, ops.cast(self._uniform(images, 1) * NUM_SHARES, "int32"))

    def _uniform(self, images: Any, count: int) -> Any:
        """So many numbers for each image, `(batch, count)`, from 0 to 1."""
        return keras.random.uniform((ops.shape(images)[0], count), dtype="float32", seed=self.seed_generator)


def _with_other(values: Any, share: Any) -> Any:
    """Mixed with those of the other end of the batch, whose order is random."""
    return share * values + (1 - share) * ops.flip(values, axis=0)


def _box(top: Any, height: Any, left: Any, width: Any, side: int) -> Any:
    """Which pixels `(batch, side, side, 1)` have their middle in a rectangle, given by numbers `(batch, 1)`."""
    middles = ops.arange(side, dtype="float32") + 0.5
    rows = ops.logical_and(middles >= top, middles < top + height)
    columns = ops.logical_and(middles >= left, middles < left + width)
    return ops.logical_and(rows[:, :, None], columns[:, None, :])[..., None]


def mirrored(flip: str, seed: int, epoch: int, count: int) -> NDArray[np.uint8]:
    """Which of so many images an epoch shows mirrored, as 1, else 0.

    With `alternating`, each image is shown either way in turns, and chance says how it begins.
    """
    if flip == "none":
        return np.zeros(count, np.uint8)
    drawn_by = (seed, epoch, 1) if flip == "random" else (seed, 0, 1)
    bits = np.random.default_rng(drawn_by).integers(0, 2, count, dtype=np.uint8)
    return bits if flip == "random" else bits ^ (epoch % 2)


def resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images `(batch, height, width)` at a smaller side, each new pixel the mean of what it covers."""
    old = images.shape[1]
    edges = np.arange(old + 1) / old * side
    ends = np.arange(side)[:, None]
    covered = np.clip(edges[None, 1:], ends, ends + 1) - np.clip(edges[None, :-1], ends, ends + 1)  # (side, old)
    weights = covered.astype(np.float32)
    smaller: NDArray[np.uint8] = np.rint(weights @ images.astype(np.float32) @ weights.T).astype(np.uint8)
    return smaller
