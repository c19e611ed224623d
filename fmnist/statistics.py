"""Figures of repeated measurements: never one number without the spread around it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Spread:
    """What repeated measurements say together."""

    n: int
    mean: float
    median: float
    min: float
    max: float
    std: float | None = None
    """Of the sample (n - 1); None for one measurement."""
    ci95_low: float | None = None
    ci95_high: float | None = None
    """The interval that covers the mean in 95 of 100 such samples, by Student's t; None for one."""


def spread(values: Sequence[float]) -> Spread:
    """Sums up at least one value."""
    mean = statistics.fmean(values)
    known = Spread(n=len(values), mean=mean, median=statistics.median(values), min=min(values), max=max(values))
    if len(values) == 1:
        return known
    from scipy import special  # a quarter of a second; scipy.stats takes two of them

    std = statistics.stdev(values)
    half = float(special.stdtrit(len(values) - 1, 0.975)) * std / math.sqrt(len(values))
    return replace(known, std=std, ci95_low=mean - half, ci95_high=mean + half)
