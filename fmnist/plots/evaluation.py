"""Figures of an evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist.plots import NEUTRAL, RIGHT, WRONG
from fmnist.plots.data import draw_image


def reliability(bins: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]) -> Figure:
    """Accuracy against confidence, a panel for each; how many images a bin has below.

    Args:
        bins: Number of images, mean confidence and accuracy of each bin, `(bins,)`, by title.
    """
    figure = Figure(figsize=(5.2 * len(bins), 5.4), layout="constrained")
    panels = figure.subplots(2, len(bins), squeeze=False, height_ratios=(4, 1), sharex=True, sharey="row")
    for (title, (count, confidence, accuracy)), (panel, below) in zip(bins.items(), panels.T, strict=True):
        edges = np.linspace(0, 1, len(count) + 1)[:-1]
        width, there = 1 / len(count), count > 0
        panel.bar(edges[there], accuracy[there], width, align="edge", color=NEUTRAL, edgecolor="white")
        for left, sure, right in zip(edges[there], confidence[there], accuracy[there], strict=True):
            middle = left + width / 2
            panel.plot([middle, middle], [sure, right], color=WRONG, linewidth=2, solid_capstyle="butt")
        panel.plot([0, 1], [0, 1], color="#888888", linestyle=":")
        panel.set(title=title, ylim=(0, 1.02), xlim=(0, 1))
        below.bar(edges, count / count.sum(), width, align="edge", color="#bbbbbb", edgecolor="white")
        below.set(xlabel="confidence")
        below.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[0, 0].set_ylabel("accuracy; red: gap to the confidence")
    panels[1, 0].set_ylabel("images")
    return figure


def selective(coverage: NDArray[np.float64], accuracy: NDArray[np.float64], area: float) -> Figure:
    """Accuracy of the images that are answered, against the share that is; `(images,)` each."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    panel = figure.subplots()
    first = len(coverage) // 100  # the first percent is a handful of images, and jumps
    panel.plot(coverage[first:], accuracy[first:], color=NEUTRAL)
    panel.axhline(accuracy[-1], color="#888888", linestyle=":")
    panel.annotate(f"all: {accuracy[-1]:.2%}", (0.01, accuracy[-1]), (0, 4), textcoords="offset points")
    panel.set(xlim=(0, 1), xlabel="share of images answered, the surest first", ylabel="accuracy of those")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    panel.set_title(f"accuracy where doubtful images are left out: {area:.2%} on average")
    panel.grid(visible=True)
    return figure


def robustness(accuracy: Mapping[str, Sequence[float]], clean: float, mean: float) -> Figure:
    """Accuracy at each strength, a line for each kind of harm."""
    from seaborn import color_palette

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    panel = figure.subplots()
    colors = color_palette("colorblind", len(accuracy))
    for (kind, values), color, marker in zip(accuracy.items(), colors, "osD^vP", strict=True):
        panel.plot(range(len(values) + 1), [clean, *values], marker=marker, label=kind, color=color)
    panel.axhline(mean, color="#888888", linestyle=":", label=f"mean {mean:.2%}")
    panel.set(ylim=(0, 1), xlabel="strength; 0: unharmed", ylabel="accuracy")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.set_xticks(range(1 + max(map(len, accuracy.values()))))
    panel.grid(visible=True)
    panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def corruptions(
    rows: Mapping[str, Sequence[NDArray[np.uint8]]], accuracy: Mapping[str, Sequence[float]]
) -> Figure:
    """One image under every harm, a row a kind, unharmed first; below each the accuracy at that strength."""
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.35 * columns + 1, 1.6 * len(rows)), layout="constrained")
    panel = figure.subplots()
    for row, (kind, images) in enumerate(rows.items()):
        for column, image in enumerate(images):
            draw_image(panel, image, left=1.1 * column, top=1.25 * row)
            if column:
                share = accuracy[kind][column - 1]
                color = RIGHT if share >= 0.5 else WRONG
                place = (1.1 * column + 0.5, 1.25 * row + 1.02)
                panel.text(*place, f"{share:.1%}", ha="center", va="top", fontsize=9, color=color)
    panel.set(xlim=(0, 1.1 * columns), ylim=(1.25 * len(rows), 0), aspect="equal")
    panel.set_xticks(1.1 * np.arange(columns) + 0.5, labels=["unharmed", *map(str, range(1, columns))])
    panel.set_yticks(1.25 * np.arange(len(rows)) + 0.5, labels=list(rows))
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return figure
