"""The catalogues tasks.yaml, models.yaml and assets.yaml: each is read once, and a stanza is checked when it is asked for.

Nothing that they name is loaded, and no torch: planning reads them, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from dpzero.errors import UsageError
from dpzero.language.data import task_schema

LANGUAGE = Path(__file__).parents[1]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the one in C takes a tenth of the time
    """A key that stands twice is refused: YAML would take the last, silently."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise UsageError(
                    f"{self.name}: the mapping of line {line} has the key {key!r} twice: leave one out"
                )
        return super().construct_mapping(node, deep)


@cache
def read(catalogue: str) -> dict[str, dict]:
    """All stanzas of "tasks", "models" or "assets", unchecked."""
    room = "models" if catalogue == "models" else "data"
    return parsed((LANGUAGE / room / f"{catalogue}.yaml").read_text("utf-8"), f"{catalogue}.yaml")


def parsed(text: str, file: str) -> dict[str, dict]:
    loader = _Loader(text)
    loader.name = file
    try:
        return loader.get_single_data() or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not valid YAML ({' '.join(str(error).split())}): correct it") from None
    finally:
        loader.dispose()


def names(catalogue: str) -> list[str]:
    """`catalogue`: "tasks", "models" or "assets"."""
    return list(read(catalogue))


def entry(kind: str, name: str, catalogue: Mapping[str, dict]) -> dict:
    """What the catalogue of this kind says of a name: "task", "model" or "asset".

    UsageError, with the nearest name, for one that it does not have, and for a stanza that it should not have.
    """
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(catalogue)}"
        raise UsageError(f"unknown {kind} '{name}': {hint}")
    stanza = catalogue[name]
    if id(stanza) not in _checked:
        task_schema.check(kind, name, stanza)
        _checked[id(stanza)] = stanza
    return stanza


_checked: dict[
    int, dict
] = {}  # by identity, since a stanza is asked for once a row; kept, so that none gets the identity of another
