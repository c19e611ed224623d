"""Figures of a training run."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist.plots import RIGHT, TRAIN, VALIDATION, WRONG
from fmnist.plots.data import draw_image


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


def confusion_matrix(
    confusion: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    split: str = "test",
    rows: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """A heat map: for each true class (row), the share in percent that was taken for each class.

    Args:
        confusion: `(true, predicted)`.
        class_names: Of the columns.
        split: For the title.
        rows: Names of the rows, where they aren't the classes.
        title: Another one.
    """
    figure = Figure(figsize=(8.5, 7.2), layout="constrained")
    panel = figure.subplots()
    mesh = _draw_confusion(panel, confusion, class_names, rows=rows or class_names, digits=1)
    panel.set(xlabel="predicted", ylabel="true")
    count = confusion.sum()
    panel.set_title(title or f"{split} accuracy {np.trace(confusion) / count:.2%} of {count:,} images")
    bar = figure.colorbar(mesh, ax=panel, label="% of the true class", shrink=0.7)
    bar.outline.set_visible(False)
    return figure


def _draw_confusion(
    panel: Axes,
    confusion: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    rows: Sequence[str],
    digits: int,
    fontsize: float = 8,
) -> QuadMesh:
    """Draws a confusion matrix: the shares of each row in percent, with so many digits behind the point."""
    percent = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    mesh = panel.pcolormesh(percent, cmap="Blues", vmin=0, vmax=100, edgecolors="white", linewidth=0.5)
    for row, column in zip(*np.nonzero(percent >= 0.5 * 10.0**-digits), strict=True):
        value = percent[row, column]
        color = "white" if value > 50 else "#303030"
        text = f"{value:.{digits}f}"
        panel.text(column + 0.5, row + 0.5, text, color=color, fontsize=fontsize, ha="center", va="center")
    columns = np.arange(len(class_names)) + 0.5
    panel.set_xticks(columns, labels=class_names, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(np.arange(len(rows)) + 0.5, labels=rows)
    panel.set(aspect="equal")
    panel.invert_yaxis()
    panel.tick_params(length=0, labelsize=fontsize)
    panel.spines[:].set_visible(False)
    return mesh


def card(
    confusion: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    predicted: NDArray[np.int64],
    class_names: Sequence[str],
) -> Figure:
    """The confusion matrix beside up to 20 mistakes, small enough for the page of a model version.

    Args:
        confusion: Counts, `(true, predicted)`.
        images: Of the mistakes, `(batch, 28, 28)`.
        labels: Their true classes, `(batch,)`.
        predicted: What they were taken for, `(batch,)`.
        class_names: Of the classes, in their order.
    """
    figure = Figure(figsize=(8.2, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _draw_confusion(left, confusion, class_names, rows=class_names, digits=0, fontsize=6.5)
    left.set_title("% of each true class (row), as predicted", fontsize=8)
    columns, height = 5, 1.42
    for place, (image, label, answer) in enumerate(zip(images[:20], labels, predicted, strict=False)):
        x, y = 1.15 * (place % columns), height * (place // columns) + 0.36
        draw_image(right, image, left=x, top=y)
        right.text(x, y - 0.19, class_names[answer], color=WRONG, fontsize=6, va="bottom")
        right.text(x, y - 0.01, f"is {class_names[label]}", color=RIGHT, fontsize=6, va="bottom")
    right.set(xlim=(-0.05, 1.15 * columns), ylim=(4 * height + 0.1, 0), aspect="equal")
    right.set_title("its surest mistakes", fontsize=8)
    right.axis("off")
    return figure


def predictions(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """A grid of images with predicted and true label, right in green and wrong in red, and bars of all
    probabilities beside each; the bars of the predicted and of the true class are named."""
    columns, width, height = 5, 2.1, 1.28  # of a cell, in sides of an image
    rows = max(-(-len(labels) // columns), 1)
    figure = Figure(figsize=(15, 15 / columns / width * height * rows + 0.6))
    figure.suptitle(f"{title}: predicted label and its probability, and the true label where it differs", y=0.99)
    panel = figure.add_axes((0.005, 0.005, 0.99, 0.99 - 0.4 / figure.get_figheight()))
    num_classes = len(class_names)
    for place, (image, label, each) in enumerate(zip(images, labels, probabilities, strict=True)):
        left, top = width * (place % columns), height * (place // columns) + 0.22
        predicted = int(each.argmax())
        color = RIGHT if predicted == label else WRONG
        draw_image(panel, image, left=left, top=top)
        truth = "" if predicted == label else f", is {class_names[label]}"
        text = f"{class_names[predicted]} {each[predicted]:.0%}{truth}"
        panel.text(left, top - 0.04, text, color=color, fontsize=10, va="bottom")
        places = top + (np.arange(num_classes) + 0.5) / num_classes
        colors = ["#bbbbbb"] * num_classes
        colors[label], colors[predicted] = RIGHT, color
        start = left + 1.06
        panel.hlines(places, start, start + 0.9 * np.maximum(each, 0.006), colors=colors, linewidth=7.5)
        for named in {predicted, int(label)}:
            inside = each[named] > 0.5
            at = start + (0.02 if inside else 0.9 * each[named] + 0.03)
            ink = "white" if inside else colors[named]
            panel.text(at, places[named], class_names[named], fontsize=6.5, color=ink, va="center_baseline")
    panel.set(xlim=(0, width * columns), ylim=(height * rows, 0))
    panel.axis("off")
    return figure
