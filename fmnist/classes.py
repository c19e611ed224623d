"""Names of classes, as people write them on folders."""

import re
import unicodedata
from collections.abc import Sequence


def named(folder: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """The classes that a folder's name stands for, any of which is right; none if it names no class.

    Case and punctuation don't matter. `A+B` names both; `A`, of a class `A/B` or `A+B`, names that class.
    """
    labels: dict[str, int] = {}
    for label, name in enumerate(class_names):
        labels.setdefault(_plain(name), label)
    for label, name in enumerate(class_names):  # after all whole names, which count first
        for part in re.split(r"[/+]", name):
            labels.setdefault(_plain(part), label)
    labels.pop("", None)
    parts = [folder] if _plain(folder) in labels else folder.split("+")
    found = {labels.get(_plain(part)) for part in parts}
    return tuple(sorted(label for label in found if label is not None)) if None not in found else ()


def _plain(name: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())
