"""How a model fares where images are worse than those it was trained on: six kinds of harm, five strengths each.

Source: after Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261, for small grey images.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""`(batch, height, width)`, 0-255."""
Predict = Callable[[Images], NDArray[np.float32]]
"""Gives probabilities `(batch, classes)`."""
NUM_STRENGTHS = 5
NUM_IMAGES = 2000
"""The first so many of a split are harmed: the mean of 30 accuracies needs no more."""


def _noise(images: Images, strength: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return images + rng.normal(0, (10, 20, 35, 50, 70)[strength - 1], images.shape)


def _blur(images: Images, strength: int, rng: np.random.Generator) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    pixels = (0.5, 0.75, 1.0, 1.5, 2.0)[strength - 1]
    return np.asarray(gaussian_filter(images.astype(np.float64), (0, pixels, pixels)))


def _shift(images: Images, strength: int, rng: np.random.Generator) -> Images:
    directions = rng.integers(4, size=len(images))
    result = np.zeros_like(images)
    for direction in range(4):  # up, left, down, right: a quarter turn, the same move, and back
        chosen = directions == direction
        moved = np.rot90(images[chosen], direction, axes=(1, 2))
        moved = np.concatenate([moved[:, strength:], np.zeros_like(moved[:, :strength])], axis=1)
        result[chosen] = np.rot90(moved, -direction, axes=(1, 2))
    return result


def _contrast(images: Images, strength: int, rng: np.random.Generator) -> NDArray[np.float64]:
    kept = (0.75, 0.5, 0.35, 0.2, 0.1)[strength - 1]
    mean = images.mean(axis=(1, 2), keepdims=True)
    return np.asarray(mean + kept * (images - mean))


def _inversion(images: Images, strength: int, rng: np.random.Generator) -> NDArray[np.float64]:
    share = strength / NUM_STRENGTHS
    return np.asarray((1 - share) * images + share * (255.0 - images))


def _jpeg(images: Images, strength: int, rng: np.random.Generator) -> Images:
    from PIL import Image

    result = np.empty_like(images)
    for place, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=(50, 30, 20, 10, 5)[strength - 1])
        result[place] = np.asarray(Image.open(file))
    return result


KINDS: dict[str, Callable[[Images, int, np.random.Generator], Images | NDArray[np.float64]]] = {
    "noise": _noise,
    "blur": _blur,
    "shift": _shift,
    "contrast": _contrast,
    "inversion": _inversion,
    "jpeg": _jpeg,
}


def corrupt(images: Images, kind: str, strength: int) -> Images:
    """Images harmed in one of `KINDS`, at a strength of 1 to 5; always the same for the same images."""
    rng = np.random.default_rng((list(KINDS).index(kind), strength))
    return np.clip(np.rint(KINDS[kind](images, strength, rng)), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Robustness:
    """Accuracy on harmed images."""

    accuracy: dict[str, tuple[float, ...]]
    """By kind, at strengths 1 to 5."""
    clean: float
    """On the same images, unharmed."""
    num_images: int

    @property
    def mean(self) -> float:
        """Over all kinds and strengths."""
        return float(np.mean(list(self.accuracy.values())))


def robustness(predict: Predict, images: Images, labels: NDArray[np.uint8]) -> Robustness:
    """What a model gets right of harmed images."""
    images, labels = images[:NUM_IMAGES], labels[:NUM_IMAGES]

    def accuracy(images: Images) -> float:
        return float((predict(images).argmax(axis=1) == labels).mean())

    harmed = {
        kind: tuple(accuracy(corrupt(images, kind, strength)) for strength in range(1, NUM_STRENGTHS + 1))
        for kind in KINDS
    }
    return Robustness(harmed, accuracy(images), len(labels))
