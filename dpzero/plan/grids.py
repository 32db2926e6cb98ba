"""A stanza with a grid becomes a stanza for each of its points. Imports no torch."""

from __future__ import annotations

from itertools import product

from ..errors import UsageError


def spread(stanzas: dict[str, dict | None]) -> dict[str, dict | None]:
    """{METHOD: {grid: {clip: [1, 2]}, ...}} -> {METHOD_clip1: {use: METHOD, clip: 1, ...}, METHOD_clip2: ...}; others as they are."""
    found: dict[str, dict | None] = {}
    for name, stanza in stanzas.items():
        if not isinstance(stanza, dict) or "grid" not in stanza:
            found[name] = stanza
            continue
        grid = stanza["grid"]
        if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
            raise UsageError(
                f"method {name}: a grid is {{SETTING: [values]}} with at least one value for each"
            )
        common = {"use": name} | {key: value for key, value in stanza.items() if key != "grid"}
        for point in product(*grid.values()):
            values = dict(zip(grid, point, strict=True))
            label = "_".join(f"{key}{value}" for key, value in values.items())
            found[f"{name}_{label}"] = common | values
    return found
