"""Whether a record is that of a planned cell: a number of other settings must not stand in a table of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DIGESTS = ("settings.data", "settings.weights")  # a plan without local files does not know them
ABSENT = object()


def difference(recorded: Mapping[str, Any], planned: Mapping[str, Any]) -> str | None:
    """The first key in which the cell of a record differs from the planned one, in words; None if it is that cell.

    Of a cell whose settings are searched for, the record must have one of the planned points, chosen among as many
    tries. A title and a digest that the plan does not know decide nothing.
    """
    cell = {key: value for key, value in planned.items() if key != "title"}
    if (search := planned.get("search")) and isinstance(summary := recorded.get("search"), Mapping):
        grid, chosen = search["grid"], summary.get("chosen")
        if chosen not in grid:
            return f"search.chosen is {chosen!r}, but one of {', '.join(grid)} is planned"
        counts = {"tries": len(grid), "seeds": len(search["seeds"])}
        cell |= {"settings": cell["settings"] | grid[chosen], "search": {**summary, **counts}}
    theirs, ours = dict(_leaves(recorded)), dict(_leaves(cell))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        found, wanted = theirs.get(key, ABSENT), ours.get(key, ABSENT)
        if found != wanted and not (key in DIGESTS and wanted is ABSENT):
            return f"{key} is {_shown(found)}, but {_shown(wanted)} is planned"
    return None


def _leaves(cell: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in cell.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _shown(value: object) -> str:
    return "not given" if value is ABSENT else repr(value)
