"""Work that needs the network or is the same for many runs, done once: downloads and tokenization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..errors import noting, refuse
from .data import assets, tasks
from .data.datasets import ALL, Draw
from .models import encoding, model_catalogue

Log = Callable[[str], object]
Reading = tuple[str, str, int, Draw]  # task, model, max_length, draw


def fetch(names: Iterable[str], log: Log = print) -> dict[str, str]:
    """Download assets that are not in the cache. Returns name -> SHA-256 of the contents."""
    names = sorted(set(names))
    assets.ensure(names, log=log)
    return {name: assets.digest(name) for name in names}


def prefetch(readings: Iterable[Reading], log: Log = print) -> dict[str, dict]:
    """Read all rows, then download all weights, then tokenize all texts.

    A task or a model that fails does not stop the others.

    Returns:
        {"assets": name -> SHA-256, "tokens": reading -> split -> numbers of examples and tokens}, without
        paths of this machine.

    Raises:
        UsageError: at the end, with every reason for which something failed.
    """
    digests: dict[str, str] = {}
    counts: dict[str, dict] = {}
    failed: set[str] = set()
    reasons: list[str] = []

    @contextmanager
    def note_failure(name: str) -> Iterator[None]:
        here: list[str] = []
        with noting(here):
            yield
        for reason in here:
            log(f"{name}: {reason}")
            failed.add(name)
        reasons.extend(reason for reason in here if reason not in reasons)

    wanted = sorted(set(readings))
    draws = {task: draw for task, *_, draw in reversed(wanted)}  # one draw of a task reads all its rows
    for task, draw in sorted(draws.items()):
        with note_failure(task):
            digests |= fetch(tasks.assets_of(task), log)
            log(f"{task}: reading its rows")
            _ = tasks.load(task, draw).splits
    for model in sorted({model for task, model, *_ in wanted if task not in failed}):
        with note_failure(model):
            digests |= fetch(filter(None, [model_catalogue.stanza(model).get("asset")]), log)
            model_catalogue.fetch(model)
    wanted = [reading for reading in wanted if failed.isdisjoint(reading[:2])]
    for task, model, max_length, draw in wanted:
        with note_failure(task):
            log(f"{task}: tokenizing for {model}, at most {max_length} tokens")
            splits = encoding.encode(tasks.load(task, draw), model, max_length)
            suffix = "" if draw == ALL else "/" + "-".join(map(str, draw))
            counts[f"{task}/{model}/{max_length}{suffix}"] = {
                split: {"examples": len(part), "tokens": part.token_count} for split, part in splits.items()
            }
    refuse(reasons, "things failed")
    return {"assets": dict(sorted(digests.items())), "tokens": counts}
