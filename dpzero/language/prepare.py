"""Everything that needs the network or is the same for many runs, done once: assets, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import assets, models, objective, sources, tasks
from .rows import ALL, Draw


def fetch(names: Iterable[str], log: Callable[[str], object] = print) -> dict[str, str]:
    """Fill the cache with these assets; name -> SHA-256 of the contents."""
    names = sorted(set(names))
    assets.ensure(names, log=log)
    return {name: assets.digest(name) for name in names}


def prepare(readings: Iterable[tuple[str, str, int, Draw]], log: Callable[[str], object] = print) -> dict:
    """For (task, model, max_length, draw): weights and data in the cache and texts tokenized. Returns digests and counts, no
    machine's paths."""
    readings = list(readings)
    needed = {asset for task, *_ in readings for asset in tasks.assets_of(task)}
    needed |= {stanza["asset"] for _, m, *_ in readings if "asset" in (stanza := models.catalogue()[m])}
    found = {"assets": fetch(needed, log), "tokens": {}}
    for model in sorted({model for _, model, *_ in readings}):
        sources.fetch(model)
    for task, model, max_length, draw in readings:
        log(f"{task}: tokenizing for {model}, at most {max_length} tokens")
        splits = objective.encode(task, model, max_length, draw)
        drawn = "" if draw == ALL else "/" + "-".join(map(str, draw))
        found["tokens"][f"{task}/{model}/{max_length}{drawn}"] = {
            split: {"examples": len(part), "tokens": part.token_count} for split, part in splits.items()
        }
    return found
