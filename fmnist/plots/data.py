"""Figures of a dataset, and the mosaic that shows many images at once."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist.plots import NEUTRAL


def class_balance(balance: Mapping[str, list[int]], class_names: Sequence[str]) -> Figure:
    """Bars: images of each class, one panel for each split."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(balance))
    for panel, (split, counts) in zip(panels, balance.items(), strict=True):
        panel.barh(class_names, counts, color=NEUTRAL)
        panel.invert_yaxis()
        panel.bar_label(panel.containers[0], padding=3, fontsize=8)
        panel.set(title=f"{split}: {sum(counts):,} images", xticks=[], xlim=(0, max(counts) * 1.2))
        panel.spines["bottom"].set_visible(False)
        panel.tick_params(left=False, labelleft=panel is panels[0])
    return figure


def sample_grid(images: NDArray[np.uint8], labels: NDArray[np.uint8], class_names: Sequence[str]) -> Figure:
    """The first ten images of each class, a row a class."""
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    panel = figure.subplots()
    for label in range(len(class_names)):
        chosen = images[np.flatnonzero(labels == label)[:10]]
        for place, image in enumerate(chosen):
            draw_image(panel, image, left=1.08 * place, top=1.08 * label)
    panel.set(xlim=(0, 10.8), ylim=(1.08 * len(class_names), 0), aspect="equal", xticks=[])
    panel.set_yticks(1.08 * np.arange(len(class_names)) + 0.5, labels=class_names)
    panel.tick_params(left=False)
    panel.spines[:].set_visible(False)
    return figure


def draw_image(panel: Axes, image: NDArray[np.uint8], *, left: float, top: float) -> None:
    """Draws an image, side 1, where an axis that points down has its upper left corner.

    Many images on one panel: a panel for each would take ten times as long.
    """
    extent = (left, left + 1, top + 1, top)
    panel.imshow(image, cmap="gray_r", vmin=0, vmax=255, extent=extent, interpolation="nearest")
