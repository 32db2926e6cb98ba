"""Replay: the fine-tuned model of a record, from its base model and the transcript beside the record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from ..errors import UsageError
from ..files import write_whole
from ..language.data import tasks
from ..language.models import model_catalogue as base_weights
from ..plan import sweep
from ..plan.registry import cards
from ..zeroth_order import transcript
from ..zeroth_order.model_requirements import trainable
from . import checkpoint_selection
from .setup import base_model

KEYS = {"file", "sha256", "steps", "law", "weights_sha256"}  # of a record's part `transcript`


class Rebuilt(NamedTuple):
    """The fine-tuned model of a record, at its reported checkpoint."""

    record: dict
    model: Any  # a Classifier or TextScorer
    steps: int
    weights_sha256: str  # of the trained tensors after all steps
    device: str

    @property
    def match(self) -> bool:
        """Whether the weights are those that the record has the digest of."""
        return self.weights_sha256 == self.record["transcript"]["weights_sha256"]


def rebuild(file: Path, device: str | None = None) -> Rebuilt:
    """Rebuild the fine-tuned model of a record, with its transcript beside it.

    Raises:
        UsageError: a record without transcript or digest, one that does not fit its transcript, another base
            model.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    record = _read(file)
    cell, path = sweep.complete(record["cell"]), _checked_transcript(file, record)
    if base_weights.digest(cell["model"]) != (record["provenance"].get("model") or {}).get("sha256"):
        raise UsageError(
            f"the model {cell['model']} here is not the one that {file} started from: install the version of "
            "that run"
        )
    model = base_model(cell, tasks.load(cell["task"]), device)
    parameters = trainable(model.parameters())
    selected = (record.get("metrics") or {}).get("selected_step")
    try:
        taken = transcript.replay(parameters, path, end=selected)
        reported = [p.detach().cpu().clone() for p in parameters] if selected is not None else None
        steps = transcript.replay(parameters, path, start=taken)
    except ValueError as error:
        origin = record["provenance"]
        raise UsageError(
            f"{error} (it ran on {origin.get('device')} with {origin.get('packages')})"
        ) from error
    digest = transcript.digest(parameters)
    if reported is not None:
        checkpoint_selection.write(reported, parameters)
    return Rebuilt(record, model, steps, digest, device)


def replay_record(file: Path, weights: Path | None = None, device: str | None = None) -> dict:
    """Rebuild the fine-tuned weights of a record and compare them with its digest. Raises as `rebuild`.

    Args:
        file: the record, with its transcript beside it.
        weights: where to save the trained tensors of the reported checkpoint, as safetensors, if they match.

    Returns:
        `match`, `steps`, `weights_sha256` of what was rebuilt, `device`.
    """
    rebuilt = rebuild(file, device)
    if rebuilt.match and weights is not None:
        named = rebuilt.model.named_parameters()
        write_whole(weights, save({name: p.detach().cpu() for name, p in named if p.requires_grad}))
    keys = ("match", "steps", "weights_sha256", "device")
    return {key: getattr(rebuilt, key) for key in keys}


def _read(file: Path) -> dict:
    """The record, which has a transcript and a digest to compare with."""
    try:
        record = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror}): give the record of a run") from error
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(
        isinstance(record.get(k), dict) for k in ("cell", "provenance")
    ):
        raise UsageError(f"{file} is no record: give the JSON file that a run wrote")
    part = record.get("transcript")
    if not isinstance(part, dict) or not part.keys() >= KEYS:
        writers = ", ".join(card.title for card in cards().values() if card.order == 0)
        raise UsageError(f"{file} has no transcript: give a record of {writers}, or run its cell again")
    if part["weights_sha256"] is None:
        raise UsageError(
            f"the run of {file} ended with status {record.get('status')}, so that it has no digest to "
            "compare with: run its cell again"
        )
    return record


def _checked_transcript(file: Path, record: dict) -> Path:
    """The transcript beside the record. Raises UsageError if it is not the one that the record describes."""
    part, cell = record["transcript"], record["cell"]
    path = file.parent / Path(str(part["file"])).name
    try:
        header, scalars, _ = transcript.read(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"cannot read {path} ({error.strerror}): put the transcript beside its record"
        ) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    law, rate = header["law"], header["learning_rates"][0]
    described = {"sha256": sha256, "steps": len(scalars), "law": law["version"]}
    settings = {"seed": law["seed"], "direction_law": law["name"], "direction_rank": law["rank"]}
    settings |= {"smoothing": header["smoothing"], "learning_rate": rate}
    planned = {"seed": cell.get("seed")} | cell["settings"]
    differing = [f"transcript.{key}" for key, value in described.items() if part[key] != value]
    differing += [f"cell's {k}" for k, value in settings.items() if k in planned and planned[k] != value]
    if differing:
        raise UsageError(
            f"{path} and {file} do not belong together ({', '.join(differing)}): give them as one run wrote "
            "them"
        )
    return path
