"""A record is one run's JSON file: written last and whole, so a half one never exists.

A private run with a secret key is a release: what it leaves behind is on an explicit list, each key with the reason why it
reveals nothing that epsilon does not cover. Whatever is not listed is refused: a log of losses would undo the noise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from ..errors import UsageError
from ..files import write_whole

VERSION = 1

_INPUT = "given before the first private example is read"
_WEIGHTS = "a function of the weights, which are a function of the releases, and of public test data"
_LEDGER = "counts releases, whatever was in their batches (an interrupted run's number follows the clock)"
_STAND_IN = "of a stand-in batch, before the first private batch is drawn"
_SOFTWARE = "the machine and its software"

# Key path -> why it may be read by anyone. `[]` is an item of a list, a `.*` at the end is any key. A null section is allowed.
ALLOWED_IN_A_RELEASE: dict[str, str] = {
    "version": "the same in every record",
    "run": _INPUT,
    # ok and diverged are functions of the weights and public test data; oom may follow a batch's size, which epsilon does not
    # cover: the privacy statement says so, and the error tells the fact alone
    "status": "how the run ended",
    "error": "one of ERRORS_IN_A_RELEASE, word for word",
    **dict.fromkeys(
        ("cell.task", "cell.model", "cell.method", "cell.use", "cell.epsilon", "cell.seed"), _INPUT
    ),
    "cell.settings.*": _INPUT,  # the sweep's reader knows every name
    **dict.fromkeys(("method.title", "method.private", "method.order"), "a constant of the method's class"),
    **dict.fromkeys(("metrics.accuracy", "metrics.f1", "metrics.loss"), _WEIGHTS),
    "metrics.split": "test: dev is part of the private data and is refused before anything runs",
    "metrics.examples": "the size of the public test data",
    "metrics.selection": "a constant of this code",
    "privacy.unit": _INPUT,
    "privacy.adjacency": _INPUT,
    "privacy.sampling": "the name of the sampler's class",
    "privacy.mechanism": _INPUT,
    "privacy.dataset_size": "public: the sampling rate needs it (so are the numbers of examples of each label)",
    "privacy.batch_size": "the expected size, a setting; never the size of a batch",
    "privacy.steps": _LEDGER,
    "privacy.directions": _INPUT,
    "privacy.clip": _INPUT,
    "privacy.noise_scale": "computed from settings alone",
    "privacy.delta": _INPUT,
    "privacy.epsilon_target": _INPUT,
    **dict.fromkeys(("privacy.epsilon_spent", "privacy.epsilon_spent_rdp", "privacy.gdp_mu"), _LEDGER),
    "privacy.accountant": _SOFTWARE,
    "privacy.noise_arithmetic": _INPUT,
    "privacy.noise_key": _INPUT,
    **dict.fromkeys(("privacy.batch_invariance.*", "privacy.others_move_over_clip"), _STAND_IN),
    "privacy.valid_release": "by settings, and by what was measured of a stand-in batch",
    "privacy.choice.mechanism": "a constant of this code",
    "privacy.choice.epsilon": _LEDGER,
    "metrics.selected_step": "released by the private choice, whose epsilon covers it",
    "metrics.candidates": "the number of points of the curve ",
    **dict.fromkeys(
        (
            "memory.peak_allocated_bytes",
            "memory.inference_peak_bytes",
            "memory.weights_bytes",
            "memory.peak_reserved_bytes",
            "memory.how",
        ),
        _STAND_IN,
    ),
    "transcript.file": "the record's own name with another ending",
    "transcript.sha256": "a function of the releases, which the file lists",
    "transcript.steps": _LEDGER,
    "transcript.law": "the name of the public directions' law",
    "transcript.weights_sha256": "a function of the weights, which are a function of the releases",
    **dict.fromkeys(
        (
            "provenance.git",
            "provenance.dirty",
            "provenance.code",
            "provenance.method_code",
            "provenance.device",
            "provenance.python",
            "provenance.packages.*",
            "provenance.threads",
            "provenance.ranks.count",
            "provenance.ranks.backend",
        ),
        _SOFTWARE,
    ),
    **dict.fromkeys(
        ("provenance.ranks.bytes_a_step_from_each", "provenance.ranks.bytes_a_step_to_each"),
        "by the number of steps and scalars: a message is as long for any batch",
    ),
    **dict.fromkeys(
        ("provenance.model.name", "provenance.model.sha256", "provenance.model.title"),
        "the public base model",
    ),
    **dict.fromkeys((f"provenance.data.{key}" for key in ("name", "title", "source", "split")), _INPUT),
}

# Keys that every record has and that are null in a release.
WITHHELD_FROM_A_RELEASE: dict[str, str] = {
    **dict.fromkeys(
        (
            "time.wall_seconds",
            "time.train_seconds",
            "time.steps_per_second",
            "time.step_seconds",
            "time.two_forward_seconds",
        ),
        "a step takes as long as its batch is large, and which examples are in it is secret; a sum of such times is no better",
    ),
    "memory.peak_resident_bytes": "of the whole process: it follows the largest private batch",
    "provenance.data.sha256": "who knows all examples but one could try the last one until the digest fits",
}

# The same for a checkpoint's state, which outlives a killed run. Beside it lie the cell, an input, and the ledger: settings, the
# steps that were released and the name of the key, a hash of 32 secret bytes.
ALLOWED_IN_A_CHECKPOINT: dict[str, str] = {
    "method.steps_taken": "counts releases (where the clock cut, which is not protected)",
    "method.parameters[]": "the weights: a function of the base model and the releases",
    "method.optimizer.*": "settings, and moments of the released sums",
    "method.second_moment[]": "of the released scalars",
    "method.schedule[][]": _INPUT,
    "method.budget.event.*": _INPUT,
    "method.budget.others_move_over_clip": _STAND_IN,
    "method.budget.position": "counts batches, whatever was in them",
    "method.budget.releases.*": "numbers of batches by the name of the key, a hash of 32 secret bytes",
}
# Beside it, too, where a choice is to be made: the weights at points of the curve, a function of the releases, and what was chosen.

# The first line of a transcript. The rows below it are the released scalars over the expected batch size: what epsilon covers.
ALLOWED_IN_A_TRANSCRIPT: dict[str, str] = {
    "format": "the same in every transcript",
    "method": "a constant of the method's class",
    **dict.fromkeys(
        ("law.name", "law.seed", "law.rank", "directions", "smoothing", "schedule[][]", "second_moment"),
        _INPUT,
    ),
    "law.version": "the name of the public directions' law",
    "perturbed_on_read[]": "numbers of the model's tensors, by its architecture",
    "still[][]": "numbers of the model's tensors and rows, by its architecture",
    "privacy.*": "settings, and the name of the key, a hash of 32 secret bytes",
    "base_sha256": "the public base model",
}

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
    """Whether a cell's run may be published although its data are private. Methods without noise have no noise_key."""
    return cell.get("settings", {}).get("noise_key") == "secret"


def refuse_private_scores(cell: dict) -> None:
    """Raises UsageError for a release that is scored on dev: a score is published as it is."""
    settings = cell["settings"]
    if is_release(cell) and settings["split"] != "test":
        raise UsageError(
            f"noise_key secret with split {settings['split']}, which is a part of the private examples: its score would be a "
            "release without noise, so take split test, or choose settings on public data with noise_key published"
        )


def withhold(record: dict) -> dict:
    """The record with null for what a release does not tell; any other record as it is."""
    return _without_withheld(record) if is_release(record["cell"]) else record


def _without_withheld(value: object, path: str = "") -> object:
    if path in WITHHELD_FROM_A_RELEASE:
        return None
    if not isinstance(value, dict):
        return value
    return {key: _without_withheld(item, f"{path}.{key}" if path else key) for key, item in value.items()}


def refuse_unlisted(value: dict, allowed: Mapping[str, str], withheld: Collection[str] = ()) -> None:
    """Raises RuntimeError, naming the keys, if `value` holds anything that is not listed, or a value where null is due."""
    unlisted = sorted({path for path, leaf in leaves(value) if not _is_listed(path, leaf, allowed, withheld)})
    if unlisted:
        raise RuntimeError(
            f"a private run was about to write {', '.join(unlisted)}, not on the list of what it may (dpzero/run/record.py): "
            "drop it, or list it with the reason why it reveals nothing. Nothing was written"
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


def of_run(path: Path, cell: Mapping) -> dict | None:
    """The record of this cell, where it is there."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return found if all(cell[key] == value for key, value in found["cell"].items()) else None
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
