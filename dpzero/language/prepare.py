"""Everything that needs the network or is the same for many runs, done once: assets, tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import assets, examples, models, tasks


def fetch(names: Iterable[str], log: Callable[[str], object] = print) -> dict[str, str]:
    """Fill the cache with these assets; name -> SHA-256 of the contents."""
    names = sorted(set(names))
    assets.ensure(names, log=log)
    return {name: assets.digest(name) for name in names}


def prepare(triples: Iterable[tuple[str, str, int]], log: Callable[[str], object] = print) -> dict:
    """For (task, model, max_length): assets in the cache and texts tokenized. Returns digests and counts, no machine's paths."""
    triples = list(triples)
    needed = {asset for task, _, _ in triples for asset in tasks.assets_of(task)}
    needed |= {
        models.catalogue()[model]["asset"] for _, model, _ in triples if "asset" in models.catalogue()[model]
    }
    found = {"assets": fetch(needed, log), "tokens": {}}
    for task, model, max_length in triples:
        log(f"{task}: tokenizing for {model}, at most {max_length} tokens")
        splits = examples.encode(task, model, max_length)
        found["tokens"][f"{task}/{model}/{max_length}"] = {
            split: {"examples": len(part), "tokens": len(part.tokens)} for split, part in splits.items()
        }
    return found
