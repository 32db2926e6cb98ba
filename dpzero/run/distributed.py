"""One run on several ranks: rank 0 runs it, with its record, ledger and transcript; the others start from its transcript and take the steps."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RankFailure, UsageError
from ..plan.registry import Card
from ..privacy import RunKey
from ..zeroth_order import transcript
from ..zeroth_order.distributed import Dismissed, Ranks

if TYPE_CHECKING:
    from .run import Run

ALONE = Ranks()


def checked(cell: Mapping, card: Card, ranks: Ranks) -> Ranks:
    """Raises UsageError for a cell that several ranks cannot run."""
    if ranks.size > 1 and card.order != 0:
        raise UsageError(
            f"method {cell['method']} exchanges more than scalars: {ranks.size} ranks are for zeroth-order methods, use one"
        )
    if ranks.size > 1 and cell["settings"].get("as_published"):
        raise UsageError(
            "as_published divides by the size of a batch, of which each rank has a share: use one rank"
        )
    return ranks


def one_key(key: RunKey, ranks: Ranks) -> RunKey:
    """Rank 0's: ranks that draw the same batches need one key. Like the data, it is safe where the ranks and what joins them are."""
    return RunKey(key.noise_key, ranks.shared(key.key)) if ranks.size > 1 else key


def lead(run: Run) -> None:
    """Rank 0 brings the others to where it is: 12 bytes for each step that an earlier process took."""
    if run.ranks.size == 1:
        return
    if not run.keeps_transcript:
        raise UsageError(
            f"{run.name}: this run keeps no transcript (or has lost it), from which other ranks start: use one rank"
        )
    run.ranks.shared(run.checkpoint.transcript.read_bytes())
    run.method.join(run.ranks)
    run.ranks.sent_bytes = run.ranks.received_bytes = 0  # from here on: of steps
    run.log(f"{run.name}: {run.ranks.size} ranks, by {run.ranks.backend}")


def follow(run: Run) -> None:
    """What the other ranks do. They write nothing that lasts."""
    try:
        run.budget = run.make_budget(run.key, ledger=None)
        run.model = run.make_model()
        run.freeze(run.model)
        run.method = run.make_method(run.model, run.budget)
        _start(run)
        for _, batch in run.batches(run.method.steps_taken):
            run.method.step(batch)
        part(run)
    except Dismissed:
        pass  # rank 0's record says why


def _start(run: Run) -> None:
    """From the base model to where rank 0 is. Its transcript is of another run where settings, base model or directions differ."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transcript"
        path.write_bytes(run.ranks.shared(b""))
        try:
            run.method.write_transcript(path)
        except ValueError as error:
            raise UsageError(
                f"rank {run.ranks.rank} is not set up as rank 0 is (settings, base model or software): {error}"
            ) from error
        run.method.transcript.close()
        run.method.transcript = None
    run.method.join(run.ranks)


def part(run: Run) -> None:
    """After the last step, all ranks are found to have the same weights.

    Where a release was lost in an earlier process, rank 0's budget ends before those of the others, which do not know of it.
    """
    if run.ranks.size == 1:
        return
    if run.ranks.rank == 0 and run.method.steps_taken < run.settings["steps"]:
        run.ranks.dismiss()
        return
    run.method.check_ranks()
    run.ranks.close()


def cut_back(run: Run, error: RankFailure) -> RankFailure:
    """A benchmark will take the steps that a faulty rank had a part in again; releases of private data stay, and count."""
    if error.sound is None:
        return error
    if run.release:
        return RankFailure(
            f"{error}. Releases after step {error.sound} had its wrong sums in them, and count"
        )
    transcript.truncate(run.checkpoint.transcript, error.sound)
    run.budget.close()  # and so are their lines of the ledger, whose wrong sums nobody gets
    lines = run.checkpoint.ledger.read_text("utf-8").splitlines(keepends=True)
    run.checkpoint.ledger.write_text("".join(lines[: 1 + error.sound]), "utf-8")
    return RankFailure(f"{error}. It will go on from step {error.sound}")


def provenance(ranks: Ranks, steps: int) -> dict:
    """Nothing for one rank. Bytes between rank 0 and each of the others, checks of the weights among them."""
    if ranks.size == 1:
        return {}
    messages = max(1, steps) * (ranks.size - 1)
    made = {"count": ranks.size, "backend": ranks.backend}
    made |= {"bytes_a_step_from_each": ranks.received_bytes / messages}
    return {"ranks": made | {"bytes_a_step_to_each": ranks.sent_bytes / messages}}
