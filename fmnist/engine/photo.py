"""The augmentation for photographs: images change as cut-out garments differ.

A garment on a floor lies wider than one on a figure, its sleeves and hem spread, it is turned a little; the border
of a cut-out is wrong by a pixel here and there; light, cloth and prints are others. docs/photos.md tells what
came of it, and what was tried beside it.
"""

from math import log, radians
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

CLEAN = 0.3
"""The share of images that stay as they are, but for the flip, so that the dataset's own test loses little."""
WIDEST, WIDEST_NARROW = log(1.6), log(2.0)
"""The logarithm of the most that an image is widened, and a narrow one; the longest edge fills the frame again."""
SPREAD, SPREAD_NARROW = 0.2, 0.35
"""The most that a hem, and narrow trouser legs, spread."""
TURN = radians(12)
ARMS = radians(40)
"""The most that sleeves are raised."""
SOLID = 10.0
"""Fainter than this, of 255, is background."""


class Photo(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Changes images `(batch, side, side, 1)`, 0-255, at random, each by draws of its own."""

    def __init__(self) -> None:
        super().__init__(dtype="float32", name="photo")
        self.seed_generator = keras.random.SeedGenerator(0)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def call(self, images: Any, training: bool = True) -> Any:
        pixels = images[..., 0]
        self._count, side = ops.shape(pixels)[0], pixels.shape[1]
        mirrored = ops.where(self._chance(0.5), pixels[..., ::-1], pixels)
        cut = self._with_a_wrong_border(_sampled(mirrored, *self._places(mirrored)), side)
        changed = self._in_other_cloth(cut / 255, side) * 255
        return ops.where(self._chance(CLEAN), mirrored, changed)[..., None]

    def _places(self, pixels: Any) -> tuple[Any, Any]:
        """For each pixel of the new images, the column and row `(batch, side, side)` of the old that it shows."""
        side = pixels.shape[1]
        half = side / 2
        (left, width), (top, height) = (
            _extent(ops.sum(ops.cast(pixels > SOLID, "float32"), axis)) for axis in (1, 2)
        )
        narrow = width < 0.62 * height  # dresses and trousers, as a rule
        widening = ops.exp(self._uniform(-0.5, 1) * ops.where(narrow, WIDEST_NARROW, WIDEST))
        sleeved = ops.logical_and(width > 0.65 * height, width < 1.1 * height)  # tops, as a rule
        arms = self._uniform(-0.1, 1) * ARMS * ops.cast(ops.logical_and(sleeved, self._chance(0.6)), "float32")
        reach = width * widening + 1.3 * height * ops.sin(ops.maximum(arms, 0.0))
        scale = side / ops.maximum(reach, height) * ops.exp(self._uniform(-0.08, 0.08))

        steps = ops.arange(side, dtype="float32") - (side - 1) / 2
        x = ops.reshape(steps, (1, 1, side)) + self._uniform(-1.5, 1.5)
        y = ops.reshape(steps, (1, side, 1)) + self._uniform(-1.5, 1.5)
        turn = self._uniform(-TURN, TURN)
        x, y = ops.cos(turn) * x + ops.sin(turn) * y, ops.cos(turn) * y - ops.sin(turn) * x
        x = x + self._uniform(-0.1, 0.1) * y  # slanted
        y = y + self._uniform(-0.1, 0.1) * (ops.abs(x) - half / 2)  # both sides hang, or rise
        spread = self._uniform(-0.6, 1) * ops.where(narrow, SPREAD_NARROW, SPREAD)
        x = x / (1 + spread * y / half)

        # Around each shoulder, the more the farther out.
        out, shoulder = width * widening * scale / 2, -0.35 * height * scale
        share = ops.clip((ops.abs(x) - 0.3 * out) / (0.6 * out), 0.0, 1.0)
        angle = arms * share * share * (3 - 2 * share)
        across, down = ops.abs(x) - 0.5 * out, y - shoulder
        raised = ops.maximum(ops.cos(angle) * across - ops.sin(angle) * down + 0.5 * out, 0.0)
        x = ops.where(x < 0, -raised, raised)
        y = ops.sin(angle) * across + ops.cos(angle) * down + shoulder

        columns = left + (width - 1) / 2 + x / (scale * widening) + 0.25 * self._field(5, side)
        rows = top + (height - 1) / 2 + y / scale + 0.25 * self._field(5, side)
        return columns, rows

    def _with_a_wrong_border(self, pixels: Any, side: int) -> Any:
        """In some images the silhouette gains a pixel in some places and loses one in others."""
        grown = ops.max_pool(pixels[..., None], 3, 1, "same")[..., 0]
        worn = -ops.max_pool(-pixels[..., None], 3, 1, "same")[..., 0]
        field = self._field(5, side)
        share = ops.clip(2 * ops.abs(field) - 1, 0.0, 1.0) * ops.cast(self._chance(0.15), "float32")
        return pixels + (ops.where(field > 0, worn, grown) - pixels) * share

    def _in_other_cloth(self, tones: Any, side: int) -> Any:
        """Other contrast, light from a side, prints and stripes, within the silhouette; 0-1."""
        inside = ops.clip(tones * (255 / 15), 0.0, 1.0)
        darkest, lightest = self._uniform(0, 0.05), self._uniform(0.5, 1)
        tones = ops.power(ops.maximum(tones, 1e-4), ops.exp(self._uniform(-0.4, 0.4)))
        tones = darkest + (lightest - darkest) * tones
        tones = ops.where(self._chance(0.02), self._uniform(0.25, 1), tones)  # no texture at all
        tones = tones + 0.06 * self._uniform(0, 1) * self._field(3, side)
        place = ops.arange(side, dtype="float32")
        place = ops.where(self._chance(0.7), ops.reshape(place, (1, side, 1)), ops.reshape(place, (1, 1, side)))
        stripes = ops.sign(ops.sin(self._uniform(0, 6.3) + self._uniform(0.6, 2.2) * place))
        prints = ops.where(self._chance(0.35), stripes, ops.clip(self._field(8, side), -1.0, 1.0))
        strength = self._uniform(0.05, 0.4) * ops.cast(self._chance(0.15), "float32")
        tones = ops.clip(tones + strength * prints, 0.03, 1.0) * inside
        blurred = ops.average_pool(tones[..., None], 3, 1, "same")[..., 0]
        return tones + (blurred - tones) * self._uniform(0, 0.1)

    def _uniform(self, low: float, high: float) -> Any:
        """A number for each image, `(batch, 1, 1)`."""
        return keras.random.uniform((self._count, 1, 1), low, high, dtype="float32", seed=self.seed_generator)

    def _chance(self, share: float) -> Any:
        return self._uniform(0, 1) < share

    def _field(self, knots: int, side: int) -> Any:
        """Smooth noise `(batch, side, side)` of standard deviation 1 at so many knots a side."""
        noise = keras.random.normal((self._count, knots, knots), dtype="float32", seed=self.seed_generator)
        spread = ops.convert_to_tensor(_between(side, knots))
        return ops.matmul(ops.matmul(spread, noise), ops.transpose(spread))


def _extent(sums: Any) -> tuple[Any, Any]:
    """Where the solid part begins and how long it is, each `(batch, 1, 1)`, from counts `(batch, side)`."""
    side = sums.shape[1]
    places = ops.arange(side, dtype="float32")
    first = ops.min(ops.where(sums > 1.5, places, side - 1.0), axis=1)
    last = ops.max(ops.where(sums > 1.5, places, 0.0), axis=1)
    return ops.reshape(first, (-1, 1, 1)), ops.reshape(ops.maximum(last - first + 1, 4.0), (-1, 1, 1))


def _sampled(pixels: Any, columns: Any, rows: Any) -> Any:
    """Images at places between their pixels; black outside."""
    side = pixels.shape[1]
    stride = side + 2
    flat = ops.reshape(ops.pad(pixels, ((0, 0), (1, 1), (1, 1))), (-1, stride * stride))
    columns, rows = ops.clip(columns + 1, 0.0, side + 0.999), ops.clip(rows + 1, 0.0, side + 0.999)
    left, top = ops.floor(columns), ops.floor(rows)
    across, down = columns - left, rows - top
    corner = ops.reshape(ops.cast(top * stride + left, "int32"), (-1, side * side))

    def at(offset: int) -> Any:
        return ops.reshape(ops.take_along_axis(flat, corner + offset, axis=1), (-1, side, side))

    above = at(0) * (1 - across) + at(1) * across
    below = at(stride) * (1 - across) + at(stride + 1) * across
    return above * (1 - down) + below * down


def _between(side: int, knots: int) -> NDArray[np.float32]:
    """The weights `(side, knots)` that spread values at knots smoothly over a side."""
    places = np.linspace(0, knots - 1, side)
    left = np.minimum(places.astype(int), knots - 2)
    right = places - left
    right = right * right * (3 - 2 * right)
    weights = np.zeros((side, knots), np.float32)
    weights[np.arange(side), left], weights[np.arange(side), left + 1] = 1 - right, right
    return weights
