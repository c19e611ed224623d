"""Ratios of a benchmark's rows, beside what sets the two apart.

A row is a record of `fmnist.benchmark.grid.sum_up`, of this run or read back from another's benchmark.json.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fmnist import machine
from fmnist.benchmark.grid import CELL, CONDITIONS, Row
from fmnist.options import AUTO
from fmnist.registry import MODELS
from fmnist.settings import PEERS
from fmnist.statistics import Spread, spread

# What must agree for two figures to be of one thing.
COMPARED = ("precision", "images", "dataset", "commit", *CONDITIONS)


def differences(one: Row, other: Row) -> list[str]:
    """What sets two rows apart beside what was asked for: a ratio of the two is not of the device alone."""
    facts = [
        {
            name.removeprefix("device."): machine.UNKNOWN if each[name] is None else str(each[name])
            for name in COMPARED
        }
        | each["environment"]["machine"]
        | each["environment"]["versions"]
        for each in (one, other)
    ]
    names = dict.fromkeys((*facts[0], *facts[1]))
    values = [(name, *(fact.get(name, "none") for fact in facts)) for name in names]
    return [f"{name}: {left} / {right}" for name, left, right in values if left != right]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast a row is as its reference."""

    row: Row
    reference: Row
    label: str
    times_as_fast: Spread
    """Over the rounds, of which each gives one ratio, of its two medians."""
    differences: list[str]


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Each epoch time against stock fit, the same on the CPU, and the same with a batch worked on whole; the
    compiled trainer's against PyTorch's too."""
    timed = {tuple(row[name] for name in CELL): row for row in rows if row["epoch_seconds_median"]}
    found = []
    for row in timed.values():
        peers = PEERS if row["trainer"] == "compiled" else ()
        for label, change in (
            ("stock fit", {"trainer": "fit", "precision": "float32", "batch_parts": AUTO}),
            ("CPU", {"device": "cpu"}),
            ("whole batches", {"batch_parts": "1"}),
            *((name, {"trainer": name, "backend": "torch", "batch_parts": AUTO}) for name in peers),
        ):
            other = timed.get(tuple((row | change)[name] for name in CELL))
            if other is not None and other is not row:
                found.append(ratio(row, other, label))
    return found


def ratio(row: Row, reference: Row, label: str) -> Ratio:
    """How many times as fast a row is as another."""
    rounds = [
        statistics.median(theirs) / statistics.median(ours)
        for ours, theirs in zip(row["epoch_seconds_by_round"], reference["epoch_seconds_by_round"], strict=False)
    ]
    return Ratio(row, reference, label, spread(rounds), differences(row, reference))


def crossovers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The maps of `fmnist.plots.crossover`, one for each way of training that was timed on CPU and GPU."""
    times: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        if row["epoch_seconds_median"]:
            parts = () if row["batch_parts"] == AUTO else (f"batch_parts {row['batch_parts']}",)
            way = (row["model"], row["backend"], row["trainer"], row["precision"], *parts)
            times.setdefault(way, {})[row["device"], row["width"], row["batch_size"]] = row
    found = []
    for way, cells in times.items():
        widths, sizes = (sorted({place[index] for place in cells}) for index in (1, 2))
        epochs = MODELS[way[0]].recipe.epochs

        maps = {
            name: np.array([[_gpu_gain(cells, width, size, each) for size in sizes] for width in widths])
            for name, each in (("steady state", None), (f"{epochs} epochs, with start-up", epochs))
        }
        if not np.isnan(maps["steady state"]).all():
            found.append({"title": ", ".join(way), "widths": widths, "batch_sizes": sizes, "maps": maps})
    return found


def _gpu_gain(cells: Mapping[Any, Row], width: float, size: int, epochs: int | None) -> float:
    """CPU time over GPU time: of an epoch, or of so many with start-up; NaN where one wasn't measured."""
    seconds = []
    for device in ("cpu", "gpu"):
        row = cells.get((device, width, size))
        if row is None or (epochs and row["startup_seconds"] is None):
            return math.nan
        of_epoch = row["epoch_seconds_median"]
        seconds.append(epochs * of_epoch + row["startup_seconds"] if epochs else of_epoch)
    return float(seconds[0] / seconds[1])
