"""Draws a small dataset of ten garment-like classes, for tests and for work without a network.

Every garment is a polygon that is stretched, turned, shifted and shaded by chance, then covered with
noise. Similar outlines (pullover, coat, shirt) overlap as they do in the real data, so that an accuracy
says something. The draws depend on nothing but the constants here: the dataset is always the same.
"""

import numpy as np
from numpy.typing import NDArray

NUM_TRAIN, NUM_TEST = 12_000, 2_000
SIDE = 28
VERSION = 1  # raise it when a pixel changes: prepared splits are kept by it

# Half outlines, mirrored at x = 0, as (x, y) with y from the top; the box is -1..1 each way.
_MIRRORED = {
    0: [(0.25, -0.75), (0.95, -0.5), (0.8, -0.15), (0.5, -0.3), (0.5, 0.75)],  # t-shirt
    1: [(0.45, -0.9), (0.55, 0.9), (0.2, 0.9), (0.0, -0.3)],  # trouser
    2: [(0.2, -0.75), (0.6, -0.65), (0.9, 0.7), (0.65, 0.75), (0.5, -0.1), (0.5, 0.75)],  # pullover
    3: [(0.2, -0.9), (0.35, -0.6), (0.2, -0.1), (0.5, 0.9)],  # dress
    4: [(0.15, -0.75), (0.55, -0.65), (0.85, 0.75), (0.65, 0.8), (0.5, -0.1), (0.55, 0.9), (0.05, 0.9)],  # coat
    6: [(0.2, -0.75), (0.6, -0.65), (0.85, 0.45), (0.65, 0.5), (0.5, -0.2), (0.5, 0.8)],  # shirt
    8: [(0.2, -0.75), (0.3, -0.2), (0.85, -0.2), (0.85, 0.75)],  # bag
}
_WHOLE = {
    5: [(-0.9, 0.3), (-0.3, 0.1), (0.2, -0.35), (0.5, -0.3), (0.1, 0.2), (0.9, 0.05), (0.9, 0.45), (-0.9, 0.45)],
    7: [(-0.9, 0.2), (-0.2, 0.0), (0.3, -0.3), (0.85, -0.25), (0.9, 0.45), (-0.9, 0.45)],  # sneaker
    9: [(-0.9, 0.3), (-0.1, 0.1), (0.1, -0.7), (0.8, -0.7), (0.85, 0.6), (-0.9, 0.6)],  # ankle boot
}
_OUTLINES = _WHOLE | {label: half + [(-x, y) for x, y in reversed(half)] for label, half in _MIRRORED.items()}


def draw() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Train images, train labels, test images, test labels.

    Images are uint8 `(batch, 28, 28)`, 0-255; labels uint8 `(batch,)`, equally many of each class, shuffled.
    """
    rng = np.random.default_rng(20170825)
    total = NUM_TRAIN + NUM_TEST
    labels = rng.permutation(np.arange(total) % 10).astype(np.uint8)
    images = np.empty((total, SIDE, SIDE), np.uint8)
    for label, outline in _OUTLINES.items():
        chosen = np.flatnonzero(labels == label)
        images[chosen] = _garments(outline, len(chosen), rng)
    return images[:NUM_TRAIN], labels[:NUM_TRAIN], images[NUM_TRAIN:], labels[NUM_TRAIN:]


def _garments(outline: list[tuple[float, float]], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    axis = np.linspace(-1.15, 1.15, SIDE)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    per_image = (count, 1, 1)
    angle = rng.normal(0, 0.12, per_image)
    shift_x, shift_y = rng.normal(0, 0.1, (2, *per_image))
    stretch_x, stretch_y = rng.uniform(0.75, 1.05, (2, *per_image))
    turned_x = (np.cos(angle) * (x - shift_x) + np.sin(angle) * (y - shift_y)) / stretch_x
    turned_y = (np.cos(angle) * (y - shift_y) - np.sin(angle) * (x - shift_x)) / stretch_y
    # Even-odd rule: a point is inside if a ray from it crosses the outline an odd number of times.
    inside = np.zeros((count, SIDE, SIDE), bool)
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        if y0 != y1:
            crosses = (y0 > turned_y) != (y1 > turned_y)
            inside ^= crosses & (turned_x < (x1 - x0) * (turned_y - y0) / (y1 - y0) + x0)
    shade = rng.uniform(70, 230, per_image) + rng.normal(0, 40, per_image) * turned_y
    weave = rng.normal(0, 45, inside.shape)
    background = np.maximum(rng.normal(-10, 30, inside.shape), 0)
    return np.clip(np.where(inside, shade + weave, background), 0, 255).astype(np.uint8)
