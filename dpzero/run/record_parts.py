"""The parts of a language run's record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from ..language.data import tasks
from ..language.models import model_catalogue as base_weights
from ..privacy import Budget
from ..zeroth_order import transcript
from . import distributed, gpu_lock, record_file
from .provenance import provenance
from .setup import Setup


def describe_privacy(setup: Setup, budget: Budget | None, batch_invariance: dict | None) -> dict | None:
    """The part `privacy`, from the ledger; None without a budget."""
    if budget is None:
        return None
    statement = budget.statement(setup.settings["clip"], float(setup.cell["epsilon"]))
    return statement | ({"batch_invariance": batch_invariance} if batch_invariance else {})


def describe_transcript(path: Path, release: bool, weights: list | None) -> dict | None:
    """The part `transcript`, without its file's name; None without a transcript.

    Args:
        path: the transcript in the checkpoint.
        weights: tensors that a replay must give again. There are none after running out of memory in the
            middle of a step, and what diverged is no model.
    """
    try:
        header, scalars = transcript.read(path)
    except (OSError, ValueError):
        return None
    if release:
        record_file.refuse_unlisted(header, record_file.ALLOWED_IN_A_TRANSCRIPT)
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "steps": len(scalars),
        "law": header["law"]["version"],
        "weights_sha256": transcript.digest(weights) if weights is not None else None,
    }


def describe_provenance(setup: Setup, steps: int) -> dict:
    """The part `provenance`: code, machine, base model and data."""
    task, model = setup.cell["task"], setup.cell["model"]
    origin = provenance(setup.cell["use"], setup.device)
    departure = None if setup.release else tasks.files_differ(task)
    if gpu_lock.shared():  # so that its times stand in a row of their own
        origin["device"] += f", shared by up to {gpu_lock.share()} runs"
    about = {"name": task, "sha256": tasks.digest(task), **setup.task.about()}
    return {
        **origin,
        **distributed.provenance(setup.ranks, steps),
        "threads": torch.get_num_threads(),
        "model": {
            "name": model,
            "sha256": base_weights.digest(model),
            "title": base_weights.stanza(model)["title"],
        },
        "data": about | ({"departure": departure} if departure else {}),
    }
