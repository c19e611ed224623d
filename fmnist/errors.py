"""The one error type that a user of the platform can mend."""


class FmnistError(Exception):
    """What happened, what was expected, and what to type next, in one line."""
