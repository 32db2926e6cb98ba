"""One run: a cell in, a record out. Running out of memory and divergence are results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any

import torch

from ..errors import RankFailure, UsageError
from ..memory import trackers
from ..plan.cell import run_id
from ..privacy import Budget
from ..privacy.budget import BudgetExhausted
from ..zeroth_order.distributed import Ranks
from . import (
    checkpoint_selection,
    distributed,
    gpu_lock,
    leave_one_out,
    record_file,
    record_parts,
    step_memory,
)
from .checkpoint import Checkpoint, locked
from .checkpoint_selection import BestDev, Candidates
from .provenance import core_digest, method_digest
from .setup import ALONE, Setup
from .timing import Clock

LOG_LINES = 10  # progress lines of a private release in all


class Diverged(Exception):
    """A trained parameter, or the loss at the end, is not finite any more."""


def run_cell(
    cell: dict,
    out: Path,
    log: Callable[[str], object] = print,
    device: str | None = None,
    ranks: Ranks = ALONE,
) -> dict | None:
    """Run a cell and write its record.

    Args:
        cell: as planned (see `plan.sweep`).
        out: the record's file; its transcript lies beside it.
        device: cpu, cuda, cuda:1, or cuda:0,cuda:1; a GPU if there is one.
        ranks: the processes that share the run; all but rank 0 only take the steps.

    Returns:
        The record; None for a rank other than 0.

    Raises:
        UsageError: a cell that cannot be run. A bug raises as well, and leaves no record.
    """
    record_file.refuse_private_scores(cell)
    if ranks.rank:
        distributed.run_other_rank(Setup(cell, log, device, ranks))
        return None
    with locked(out, lambda line: log(f"{run_id(cell)}: {line}")) as waited:
        earlier = record_file.find(out, cell)
        if earlier and record_file.is_release(cell):
            log(
                f"{run_id(cell)}: released before: {out} is its record; to release anew, move it away and "
                "account for the epsilon it spent"
            )
        if earlier and (waited or record_file.is_release(cell)):
            return earlier
        run = Run(Setup(cell, log, device, ranks), out)
        try:
            result = run.train()
        except (Diverged, MemoryError, RuntimeError) as error:
            result = run.stopped(error)
        finally:
            if run.budget is not None:
                run.budget.close()
        return run.write_record(out, result)


class Run:
    """The loop of one run, with all of its state."""

    def __init__(self, setup: Setup, out: Path) -> None:
        self.setup = setup
        code = core_digest() + method_digest(setup.cell["use"])
        self.checkpoint = Checkpoint(out, setup.cell, code, setup.say)
        self.clock = Clock(setup.device)
        self.selection = checkpoint_selection.selection_by(setup.iterate, self.checkpoint.candidates)
        self.curve: list[dict] = []
        self.measured: dict[str, Any] = {"memory": None, "batch_invariance": None}  # on stand-ins
        self.budget: Budget | None = None
        self.model: Any = None
        self.method: Any = None
        self.examples: Mapping[str, Any] = setup.examples

    def train(self) -> dict:
        """Take all steps and evaluate. Returns the parts metrics, memory and transcript of the record."""
        setup = self.setup
        # first: what an earlier process released counts, however soon this one ends
        self.budget = setup.budget(self.checkpoint.ledger)
        if self.budget is not None:
            setup.say(f"noise key {setup.key.noise_key}: {record_file.LOGGED[setup.key.noise_key]}")
        self.measured["memory"] = step_memory.measure(setup)
        self._resume()
        self._check_loss()
        distributed.start_ranks(setup, self.method, self.checkpoint.transcript)
        for step, batch in setup.batches(self.examples["train"], self.budget, self.method.steps_taken):
            try:
                with self.clock.step():
                    self.method.step(batch)
            except BudgetExhausted:  # another machine's rounding made a new release of a step taken again
                break
            self._after_step(step, batch)
        distributed.finish_ranks(setup, self.method)
        self._check_finite()
        return self._evaluate()

    def stopped(self, error: Exception) -> dict:
        """What a run that could not end still reports, its spent epsilon included.

        Raises what is no result of a run: a bug, a lost rank, a GPU that other runs share.
        """
        setup = self.setup
        if isinstance(error, RankFailure):
            raise distributed.cut_back(error, self.checkpoint, self.budget, setup.release) from error
        status, words = "diverged", str(error)
        if not isinstance(error, Diverged):
            if not trackers.is_out_of_memory(error):
                raise error
            if gpu_lock.shared():
                raise gpu_lock.Crowded from error
            status, words = (
                "oom",
                record_file.OUT_OF_MEMORY if setup.release else (words.splitlines() or [""])[0],
            )
        setup.ranks.dismiss()
        transcript = self._describe_transcript(replayable=False)
        return {"status": status, "error": words, "memory": self.measured["memory"], "transcript": transcript}

    def write_record(self, out: Path, result: dict) -> dict:
        """Write the record, with its transcript beside it, and delete the checkpoint."""
        setup, card = self.setup, self.setup.card
        method = {"title": setup.cell["title"], "private": card.private, "order": card.order}
        privacy = record_parts.describe_privacy(setup, self.budget, self.measured["batch_invariance"])
        provenance = record_parts.describe_provenance(setup, self.clock.steps)
        if result["transcript"]:
            result["transcript"]["file"] = record_file.transcript_of(out).name
        parts = {"curve": self.curve, "privacy": privacy, **result}
        made = record_file.make(setup.cell, method, time=self.clock.record(), provenance=provenance, **parts)
        record_file.write(out, made, self.checkpoint.transcript if made["transcript"] else None)
        self.checkpoint.remove()
        return made

    # -- before the first step

    def _resume(self) -> None:
        """Model and method: the base model's, or as an earlier process left them."""
        state = self.checkpoint.load()
        if state is not None and not self.setup.release:
            self.curve = state["curve"]
            self.clock.load_state_dict(state["clock"])
            if isinstance(self.selection, BestDev):
                self.selection.load_state_dict(state["best"])
        if self.budget is not None:
            self.checkpoint.check_ledger(len(self.budget.ledger), state)
        self.method = self.checkpoint.resume(self._start, state, self.setup.say)
        taken = self.method.steps_taken
        self.curve = [point for point in self.curve if point["step"] <= taken]
        if isinstance(self.selection, Candidates):
            self.selection.cut(taken)
        if taken:
            self.setup.say(f"resumed at step {taken} of {self.setup.settings['steps']}")
            self._add_to_curve()  # in case the process died between the step and its point

    def _start(self) -> Any:
        """The method at the base model."""
        self.model = self.method = None  # gone before another is loaded
        self.model = self.setup.model()
        self.examples = self.setup.examples_for(self.model)
        trackers.reset_resident_peak()
        self.method = self.setup.method(self.model, self.budget)
        self._add_to_curve()
        return self.method

    def _check_loss(self) -> None:
        """Check on stand-ins whether the loss mixes examples, and how far one that leaves moves the others.

        A release allows neither: both would add to what one example moves itself.
        """
        setup, method = self.setup, self.method
        if not setup.card.private:
            return
        share, setup.loss.share = setup.loss.share, (0, 1)
        batch = leave_one_out.stand_ins(self.examples["train"], self.model, setup.settings["max_length"])
        if hasattr(method, "check_loss"):
            method.check_loss(batch)
        if setup.card.order == 0:
            how = {"clip": method.clip, "smoothing": method.smoothing}
            self.measured["batch_invariance"] = leave_one_out.measure(setup.loss, self.model, batch, **how)
        setup.loss.share = share
        moved = (self.measured["batch_invariance"] or {}).get("others_move_over_clip")
        if moved and setup.release:
            raise UsageError(
                f"{setup.name}: when one example leaves a batch, rounding moves the losses of the others by "
                f"{moved:.2g} of the clip, so that epsilon would be too small: set token_budget to 1, which "
                "takes each text alone"
            )

    # -- after a step

    def _after_step(self, step: int, batch: Sized) -> None:
        setup, total = self.setup, self.setup.settings["steps"]
        if step in setup.timed_steps and len(batch) and not setup.release:
            with torch.no_grad(), self.clock.two_forwards():
                setup.loss(self.model, batch)
                setup.loss(self.model, batch)
        self._add_to_curve()
        self.checkpoint.maybe_save(self._state)
        if setup.release:  # at fixed steps and without times, which follow the sizes of the batches
            if (step + 1) * LOG_LINES // total > step * LOG_LINES // total:
                setup.say(f"step {step + 1} of {total}")
        elif self.clock.is_time_to_log():
            left = self.clock.train_seconds / self.clock.steps * (total - step - 1)
            setup.say(f"step {step + 1} of {total}, about {left:.0f} s of training left")

    def _check_finite(self) -> None:
        """Weights are post-processing of releases, so this reveals nothing (a look at the loss would)."""
        for parameter in getattr(self.method, "parameters", ()):
            if not torch.isfinite(parameter).all():
                raise Diverged(f"a parameter is not finite after step {self.method.steps_taken}")

    def _add_to_curve(self) -> None:
        """Add a point if one is due. A release has no curve: losses, dev accuracy and times are private."""
        settings, step = self.setup.settings, self.method.steps_taken
        every = settings["evaluate_every"]
        if step not in (0, settings["steps"]) and not (every and step % every == 0):
            return
        self._check_finite()
        if isinstance(self.selection, Candidates) and step:
            self.selection.offer(step, self.method.parameters)
        if not self.setup.release and not any(point["step"] == step for point in self.curve):
            self.curve.append(self._point(step))
            if step and self._transcript is not None:  # steps may be taken again from it, but not points
                self.checkpoint.save(self._state())

    def _point(self, step: int) -> dict:
        point = {"step": step, "train_seconds": self.clock.train_seconds}
        if len(dev := self.setup.curve_examples(self.examples)):
            scores = self.setup.loss.evaluate(self.model, dev)
            point |= {f"dev_{metric}": scores[metric] for metric in ("accuracy", "f1") if metric in scores}
            point["train_loss"] = self.method.training_loss
            if isinstance(self.selection, BestDev):
                point["dev_loss"] = scores["loss"]
                if step:  # published code evaluates no earlier than after its first steps
                    self.selection.offer(step, scores["loss"], self.method.parameters)
        return point

    def _state(self) -> dict:
        state = {"method": self.method.state_dict()}
        if self.setup.release:
            record_file.refuse_unlisted(state, record_file.ALLOWED_IN_A_CHECKPOINT)
            return state
        best = {"best": self.selection.state_dict()} if isinstance(self.selection, BestDev) else {}
        return state | best | {"curve": self.curve, "clock": self.clock.state_dict()}

    # -- after the last step

    def _evaluate(self) -> dict:
        setup, split = self.setup, self.setup.settings["split"]
        resident = trackers.resident_peak_bytes()
        # the transcript is of the last checkpoint, whichever is reported
        transcript, selected = self._describe_transcript(replayable=True), self._select()
        scored = self.examples[split]
        setup.say(f"evaluating on {len(scored)} {split} examples")
        scores = setup.loss.evaluate(self.model, scored)
        if not math.isfinite(scores["loss"]):  # clipped steps keep the weights of a broken model finite
            raise Diverged(f"the {split} loss is not finite after the last step")
        rule = {"selection": checkpoint_selection.RULES[setup.iterate], **selected}
        metrics = {**scores, "split": split, "examples": len(scored), **rule}
        memory = {**self.measured["memory"], "peak_resident_bytes": resident}
        return {"metrics": metrics, "memory": memory, "transcript": transcript}

    def _select(self) -> dict:
        """Load the checkpoint that is reported into the model. Returns what the metrics say of the choice."""
        if isinstance(self.selection, BestDev):
            self.selection.restore(self.method.parameters)
            return {"selected_step": self.selection.step}
        if isinstance(self.selection, Candidates) and self.budget is not None:
            count, epsilon = len(self.selection.steps()), float(self.setup.cell["epsilon"])
            self.setup.say(f"a private choice among {count} checkpoints")
            step = self.selection.choose(self.method.parameters, self._correct_on_dev, self.budget, epsilon)
            return {"selected_step": step, "candidates": count}
        return {}

    def _correct_on_dev(self) -> int:
        dev = self.setup.curve_examples(self.examples)
        return round(self.setup.loss.evaluate(self.model, dev)["accuracy"] * len(dev))

    @property
    def _transcript(self) -> Any:
        return getattr(self.method, "transcript", None)

    def _describe_transcript(self, replayable: bool) -> dict | None:
        if self._transcript is not None:
            self._transcript.close()
        weights = getattr(self.method, "parameters", None) if replayable else None
        return record_parts.describe_transcript(self.checkpoint.transcript, self.setup.release, weights)
