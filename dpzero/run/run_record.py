"""What a run tells of itself: the parts of its record."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from ..language.data import tasks
from ..language.models import weights
from ..zeroth_order import transcript
from . import distributed, gpu_lock, record
from .provenance import provenance

if TYPE_CHECKING:
    from .run import Run


def whole(run: Run, result: dict) -> dict:
    """The record, without what a release withholds."""
    head = {"version": record.VERSION, "run": run.name, "cell": _cell(run), "method": _method(run)}
    return record.withhold(head | result | {"time": run.clock.record(), "provenance": _provenance(run)})


def unfinished(run: Run) -> dict:
    """What a run that stopped early still has to say, its spent epsilon among it."""
    part = transcript_part(run, replayable=False)
    made = {"metrics": None, "curve": run.curve, "privacy": statement(run), "memory": run.memory}
    return made | {"transcript": part}


def statement(run: Run) -> dict | None:
    """Of privacy, from the ledger; None without one."""
    if run.budget is None:
        return None
    said = run.budget.statement(run.settings["clip"], float(run.cell["epsilon"]))
    return said | ({"batch_invariance": run.invariance} if run.invariance else {})


def transcript_part(run: Run, replayable: bool) -> dict | None:
    """What the record says of the file that `record.write` puts beside it.

    The digest is that of weights that a replay must give again: after running out of memory in the middle of a step there are
    none, and what diverged is no model.
    """
    if run.keeps_transcript:
        run.method.transcript.close()
    try:
        header, scalars = transcript.read(run.checkpoint.transcript)
    except (OSError, ValueError):
        return None
    if run.release:
        record.refuse_unlisted(header, record.ALLOWED_IN_A_TRANSCRIPT)
    return {
        "file": record.transcript_of(run.out).name,
        "sha256": hashlib.sha256(run.checkpoint.transcript.read_bytes()).hexdigest(),
        "steps": len(scalars),
        "law": header["law"]["version"],
        "weights_sha256": transcript.digest(run.method.parameters) if replayable else None,
    }


def _cell(run: Run) -> dict:
    return {k: run.cell[k] for k in ("task", "model", "method", "use", "epsilon", "seed", "settings")}


def _method(run: Run) -> dict:
    return {"title": run.cell["title"], "private": run.card.private, "order": run.card.order}


def _provenance(run: Run) -> dict:
    found, task, model = provenance(run.cell["use"], run.device), run.cell["task"], run.cell["model"]
    differs = None if run.release else tasks.files_differ(task)
    departure = {"departure": differs} if differs else {}
    if gpu_lock.shared():  # so that its times stand in a row of their own
        found["device"] += f", shared by up to {gpu_lock.share()} runs"
    return {
        **found,
        **distributed.provenance(run.ranks, run.clock.steps),
        "threads": torch.get_num_threads(),
        "model": {"name": model, "sha256": weights.digest(model), "title": weights.stanza(model)["title"]},
        "data": {"name": task, "sha256": tasks.digest(task), **run.task.about(), **departure},
    }
