"""A record is one run's JSON file, written last and whole: half a record never exists.

A private run with a secret key is a release. What it leaves behind is on an explicit list, each key with the
reason why it reveals nothing that epsilon does not cover. Anything else is refused: a log of losses would
undo the noise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_whole
from ..plan.cell import run_id

VERSION = 1

# The lists below: reason -> the key paths that anyone may read for it. `[]` is an item of a list, `.*` at the
# end any key.


def _by_key(reasons: dict[str, str]) -> dict[str, str]:
    return {key: reason for reason, keys in reasons.items() for key in keys.split()}


# A null section is allowed, too. The sweep's reader knows every name under cell.settings
ALLOWED_IN_A_RELEASE = _by_key(
    {
        "the same in every record, or a constant of this code": """
            version metrics.selection privacy.choice.mechanism""",
        "given before the first private example is read": """
            run cell.task cell.model cell.method cell.use cell.epsilon cell.seed cell.settings.*
            privacy.unit privacy.adjacency privacy.mechanism privacy.directions privacy.clip privacy.delta
            privacy.epsilon_target privacy.noise_arithmetic privacy.noise_key provenance.data.name
            provenance.data.title provenance.data.source provenance.data.split""",
        # ok and diverged are functions of the weights and public test data; oom may follow a batch's size,
        # which epsilon does not cover: the privacy statement says so, and the error tells the fact alone
        "how the run ended": "status",
        "one of ERRORS_IN_A_RELEASE, word for word": "error",
        "a constant of the method's class": "method.title method.private method.order",
        "a function of the weights, which are a function of the releases, and of public test data": """
            metrics.accuracy metrics.f1 metrics.loss""",
        "test: dev is part of the private data and is refused before anything runs": "metrics.split",
        "the size of the public test data": "metrics.examples",
        "the name of the sampler's class": "privacy.sampling",
        "public: the sampling rate needs it (so are the numbers of examples of each label)": """
            privacy.dataset_size""",
        "the expected size, a setting; never the size of a batch": "privacy.batch_size",
        "counts releases, whatever was in their batches (an interrupted run's number follows the clock)": """
            privacy.steps privacy.epsilon_spent privacy.epsilon_spent_rdp privacy.gdp_mu
            privacy.choice.epsilon transcript.steps""",
        "computed from settings alone": "privacy.noise_scale",
        "measured on a stand-in batch, before the first private batch is drawn": """
            privacy.batch_invariance.* privacy.others_move_over_clip memory.peak_allocated_bytes
            memory.inference_peak_bytes memory.weights_bytes memory.peak_reserved_bytes memory.how""",
        "by settings, and by what was measured on a stand-in batch": "privacy.valid_release",
        "released by the private choice, whose epsilon covers it": "metrics.selected_step",
        "the number of points of the curve": "metrics.candidates",
        "the record's own name with another ending": "transcript.file",
        "a function of the releases, which the file lists": "transcript.sha256",
        "the name of the public directions' law": "transcript.law",
        "a function of the weights, which are a function of the releases": "transcript.weights_sha256",
        "the machine and its software": """
            privacy.accountant provenance.git provenance.dirty provenance.code provenance.method_code
            provenance.device provenance.python provenance.packages.* provenance.threads
            provenance.ranks.count provenance.ranks.backend""",
        "by the number of steps and scalars: a message is as long for any batch": """
            provenance.ranks.bytes_a_step_from_each provenance.ranks.bytes_a_step_to_each""",
        "the public base model": "provenance.model.name provenance.model.sha256 provenance.model.title",
    }
)

# Keys that every record has and that are null in a release.
WITHHELD_FROM_A_RELEASE = _by_key(
    {
        "a step takes as long as its batch is large, and which examples are in it is secret; a sum of "
        "such times is no better": """
            time.wall_seconds time.train_seconds time.steps_per_second time.step_seconds
            time.two_forward_seconds""",
        "of the whole process: it follows the largest private batch": "memory.peak_resident_bytes",
        "an adversary who knows all examples but one could try the last one until the digest fits": """
            provenance.data.sha256""",
    }
)

# The same for a checkpoint's state, which outlives a killed run. Beside it lie the cell, an input, and the
# ledger: settings, the steps that were released and the name of the key, a hash of 32 secret bytes. If a
# choice is to be made, so do the weights at points of the curve, a function of the releases, and what was
# chosen.
ALLOWED_IN_A_CHECKPOINT = _by_key(
    {
        "counts releases (where the clock cut, which is not protected)": "method.steps_taken",
        "the weights: a function of the base model and the releases": "method.parameters[]",
        "settings, and moments of the released sums": "method.optimizer.*",
        "moments of the released scalars": "method.second_moment[]",
        "given before the first private example is read": "method.schedule[][] method.budget.event.*",
        "measured on a stand-in batch, before the first private batch is drawn": """
            method.budget.others_move_over_clip""",
        "counts batches, whatever was in them": "method.budget.position",
        "numbers of batches by the name of the key, a hash of 32 secret bytes": "method.budget.releases.*",
    }
)

# The first line of a transcript. The rows below it are the released scalars over the expected batch size:
# what epsilon covers.
ALLOWED_IN_A_TRANSCRIPT = _by_key(
    {
        "the same in every transcript": "format",
        "a constant of the method's class": "method",
        "given before the first private example is read": """
            law.name law.seed law.rank directions smoothing schedule[][] second_moment""",
        "the name of the public directions' law": "law.version",
        "numbers of the model's tensors and rows, by its architecture": "perturbed_on_read[] still[][]",
        "settings, and the name of the key, a hash of 32 secret bytes": "privacy.*",
        "the public base model": "base_sha256",
    }
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
            "(dpzero/run/record_file.py): drop it, or list it with the reason why it reveals nothing. Nothing "
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
