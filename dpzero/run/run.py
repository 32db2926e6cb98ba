"""One run: a cell in, a record out. Resumes from its checkpoint; running out of memory and divergence are results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..errors import RankFailure, UsageError
from ..language.data import assets, tasks
from ..language.models import encoding, feature_cache, losses, models
from ..memory import trackers
from ..plan.cell import check_files, draw_of, run_id
from ..plan.registry import card as find_card
from ..plan.settings import RUN_SETTINGS
from ..privacy import Budget, Rehearsal, RunKey, Setting
from ..privacy.budget import BudgetExhausted
from ..privacy.public_budget import PublicCodeBudget
from ..privacy.public_implementations import IMPLEMENTATIONS, PublicRun
from ..privacy.sampling import SAMPLERS
from ..zeroth_order.distributed import Ranks
from . import checkpoint_selection, distributed, gpu_lock, invariance, record, run_record, step_memory
from .checkpoint import Checkpoint, alone
from .provenance import core_digest, method_digest
from .timing import Clock

LOG_SECONDS = 10  # between progress lines
LOG_LINES = 10  # in all, of a release
TIMED_STEPS = 5  # steps that are timed beside two plain forward passes on the same batch


class Diverged(Exception):
    """A trained parameter, or the loss at the end, is not finite any more."""


def run_cell(
    cell: dict,
    out: Path,
    log: Callable[[str], object] = print,
    device: str | None = None,
    ranks: Ranks = distributed.ALONE,
) -> dict | None:
    """Run the cell, write its record to `out` and return it. A bug raises and leaves no record.

    One of several ranks, but for rank 0, takes the steps alone and returns None.
    """
    record.refuse_private_scores(cell)
    if ranks.rank:
        return distributed.follow(Run(cell, out, log, device, ranks))
    with alone(out, partial(_say, log, cell)) as waited:
        made = record.of_run(out, cell)
        if made and record.is_release(cell):
            _say(
                log,
                cell,
                f"released before: {out} is its record; to release anew, move it away and add what it spent",
            )
        if made and (waited or record.is_release(cell)):
            return made
        run = Run(cell, out, log, device, ranks)
        try:
            return _run(run)
        finally:
            if run.budget is not None:
                run.budget.close()


def _say(log: Callable[[str], object], cell: dict, line: str) -> None:
    log(f"{run_id(cell)}: {line}")


def _run(run: Run) -> dict:
    ranks, out = run.ranks, run.out
    try:
        result = {"status": "ok", "error": None, **run.train()}
    except Diverged as error:
        result = {"status": "diverged", "error": str(error), **run_record.unfinished(run)}
    except RankFailure as error:
        raise distributed.cut_back(run, error) from error
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not trackers.is_out_of_memory(error):
            raise
        if gpu_lock.shared():
            raise gpu_lock.Crowded from error
        words = record.OUT_OF_MEMORY if run.release else str(error).splitlines()[0]
        result = {"status": "oom", "error": words, **run_record.unfinished(run)}
    if result["status"] != "ok":
        ranks.dismiss()
    made = run_record.whole(run, result)
    record.write(out, made, run.checkpoint.transcript if made["transcript"] else None)
    run.checkpoint.remove()
    return made


class Run:
    """The parts of one run, built from its cell."""

    def __init__(
        self,
        cell: dict,
        out: Path,
        log: Callable[[str], object],
        device: str | None,
        ranks: Ranks = distributed.ALONE,
    ) -> None:
        self.cell, self.settings, self.out, self.log = cell, cell["settings"], out, log
        self.release = record.is_release(cell)  # then nothing is written that is not on the lists of `record`
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.clock = Clock(self.device)
        self.card = find_card(cell["use"])
        self.ranks = distributed.checked(cell, self.card, ranks)
        self.key = distributed.one_key(
            RunKey.for_run(self.settings.get("noise_key", "published"), cell["seed"]), ranks
        )
        check_files(cell)
        draw = draw_of(cell)
        self.task = tasks.load(cell["task"], draw)
        self.examples = encoding.encode(self.task, cell["model"], self.settings["max_length"])
        self._check_rows()
        code = core_digest() + method_digest(cell["use"])
        self.checkpoint = Checkpoint(out, cell, code, self._say) if ranks.rank == 0 else None
        sizes = self.settings["token_budget"], self.settings["compute"]
        self.loss = losses.make_loss(self.task, cell["model"], *sizes)
        self.loss.share = ranks.rank, ranks.size
        self.curve: list[dict] = []
        self.memory: dict | None = None
        self.invariance: dict | None = None
        self.budget: Budget | None = None
        self.model = self.method = None
        self.best = checkpoint_selection.BestDev() if self.iterate == "best_dev" else None
        self.candidates = None
        if self.iterate == "accounted" and self.checkpoint:
            self.candidates = checkpoint_selection.Candidates(self.checkpoint.candidates)

    def _check_rows(self) -> None:
        split = self.settings["split"]
        if self.iterate != "last" and not len(self.examples["dev"]):
            raise UsageError(
                f"{self.name}: iterate {self.iterate} looks at dev, of which there are no rows: draw fewer training rows"
            )
        if not len(self.examples[split]):
            raise UsageError(f"{self.name}: there are no rows of split {split}: evaluate another")

    # -- parts ---------------------------------------------------------------------------------------------------------

    def make_model(self) -> models.Classifier:
        return models.load(
            self.cell["model"], self.task, self.settings["tune"], self.cell["seed"], self.device
        )

    def freeze(self, model: models.Classifier) -> None:
        """Where the head alone is trained, examples become what it reads of them: those that this run will look at."""
        if isinstance(self.examples["train"], feature_cache.Features) or not feature_cache.applies(
            model, self.settings
        ):
            return
        split = self.settings["split"]
        if split != "dev":
            looks = self.candidates or not self.release
            self.examples["dev"] = self._dev() if looks else self.examples["dev"][np.arange(0)]
        for part in dict.fromkeys(("train", "dev", split)):
            texts = self.examples[part]
            self.log(f"{self.name}: the features of {len(texts)} {part} texts, made once")
            self.examples[part] = feature_cache.read(self.cell["model"], model, texts)

    def make_budget(self, key: RunKey, ledger: Path | None) -> Budget | None:
        return None if not self.card.private else self._budget(key, ledger)

    def rehearsal(self) -> Rehearsal | int:
        """What a method is given for steps on stand-in examples."""
        size = self.settings["batch_size"]
        if not self.card.private:
            return size
        return Rehearsal(Setting("gaussian", "poisson", "add_remove", 1000 * size, size, 1000, 1e-9), 1.0)

    def _budget(self, key: RunKey, ledger: Path | None) -> Budget:
        epsilon, size = float(self.cell["epsilon"]), len(self.examples["train"])
        sizes = {name: self.settings[name] for name in ("batch_size", "steps", "delta")}
        kinds = {name: self.settings.get(name) for name in ("mechanism", "sampling", "adjacency")}
        try:
            if self.settings.get("as_published"):
                practice = IMPLEMENTATIONS[self.card.file]
                # their accountant is told so, though a class may have fewer rows
                assumed = self.settings.get("shots", 0) * len(self.task.labels) or None
                published = PublicRun(practice, epsilon, dataset_size=size, assumed_size=assumed, **sizes)
                return PublicCodeBudget(published, key, ledger)
            setting = Setting(dataset_size=size, **sizes, **kinds)
            scale = setting.cached_noise_scale(epsilon, assets.cache_folder() / "calibrations")
            how = {"noise_arithmetic": self.settings["noise_arithmetic"], "epsilon_target": epsilon}
            return Budget(setting, scale, key, ledger, **how)
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from error

    def make_method(self, model: models.Classifier, share: Budget | int | None):
        own = {k: v for k, v in self.settings.items() if k in self.card.settings and k not in RUN_SETTINGS}
        share = share or self.settings["batch_size"]
        return self.card.load()(model, self.loss, share, seed=self.cell["seed"], **own)

    def batches(self, start: int):
        """(step, examples): the same sampler, and for the same seed the same batches, for every method.

        A private run ends with its budget: a release that a killed process made, and could not use, is one step less.
        """
        if self.budget is not None:
            for step, drawn in enumerate(self.budget.batches(), start):
                yield step, self.examples["train"][drawn]
            return
        kind, size = SAMPLERS[self.settings["sampling"]], len(self.examples["train"])
        if start == self.settings["steps"]:
            return
        sampler = kind(size, min(size, self.settings["batch_size"]), self.key.stream("sampling"))
        for step in range(start, self.settings["steps"]):
            yield step, self.examples["train"][sampler.batch(step)]

    # -- the run -------------------------------------------------------------------------------------------------------

    def train(self) -> dict:
        # first: what an earlier process released counts, however soon this one ends
        self.budget = self.make_budget(self.key, self.checkpoint.ledger)
        if self.card.private:
            self.log(f"{self.name}: noise key {self.key.noise_key}: {record.LOGGED[self.key.noise_key]}")
        self.memory = step_memory.of(self)
        self._resume()
        self._ask_the_loss()
        distributed.lead(self)
        self._steps()
        distributed.part(self)
        self._check_finite()
        resident = trackers.resident_peak_bytes()
        kept = run_record.transcript_part(self, replayable=True)  # of the last iterate, whichever is reported
        selected = self._select()
        scored = self.examples[self.settings["split"]]
        self.log(f"{self.name}: evaluating on {len(scored)} {self.settings['split']} examples")
        result = self.loss.evaluate(self.model, scored)
        if not math.isfinite(result["loss"]):  # clipped steps keep the weights of a broken model finite
            raise Diverged(f"the {self.settings['split']} loss is not finite after the last step")
        return {
            "metrics": {
                **result,
                "split": self.settings["split"],
                "examples": len(scored),
                "selection": checkpoint_selection.RULES[self.iterate],
                **selected,
            },
            "curve": self.curve,
            "privacy": run_record.statement(self),
            "memory": {**self.memory, "peak_resident_bytes": resident},
            "transcript": kept,
        }

    def _ask_the_loss(self) -> None:
        """On stand-ins: whether it mixes examples, and what rounding lets one that leaves a batch move in the others. A release allows
        neither: both would be added to what an example moves itself."""
        if not self.card.private:
            return
        share, self.loss.share = self.loss.share, (0, 1)
        batch = invariance.stand_ins(self.examples["train"], self.model, self.settings["max_length"])
        if hasattr(self.method, "check_loss"):
            self.method.check_loss(batch)
        if self.card.order == 0:
            how = {"clip": self.method.clip, "smoothing": self.method.smoothing}
            self.invariance = invariance.measured(self.loss, self.model, batch, **how)
        self.loss.share = share
        moved = (self.invariance or {}).get("others_move_over_clip")
        if moved and self.release:
            raise UsageError(
                f"{self.name}: when one example leaves a batch, rounding moves the losses of the others by {moved:.2g} of the clip, so that "
                "epsilon would be too small: set token_budget to 1, which takes each text alone"
            )

    def _select(self) -> dict:
        """The iterate that is reported becomes the model; what there is to say of the choice."""
        if self.best:
            self.best.restore(self.method.parameters)
            return {"selected_step": self.best.step}
        if self.candidates:
            number, epsilon = len(self.candidates.steps()), float(self.cell["epsilon"])
            self.log(f"{self.name}: a private choice among {number} checkpoints")
            step = self.candidates.choose(self.method.parameters, self._right_on_dev, self.budget, epsilon)
            return {"selected_step": step, "candidates": number}
        return {}

    def _right_on_dev(self) -> int:
        dev = self._dev()
        return round(self.loss.evaluate(self.model, dev)["accuracy"] * len(dev))

    def _dev(self) -> Sized:
        """The dev examples that a point of the curve looks at."""
        dev = self.examples["dev"]
        return dev[np.arange(min(self.settings["curve_examples"], len(dev)))]

    def _steps(self) -> None:
        total = self.settings["steps"]
        probes = set(np.linspace(0, max(0, total - 1), TIMED_STEPS).astype(int).tolist())
        last_log = time.perf_counter()
        for step, batch in self.batches(self.method.steps_taken):
            try:
                seconds = self._timed_step(batch)
            except (
                BudgetExhausted
            ):  # where another machine's rounding made what is taken again a further release
                break
            if step in probes and len(batch) and not self.release:
                self.clock.pairs.append((seconds, self._two_forward_seconds(batch)))
            self._add_to_curve()
            self.checkpoint.maybe_save(self._state)
            if self.release:  # at fixed steps, without times: they follow the sizes of the batches
                if (step + 1) * LOG_LINES // total > step * LOG_LINES // total:
                    self.log(f"{self.name}: step {step + 1} of {total}")
            elif time.perf_counter() - last_log > LOG_SECONDS:
                last_log = time.perf_counter()
                left = self.clock.train_seconds / self.clock.steps * (total - step - 1)
                self.log(f"{self.name}: step {step + 1} of {total}, about {left:.0f} s of training left")

    def _timed_step(self, batch: Sized) -> float:
        return self.clock.step(lambda: self.method.step(batch))

    @torch.no_grad()
    def _two_forward_seconds(self, batch: Sized) -> float:
        return self.clock.seconds(lambda: [self.loss(self.model, batch) for _ in range(2)])

    def _check_finite(self) -> None:
        """Weights are computed from releases alone, so this reveals nothing more (a look at the loss would)."""
        for parameter in getattr(self.method, "parameters", ()):
            if not torch.isfinite(parameter).all():
                raise Diverged(f"a parameter is not finite after step {self.method.steps_taken}")

    def _add_to_curve(self) -> None:
        """At the start, at the end and between. A release has no curve: losses, dev accuracy and times follow private examples."""
        step, every = self.method.steps_taken, self.settings["evaluate_every"]
        if step not in (0, self.settings["steps"]) and not (every and step % every == 0):
            return
        self._check_finite()
        if self.candidates and step:
            self.candidates.offer(step, self.method.parameters)
        if not self.release and not any(point["step"] == step for point in self.curve):
            self.curve.append(self._point(step))
            if step and self.keeps_transcript:  # from which steps may be taken again, but no points
                self.checkpoint.save(self._state())

    def _point(self, step: int) -> dict:
        point = {"step": step, "train_seconds": self.clock.train_seconds}
        if len(dev := self._dev()):
            found = self.loss.evaluate(self.model, dev)
            point |= {f"dev_{metric}": found[metric] for metric in ("accuracy", "f1") if metric in found}
            point["train_loss"] = self.method.training_loss
            if self.best:
                point["dev_loss"] = found["loss"]
                if step:  # published code evaluates no earlier than after its first steps
                    self.best.offer(step, found["loss"], self.method.parameters)
        return point

    # -- checkpoint ----------------------------------------------------------------------------------------------------

    def _state(self) -> dict:
        state = {"method": self.method.state_dict()}
        if self.release:
            record.refuse_unlisted(state, record.ALLOWED_IN_A_CHECKPOINT)
            return state
        return state | {
            **({"best": self.best.state_dict()} if self.best else {}),
            "curve": self.curve,
            "clock": self.clock.state_dict(),
        }

    def _resume(self) -> None:
        """Model and method: the base model's, or where an earlier process left them."""
        state = self.checkpoint.load()
        if state is not None and not self.release:
            self.curve = state["curve"]
            self.clock.load_state_dict(state["clock"])
            if self.best:
                self.best.load_state_dict(state["best"])
        if self.budget is not None:
            self.checkpoint.check_ledger(len(self.budget.ledger), state)
        self.checkpoint.resume(self._start, state, self._say)
        taken = self.method.steps_taken
        self.curve = [point for point in self.curve if point["step"] <= taken]
        if self.candidates:
            self.candidates.cut(taken)
        if taken:
            self.log(f"{self.name}: resumed at step {taken} of {self.settings['steps']}")
            self._add_to_curve()  # where the process died between the step and its point

    def _start(self) -> object:
        self.model = self.method = None
        self.model = self.make_model()
        self.freeze(self.model)
        trackers.reset_resident_peak()
        self.method = self.make_method(self.model, self.budget)
        self._add_to_curve()
        return self.method

    @property
    def keeps_transcript(self) -> bool:
        return getattr(self.method, "transcript", None) is not None

    # -- its names -----------------------------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        self.log(f"{self.name}: {line}")

    @property
    def iterate(self) -> str:
        return self.settings.get("iterate", "last")

    @property
    def name(self) -> str:
        return run_id(self.cell)
