"""Brings a garment that was cut out into the dataset's form.

The dataset's authors trimmed, resized the longest edge to 28, sharpened, centred, turned light and dark around,
and kept 8 bits of grey. Source: Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747, section 2.
"""

import numpy as np
from numpy.typing import NDArray

from fmnist.photos.cutting import Mask

SIDE = 28


def dataset_form(photo: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """What a mask keeps of a photograph, as an image `(28, 28)`, light on black, never empty."""
    import cv2

    height, width = photo.shape[:2]
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    full = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    x, y, wide, high = cv2.boundingRect(full)
    grey, full = grey[y : y + high, x : x + wide], full[y : y + high, x : x + wide].astype(np.float32)
    factor = SIDE / max(high, wide)
    size = max(1, round(wide * factor)), max(1, round(high * factor))
    negative = cv2.resize((255 - grey.astype(np.float32)) * full, size, interpolation=cv2.INTER_AREA)
    share = cv2.resize(full, size, interpolation=cv2.INTER_AREA)
    tones = np.clip(np.where(share > 0, negative, 0), share * 1.0, 255)  # pure white cloth isn't background
    image = np.zeros((SIDE, SIDE), np.uint8)
    down, right = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    image[down : down + size[1], right : right + size[0]] = tones.round().reshape(size[1], size[0])
    return image


def outline(mask: Mask, shape: tuple[int, ...]) -> list[NDArray[np.int32]]:
    """The borders of a mask, as closed polygons `(points, 2)` of x and y on a photograph `(height, width)`."""
    import cv2

    height, width = shape
    polygons, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / mask.shape[1], height / mask.shape[0]])
    return [np.asarray((polygon[:, 0] + 0.5) * scale, np.int32) for polygon in polygons]
