"""Of which shape a sweep file is: a fault is named before anything is read from it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from .ranges import POSITIVE, POSITIVE_COUNT, number

OBJECTS = (
    "methods",
    "settings",
    "overrides",
    "tokens",
    "ranks",
)  # keys of a sweep whose values are objects; the last three of objects
ROWS = {
    "series": ("models", "methods", "sizes", "measure"),
    "published": ("epsilons",),
}  # lists of objects, and which of their values are lists
TEXTS = ("extends", "experiment", "description", "selection", "chosen")


def check(sweep: object, name: str, folder: Path) -> None:
    """Objects where objects belong and numbers where numbers do: what is read of them later is checked there."""
    if not isinstance(sweep, dict) or not all(isinstance(key, str) for key in sweep):
        raise UsageError(f"sweep {name} is no object of keys and values: see the other files in {folder}")
    for key in OBJECTS:
        value = sweep.get(key)
        inner = value.values() if isinstance(value, dict) and key in ("methods", "overrides", "ranks") else ()
        if (value is not None and not isinstance(value, dict)) or any(
            v is not None and not isinstance(v, dict) for v in inner
        ):
            raise UsageError(f"sweep {name}: {key} must hold {{NAME: value}} pairs, not {value!r}")
    for key in TEXTS:
        if key in sweep and not isinstance(sweep[key], str):
            raise UsageError(f"sweep {name}: {key} is {sweep[key]!r}, but must be a text")
    for key in {"dimensions", "seeds"} & sweep.keys():
        _check_values(sweep[key], f"sweep {name}: {key}")
    for key in ROWS.keys() & sweep.keys():
        for row in sweep[key] if isinstance(sweep[key], list) else [None]:
            if not isinstance(row, dict):
                raise UsageError(
                    f"sweep {name}: {key} must be a list of {{NAME: value}} objects, not {sweep[key]!r}"
                )
            for inner, value in row.items():
                _check_values(value if inner in ROWS[key] else [value], f"sweep {name}: {inner} in {key}")
    numbers = [("gpu_share", int, POSITIVE_COUNT, sweep), ("core_seconds", float, POSITIVE, sweep)]
    numbers += [(task, float, POSITIVE, sweep["tokens"]) for task in sweep.get("tokens") or {}]
    for key, kind, allowed, holder in numbers:
        try:
            number(holder.get(key, 1), kind, allowed)
        except ValueError:
            raise UsageError(
                f"sweep {name}: {key} is {holder[key]!r}, but must be a number, {allowed}"
            ) from None


def _check_values(values: object, where: str) -> None:
    """One number or text, or a list of them."""
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, (str, int, float)):
            raise UsageError(f"{where} is {values!r}, but must be a number, a text or a list of them")
