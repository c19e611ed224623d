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


def difference_band(values: Sequence[float], *, num_compared: int) -> float:
    """What the difference of two more such values stays within in 95 of 100 cases.

    By Student's t, for values that are spread normally; Bonferroni's correction lets it hold for several figures
    at once.

    Args:
        values: At least two of one kind, each on its own.
        num_compared: How many figures that is.
    """
    from scipy import special

    quantile = float(special.stdtrit(len(values) - 1, 1 - 0.025 / num_compared))
    return quantile * statistics.stdev(values) * math.sqrt(2)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The interval that covers a share in 95 of 100 such samples, from `hits` of `n`.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    from scipy import special

    z = float(special.ndtri(0.975))
    share = hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def agresti_min(one: int, other: int, n: int) -> tuple[float, float]:
    """The interval that covers the difference of two paired shares in 95 of 100 such samples.

    It has a width even where no pair differs, as a bootstrap's has not.

    Args:
        one: Pairs that the first alone got right.
        other: Pairs that the second alone got right.
        n: All pairs.

    Source: Agresti and Min 2005, https://doi.org/10.1002/sim.1781: Wald's, after half a pair is added of each kind
    """
    from scipy import special

    difference = (one - other) / (n + 2)
    half = float(special.ndtri(0.975)) * math.sqrt(((one + other + 1) / (n + 2) - difference**2) / (n + 2))
    return difference - half, difference + half


def mcnemar(one: int, other: int) -> float:
    """The exact two-sided p of McNemar's test: how often a fair coin splits so unevenly.

    Args:
        one: Pairs that the first alone got right.
        other: Pairs that the second alone got right.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996
    """
    from scipy import special

    return min(1.0, 2 * float(special.bdtr(min(one, other), one + other, 0.5)))


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p of Welch's t-test: how often samples of one mean, of two values or more, differ so much.

    Source: Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28
    """
    from scipy import special

    errors = [statistics.variance(values) / len(values) for values in (one, other)]
    difference = abs(statistics.fmean(one) - statistics.fmean(other))
    if not sum(errors):
        return 0.0 if difference else 1.0
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(values) - 1) for error, values in zip(errors, (one, other), strict=True)
    )
    return float(2 * special.stdtr(freedom, -difference / math.sqrt(sum(errors))))


def holm(values: Sequence[float]) -> list[float]:
    """The p of several tests such that one in twenty reports, not tests, finds what isn't there at 0.05.

    Source: Holm 1979, https://www.jstor.org/stable/4615733
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for done, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
        largest = max(largest, min(1.0, (len(values) - done) * values[place]))
        adjusted[place] = largest
    return adjusted
