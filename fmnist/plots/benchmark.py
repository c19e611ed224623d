"""Figures of a benchmark."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fmnist.plots import NEUTRAL, RIGHT, WRONG


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
    """Bars: how many times as fast, with the least and greatest of a round.

    Args:
        labels: `(ratios,)`.
        figures: Median, least, greatest of each over the rounds.
    """
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(labels)), layout="constrained")
    panel = figure.subplots()
    for place, (median, low, high) in enumerate(figures):
        panel.barh(place, median, color=RIGHT if median >= 1 else WRONG, alpha=0.75)
        panel.plot([low, high], [place, place], color="black", linewidth=1.5)
        panel.annotate(f"{median:.2f}x", (max(median, high), place), (6, -3), textcoords="offset points")
    panel.axvline(1, color="#999999", linestyle=":")
    panel.set(yticks=range(len(labels)), xlabel="times as fast: median of the rounds, and least to greatest")
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
