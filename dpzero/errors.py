"""The errors that are printed on one line: the user's to mend, exit status 2, and a lost rank, exit status 1."""


class UsageError(ValueError):
    """What was wrong, where, and what to do, in one sentence."""


class RankFailure(RuntimeError):
    """Which of several ranks failed, how, and what to do, in one sentence. The run stopped; its ledger and transcript are whole.

    `sound`: the last step at which all ranks had the same weights, where they have not any more.
    """

    sound: int | None = None
