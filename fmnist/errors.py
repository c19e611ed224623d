"""What ends a command early: an error that a user can mend, or a decision against what was asked for."""

from typing import Any


class FmnistError(Exception):
    """What happened, what was expected, and what to type next, in one line."""


class Refused(Exception):  # noqa: N818  # no error: the command did its work
    """A decision against what was asked for, in one line, with its evidence."""

    def __init__(self, reason: str, result: dict[str, Any]) -> None:
        super().__init__(reason)
        self.result = result
