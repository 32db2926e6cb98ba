"""What two records of one run differ in: their numbers to the last bit, the causes in order, and where the numbers part."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from dpzero.report.records import Record

NO_NUMBERS = ("version", "run", "cell", "method", "error", "time", "provenance")  # parts of a record
OF_THE_MACHINE = re.compile(  # these change from run to run, and no result with them
    r"curve\[\d+\]\.train_seconds|transcript\.file|memory\..*(resident|reserved|device_used|load_peak).*"
)
CAUSES = {  # kind of cause -> the keys of a record that tell it, in the order in which causes are named
    "code": r"provenance\.(code|method_code)",
    "packages": r"provenance\.(python|packages\..+)",
    "device": r"provenance\.(device|threads|ranks\.count)",
    "rows": r"provenance\.data\.sha256|cell\.settings\.data",
    "weights": r"provenance\.model\.sha256|cell\.settings\.weights",
    "choice": r"cell\.search\.chosen",
    "settings": r"cell\.(?!title$|search\.(chosen|score)$|settings\.(data|weights|noise_key|noise_arithmetic)$).+",
    "noise": r"cell\.settings\.(noise_key|noise_arithmetic)",
}
DIGESTS = ("rows", "weights")  # one that a record does not tell, as releases do not, decides nothing
PREFIX = re.compile(r"^(provenance|cell)\.")


class Recorded(NamedTuple):
    """A record and its file, beside which its transcript lies."""

    record: Record
    file: Path


def numbers(record: Record) -> dict[str, Any]:
    """Key path -> value of all that a run measured and released; without times, machines and paths."""
    kept = {key: value for key, value in record.items() if key not in NO_NUMBERS}
    kept["search"] = record["cell"].get("search")
    return {path: value for path, value in _leaves(kept) if not OF_THE_MACHINE.fullmatch(path)}


def causes(mine: Record, theirs: Record) -> dict[str, str]:
    """Kind of cause -> what differs, in words: in the order of `CAUSES`, without kinds in which the records agree."""
    ours, others = (
        dict(_leaves({key: one.get(key) for key in ("provenance", "cell")})) for one in (mine, theirs)
    )
    differing = _differing(ours, others)
    found = {
        kind: [
            f"{PREFIX.sub('', key)} {values}"
            for key, values in differing.items()
            if re.fullmatch(keys, key) and (kind not in DIGESTS or (ours.get(key) and others.get(key)))
        ]
        for kind, keys in CAUSES.items()
    }
    if all(one.get("cell.settings.noise_key") == "secret" for one in (ours, others)):
        found["noise"].append("each run draws its own, from a secret key")
    return {kind: "; ".join(words) for kind, words in found.items() if words}


def of_other_inputs(kinds: Collection[str]) -> bool:
    """Whether records that differ in these `causes` ran on other inputs, so that neither reproduces the other.

    Settings that follow from a choice among tries are a result.
    """
    return bool({"rows", "weights"} & set(kinds)) or ("settings" in kinds and "choice" not in kinds)


def parting(mine: Recorded, theirs: Recorded) -> str:
    """Where the numbers of two records part, in words: a step of the transcripts, else a point of the curves, else a key."""
    if words := _in_transcripts(mine, theirs):
        return words
    ours, others = numbers(mine.record), numbers(theirs.record)
    differing = _differing(ours, others)
    if not differing:
        return "no number differs"
    key = next((key for key in differing if key.startswith("curve[")), next(iter(differing)))
    if point := re.fullmatch(r"(curve\[\d+\])\.(.+)", key):
        step = ours.get(f"{point[1]}.step", others.get(f"{point[1]}.step"))
        return f"the curves part at step {step}: {point[2]} {differing[key]}"
    return f"{key} {differing[key]}"


def _in_transcripts(mine: Recorded, theirs: Recorded) -> str:
    """How the first lines of the transcripts differ, and the first step that does; nothing if one is not there."""
    ours, others = _transcript(mine), _transcript(theirs)
    if ours is None or others is None:
        return ""
    (header, rows), (their_header, their_rows) = ours, others
    differing = _differing(header, their_header).items()
    words = "; ".join(f"{key} {values}" for key, values in differing if not key.startswith("privacy."))
    found = [f"the transcripts differ in their first line ({words})"] if words else []
    if rows.shape[1] == their_rows.shape[1]:
        steps = min(len(rows), len(their_rows))
        parts = numpy.argwhere(rows[:steps] != their_rows[:steps])
        if len(parts):
            step, column = parts[0]
            what = "scalar" if column < header["directions"] else "learning rate"
            values = _versus(float(rows[step, column]), float(their_rows[step, column]))
            found.append(f"the transcripts part at step {step} of {len(rows)}: {what} {values}")
        elif len(rows) != len(their_rows):
            found.append(f"steps of the transcripts {_versus(len(rows), len(their_rows))}")
    return "; ".join(found)


def transcript_is_other(one: Recorded) -> bool:
    """Whether a transcript lies beside the record that is not the one it names by digest."""
    part, file = one.record.get("transcript"), one.file.with_suffix(".transcript")
    if not isinstance(part, dict) or not file.exists():
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() != part.get("sha256")


def _transcript(one: Recorded) -> tuple[dict[str, Any], NDArray[numpy.float64]] | None:
    """The header by key path, and the rows: float64 [steps, directions + groups]. None without the record's own file.

    `zeroth_order.transcript` says what the format is; it imports torch.
    """
    part = one.record.get("transcript")
    try:
        data = one.file.with_suffix(".transcript").read_bytes()
        if not isinstance(part, dict) or hashlib.sha256(data).hexdigest() != part.get("sha256"):
            return None
        line, _, rest = data.partition(b"\n")
        header = json.loads(line)
        columns = header["directions"] + len(header["groups"])
        row = numpy.dtype([("numbers", "<f8", (columns,)), ("checksum", "<u4")])
        return dict(_leaves(header)), numpy.frombuffer(rest, row, len(rest) // row.itemsize)["numbers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differing(ours: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, str]:
    """Key -> both values in words, of the keys in which these differ."""
    keys = (
        key for key in {**ours, **others} if key not in ours or key not in others or ours[key] != others[key]
    )
    return {key: _versus(ours.get(key, "not given"), others.get(key, "not given")) for key in keys}


def _versus(mine: object, theirs: object) -> str:
    return f"{_shown(mine)}, theirs {_shown(theirs)}"


def _shown(value: object) -> str:
    """The value as text; of a digest, or of bits of rows, the beginning."""
    return re.sub(r"^(\S{12})\S{12,}$", r"\1…", "none" if value is None else str(value))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, value) of all that a nested value holds; the items of lists by number. An empty one is a value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value
