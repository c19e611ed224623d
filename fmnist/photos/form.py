"""Brings a garment that was cut out into the dataset's form.

The dataset's authors trimmed, resized the longest edge to 28, sharpened, centred, turned light and dark around,
and kept 8 bits of grey. Source: Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747, section 2.
"""

import numpy as np
from numpy.typing import NDArray

from fmnist.photos.cutting import Cut, Mask

SIDE = 28
NARROWER = 0.8
"""Garments on a floor lie wider than they hang on a figure, which is how the dataset shows them."""
LOWER = 0.5
"""A shoe of a pair is seen from above, where it is broad; the dataset shows shoes from the side."""
DARKEST = 12
"""The whitest cloth, turned around, is still no background."""


def dataset_form(photo: NDArray[np.uint8], cut: Cut) -> NDArray[np.uint8]:
    """What was cut out of a photograph of the same size, as an image `(28, 28)`, light on black, never empty."""
    import cv2

    negative = 255 - cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    share = cut.mask.astype(np.float32)
    if cut.lie_down is not None:
        height, width = share.shape
        side = int(np.hypot(height, width)) + 2
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), cut.lie_down, 1)
        turn[:, 2] += (side - width) / 2, (side - height) / 2
        negative, share = (cv2.warpAffine(each, turn, (side, side)) for each in (negative, share))
    left, top, width, height = cv2.boundingRect((share > share.max() / 2).astype(np.uint8))
    here = slice(top, top + height), slice(left, left + width)
    across, upward = (width * NARROWER, height) if cut.lie_down is None else (width, height * LOWER)
    factor = SIDE / max(across, upward)
    size = max(1, round(across * factor)), max(1, round(upward * factor))
    tones, share = (
        cv2.resize(each, size, interpolation=cv2.INTER_AREA).reshape(size[::-1])
        for each in (negative[here] * share[here], share[here])
    )
    tones = np.where(share > share.max() / 2, np.maximum(tones, DARKEST), tones)
    image = np.zeros((SIDE, SIDE), np.uint8)
    down, right = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    image[down : down + size[1], right : right + size[0]] = np.clip(tones.round(), 0, 255)
    return image


def outline(mask: Mask, shape: tuple[int, ...]) -> list[NDArray[np.int32]]:
    """The borders of a mask, as closed polygons `(points, 2)` of x and y on a photograph `(height, width)`."""
    import cv2

    height, width = shape
    polygons, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / mask.shape[1], height / mask.shape[0]])
    return [np.asarray((polygon[:, 0] + 0.5) * scale, np.int32) for polygon in polygons]
