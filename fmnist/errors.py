"""What ends a command otherwise than well: an error that a user can mend, or an outcome with a code of its own."""

from typing import Any


class FmnistError(Exception):
    """What happened, what was expected, and what to type next, in one line."""


class Outcome(Exception):  # noqa: N818  # no error: the command did its work
    """What a command came to where that has an exit code of its own: in one line, with its result."""

    code: int
    word: str

    def __init__(self, reason: str, result: dict[str, Any]) -> None:
        super().__init__(reason)
        self.result = result


class Refused(Outcome):
    """A decision against what was asked for."""

    code, word = 3, "refused"


class Incomplete(Outcome):
    """All was done but what could not be."""

    code, word = 1, "incomplete"
