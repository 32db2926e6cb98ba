"""The errors that are printed on one line: the user's to mend, exit status 2, and a lost rank, exit status 1."""

import difflib
import io
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

MANY = 45  # names; a sweep has thousands of cells


class UsageError(ValueError):
    """What was wrong, where, and what to do, in one sentence."""

    def __init__(self, words: object) -> None:
        super().__init__(one_line(words))


class RankFailure(RuntimeError):
    """Which of several ranks failed, how, and what to do, in one sentence. The run stopped; its ledger and transcript are whole.

    `sound`: the last step at which all ranks had the same weights, where they have not any more.
    """

    sound: int | None = None


@contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """Adds the words of a UsageError of its block to the faults, once each, and goes on behind the block."""
    try:
        yield
    except UsageError as error:
        if str(error) not in faults:
            faults.append(str(error))


def refuse(faults: Collection[str], what: str = "faults") -> None:
    """Raises one UsageError with all of these faults, if there are any."""
    if faults:
        count = f"{len(faults)} {what}: " if len(faults) > 1 else ""
        raise UsageError(count + "; ".join(faults))


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One line that names the nearest right name, or else all, or of very many the first."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    listed = known if len(known) <= MANY else [*known[:3], f"{len(known) - 3} more"]
    return f"unknown {kind} {name!r}: " + (
        f"did you mean {near[0]!r}?" if near else f"known are {', '.join(listed)}"
    )


def one_line(words: object) -> str:
    """A name may hold a line's end: it is told as \\n."""
    return "\\n".join(str(words).splitlines())


def let_every_print_pass() -> None:
    """In any locale: a character that the terminal's encoding lacks is printed as its number, and no print fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
