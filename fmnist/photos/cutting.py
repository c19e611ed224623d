"""Finds the garment on a photograph."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
"""`(height, width)`: 1 where the garment is."""
WORKING_SIDE = 192
"""The longest side, in pixels, of the reduced photograph that is cut."""
MARGIN = 0.03
"""The share of a side, all around, that is taken for background at first."""
ROUNDS = 5


def garment(photo: NDArray[np.uint8]) -> Mask:
    """Where the garment is on a photograph `(height, width, 3)`, at most `WORKING_SIDE` high and wide.

    All ones where nothing stands out. Source: Rother, Kolmogorov, Blake 2004, "GrabCut".
    """
    import cv2

    small = reduced(photo)
    height, width = small.shape[:2]
    whole = np.ones((height, width), np.uint8)
    if min(height, width) < 8 or small.std() < 1:
        return whole
    mask = np.full((height, width), cv2.GC_BGD, np.uint8)
    down, right = round(height * MARGIN) or 1, round(width * MARGIN) or 1
    mask[down:-down, right:-right] = cv2.GC_PR_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(small, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    return largest_part(np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8))


def reduced(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photograph with its longest side at `WORKING_SIDE`."""
    import cv2

    height, width = photo.shape[:2]
    factor = WORKING_SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)


def largest_part(mask: Mask) -> Mask:
    """The largest connected part; all ones if there is none."""
    import cv2

    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    if not len(sizes) or sizes.max() < mask.size * 0.01:
        return np.ones_like(mask)
    return np.asarray(parts == 1 + sizes.argmax(), np.uint8)
