"""What a run measures: its times, the memory of a step, and how far rounding carries from example to example.

Memory and batch invariance are measured on stand-in batches, so that they reveal nothing private.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..files import write_whole
from ..language.data import assets
from ..language.models import caches, text_classifier
from ..language.models.batch_invariance import stand_in_ids
from ..language.models.encoding import Continuations, Examples
from ..memory import trackers
from ..privacy import StandInBudget
from ..zeroth_order.leave_one_out import losses_move
from .setup import Setup

LOG_SECONDS = 10  # between progress lines
FOLDER = "memory"  # of the cache
# settings that only multiply, or count what is not in a step: they do not change its memory
WITHOUT_MEMORY = {
    *("learning_rate", "clip", "smoothing", "delta"),
    *("steps", "evaluate_every", "curve_examples", "test_examples"),
}
STAND_INS = 8


# Times ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of a run over all its processes: `train_seconds` of all `steps`, and of `pairs`.

    A pair is the seconds of a step and those of two plain forward passes on its batch. What a process does before it
    has a clock (imports, rows) is `start_cpu_seconds`: processor time, in which waiting for a GPU does not count.
    """

    def __init__(self, device: str) -> None:
        self.device, self.started = device, time.perf_counter()
        self.start_cpu_seconds = time.process_time()
        self.train_seconds, self.steps = 0.0, 0
        self.pairs: list[tuple[float, float]] = []
        self.last_step_seconds, self._logged = 0.0, self.started

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step, until the device is done with it. Its seconds count as training."""
        start = time.perf_counter()
        yield
        self.last_step_seconds = self._since(start)
        self.train_seconds += self.last_step_seconds
        self.steps += 1

    @contextmanager
    def before_the_steps(self) -> Iterator[None]:
        """Time what a method learns before its first step. Its seconds count as training."""
        start = time.perf_counter()
        yield
        self.train_seconds += self._since(start)

    @contextmanager
    def two_forwards(self) -> Iterator[None]:
        """Time two forward passes on the batch of the last step, and keep the pair."""
        start = time.perf_counter()
        yield
        self.pairs.append((self.last_step_seconds, self._since(start)))

    def _since(self, start: float) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def is_time_to_log(self) -> bool:
        """Whether the last progress line is LOG_SECONDS old; if so, one is written now."""
        now = time.perf_counter()
        due = now - self._logged > LOG_SECONDS
        self._logged = now if due else self._logged
        return due

    def state_dict(self) -> dict:
        wall_seconds = time.perf_counter() - self.started
        counted = {"train_seconds": self.train_seconds, "steps": self.steps, "pairs": self.pairs}
        return counted | {"wall_seconds": wall_seconds, "start_cpu_seconds": self.start_cpu_seconds}

    def load_state_dict(self, state: dict) -> None:
        """Go on from an earlier process."""
        self.train_seconds, self.steps = state["train_seconds"], state["steps"]
        self.pairs = [tuple(pair) for pair in state["pairs"]]
        self.started -= state["wall_seconds"]
        self.start_cpu_seconds += state["start_cpu_seconds"]

    def record(self) -> dict:
        """The part `time` of a record; medians of the pairs."""
        step, two = ([pair[k] for pair in self.pairs] for k in (0, 1))
        return {
            "wall_seconds": time.perf_counter() - self.started,
            "start_cpu_seconds": self.start_cpu_seconds,
            "train_seconds": self.train_seconds,
            "steps_per_second": self.steps / self.train_seconds if self.train_seconds > 0 else None,
            "step_seconds": statistics.median(step) if step else None,
            "two_forward_seconds": statistics.median(two) if two else None,
        }


# Memory of a step -------------------------------------------------------------------------------------------


def measure_step_memory(setup: Setup) -> dict:
    """Peak bytes of weights, inference and a step, and how they were measured; cached by settings.

    In-context learning takes no step: it needs an evaluation, which keeps the keys and values of demonstrations
    that serve all rows.
    """
    cell = {key: setup.cell[key] for key in ("task", "model", "use")}
    settings = {key: value for key, value in setup.settings.items() if key not in WITHOUT_MEMORY}
    made_by = [setup.origin[name] for name in ("code", "method_code", "device", "packages")]
    question = json.dumps([cell, settings, made_by], sort_keys=True)
    name = hashlib.sha256(question.encode()).hexdigest()[:16]
    path = assets.cache_folder() / FOLDER / f"{name}.json"
    if not path.exists():
        write_whole(path, json.dumps(_measure_step_memory(setup)))
    return json.loads(path.read_text("utf-8"))


def _measure_step_memory(setup: Setup) -> dict:
    """On a model of its own: steps change the weights, and a first-order method leaves hooks on the model."""
    units, length = setup.settings["batch_size"], setup.settings["max_length"]
    size = math.ceil(setup.examples_in_a_batch) if setup.unit == "user" else units
    users = [np.arange(size) * units // size] if setup.unit == "user" else []
    model: Any = setup.model()
    batch = setup.loss.stand_in(size, length)
    from_features = caches.trains_on_features(batch, setup.settings)
    inputs, public = (
        caches.stand_in_features(model, n) if from_features else setup.loss.stand_in(n, length)
        for n in (size, setup.settings.get("public_batch_size", 1))
    )
    trained = text_classifier.HeadAlone(model.head) if from_features else model

    def forward() -> None:
        with torch.no_grad():
            setup.loss(model, batch)

    def two_steps() -> None:  # the first makes the optimizer's state, which the second has in memory
        budget = StandInBudget.for_batches(units, setup.unit) if setup.card.private else None
        method = setup.method(trained, budget, public)
        method.step(inputs, *users)
        method.step(inputs, *users)

    forward()  # the first pass tries shapes, once for a run (see `language.models.batch_invariance`)
    inference = step = trackers.peak_bytes(model, forward)
    how = f"a step on a stand-in batch of {size} x {length} tokens"
    if setup.settings.get("demonstrations"):
        length -= setup.task.max_new_tokens  # as prompts are cut, so that a written answer has positions
        asked = setup.loss.stand_in(max(2, setup.settings["token_budget"] // length), length)
        alike = "alike but for the last"
        if setup.settings.get("demonstrations_for") == "each_row":
            texts, alike = getattr(asked, "candidates", asked), "each unlike the others from the first on"
            texts.tokens[texts.offsets[:-1]] = np.arange(len(texts))
        step = trackers.peak_bytes(model, lambda: setup.loss.evaluate(model, asked))
        how = f"an evaluation of {len(asked)} stand-in texts of {length} tokens, {alike}"
    elif setup.card.order is not None:
        step = trackers.peak_bytes(model, two_steps)
    features = ", of whose features the head reads" if from_features else ""
    return {
        # a step from features comes after the inference that makes them
        "peak_allocated_bytes": max(step, inference) if from_features else step,
        "inference_peak_bytes": inference,
        "weights_bytes": trackers.weights_bytes(model),
        "peak_reserved_bytes": trackers.reserved_bytes(model),
        "how": f"{trackers.how(model)}, {how}{features}",
    }


# Batch invariance -------------------------------------------------------------------------------------------


def measure_batch_invariance(loss: Any, model: Any, batch: Any, *, clip: float, smoothing: float) -> dict:
    """The part `batch_invariance` of a record, measured on `stand_ins`: no private example enters."""
    moved = losses_move(loss, model, batch, clip=clip, smoothing=smoothing, leaving=(0, STAND_INS // 2))
    how = f"losses of {len(batch)} stand-ins, without one of them"
    return {"others_move_over_clip": moved, "compute": loss.compute, "how": how}


def stand_ins(like: Any, model: Any, length: int) -> Any:
    """Random examples of the type of `like` (a split of a task, or its features), of 2 to `length` tokens."""
    if isinstance(like, caches.Features):
        values = np.random.default_rng(0).normal(size=(STAND_INS, like.values.shape[1]))
        return caches.Features.from_arrays(values.astype(np.float32), np.zeros(STAND_INS, np.int64))
    texts: list[Any] = [stand_in_ids(model, int(n)) for n in np.linspace(length, 2, STAND_INS)]
    if isinstance(like, Continuations):
        return Continuations.from_candidates([[(ids, 1, True)] for ids in texts], [""] * STAND_INS)
    return Examples.from_token_ids(texts, [0] * STAND_INS)
