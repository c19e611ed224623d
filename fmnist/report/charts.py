"""Charts as SVG: drawn here, coloured by the page's style sheet, alive by its script.

What has a `data-tip` shows it under the pointer and in focus; what has a `data-group` is hidden by the filter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from fmnist.report.markup import Element, element

WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 18, 48
NUM_COLOURS = 7
_ids = count(1)


@dataclass(frozen=True)
class Look:
    """What tells a group's marks from others: the colour and shape of its model, the fill of its variant."""

    group: str
    colour: int
    variant: int

    @property
    def style(self) -> str:
        return f"--c: var(--m{self.colour % NUM_COLOURS})"

    @property
    def dash(self) -> str | None:
        return (None, "7 4", "2 4", "10 3 2 3")[self.variant % 4]


@dataclass(frozen=True)
class Mark:
    """A point with what may be its interval."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str
    tip: str
    look: Look


@dataclass(frozen=True)
class Line:
    """A line through points, each of which has a tip of its own."""

    points: Sequence[tuple[float, float]]
    tips: Sequence[str]
    label: str
    tip: str
    look: Look


@dataclass(frozen=True)
class Scale:
    """Turns values into places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if self.high / self.low < 300 else (1,)
            return [v for e in exponents for d in digits if self.low <= (v := d * 10.0**e) <= self.high]
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def percent(value: float) -> str:
    """A share as an axis says it."""
    return f"{100 * value:.4g}%"


def number(value: float) -> str:
    """A number as an axis says it."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def scatter(
    marks: Sequence[Mark], front: Sequence[int], *, title: str, description: str, x_label: str, log: bool = True
) -> Element:
    """Shares against a cost; the marks of the front are joined by steps."""
    x_scale = _scale([mark.x for mark in marks], LEFT, WIDTH - RIGHT, log=log)
    ends = [each for mark in marks for each in (mark.low, mark.high, mark.y) if each is not None]
    y_scale = _scale(ends, HEIGHT - BOTTOM, TOP)
    joined = sorted((marks[place] for place in front), key=lambda mark: mark.x)
    path = "".join(
        f"M{x_scale(mark.x)} {y_scale(mark.y)}" if not place else f"H{x_scale(mark.x)}V{y_scale(mark.y)}"
        for place, mark in enumerate(joined)
    )
    drawn = [element("path", d=f"{path}H{WIDTH - RIGHT}", class_="front")] if joined else []
    taken: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: mark.y, reverse=True):
        x, y = x_scale(mark.x), y_scale(mark.y)
        at = y + 4
        while any(abs(at - other) < 14 and abs(x - there) < 150 for there, other in taken):
            at += 14
        taken.append((x, at))
        length = 11 + 7 * len(mark.label)
        crowded = any(
            0 < x_scale(other.x) - x < length and abs(y_scale(other.y) - at) < 16
            for other in marks
            if other is not mark
        )
        left = (crowded or x + length > WIDTH) and x - length > 0
        bar = [] if mark.low is None or mark.high is None else [_bar(x, y_scale(mark.low), y_scale(mark.high))]
        drawn.append(
            _mark(
                mark,
                *bar,
                _shape(x, y, mark.look),
                element("text", mark.label, x=x - 11 if left else x + 11, y=at, class_="end" if left else None),
            )
        )
    axes = _axes(x_scale, y_scale, x_label=x_label, y_label="test accuracy", x_text=number, y_text=percent)
    return _svg(title, description, axes, drawn)


def lines(
    drawn: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    text: Callable[[float], str],
) -> Element:
    """Lines over whole numbers, laid over each other."""
    xs = [x for line in drawn for x, _ in line.points]
    x_scale = Scale(min(xs), max(max(xs), min(xs) + 1), LEFT + 6, WIDTH - RIGHT)
    y_scale = _scale([y for line in drawn for _, y in line.points], HEIGHT - BOTTOM, TOP)
    shown = []
    for line in drawn:
        path = "".join(
            f"{'L' if place else 'M'}{x_scale(x)} {y_scale(y)}" for place, (x, y) in enumerate(line.points)
        )
        kind = "dot" if len(line.points) > 1 else "dot alone"
        dots = [
            element("circle", cx=x_scale(x), cy=y_scale(y), r=5, class_=kind, data_tip=tip)
            for (x, y), tip in zip(line.points, line.tips, strict=True)
        ]
        path_of = element("path", d=path, class_="line", stroke_dasharray=line.look.dash)
        shown.append(_mark(line, element("path", d=path, class_="reach"), path_of, *dots))
    axes = _axes(x_scale, y_scale, x_label=x_label, y_label=y_label, x_text=number, y_text=text)
    return _svg(title, description, axes, shown)


def intervals(
    marks: Sequence[Mark],
    *,
    title: str,
    description: str,
    x_label: str,
    text: Callable[[float], str],
    log: bool = False,
    reference: float | None = None,
) -> Element:
    """A row for each mark: its `x` between `low` and `high`; a line stands at the reference."""
    row, bottom = 44, TOP + 44 * len(marks)
    ends = [each for mark in marks for each in (mark.low, mark.high, mark.x) if each is not None]
    scale = _scale([*ends, *([reference] if reference is not None else [])], 8, WIDTH - RIGHT, log=log)
    drawn = []
    for tick in scale.ticks():
        drawn += [
            element("path", d=f"M{scale(tick)} {TOP - 8}V{bottom}", class_="grid"),
            element("text", text(tick), x=scale(tick), y=bottom + 18, class_="tick middle"),
        ]
    if reference is not None:
        drawn.append(element("path", d=f"M{scale(reference)} {TOP - 8}V{bottom}", class_="reference"))
    drawn.append(element("text", x_label, x=WIDTH / 2, y=bottom + BOTTOM - 8, class_="axis middle"))
    for place, mark in enumerate(marks):
        y = TOP + row * place + 30
        low, high = (scale(mark.x if end is None else end) for end in (mark.low, mark.high))
        drawn.append(
            _mark(
                mark,
                element("rect", x=0, y=y - 30, width=WIDTH, height=row, class_="reach-box"),
                element("text", mark.label, x=8, y=y - 12),
                element("path", d=f"M{low} {y}H{high}", class_="bar"),
                _shape(scale(mark.x), y, mark.look),
            )
        )
    return _svg(title, description, [], drawn, size=(WIDTH, bottom + BOTTOM))


def _scale(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Scale:
    """A scale with some room around the values."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.12, 1.3)
        return Scale(low / room, high * room, start, end, log=True)
    room = 0.08 * (high - low) or abs(high) / 20 or 1.0
    return Scale(low - room, high + room, start, end)


def _step(length: float) -> float:
    """Of ticks, so that there are four to eight."""
    power = 10.0 ** math.floor(math.log10(length / 4))
    return max(step * power for step in (1, 2, 5, 10) if length / (step * power) >= 3)


def _axes(
    x_scale: Scale,
    y_scale: Scale,
    *,
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
) -> list[Element]:
    bottom, drawn = HEIGHT - BOTTOM, []
    for tick in y_scale.ticks():
        drawn += [
            element("path", d=f"M{LEFT} {y_scale(tick)}H{WIDTH - RIGHT}", class_="grid"),
            element("text", y_text(tick), x=LEFT - 8, y=y_scale(tick) + 4, class_="tick end"),
        ]
    for tick in x_scale.ticks():
        if x_scale.log or tick == round(tick):
            drawn.append(element("text", x_text(tick), x=x_scale(tick), y=bottom + 18, class_="tick middle"))
    return [
        *drawn,
        element("path", d=f"M{LEFT} {bottom}H{WIDTH - RIGHT}", class_="base"),
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, class_="axis middle"),
        element("text", y_label, x=4, y=11, class_="axis"),
    ]


def _mark(of: Mark | Line, *parts: Element) -> Element:
    """What belongs to a mark or line, to be hidden and focused together."""
    return element(
        "g",
        *parts,
        class_="mark",
        style=of.look.style,
        data_group=of.look.group,
        data_tip=of.tip,
        tabindex="0",
        role="img",
        aria_label=of.tip.replace("\n", "; "),
    )


def _bar(x: float, low: float, high: float) -> Element:
    return element("path", d=f"M{x} {low}V{high}", class_="bar")


def _shape(x: float, y: float, look: Look) -> Element:
    """The mark of a model; hollow for each second variant."""
    paths = (
        "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z",
        "M-5.5 -5.5H5.5V5.5H-5.5Z",
        "M0 -7L6.5 5H-6.5Z",
        "M0 -7.5L7 0L0 7.5L-7 0Z",
        "M0 7L6.5 -5H-6.5Z",
        "M-2.5 -7H2.5V-2.5H7V2.5H2.5V7H-2.5V2.5H-7V-2.5H-2.5Z",
        "M-7 -3L0 -7.5L7 -3L4.5 5.5H-4.5Z",
    )
    hollow = "shape hollow" if look.variant % 2 else "shape"
    return element("path", d=paths[look.colour % NUM_COLOURS], transform=f"translate({x} {y})", class_=hollow)


def _svg(
    title: str,
    description: str,
    axes: Sequence[Element],
    drawn: Sequence[Element],
    *,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> Element:
    key = f"chart-{next(_ids)}"
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-text"),
        element("g", *axes, aria_hidden="true"),
        *drawn,
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="group",
        aria_labelledby=f"{key}-title {key}-text",
    )


def swatch(look: Look) -> Element:
    """The colour of a group, for a key; hollow where its marks are, and its lines broken."""
    kind = "swatch open" if look.variant % 2 else "swatch"
    return element("i", class_=kind, style=look.style, aria_hidden="true")
