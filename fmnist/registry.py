"""Named things that a user can choose, and the answer to a name that isn't there.

`MODELS` is filled by `fmnist.models`, `DATASETS` by `fmnist.data`, each on import.
"""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from fmnist.errors import FmnistError

Entry = TypeVar("Entry")


def unknown(kind: str, received: str, choices: Iterable[str]) -> FmnistError:
    """The error for a name that isn't among the choices, with the nearest one if any is near."""
    choices = list(choices)
    cutoff = 1.0 if received.isdigit() else 0.5  # 91 isn't 95 misspelt
    near = get_close_matches(received, choices, n=1, cutoff=cutoff)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return FmnistError(f"unknown {kind} {received!r}.{hint} Choose from: {', '.join(choices)}")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in the order in which they were added."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Adds an entry.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


MODELS: Registry[Any] = Registry("model")
DATASETS: Registry[Any] = Registry("dataset")
