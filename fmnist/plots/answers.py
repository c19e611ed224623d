"""Figures of a model's answers to photographs: what it was shown, what it saw, what it said."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray

from fmnist.plots import NEUTRAL, RIGHT, WRONG
from fmnist.plots.data import draw_image

COLUMNS = 3
NUM_ON_PAGE = 12


@dataclass(frozen=True)
class Shown:
    """An answer as a page shows it."""

    title: str
    remark: str
    """Beneath; empty for none."""
    right: bool | None
    photo: NDArray[np.uint8] | None
    """`(height, width, 3)`."""
    outline: Sequence[NDArray[np.int32]]
    """Polygons `(points, 2)` on the photograph."""
    image: NDArray[np.uint8]
    """`(28, 28)`."""
    likeliest: Sequence[tuple[str, float]]
    """Class and probability, the likeliest first."""


def page(answers: Sequence[Shown]) -> Figure:
    """Of each answer the photograph with its outline, what the model saw, and bars of the likeliest classes."""
    width, height = 3.25, 1.42  # of a cell, in sides of an image
    columns = min(COLUMNS, len(answers))
    rows = -(-len(answers) // columns)
    figure = Figure(figsize=(5 * columns, 5 * height / width * rows))
    panel = figure.add_axes((0, 0, 1, 1))
    for place, answer in enumerate(answers):
        left, top = width * (place % columns) + 0.05, height * (place // columns) + 0.2
        color = {None: NEUTRAL, True: RIGHT, False: WRONG}[answer.right]
        panel.text(left, top - 0.05, answer.title, fontsize=9, va="bottom")
        if answer.photo is not None:
            _draw_photo(panel, answer.photo, answer.outline, left=left, top=top)
        draw_image(panel, answer.image, left=left + 1.05, top=top)
        start = left + 2.12
        for line, (name, share) in enumerate(answer.likeliest):
            middle = top + 0.16 + 0.3 * line
            panel.text(start, middle - 0.03, f"{name} {share:.0%}", fontsize=9, va="bottom")
            panel.add_patch(_box(start, middle, 1.0, "#eeeeee"))
            panel.add_patch(_box(start, middle, share, "#999999" if line else color))
        panel.text(left, top + 1.03, answer.remark, fontsize=8, va="top", color=WRONG)
    panel.set(xlim=(0, width * columns), ylim=(height * rows, 0))
    panel.axis("off")
    return figure


def _box(left: float, top: float, share: float, color: str) -> Polygon:
    right, bottom = left + share, top + 0.09
    return Polygon([(left, top), (right, top), (right, bottom), (left, bottom)], color=color, linewidth=0)


def _draw_photo(
    panel: Axes, photo: NDArray[np.uint8], outline: Sequence[NDArray[np.int32]], *, left: float, top: float
) -> None:
    """Fits a photograph, with its outline, into a square of side 1."""
    high, wide = photo.shape[:2]
    scale = 1 / max(high, wide)
    left, top = left + (1 - wide * scale) / 2, top + (1 - high * scale) / 2
    panel.imshow(photo, extent=(left, left + wide * scale, top + high * scale, top), interpolation="nearest")
    for polygon in outline:
        corners = polygon * scale + (left, top)
        panel.add_patch(Polygon(corners, fill=False, edgecolor="#ff2d95", linewidth=1.2))
