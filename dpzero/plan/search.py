"""Equal tries: each method's settings are the best of as many points, for each task, model and epsilon.

A sweep with `search: {tries: N, seeds: [...]}` gives each method that has settings to choose a `grid` of N points. A try
is a run of one point, scored on dev, with seeds that are not reported. Its run id has METHOD@POINT in the place of the
method. A reported run starts when its tries are there, and takes the point with the highest mean score.

A step moves the weights by learning_rate * clip for each unit of a clipped value over the clip. So a grid may have
`clipped_rate`, this product, in the place of the learning rate: it is the size of a step, which another clip does
not change. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from ..errors import UsageError
from ..files import TRY_MARK, run_id

CLIPPED_RATE = "clipped_rate"
RULE = "highest mean dev score over the seeds of the search"
Point = dict[str, Any]  # setting -> value


def points(method: str, grid: object) -> dict[str, Point]:
    """Label -> point, of a grid {SETTING: [values]}, whose products are points, or of a list of points.

    Raises UsageError for another shape.
    """
    if isinstance(grid, list) and grid and all(isinstance(point, dict) and point for point in grid):
        each = grid
    elif isinstance(grid, dict) and grid and all(isinstance(v, list) and v for v in grid.values()):
        each = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    else:
        raise UsageError(
            f"method {method}: a grid is {{SETTING: [values]}} with at least one value for each, or a list of points"
        )
    labelled = {"_".join(f"{key}{value}" for key, value in point.items()): point for point in each}
    if len(labelled) < len(each):
        raise UsageError(f"method {method}: its grid has a point twice: leave one out")
    return {label: _as_settings(method, point) for label, point in labelled.items()}


def _as_settings(method: str, point: Point) -> Point:
    """A point with `learning_rate` in place of `clipped_rate`."""
    if CLIPPED_RATE not in point:
        return point
    try:
        rate, clip = float(point[CLIPPED_RATE]), float(point["clip"])  # YAML reads 1e-3 as a text
    except (KeyError, TypeError, ValueError):
        rate = clip = math.nan
    if not (rate > 0 and clip > 0) or "learning_rate" in point:
        raise UsageError(
            f"method {method}: {CLIPPED_RATE} is the learning rate times the clip: give a grid with it a positive clip "
            "at each point, and no learning_rate"
        )
    rest = {key: value for key, value in point.items() if key != CLIPPED_RATE}
    return rest | {"learning_rate": float(f"{rate / clip:.6g}")}


def check_equal(stanzas: Mapping[str, dict | None], search: dict, name: str) -> None:
    """Raise UsageError unless each method with a grid has as many points as the search has tries."""
    for method, stanza in stanzas.items():
        if stanza and "grid" in stanza and (count := len(points(method, stanza["grid"]))) != search["tries"]:
            raise UsageError(
                f"sweep {name}: method {method} has a grid of {count} points, but each method has "
                f"{search['tries']} tries: give as many"
            )


def try_ids(cell: Mapping) -> dict[str, list[str]]:
    """Label -> run ids of its tries, one a seed, of a cell whose settings are searched for; else empty."""
    search = cell.get("search") or {}
    return {
        label: [
            run_id({**cell, "method": f"{cell['method']}{TRY_MARK}{label}", "seed": seed})
            for seed in search["seeds"]
        ]
        for label in search.get("grid", ())
    }


def decide(cell: dict, runs: Path) -> dict:
    """The cell with the point that its tries decide for.

    Args:
        cell: as planned, with `search`; a cell without comes back as it is.
        runs: the folder of the sweep's records.

    Returns:
        The cell, whose `search` says the number of tries, seeds, rule, the chosen point and its mean score.

    Raises:
        UsageError: a try without a record.
    """
    if not cell.get("search"):
        return cell
    scores = {label: list(_scores(ids, runs)) for label, ids in try_ids(cell).items()}
    best = max(sorted(scores), key=lambda label: fmean(scores[label]))  # of equal ones the first by name
    mean = fmean(scores[best])
    summary = {
        "tries": len(scores),
        "seeds": len(cell["search"]["seeds"]),
        "rule": RULE,
        "chosen": best,
        "score": None if mean == -math.inf else mean,
    }
    return cell | {"settings": cell["settings"] | cell["search"]["grid"][best], "search": summary}


def _scores(ids: list[str], runs: Path) -> Iterator[float]:
    """The dev scores of one point's tries; minus infinity if one diverged or ran out of memory."""
    for run in ids:
        try:
            record = json.loads((runs / f"{run}.json").read_text("utf-8"))
        except (OSError, ValueError):
            raise UsageError(f"try {run} has no record in {runs}: run the sweep through Snakemake") from None
        metrics = record.get("metrics") or {}
        score = metrics.get("accuracy", metrics.get("f1"))
        yield -math.inf if score is None else score
