"""The one error that is the user's to mend: printed on one line, exit status 2."""


class UsageError(ValueError):
    """What was wrong, where, and what to do, in one sentence."""
