"""The fine-tuned model of a record again: from its base model and the transcript beside the record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from ..errors import UsageError
from ..files import write_whole
from ..language.data import tasks
from ..language.models import models, weights
from ..plan import sweep
from ..plan.registry import cards
from ..zeroth_order import transcript
from ..zeroth_order.validators import trainable
from . import checkpoint_selection


def replay_record(file: Path, weights: Path | None = None, device: str | None = None) -> dict:
    """{match, steps, weights_sha256, device}: whether the replayed tensors are the record's.

    If so, those of the iterate that the record reports (`selected_step`, else the last) are saved in `weights`. Raises UsageError for a record without transcript or digest, for one that does not fit its transcript, for another base model.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    made = _read(file)
    cell, path = sweep.complete(made["cell"]), _transcript(file, made)
    _check_base(file, made, cell)
    model = models.load(
        cell["model"], tasks.load(cell["task"]), cell["settings"]["tune"], cell["seed"], device
    )
    parameters = trainable(model.parameters())
    selected = (made.get("metrics") or {}).get("selected_step")
    try:
        taken = transcript.replay(parameters, path, end=selected)
        reported = [p.detach().cpu().clone() for p in parameters] if selected is not None else parameters
        steps = transcript.replay(parameters, path, start=taken)
    except ValueError as error:
        ran = made["provenance"]
        raise UsageError(f"{error} (it ran on {ran.get('device')} with {ran.get('packages')})") from error
    found = transcript.digest(parameters)
    match = found == made["transcript"]["weights_sha256"]
    if match and weights is not None:
        checkpoint_selection.write(reported, parameters)
        _save(weights, model)
    return {"match": match, "steps": steps, "weights_sha256": found, "device": device}


def _read(file: Path) -> dict:
    """The record, with a transcript and a digest to compare with."""
    try:
        made = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror}): give the record of a run") from error
    except ValueError:
        made = None
    if not isinstance(made, dict) or not all(isinstance(made.get(k), dict) for k in ("cell", "provenance")):
        raise UsageError(f"{file} is no record: give the JSON file that a run wrote")
    said = made.get("transcript")
    if not isinstance(said, dict) or not {"file", "sha256", "steps", "law", "weights_sha256"} <= set(said):
        writers = ", ".join(card.title for card in cards().values() if card.order == 0)
        raise UsageError(f"{file} has no transcript: give a record of {writers} or run its cell again")
    if said["weights_sha256"] is None:
        raise UsageError(
            f"the run of {file} ended with status {made.get('status')}, so that it has no digest to compare with: run its cell again"
        )
    return made


def _transcript(file: Path, made: dict) -> Path:
    """The transcript beside the record, once all that the record says of it is found to be so."""
    said, settings = made["transcript"], made["cell"]["settings"]
    path = file.parent / Path(str(said["file"])).name
    try:
        header, scalars = transcript.read(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"cannot read {path} ({error.strerror}): put the transcript beside its record"
        ) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    law = header["law"]
    found = {"sha256": sha256, "steps": len(scalars), "law": law["version"]}
    asked = {"seed": law["seed"], "smoothing": header["smoothing"], "learning_rate": header["schedule"][0][1]}
    asked |= {"direction_law": law["name"], "direction_rank": law["rank"]}
    cell = {"seed": made["cell"].get("seed")} | settings
    differing = [f"transcript.{key}" for key, value in found.items() if said[key] != value]
    differing += [f"cell's {key}" for key, value in asked.items() if key in cell and cell[key] != value]
    if differing:
        raise UsageError(
            f"{path} and {file} do not belong together ({', '.join(differing)}): give them as one run wrote them"
        )
    return path


def _check_base(file: Path, made: dict, cell: dict) -> None:
    """What the base model is made of, before anything is made of it."""
    if weights.digest(cell["model"]) != (made["provenance"].get("model") or {}).get("sha256"):
        raise UsageError(
            f"the model {cell['model']} here is not the one that {file} started from: install the version of that run"
        )


def _save(file: Path, model: models.Classifier) -> None:
    """The trained tensors by name, as safetensors."""
    tensors = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    write_whole(file, save(tensors))
