"""Options: the fields of a settings record, what is typed for them, and the text of them again.

A value arrives as text, and `parse` turns it, once, into a checked record of what the text means; an empty text
stands for the default, but for a list, which can't be empty.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fmnist.errors import FmnistError
from fmnist.registry import unknown

AUTO = "auto"
Settings = TypeVar("Settings")


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    parse: Callable[[str], Any] | None = None,
    text: Callable[[Any], str] | None = None,
) -> Any:
    """A dataclass field with its help and its bounds; `choices` may be a registry filled later.

    Args:
        default: What it is where nothing is typed.
        help: For people.
        choices: What it, or each of its values, may be.
        minimum: The least that it, or each of its values, may be.
        above: What it, or each of its values, must be greater than.
        below: What it, or each of its values, must be less than.
        parse: Gives the value of a text, where its type doesn't say how.
        text: Gives the text of a value again.
    """
    bounds = {"choices": choices, "minimum": minimum, "above": above, "below": below}
    metadata = {"help": help, **bounds, "parse": parse, "text": text}
    return dataclasses.field(default=default, metadata=metadata)


def limit(name: str, help: str) -> Any:
    """A dataclass field that holds a number above 0, or, empty, sets no limit."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise FmnistError(f"{name}: expected a number above 0, or nothing; received {text!r}")
        return value

    return option(None, help, parse=parse, text=lambda value: "" if value is None else f"{value:g}")


def parse(settings: type[Settings], texts: Mapping[str, str]) -> Settings:
    """The settings that texts such as `{"epochs": "5"}` spell; what is left out or empty is the default.

    An empty list is kept, and so refused.

    Raises:
        FmnistError: If a name is unknown, or a text is not of its field's type or within its bounds.
    """
    hints = get_type_hints(settings)
    fields = {field.name: field for field in dataclasses.fields(settings)}  # type: ignore[arg-type]  # any dataclass
    values = {}
    for name, text in texts.items():
        if name not in hints:
            raise unknown("parameter", name, hints)
        own = fields[name].metadata["parse"]
        is_list = own is None and get_origin(hints[name]) is tuple
        if text != "" or is_list:
            values[name] = own(text) if own else (_values if is_list else _value)(name, text, hints[name])
    return settings(**values)


def as_text(field: "dataclasses.Field[Any]", value: Any) -> str:
    """A value of a field as a user would type it."""
    if field.metadata["text"]:
        return str(field.metadata["text"](value))
    if isinstance(value, tuple):
        return ",".join(as_text(field, each) for each in value)
    if value is None:
        return AUTO
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.removesuffix(".0") if isinstance(value, float) else text


def texts(settings: Any) -> dict[str, str]:
    """All settings as a user would type them: what `parse` takes."""
    return {field.name: as_text(field, getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def default_text(field: "dataclasses.Field[Any]") -> str:
    """The default of a field as a user would type it."""
    return as_text(field, field.default)


def check(settings: Any) -> None:
    """Checks every field of a settings record against its choices and bounds.

    Raises:
        FmnistError: At the first field that is outside.
    """
    for field in dataclasses.fields(settings):
        value, bounds = getattr(settings, field.name), field.metadata
        if bounds["parse"]:
            continue  # which checks
        is_list = isinstance(value, tuple)
        for each in value if is_list else (value,):
            if each is None or isinstance(each, bool):
                continue
            if bounds["choices"] is not None and each not in bounds["choices"]:
                auto = [AUTO] if field.default is None else []
                kind = field.name.removesuffix("s") if is_list else field.name
                raise unknown(kind, each, [*auto, *bounds["choices"]])
            if bounds["minimum"] is not None and not bounds["minimum"] <= each < math.inf:
                raise FmnistError(f"{field.name}: expected at least {bounds['minimum']}, received {each}")
            if bounds["below"] is not None and not each < bounds["below"]:
                raise FmnistError(f"{field.name}: expected less than {bounds['below']}, received {each}")
            if bounds["above"] is not None and not bounds["above"] < each < math.inf:
                raise FmnistError(f"{field.name}: expected a number above {bounds['above']}, received {each}")


def _values(name: str, text: str, hint: Any) -> tuple[Any, ...]:
    texts = tuple(piece.strip() for piece in text.split(","))
    if not all(texts) or len(set(texts)) < len(texts):
        raise FmnistError(f"{name}: expected one or more values joined by commas, each once; received {text!r}")
    return tuple(_value(name, each, get_args(hint)[0]) for each in texts)


def _value(name: str, text: str, hint: Any) -> Any:
    optional = isinstance(hint, UnionType)
    kind = get_args(hint)[0] if optional else hint
    if optional and text == AUTO:
        return None
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        auto = ", or auto" if optional else ""
        raise FmnistError(f"{name}: expected {expected}{auto}; received {text!r}") from None
