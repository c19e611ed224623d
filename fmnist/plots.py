"""Figures of a dataset and of a training run; each function gives a matplotlib figure.

Figures are made without pyplot: no window system is asked for, nothing is kept alive.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

RIGHT, WRONG, NEUTRAL = "#1b7837", "#c51b3a", "#4c72b0"
TRAIN, VALIDATION = "#4c72b0", "#dd8452"
matplotlib.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.grid.axis": "y", "grid.color": "#e5e5e5"}
)


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
    rows = figure.subplots(len(class_names), 10, squeeze=False)
    for label, (row, name) in enumerate(zip(rows, class_names, strict=True)):
        chosen = np.flatnonzero(labels == label)[: len(row)]
        for place, panel in enumerate(row):
            _blank(panel)
            if place < len(chosen):
                _image(panel, images[chosen[place]])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def learning_curves(history: Mapping[str, Sequence[float]], kept_epoch: int) -> Figure:
    """Loss and accuracy of training and validation by epoch, with the epoch whose weights were kept.

    Args:
        history: `train_loss`, `train_accuracy`, `validation_loss`, `validation_accuracy`, by epoch.
        kept_epoch: From 1.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for panel, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color in (("train", TRAIN), ("validation", VALIDATION)):
            values = history[f"{split}_{metric}"]
            epochs = range(1, len(values) + 1)
            panel.plot(epochs, values, color=color, marker="o", markersize=3.5, label=split)
        panel.axvline(kept_epoch, color="#999999", linestyle=":", label=f"weights kept: epoch {kept_epoch}")
        panel.set(title=metric, xlabel="epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(visible=True)
        panel.legend(frameon=False)
    return figure


def confusion_matrix(confusion: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """A heat map: for each true class (row), the share in percent that was taken for each class."""
    figure = Figure(figsize=(8.5, 7.2), layout="constrained")
    panel = figure.subplots()
    percent = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    texts = np.where(confusion > 0, np.vectorize("{:.1f}".format)(percent), "")
    sns.heatmap(
        percent,
        annot=texts,
        fmt="",
        ax=panel,
        cmap="Blues",
        vmin=0,
        vmax=100,
        square=True,
        linewidths=0.5,
        xticklabels=class_names,
        yticklabels=class_names,
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "% of the true class", "shrink": 0.7},
    )
    panel.set(xlabel="predicted", ylabel="true")
    panel.set_title(f"test accuracy {np.trace(confusion) / confusion.sum():.2%} of {confusion.sum():,} images")
    panel.tick_params(axis="x", rotation=45)
    for label in panel.get_xticklabels():
        label.set_horizontalalignment("right")
    return figure


def predictions(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """A grid of images with predicted and true label, right in green and wrong in red, and bars of all
    probabilities beside each."""
    columns = 5
    rows = max(-(-len(labels) // columns), 1)
    figure = Figure(figsize=(15, 1.85 * rows + 0.6), layout="constrained")
    figure.suptitle(f"{title}: predicted label and its probability, and the true label where it differs")
    panels = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1.5, 1] * columns).reshape(-1, 2)
    for place, (picture, bars) in enumerate(panels):
        _blank(picture)
        _blank(bars)
        if place >= len(labels):
            continue
        predicted, label = int(probabilities[place].argmax()), int(labels[place])
        color = RIGHT if predicted == label else WRONG
        _image(picture, images[place])
        truth = "" if predicted == label else f", is {class_names[label]}"
        text = f"{class_names[predicted]} {probabilities[place, predicted]:.0%}{truth}"
        picture.set_title(text, color=color, fontsize=9, loc="left", pad=3)
        colors = ["#cccccc"] * len(class_names)
        colors[label], colors[predicted] = RIGHT, color
        bars.barh(range(len(class_names)), probabilities[place], color=colors)
        bars.set(xlim=(0, 1), yticks=range(len(class_names)))
        bars.set_yticklabels(class_names, fontsize=6)
        bars.tick_params(left=False, pad=1)
        bars.set_ylim(len(class_names) - 0.4, -1.5)  # from the top, clear of the caption
    return figure


def _blank(panel: Axes) -> None:
    panel.set(xticks=[], yticks=[])
    for spine in panel.spines.values():
        spine.set_visible(False)


def _image(panel: Axes, image: NDArray[np.uint8]) -> None:
    panel.imshow(image, cmap="gray_r", vmin=0, vmax=255)
