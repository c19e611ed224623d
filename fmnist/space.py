"""What a search may vary: named dimensions, declared beside each model, and the text that narrows them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fmnist.errors import FmnistError
from fmnist.registry import unknown

GRID_VALUES = 3  # of a span on a grid


@dataclass(frozen=True)
class Span:
    """All numbers from low to high, whole ones if both ends are; evenly by their logarithm if `log`."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """Some values of one type."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.values))


Dimension = Span | Choice
Space = Mapping[str, Dimension]
Point = Mapping[str, Any]


def narrow(space: Space, text: str, *, more: Space = MappingProxyType({})) -> dict[str, Dimension]:
    """The space with what a text such as `width=64..512 log, optimizer=adam|adamw, dropout=0.3` leaves of it.

    What is in `more` is there only if the text names it.

    Raises:
        FmnistError: If a name is unknown or stands twice, or what it is to be isn't within what is declared.
    """
    narrowed = dict(space)
    named = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, wanted = (piece.strip() for piece in part.partition("="))
        if name not in space and name not in more:
            raise unknown("dimension of the space", name, {**space, **more})
        if name in named:
            raise FmnistError(f"space: {name} stands twice in {text!r}")
        named.add(name)
        narrowed[name] = _narrow(name, {**more, **space}[name], wanted)
    return narrowed


def size(space: Space) -> float:
    """How many points a space has; infinite where a dimension is continuous."""
    return math.prod(_count(dimension) for dimension in space.values())


def grid(space: Space) -> dict[str, list[Any]]:
    """The values that a grid takes of each dimension: of a span its ends and what lies evenly between."""
    return {name: _grid_values(dimension) for name, dimension in space.items()}


def _narrow(name: str, declared: Dimension, text: str) -> Dimension:
    refused = FmnistError(
        f"space: {name}: expected a range low..high, or values joined by |, within {declared}; received {text!r}"
    )
    ends, _, scale = text.partition(" ")
    if scale.strip() not in ("", "log") or (scale and ".." not in ends):
        raise refused
    kind = type(declared.low if isinstance(declared, Span) else declared.values[0])
    try:
        values = tuple(kind(piece) for piece in ends.split(".." if ".." in ends else "|"))
    except ValueError:
        raise refused from None
    if ".." not in ends and len(set(values)) < len(values):
        raise refused
    if isinstance(declared, Span):
        if not all(declared.low <= value <= declared.high for value in values):
            raise refused
        if ".." not in ends:
            return Choice(values)
        low, high = values if len(values) == 2 else (1, 0)
        log = declared.log or bool(scale)
        if not low < high or (log and low <= 0):
            raise refused
        return Span(low, high, log)
    if ".." in ends:
        if kind is str or len(values) != 2:
            raise refused
        values = tuple(value for value in declared.values if values[0] <= value <= values[1])
    if not values or not set(values) <= set(declared.values):
        raise refused
    return Choice(values)


def _count(dimension: Dimension) -> float:
    if isinstance(dimension, Choice):
        return len(dimension.values)
    return dimension.high - dimension.low + 1 if dimension.whole else math.inf


def _grid_values(dimension: Dimension) -> list[Any]:
    if isinstance(dimension, Choice):
        return list(dimension.values)
    low, high = (math.log(end) if dimension.log else end for end in (dimension.low, dimension.high))
    values = [low + (high - low) * step / (GRID_VALUES - 1) for step in range(GRID_VALUES)]
    values = [math.exp(value) if dimension.log else value for value in values]
    # the ends again: a logarithm and back may fall outside by a rounding
    values = [dimension.low, *values[1:-1], dimension.high]
    return list(dict.fromkeys(round(value) if dimension.whole else value for value in values))
