"""Weights that a model begins with beyond what its layers draw, for layers whose name begins with a word:

- `whiten`: a frozen convolution whose filters are the principal directions of the training images' patches, each
  with its negative;
- `dirac`: a convolution that begins as the identity of as many channels as come in.

Source: Jordan 2024, https://arxiv.org/abs/2404.00498 (airbench)
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras

NUM_IMAGES = 1000  # of so many patches that more would only take time
EPSILON = 5e-4  # added to the patches' variances, so that noise isn't blown up


def begin(model: "keras.Model", images: NDArray[np.uint8]) -> None:
    """Gives layers the weights that their names ask for.

    Args:
        model: With fresh weights.
        images: Of the training split, `(batch, height, width)`.
    """
    for layer in model.layers:
        if layer.name.startswith("whiten"):
            layer.set_weights([whitening(images[:NUM_IMAGES], layer.kernel.shape)])
        elif layer.name.startswith("dirac"):
            kernel, *others = layer.get_weights()
            layer.set_weights([_identity(kernel), *others])


def whitening(images: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Filters `(side, side, 1, filters)` under which patches of images have uncorrelated answers of variance 1."""
    side, filters = shape[0], shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(images / np.float32(255), (side, side), (1, 2))
    patches = windows.reshape(-1, side * side)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    scaled = (vectors / np.sqrt(values + EPSILON))[:, ::-1].T  # the direction of the largest variance first
    both = np.concatenate([scaled, -scaled])[:filters]
    return both.T.reshape(shape).astype(np.float32)


def _identity(kernel: NDArray[Any]) -> NDArray[Any]:
    """A kernel `(height, width, in, out)` whose first filters pass one channel each."""
    height, width, *channels = kernel.shape
    same = np.arange(min(channels))
    kernel = kernel.copy()
    kernel[..., same] = 0
    kernel[height // 2, width // 2, same, same] = 1
    return kernel
