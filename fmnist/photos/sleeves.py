"""Lets sleeves down: on a floor they are spread, on the dataset's figures they hang."""

import numpy as np
from numpy.typing import NDArray

from fmnist.photos.cutting import Cut

WIDE = 0.8
"""Only what is wider than this, for its height, is taken to have its sleeves spread."""
ANGLE = np.radians(30)
SHOULDER = 0.15
"""How far below the top the shoulders are, as a share of the height; half-way from the middle to the side."""


def let_down(photo: NDArray[np.uint8], cut: Cut) -> tuple[NDArray[np.uint8], Cut]:
    """A photograph `(height, width, 3)` and its garment with both sides turned down about the shoulders.

    The middle stays, the sides turn by `ANGLE`, what is between them bends. Both come back larger by a margin.
    """
    import cv2

    left, top, width, height = cv2.boundingRect(cut.mask)
    if cut.lie_down is not None or width < WIDE * height:
        return photo, cut
    margin = max(width, height) // 2
    mask = np.pad(cut.mask, margin)
    photo = np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    middle, centre = left + margin + width / 2, top + margin + height / 2
    rows, columns = np.indices(mask.shape, np.float32)
    out, x, y = width / 2, columns - middle, rows - centre

    share = np.clip((np.abs(x) / out - 0.3) / 0.6, 0, 1)
    angle = ANGLE * share * share * (3 - 2 * share)
    across, down = np.abs(x) - out / 2, y - (SHOULDER - 0.5) * height
    sideways = np.maximum(np.cos(angle) * across + np.sin(angle) * down + out / 2, 0)
    from_columns = (np.sign(x) * sideways + middle).astype(np.float32)
    from_rows = (np.cos(angle) * down - np.sin(angle) * across + (SHOULDER - 0.5) * height + centre).astype(
        np.float32
    )
    hung = cv2.remap(photo, from_columns, from_rows, cv2.INTER_LINEAR)
    hung_mask = cv2.remap(mask, from_columns, from_rows, cv2.INTER_NEAREST)
    return (hung, Cut(hung_mask, None)) if hung_mask.any() else (photo, Cut(mask, None))
