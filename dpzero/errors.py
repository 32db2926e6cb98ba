"""The errors that are printed on one line: the user's to mend, exit status 2, and a lost rank, exit status 1."""

import difflib
import io
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

MANY = 45  # names; a sweep has thousands of cells
SYNONYMS = {  # what other programs and papers call it
    "learning_rate": ("lr", "step_size", "stepsize", "eta", "rate"),
    "smoothing": ("lambda", "lam", "lambda_", "mu", "zo_eps", "smoothing_parameter"),
    "clip": ("c", "clip_norm", "clipping_threshold", "max_grad_norm", "l2_norm_clip", "threshold"),
    "batch_size": ("bs", "batch", "expected_batch_size", "per_device_train_batch_size"),
    "steps": ("max_steps", "num_steps", "iterations", "num_iterations", "t", "epochs", "num_train_epochs"),
    "noise_scale": ("sigma", "noise", "noise_multiplier", "noise_std", "std"),
    "epsilon": ("eps", "target_epsilon", "privacy_budget"),
    "delta": ("target_delta",),
    "dataset_size": ("n", "sample_size", "num_examples"),
    "max_length": ("max_len", "max_seq_length"),
    "seed": ("random_state", "random_seed"),
}
_MEANINGS = {synonym: name for name, synonyms in SYNONYMS.items() for synonym in synonyms}
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


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


def unknown(kind: str, name: object, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """One line that names the nearest right name, or else all, or of very many the first.

    `elsewhere`: what to do instead, for names that would be right in another place.
    """
    known, plain = [str(k) for k in known], str(name).lower().replace("-", "_")
    meaning = _MEANINGS.get(plain, plain)
    if elsewhere and meaning not in known and meaning in elsewhere:
        return f"unknown {kind} {name!r}: {elsewhere[meaning]}"
    near = [meaning] if meaning in known else difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    listed = known if len(known) <= MANY else [*known[:3], f"{len(known) - 3} more"]
    return f"unknown {kind} {name!r}: " + (
        f"did you mean {near[0]!r}?" if near else f"known are {', '.join(listed)}"
    )


def check_names(
    what: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> None:
    """Raise TypeError for the first argument that is not known, with the nearest right name."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{what}: " + unknown("argument", name, known, elsewhere))


def names_checked(
    elsewhere: Mapping[str, str],
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Decorator: an argument of an unknown name is refused with the nearest right one. See `unknown`."""

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        known = [name for name in signature(function).parameters if name not in ("self", "cls")]

        @wraps(function)
        def checked(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
            check_names(function.__qualname__, named, known, elsewhere)
            return function(*arguments, **named)

        return checked

    return decorate


def one_line(words: object) -> str:
    """A name may hold a line's end: it is told as \\n."""
    return "\\n".join(str(words).splitlines())


def let_every_print_pass() -> None:
    """In any locale: a character that the terminal's encoding lacks is printed as its number, and no print fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
