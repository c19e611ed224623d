"""A command's result as a person reads it at a terminal, where a program gets JSON."""

from collections.abc import Iterator, Mapping
from typing import Any

SHARES = ("accuracy", "calibration_error", "robustness", "f1")  # what is shown in percent
WIDTH = 88  # of what is still shown on one line
TABLES = ("answers", "skipped")  # a person has seen each of their rows already


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A line for each figure; what is too long for one has its parts below it. What isn't known is left out."""
    known = {name: value for name, value in result.items() if not _is_empty(value) and name not in TABLES}
    width = max((len(_words(name)) for name in known), default=0)
    for name, value in known.items():
        text = _text(name, value)
        if len(text) <= WIDTH or not isinstance(value, dict | list):
            yield f"{_words(name):<{width}}  {text}"
            continue
        yield _words(name)
        for key, part in value.items() if isinstance(value, dict) else (("-", each) for each in value):
            if not _is_empty(part):
                yield f"  {_words(key)}  {_text(f'{name} {key}', part)}"


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict):
        if {"mean", "min", "max"} <= set(value):
            mean, low, high = (_text(name, value[key]) for key in ("mean", "min", "max"))
            return mean if low == high else f"{mean} ({low} to {high})"
        parts = {key: _text(f"{name} {key}", part) for key, part in value.items() if not _is_empty(part)}
        return ", ".join(f"{_words(key)} {text}" for key, text in parts.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(name, each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) <= 1 and any(share in name for share in SHARES):
            return f"{value:.2%}"
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("**", "")  # Markdown's bold


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict | list) and not value)


def _words(name: str) -> str:
    return name.replace("num_", "").replace("_", " ")
