"""Named values that a text such as `dense=120,84;dropout=0.3` gives, each bounded by an annotation.

`Annotated[int, Range(1, 7)]` is a whole number from 1 to 7, `Annotated[tuple[int, ...], Range(1, 9)]` a list of
them joined by commas, `Annotated[str, ("relu", "tanh")]` one of these words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from fmnist.errors import FmnistError
from fmnist.registry import unknown


@dataclass(frozen=True)
class Range:
    """The numbers that a value (or each number of its list) may be."""

    low: float
    high: float


Fraction = Annotated[float, Range(0, 0.95)]


def parse(text: str, annotations: Mapping[str, Any], *, where: str, whose: str) -> dict[str, Any]:
    """The values that a text spells.

    Args:
        text: `name=value;name=value`.
        annotations: What may be given, by name.
        where: The parameter that the text was typed for.
        whose: What the names are of, for people.

    Raises:
        FmnistError: If a name is unknown, or a value isn't what it may be.
    """
    values = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in annotations:
            raise unknown(whose, name, annotations)
        values[name] = _value(f"{where}: {name}", value, annotations[name])
    return values


def text(values: Mapping[str, Any]) -> str:
    """Values as a user would type them."""
    return ";".join(f"{name}={value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """A value as a user would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(name: str, text: str, annotation: Any) -> Any:
    kind, allowed = get_args(annotation)
    many = get_origin(kind) is tuple
    number = get_args(kind)[0] if many else kind
    if isinstance(allowed, tuple):
        if text not in allowed:
            raise unknown(name.partition(": ")[2], text, allowed)
        return text
    expected = f"{'whole ' if number is int else ''}number{'s joined by commas,' if many else ''}"
    try:
        values = [number(piece) for piece in text.split(",")]
    except ValueError:
        values = []
    if (
        len(values) < 1
        or (len(values) > 1 and not many)
        or not all(allowed.low <= v <= allowed.high for v in values)
    ):
        raise FmnistError(f"{name}: expected {expected} from {allowed.low} to {allowed.high}; received {text!r}")
    return tuple(values) if many else values[0]
