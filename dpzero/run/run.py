"""One run: a cell in, a record out. Running out of memory and divergence are results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch

from ..errors import RankFailure, UsageError
from ..files import run_id
from ..memory import trackers
from ..privacy import Budget
from ..privacy.budget import BudgetExhausted
from ..zeroth_order.distributed import Ranks
from ..zeroth_order.transcript import Transcript
from . import distributed, gpu_lock, measurements, record_file
from .checkpoint import Checkpoint, locked
from .checkpoint_selection import RULES, SCORES, BestDev, Candidates
from .setup import ALONE, PUBLIC, Setup

EARLY_POINTS = 4  # of the curve, before the first at a multiple of `evaluate_every`
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
        code = setup.origin["code"] + setup.origin["method_code"]
        self.checkpoint = Checkpoint(out, setup.cell, code, setup.say)
        self.clock = measurements.Clock(setup.device)
        self.best = BestDev() if setup.iterate in SCORES else None
        self.candidates = Candidates(self.checkpoint.candidates) if setup.iterate == "accounted" else None
        self.curve: list[dict] = []
        self.memory: dict | None = None
        self.batch_invariance: dict | None = None
        self.budget: Budget | None = None
        self.model: Any = None
        self.method: Any = None  # a `zeroth_order.protocols.Method`
        self.examples: Mapping[str, Any] = setup.examples

    def train(self) -> dict:
        """Take all steps and evaluate. Returns the parts metrics, memory and transcript of the record."""
        setup = self.setup
        # first: what an earlier process released counts, however soon this one ends
        self.budget = setup.budget(self.checkpoint.ledger)
        if self.budget is not None:
            setup.say(f"noise key {setup.key.noise_key}: {record_file.LOGGED[setup.key.noise_key]}")
        self.memory = measurements.measure_step_memory(setup)
        self._resume()
        self._check_loss()
        if setup.ranks.size > 1:
            distributed.start_ranks(setup, self.method, self.checkpoint.transcript)
        for step, (batch, *users) in setup.batches(
            self.examples["train"], self.budget, self.method.steps_taken
        ):
            try:
                with self.clock.step():
                    self.method.step(batch, *users)
            except BudgetExhausted:  # another machine's rounding made a new release of a step taken again
                break
            self._after_step(step, batch)
        if setup.ranks.size > 1:
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
            status, words = "oom", words.partition("\n")[0]
            if setup.release:
                words = record_file.OUT_OF_MEMORY
        setup.ranks.dismiss()
        # out of memory in the middle of a step, or diverged: there are no weights to replay
        transcript = self._describe_transcript(weights=None)
        return {"status": status, "error": words, "memory": self.memory, "transcript": transcript}

    def write_record(self, out: Path, result: dict) -> dict:
        """Write the record, with its transcript beside it, and delete the checkpoint."""
        setup, card, privacy = self.setup, self.setup.card, None
        if self.budget is not None:
            clip = getattr(self.method, "clip", setup.settings.get("clip"))  # its default is the method's
            privacy = self.budget.statement(clip, float(setup.cell["epsilon"]))
            if self.batch_invariance:
                privacy["batch_invariance"] = self.batch_invariance
        record = record_file.make(
            setup.cell,
            {"title": setup.cell["title"], "private": card.private, "order": card.order},
            time=self.clock.record(),
            provenance=setup.describe_provenance(self.clock.steps),
            **{"curve": self.curve, "privacy": privacy, **result},
        )
        record_file.write(out, record, self.checkpoint.transcript if record["transcript"] else None)
        self.checkpoint.remove()
        return record

    # -- before the first step

    def _resume(self) -> None:
        """Model and method: the base model's, or as an earlier process left them."""
        state = self.checkpoint.load()
        if state is not None and not self.setup.release:
            self.curve = state["curve"]
            self.clock.load_state_dict(state["clock"])
            if self.best is not None:
                self.best.load_state_dict(state["best"])
        if self.budget is not None:
            self.checkpoint.check_ledger(len(self.budget.ledger), state)
        self.method = self.checkpoint.resume(self._start, state)
        taken = self.method.steps_taken
        self.curve = [point for point in self.curve if point["step"] <= taken]
        if self.candidates is not None:
            self.candidates.cut(taken)
        if taken:
            self.setup.say(f"resumed at step {taken} of {self.setup.settings['steps']}")
            self._add_to_curve()  # in case the process died between the step and its point

    def _start(self) -> Any:
        """The method at the base model."""
        self.model = self.method = None  # gone before another is loaded
        self.model, self.examples = self.setup.model_and_examples()
        trackers.reset_resident_peak()
        self.method = self.setup.method(self.model, self.budget, self.examples.get(PUBLIC))
        if "redacted" in self.examples:
            self.setup.say("a first pass over redacted rows, without noise")
            with self.clock.before_the_steps():
                self.method.first_pass(self.examples["redacted"])
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
        batch = measurements.stand_ins(self.examples["train"], self.model, setup.settings["max_length"])
        if hasattr(method, "check_loss"):
            method.check_loss(batch)
        moved = 0.0
        if setup.card.order == 0:
            how = {"clip": method.clip, "smoothing": method.smoothing}
            measured = measurements.measure_batch_invariance(setup.loss, self.model, batch, **how)
            self.batch_invariance, moved = measured, measured["others_move_over_clip"]
        setup.loss.share = share
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
        for parameter in self._parameters:
            if not torch.isfinite(parameter).all():
                raise Diverged(f"a parameter is not finite after step {self.method.steps_taken}")

    def _add_to_curve(self) -> None:
        """Add a point if one is due. A release has no curve: losses, dev accuracy and times are private."""
        step = self.method.steps_taken
        if not self._is_point(step):
            return
        self._check_finite()
        if self.candidates is not None and step:
            self.candidates.offer(step, self._parameters)
        if not self.setup.release and not any(point["step"] == step for point in self.curve):
            self.curve.append(self._point(step))
            if step and self._transcript is not None:  # steps may be taken again from it, but not points
                self.checkpoint.save(self._state())

    def _is_point(self, step: int) -> bool:
        """Whether the curve has a point here: at the start, the end and each `evaluate_every` steps.

        The first interval, in which scores change most, is halved a few times. A rule that chooses among points
        has the regular ones alone.
        """
        every, steps = (self.setup.settings[name] for name in ("evaluate_every", "steps"))
        chooses = self.best is not None or self.candidates is not None
        early = [] if chooses else [every >> halving for halving in range(1, EARLY_POINTS + 1)]
        return step in (0, steps, *early) or (bool(every) and step % every == 0)

    def _point(self, step: int) -> dict:
        point = {"step": step, "train_seconds": self.clock.train_seconds}
        if len(dev := self.setup.curve_examples(self.examples)):
            scores = self.setup.loss.evaluate(self.model, dev)
            point |= {f"dev_{metric}": scores[metric] for metric in ("accuracy", "f1") if metric in scores}
            point["train_loss"] = self.method.training_loss
            if self.best is not None:
                point["dev_loss"] = scores["loss"]
                if step:  # published code evaluates no earlier than after its first steps
                    self.best.offer(step, SCORES[self.setup.iterate](point), self._parameters)
        return point

    def _state(self) -> dict:
        state = {"method": self.method.state_dict()}
        if self.setup.release:
            record_file.refuse_unlisted(state, record_file.ALLOWED_IN_A_CHECKPOINT)
            return state
        if self.best is not None:
            state["best"] = self.best.state_dict()
        return state | {"curve": self.curve, "clock": self.clock.state_dict()}

    # -- after the last step

    def _evaluate(self) -> dict:
        setup, split = self.setup, self.setup.settings["split"]
        memory = {**(self.memory or {}), "peak_resident_bytes": trackers.resident_peak_bytes()}
        # the transcript is of the last checkpoint, whichever is reported
        transcript = self._describe_transcript(getattr(self.method, "parameters", None))
        selected = self._select()
        scored, shown = self.examples[split], {}
        if setup.card.writes_demonstrations:
            scored, shown["demonstrations"] = setup.after_demonstrations(split, self.method.demonstrations)
        setup.say(f"evaluating on {len(scored)} {split} examples")
        scores = setup.loss.evaluate(self.model, scored)
        if split != "test":
            scores.pop("correct", None)  # tables compare methods row by row on test alone
        if not math.isfinite(scores["loss"]):  # clipped steps keep the weights of a broken model finite
            raise Diverged(f"the {split} loss is not finite after the last step")
        rule = {"selection": RULES[setup.iterate], **selected, "example_forwards": self._example_forwards()}
        rule |= getattr(self.method, "further_metrics", dict)() | shown
        metrics = {**scores, "split": split, "examples": len(scored), **setup.majority(split), **rule}
        return {"metrics": metrics, "memory": memory, "transcript": transcript}

    def _example_forwards(self) -> int | None:
        """Forward passes of single examples in training, expected over the batches; a backward pass counts two.

        None if the method does not say how many it takes.
        """
        each = getattr(self.method, "forwards_per_example", None)
        if each is None:
            return None
        before = getattr(self.method, "forwards_before", 0)
        public = getattr(self.method, "public_forwards", 0)
        return int(before + self.method.steps_taken * (self.setup.examples_in_a_batch * each + public))

    def _select(self) -> dict:
        """Load the checkpoint that is reported into the model. Returns what the metrics say of the choice."""
        if self.best is not None:
            self.best.restore(self._parameters)
            looked_at = len(self.setup.curve_examples(self.examples))
            rows = {"selection_examples": looked_at, "dev_examples": len(self.setup.examples["dev"])}
            return {"selected_step": self.best.step, **rows}
        if self.candidates is not None and self.budget is not None:
            count, epsilon = len(self.candidates.steps()), float(self.setup.cell["epsilon"])
            self.setup.say(f"a private choice among {count} checkpoints")
            step = self.candidates.choose(self._parameters, self._correct_on_dev, self.budget, epsilon)
            return {"selected_step": step, "candidates": count}
        return {}

    def _correct_on_dev(self) -> int:
        dev = self.setup.curve_examples(self.examples)
        return round(self.setup.loss.evaluate(self.model, dev)["accuracy"] * len(dev))

    @property
    def _parameters(self) -> Sequence[torch.Tensor]:
        """The trained parameters; none if the method trains nothing."""
        return getattr(self.method, "parameters", ())

    @property
    def _transcript(self) -> Transcript | None:
        return getattr(self.method, "transcript", None)

    def _describe_transcript(self, weights: Sequence[torch.Tensor] | None) -> dict | None:
        if self._transcript is not None:
            self._transcript.close()
        return self.checkpoint.describe_transcript(weights)
