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


def epoch_times(labels: Sequence[str], times: Sequence[Mapping[str, float]]) -> Figure:
    """Seconds of an epoch on a log axis, a row a cell: the median, and a line from min to max.

    Args:
        labels: `(cells,)`.
        times: `median`, `min`, `max` of each.
    """
    figure = Figure(figsize=(11, 1.2 + 0.42 * len(labels)), layout="constrained")
    panel = figure.subplots()
    panel.grid(visible=True, axis="x", which="both")
    for place, time in enumerate(times):
        panel.plot([time["min"], time["max"]], [place, place], color=NEUTRAL, linewidth=5, alpha=0.35)
        panel.plot(time["median"], place, "o", color=NEUTRAL)
        panel.annotate(f"{time['median']:.3g} s", (time["max"], place), (7, -3), textcoords="offset points")
    panel.set(xscale="log", yticks=range(len(labels)), yticklabels=labels, xlabel="seconds an epoch, log scale")
    panel.set_xlim(0.7 * min(time["min"] for time in times), 1.6 * max(time["max"] for time in times))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
    panel.set_title("an epoch: median, and least to greatest")
    panel.set_ylim(len(labels) - 0.5, -0.5)
    return figure


def speedups(labels: Sequence[str], figures: Sequence[tuple[float, float, float]]) -> Figure:
    """Bars: how many times as fast, with the least and greatest ratio within a round.

    Args:
        labels: `(ratios,)`.
        figures: Ratio of medians, least, greatest of each.
    """
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(labels)), layout="constrained")
    panel = figure.subplots()
    for place, (median, low, high) in enumerate(figures):
        panel.barh(place, median, color=RIGHT if median >= 1 else WRONG, alpha=0.75)
        panel.plot([low, high], [place, place], color="black", linewidth=1.5)
        panel.annotate(f"{median:.2f}x", (max(median, high), place), (6, -3), textcoords="offset points")
    panel.axvline(1, color="#999999", linestyle=":")
    panel.set(yticks=range(len(labels)), xlabel="times as fast; line: least to greatest within a round")
    panel.set_yticklabels(labels, fontsize=8)
    panel.set_xlim(0, 1.15 * max(high for *_, high in figures))
    panel.invert_yaxis()
    return figure


def throughput(lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Images a second in training against batch size, both on log axes, a line a cell."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    panel = figure.subplots()
    for (label, points), color in zip(lines.items(), sns.color_palette("husl", len(lines)), strict=True):
        sizes, rates = zip(*sorted(points), strict=True)
        panel.plot(sizes, rates, marker="o", label=label, color=color)
    panel.set(xscale="log", yscale="log", xlabel="batch size", ylabel="images a second")
    for formatted in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
        formatted("{x:,.0f}")
    panel.set_xticks(sorted({size for points in lines.values() for size, _ in points}))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")
    panel.grid(visible=True, axis="both", which="both")
    panel.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def crossover(
    title: str, widths: Sequence[float], batch_sizes: Sequence[int], maps: Mapping[str, NDArray[np.float64]]
) -> Figure:
    """Where the GPU wins: CPU time over GPU time for each width and batch size, a panel for each map.

    Args:
        title: What was timed.
        widths: `(widths,)`.
        batch_sizes: `(sizes,)`.
        maps: Ratios `(widths, sizes)` by name; NaN where not measured.
    """
    figure = Figure(figsize=(5.5 * len(maps), 1.6 + 0.7 * len(widths)), layout="constrained")
    figure.suptitle(f"{title}: CPU time over GPU time; the GPU wins above 1")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for panel, (name, ratios) in zip(panels, maps.items(), strict=True):
        sns.heatmap(
            np.log2(ratios),
            annot=np.vectorize("{:.2g}x".format)(ratios),
            fmt="",
            ax=panel,
            cmap="RdYlGn",
            center=0,
            vmin=-4,
            vmax=4,
            linewidths=1,
            cbar=False,
            xticklabels=[f"{size}" for size in batch_sizes],
            yticklabels=[f"x{width:g}" for width in widths],
        )
        panel.set(title=name, xlabel="batch size", ylabel="width")
        panel.invert_yaxis()
    return figure
