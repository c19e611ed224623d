"""How far an image is from all that a model was trained on: what their main directions can't draw of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_DIRECTIONS = 64
NUM_IMAGES = 20_000
HELD_OUT_SHARE = 0.95
FILE = "strangeness.npz"


@dataclass(frozen=True)
class Strangeness:
    """Measures images; `docs/predict.md` tells what this measure finds, and what others do."""

    mean: NDArray[np.float32]
    """`(pixels,)`."""
    directions: NDArray[np.float32]
    """Principal components of the training images, `(directions, pixels)`."""
    limit: float
    """The distance that 95 % of held-out images stay below."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of images `(batch, 28, 28)` their distance in limits: above 1 they are strange."""
        return np.asarray(_distances(images, self.mean, self.directions) / self.limit, np.float32)

    def write(self, path: Path) -> None:
        """Writes it to a file."""
        np.savez(path, mean=self.mean, directions=self.directions, limit=self.limit)


def learn(train: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> Strangeness:
    """Learns from training images `(images, 28, 28)`; how far is strange is set by others."""
    pixels = _pixels(train[:NUM_IMAGES])
    mean = pixels.mean(axis=0)
    centred = pixels - mean
    _, directions = np.linalg.eigh(centred.T @ centred)  # the main ones last
    main = np.ascontiguousarray(directions[:, -NUM_DIRECTIONS:].T)
    limit = np.quantile(_distances(held_out, mean, main), HELD_OUT_SHARE)
    return Strangeness(mean, main, max(float(limit), float(np.finfo(np.float32).tiny)))


def read(path: Path) -> Strangeness | None:
    """What was written to a file; None if there is none."""
    if not path.is_file():
        return None
    with np.load(path) as kept:
        return Strangeness(kept["mean"], kept["directions"], float(kept["limit"]))


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(images.reshape(len(images), -1), np.float32) / np.float32(255)


def _distances(
    images: NDArray[np.uint8], mean: NDArray[np.float32], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    centred = _pixels(images) - mean
    left = centred - (centred @ directions.T) @ directions
    return np.asarray(np.linalg.norm(left, axis=1), np.float32)
