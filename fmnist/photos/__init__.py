"""From a photograph of a garment to an image in the dataset's form: 28x28, grey, light on black.

`read` opens a file, `prepare` cuts the garment out and brings it into form. All choices in here were made
on photographs that are no part of the repository; `docs/photos.md` tells what each of them changed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmnist.photos.cutting import cut
from fmnist.photos.files import read
from fmnist.photos.form import dataset_form, outline
from fmnist.photos.network import weights
from fmnist.photos.sleeves import let_down

__all__ = ["Prepared", "cutter", "prepare", "read"]
WORKING_SIDE = 256
"""The longest side, in pixels, of the reduced photograph that is cut."""


@dataclass(frozen=True)
class Prepared:
    """A photograph as a model sees it."""

    image: NDArray[np.uint8]
    """`(28, 28)`, light on black."""
    outline: list[NDArray[np.int32]]
    """Closed polygons `(points, 2)` of x and y in the photograph's pixels: the borders of what was cut out."""


def cutter() -> str:
    """What cuts garments out here: the network `u2netp`, or `GrabCut` where its weights aren't installed."""
    return "u2netp" if weights() else "GrabCut"


def prepare(photo: NDArray[np.uint8]) -> Prepared:
    """The garment on a photograph `(height, width, 3)`, RGB; the whole photograph where none is found."""
    import cv2

    height, width = photo.shape[:2]
    factor = WORKING_SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)
    found = cut(small)
    return Prepared(dataset_form(*let_down(small, found)), outline(found.mask, (height, width)))
