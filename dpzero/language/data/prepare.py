"""Everything that needs the network or is the same for many runs, done once: assets, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...errors import UsageError
from ..models import objective, weights
from . import assets, tasks
from .datasets import ALL, Draw


def fetch(names: Iterable[str], log: Callable[[str], object] = print) -> dict[str, str]:
    """Fill the cache with these assets; name -> SHA-256 of the contents."""
    names = sorted(set(names))
    assets.ensure(names, log=log)
    return {name: assets.digest(name) for name in names}


def prepare(readings: Iterable[tuple[str, str, int, Draw]], log: Callable[[str], object] = print) -> dict:
    """For (task, model, max_length, draw): all rows, then weights in the cache, then texts tokenized. Returns digests and counts, no
    machine's paths.

    A task or a model that cannot be had stops no other. Raises UsageError at the end, with the reason, or all of them.
    """
    made, wanted = _Preparation(log), sorted(set(readings))
    draws = {task: draw for task, *_, draw in reversed(wanted)}  # one is enough: the rows are the same
    there = made.each(made.rows, draws.items())
    wanted = [reading for reading in wanted if (reading[0], draws[reading[0]]) in there]
    there = made.each(made.weights, {(model,) for _, model, *_ in wanted})
    made.each(made.tokens, [reading for reading in wanted if reading[1:2] in there])
    if made.reasons:
        one, *more = made.reasons
        raise UsageError(
            f"{len(made.reasons)} things cannot be had: {'; '.join(made.reasons)}" if more else one
        )
    return {"assets": dict(sorted(made.assets.items())), "tokens": made.counts}


class _Preparation:
    """What is there so far, and why the rest is not."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self.log = log
        self.assets: dict[str, str] = {}
        self.counts: dict[str, dict] = {}
        self.reasons: list[str] = []

    def each(self, part: Callable[..., None], readings: Iterable[tuple]) -> set[tuple]:
        """Those of which this part could be made."""
        there = set()
        for reading in sorted(readings):
            try:
                part(*reading)
                there.add(reading)
            except UsageError as error:
                self.log(f"{reading[0]}: {error}")
                self.reasons += [] if str(error) in self.reasons else [str(error)]
        return there

    def rows(self, task: str, draw: Draw) -> None:
        self.assets |= fetch(tasks.assets_of(task), self.log)
        self.log(f"{task}: reading its rows")
        _ = tasks.load(task, draw).splits

    def weights(self, model: str) -> None:
        self.assets |= fetch(weights.assets_of(model), self.log)
        weights.fetch(model)

    def tokens(self, task: str, model: str, max_length: int, draw: Draw) -> None:
        self.log(f"{task}: tokenizing for {model}, at most {max_length} tokens")
        splits = objective.encode(task, model, max_length, draw)
        drawn = "" if draw == ALL else "/" + "-".join(map(str, draw))
        self.counts[f"{task}/{model}/{max_length}{drawn}"] = {
            split: {"examples": len(part), "tokens": part.token_count} for split, part in splits.items()
        }
