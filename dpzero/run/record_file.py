"""A record is one run's JSON file, written last and whole: half a record never exists.

A private run with a secret key is a release. What it leaves behind is on an explicit list, each key with the
reason why it reveals nothing that epsilon does not cover (release_keys.yaml). Anything else is refused: a log
of losses would undo the noise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UsageError
from ..files import run_id, write_whole

VERSION = 1

# Key paths that anyone may read, with the reasons (see release_keys.yaml)
_LISTS = yaml.safe_load(Path(__file__).with_name("release_keys.yaml").read_text("utf-8"))
ALLOWED_IN_A_RELEASE, WITHHELD_FROM_A_RELEASE, ALLOWED_IN_A_CHECKPOINT, ALLOWED_IN_A_TRANSCRIPT = (
    {key: reason for reason, keys in _LISTS[part].items() for key in keys.split()}
    for part in ("record", "withheld", "checkpoint", "transcript")
)

OUT_OF_MEMORY = "out of memory"  # torch's own words tell a tensor's size: that of a private batch
ERRORS_IN_A_RELEASE = (
    OUT_OF_MEMORY,
    r"a parameter is not finite after step \d+",
    r"the test loss is not finite after the last step",
)

LOGGED = {  # what a private run says first, by its noise key
    "secret": "a private release, nothing is logged that epsilon does not cover",
    "published": "a benchmark on public data, no private release; losses, dev accuracy and times are logged without noise",
}


def is_release(cell: Mapping) -> bool:
    """Whether a cell's run is a private release. Methods without noise have no noise_key."""
    return cell.get("settings", {}).get("noise_key") == "secret"


def refuse_private_scores(cell: dict) -> None:
    """Refuse `split: dev` in a private release, by UsageError: the score would be published without noise."""
    settings = cell["settings"]
    if is_release(cell) and settings["split"] != "test":
        raise UsageError(
            f"noise_key secret with split {settings['split']}, which is a part of the private examples: its "
            "score would be a release without noise, so take split test, or choose settings on public data "
            "with noise_key published"
        )


def withhold(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for what a release does not tell; any other record as it is."""
    return _without_withheld(record) if is_release(record["cell"]) else record


def _without_withheld(value: Any, path: str = "") -> Any:
    if path in WITHHELD_FROM_A_RELEASE:
        return None
    if not isinstance(value, dict):
        return value
    return {key: _without_withheld(item, f"{path}.{key}" if path else key) for key, item in value.items()}


def refuse_unlisted(value: dict, allowed: Mapping[str, str], withheld: Collection[str] = ()) -> None:
    """Raise RuntimeError, naming the keys, if `value` holds an unlisted key, or a value where null is due."""
    unlisted = sorted({path for path, leaf in leaves(value) if not _is_listed(path, leaf, allowed, withheld)})
    if unlisted:
        raise RuntimeError(
            f"a private run was about to write {', '.join(unlisted)}, not on the list of what it may "
            "(dpzero/run/release_keys.yaml): drop it, or list it with the reason why it reveals nothing. Nothing "
            "was written"
        )


def _is_listed(path: str, leaf: object, allowed: Mapping[str, str], withheld: Collection[str]) -> bool:
    if path in allowed or any(path.startswith(p[:-1]) for p in allowed if p.endswith(".*")):
        return True
    return leaf is None and (path in withheld or any(p.startswith(f"{path}.") for p in allowed))


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(key path, value) of all that a nested value holds."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path, value


def make(
    cell: Mapping,
    method: Mapping,
    *,
    provenance: Mapping,
    time: Mapping,
    status: str = "ok",
    error: str | None = None,
    metrics: Mapping | None = None,
    **parts: object,
) -> dict:
    """The record of a cell, without what a private release withholds.

    Args:
        cell: as planned; the keys that only planning needs are left out.
        method: has `title`, `private` and `order`.
        parts: of its kind of experiment, such as `privacy`, `curve` or `memory`.
    """
    head = {"version": VERSION, "run": run_id(cell), "cell": {k: v for k, v in cell.items() if k != "title"}}
    outcome = {"method": method, "status": status, "error": error, "metrics": metrics}
    return withhold(head | outcome | parts | {"time": time, "provenance": provenance})


def transcript_of(path: Path) -> Path:
    """Where the transcript of a record lies: beside it."""
    return path.with_suffix(".transcript")


def write(path: Path, record: dict, transcript: Path | None = None) -> None:
    """The record, with a copy of its transcript beside it where it has one.

    Raises RuntimeError, and writes nothing, if the record is of a release and holds what a release may not.
    """
    if is_release(record.get("cell", {})):
        refuse_unlisted(record, ALLOWED_IN_A_RELEASE, WITHHELD_FROM_A_RELEASE)
        error = record.get("error")
        if error is not None and not any(re.fullmatch(words, error) for words in ERRORS_IN_A_RELEASE):
            raise RuntimeError(
                "a private run was about to write an error that ERRORS_IN_A_RELEASE does not have"
            )
    text, beside = json.dumps(plain(record), indent=1, allow_nan=False) + "\n", transcript_of(path)
    if transcript is not None or beside.exists():
        path.unlink(missing_ok=True)  # an older record must never lie beside the transcript of this one
        beside.unlink(missing_ok=True)
    if transcript is not None:
        write_whole(beside, transcript.read_bytes())
    write_whole(path, text)


def find(path: Path, cell: Mapping) -> dict | None:
    """The record of this cell, if it is there."""
    try:
        record = json.loads(path.read_text("utf-8"))
        return record if all(cell[key] == value for key, value in record["cell"].items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def plain(value: object) -> object:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
