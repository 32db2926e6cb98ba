"""One run on several ranks: rank 0 keeps record, ledger, transcript; the others start from its transcript."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..errors import RankFailure, UsageError
from ..privacy import Budget
from ..zeroth_order import transcript
from ..zeroth_order.distributed import Dismissed, Ranks
from .checkpoint import Checkpoint
from .setup import Setup


def start_ranks(setup: Setup, method: Any, path: Path) -> None:
    """Rank 0 sends its transcript at `path`, 20 bytes a step, which brings the others to its own step."""
    ranks = setup.ranks
    if method.transcript is None:
        raise UsageError(
            f"{setup.name}: this run keeps no transcript (or has lost it), from which other ranks start: use "
            "one rank"
        )
    ranks.shared(path.read_bytes())
    method.join(ranks)
    ranks.sent_bytes = ranks.received_bytes = 0  # only steps count from here on
    setup.say(f"{ranks.size} ranks, by {ranks.backend}")


def run_other_rank(setup: Setup) -> None:
    """Take the steps of a rank other than 0, which writes nothing that lasts."""
    try:
        budget, (model, examples) = setup.budget(ledger=None), setup.model_and_examples()
        method = setup.method(model, budget)
        _catch_up(method, setup.ranks)
        for _, (batch,) in setup.batches(examples["train"], budget, method.steps_taken):
            method.step(batch)
        finish_ranks(setup, method)
    except Dismissed:
        pass  # rank 0's record says why


def _catch_up(method: Any, ranks: Ranks) -> None:
    """Go from the base model to rank 0's step. Its transcript does not fit other settings or base models."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transcript"
        path.write_bytes(ranks.shared(b""))
        try:
            method.write_transcript(path)
        except ValueError as error:
            raise UsageError(
                f"rank {ranks.rank} is not set up as rank 0 is (settings, base model or software): {error}"
            ) from error
        method.transcript.close()
        method.transcript = None
    method.join(ranks)


def finish_ranks(setup: Setup, method: Any) -> None:
    """After the last step, check that all ranks have the same weights.

    If a release was lost in an earlier process, rank 0's budget ends before those of the others, which do not
    know of it.
    """
    ranks = setup.ranks
    if ranks.rank == 0 and method.steps_taken < setup.settings["steps"]:
        ranks.dismiss()
        return
    method.check_ranks()
    ranks.close()


def cut_back(error: RankFailure, checkpoint: Checkpoint, budget: Budget | None, release: bool) -> RankFailure:
    """Benchmarks redo the steps since the last check; private releases cannot be undone and count."""
    if error.sound is None:
        return error
    if release:
        return RankFailure(
            f"{error}. Releases after step {error.sound} had its wrong sums in them, and count"
        )
    transcript.truncate(checkpoint.transcript, error.sound)
    if budget is not None:  # its lines of the ledger go, too: nobody gets their wrong sums
        budget.close()
        lines = checkpoint.ledger.read_text("utf-8").splitlines(keepends=True)
        checkpoint.ledger.write_text("".join(lines[: 1 + error.sound]), "utf-8")
    return RankFailure(f"{error}. It will go on from step {error.sound}")
