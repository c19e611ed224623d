"""Finds the garment on a photograph: by a network where it is installed, else by GrabCut."""

from dataclasses import dataclass
from math import atan2, degrees

import numpy as np
from numpy.typing import NDArray

from fmnist.photos.network import salience

Mask = NDArray[np.uint8]
"""`(height, width)`: 1 where the garment is."""
LEAST_SHARE = 0.02
"""Less than this share of a photograph is no garment."""
MARGIN = 0.03
"""GrabCut: the share of a side, all around, that is taken for background at first."""
ROUNDS = 5


@dataclass(frozen=True)
class Cut:
    """A garment that was found."""

    mask: Mask
    lie_down: float | None
    """Of one shoe of a pair: by how many degrees to turn it against the clock until it lies level."""


def cut(photo: NDArray[np.uint8]) -> Cut:
    """The garment on a photograph `(height, width, 3)`; all of it where nothing stands out."""
    seen = salience(photo)
    found = np.zeros(photo.shape[:2], np.uint8) if seen is None else (seen > 0.5).astype(np.uint8)
    if found.mean() < LEAST_SHARE:
        found = _grabcut(photo)
    if found.mean() < LEAST_SHARE:
        return Cut(np.ones_like(found), None)
    shoe = _one_of_a_pair(found)
    if shoe is None:
        return Cut(_largest_part(found), None)
    return Cut(shoe, _slope(shoe))


def _grabcut(photo: NDArray[np.uint8]) -> Mask:
    """Source: Rother, Kolmogorov, Blake 2004, "GrabCut"."""
    import cv2

    height, width = photo.shape[:2]
    if min(height, width) < 8 or photo.std() < 1:
        return np.zeros((height, width), np.uint8)
    mask = np.full((height, width), cv2.GC_BGD, np.uint8)
    down, right = max(round(height * MARGIN), 1), max(round(width * MARGIN), 1)
    mask[down:-down, right:-right] = cv2.GC_PR_FGD
    cv2.setRNGSeed(0)
    cv2.grabCut(photo, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)


def _largest_part(mask: Mask) -> Mask:
    import cv2

    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask)
    return np.asarray(parts == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax(), np.uint8)


def _one_of_a_pair(mask: Mask) -> Mask | None:
    """The first of two long parts that are alike and hang together by a neck at most; None if there aren't two.

    Shoes are photographed so. Legs of trousers hang together by more.
    """
    import cv2

    padded = np.pad(mask, 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)
    for share in np.arange(0.0, 0.65, 0.08):  # the border is worn away until there are two cores
        _, parts, statistics, _ = cv2.connectedComponentsWithStats((depth > share * depth.max()).astype(np.uint8))
        areas = statistics[1:, cv2.CC_STAT_AREA]
        if len(areas) < 2:
            continue
        first, second = 1 + np.argsort(areas)[::-1][:2]
        if areas[second - 1] < 0.55 * areas[first - 1]:
            continue
        near, far = (
            cv2.distanceTransform((parts != core).astype(np.uint8), cv2.DIST_L2, 5) for core in (first, second)
        )
        whole = padded > 0
        halves = [(whole & half)[1:-1, 1:-1].astype(np.uint8) for half in (near <= far, near > far)]
        sizes = [int(half.sum()) for half in halves]
        alike = 0.75 < sizes[0] / max(sizes[1], 1) < 1.33
        return halves[0] if alike and all(_long_and_full(half) for half in halves) else None
    return None


def _long_and_full(part: Mask) -> bool:
    import cv2

    _, sides, _ = cv2.minAreaRect(cv2.findNonZero(part))
    return bool(max(sides) > 2 * min(sides) and part.sum() > 0.65 * sides[0] * sides[1])


def _slope(part: Mask) -> float:
    """Degrees, with the clock, from level to the longest axis."""
    rows, columns = np.nonzero(part)
    _, axes = np.linalg.eigh(np.cov(columns, rows))
    return degrees(atan2(axes[1, 1], axes[0, 1]))
