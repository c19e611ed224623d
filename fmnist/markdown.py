"""Tables and figures as people read them, in Markdown."""

import math
from collections.abc import Sequence

from fmnist.statistics import Spread


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def three_digits(value: float) -> str:
    """A figure to three digits, or to the last one before the point: `2.98`, `1,586`."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def number(value: float | None, form: str, *, none: str = "unknown") -> str:
    """A number in a format of Python's, or a word for none."""
    return none if value is None else format(value, form)


def median(figures: Spread | None, *, scale: float = 1.0) -> str:
    """`median (min-max, n)`, to three digits of the median."""
    if figures is None:
        return "not measured"
    values = [scale * value for value in (figures.median, figures.min, figures.max)]
    digits = max(2 - math.floor(math.log10(values[0])), 0)
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}-{high}, {figures.n})"


def mean_percent(figures: Spread | None, *, none: str = "unknown") -> str:
    """`mean (95 % interval, n)` of shares, in percent; for one measurement `mean (1)`."""
    if figures is None:
        return none
    known = figures.ci95_low is not None and figures.ci95_high is not None
    between = f"{figures.ci95_low:.2%}-{figures.ci95_high:.2%}, " if known else ""
    return f"{figures.mean:.2%} ({between}{figures.n})"
