"""Peak memory of a run's step on a stand-in batch. It reveals nothing private, and is measured once.

In-context learning takes no step: it needs an evaluation, which keeps the keys and values of the
demonstrations.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ..files import write_whole
from ..language.data import assets
from ..language.models import caches
from ..memory import trackers
from .provenance import provenance
from .setup import Setup

FOLDER = "memory"  # of the cache
FACTORS = {"learning_rate", "clip"}  # settings that only multiply: they do not change the memory of a step


def measure(setup: Setup) -> dict:
    """Peak bytes of weights, inference and a step, and how they were measured; cached by settings."""
    cell = {key: setup.cell[key] for key in ("task", "model", "use")}
    settings = {key: value for key, value in setup.settings.items() if key not in FACTORS}
    origin = provenance(setup.cell["use"], setup.device)
    source = hashlib.sha256(Path(trackers.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()
    made_by = [origin[name] for name in ("code", "method_code", "device", "packages")]
    question = json.dumps([cell, settings, made_by, source], sort_keys=True)
    name = hashlib.sha256(question.encode()).hexdigest()[:16]
    path = assets.cache_folder() / FOLDER / f"{name}.json"
    if not path.exists():
        write_whole(path, json.dumps(_measure(setup)))
    return json.loads(path.read_text("utf-8"))


def _measure(setup: Setup) -> dict:
    """On a model of its own: steps change the weights, and a first-order method leaves hooks on the model."""
    size, length = setup.settings["batch_size"], setup.settings["max_length"]
    model: Any = setup.model()
    batch = setup.loss.stand_in(size, length)
    from_features = caches.trains_on_features(model, setup.settings)
    inputs: Any = caches.stand_in_features(model, size) if from_features else batch

    def forward() -> None:
        with torch.no_grad():
            setup.loss(model, batch)

    def two_steps() -> None:  # the first makes the optimizer's state, which the second has in memory
        method = setup.method(model, setup.stand_in_budget())
        method.step(inputs)
        method.step(inputs)

    forward()  # the first pass tries shapes, once for a run (see `language.models.batch_invariance`)
    inference = trackers.peak_bytes(model, forward)
    how = f"a step on a stand-in batch of {size} x {length} tokens"
    if setup.settings.get("demonstrations"):
        asked = setup.loss.stand_in(max(2, setup.settings["token_budget"] // length), length)
        step = trackers.peak_bytes(model, lambda: setup.loss.evaluate(model, asked))
        how = f"an evaluation of {len(asked)} stand-in texts of {length} tokens, alike but for the last"
    else:
        step = inference if setup.card.order is None else trackers.peak_bytes(model, two_steps)
    features = ", of whose features the head reads" if from_features else ""
    return {
        # a step from features comes after the inference that makes them
        "peak_allocated_bytes": max(step, inference) if from_features else step,
        "inference_peak_bytes": inference,
        "weights_bytes": trackers.weights_bytes(model),
        "peak_reserved_bytes": trackers.reserved_bytes(model),
        "how": f"{trackers.how(model)}, {how}{features}",
    }
