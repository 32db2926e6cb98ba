"""Peak memory of a run's step on a stand-in batch: it says nothing of private data and repeats exactly, so it is measured once.

In-context learning takes no step: what it needs is an evaluation, which keeps the keys and values of the demonstrations.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files import write_whole
from ..language.data import assets
from ..language.models import feature_cache
from ..memory import trackers
from .provenance import provenance

if TYPE_CHECKING:
    from .run import Run

FOLDER = "memory"  # of the cache
FACTORS = {"learning_rate", "clip"}  # numbers that a step multiplies by: its memory is the same


def of(run: Run) -> dict:
    """Bytes of the weights, of plain inference and of a step, and how they were taken; kept for runs of the same settings."""
    cell = {key: run.cell[key] for key in ("task", "model", "use")}
    settings = {key: value for key, value in run.settings.items() if key not in FACTORS}
    found = provenance(run.cell["use"], run.device)
    source = hashlib.sha256(Path(trackers.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()
    made_by = [found[name] for name in ("code", "method_code", "device", "packages")]
    name = hashlib.sha256(json.dumps([cell, settings, made_by, source], sort_keys=True).encode()).hexdigest()[
        :16
    ]
    path = assets.cache_folder() / FOLDER / f"{name}.json"
    if not path.exists():
        write_whole(path, json.dumps(_measure(run)))
    return json.loads(path.read_text("utf-8"))


def _measure(run: Run) -> dict:
    """Of a throw-away model and method."""
    size, length = run.settings["batch_size"], run.settings["max_length"]
    batch, model = run.loss.stand_in(size, length), run.make_model()
    from_features = feature_cache.applies(model, run.settings)
    read = feature_cache.stand_in(model, size) if from_features else batch

    def forward() -> None:
        with torch.no_grad():
            run.loss(model, batch)

    def two_steps() -> None:  # optimiser state is made in the first and is there in the second
        method = run.make_method(model, run.rehearsal())
        method.step(read)
        method.step(read)

    forward()  # the first tries shapes, once for a run (see `language.invariant`)
    inference = trackers.peak_bytes(model, forward)
    words = f"a step on a stand-in batch of {size} x {length} tokens"
    if run.settings.get("demonstrations"):
        asked = run.loss.stand_in(max(2, run.settings["token_budget"] // length), length)
        step = trackers.peak_bytes(model, lambda: run.loss.evaluate(model, asked))
        words = f"an evaluation of {len(asked)} stand-in texts of {length} tokens, alike but for the last"
    else:
        step = inference if run.card.order is None else trackers.peak_bytes(model, two_steps)
    read_by_head = ", of whose features the head reads" if from_features else ""
    return {
        # a step from features comes after the inference that makes them
        "peak_allocated_bytes": max(step, inference) if from_features else step,
        "inference_peak_bytes": inference,
        "weights_bytes": trackers.weights_bytes(model),
        "peak_reserved_bytes": trackers.reserved_bytes(model),
        "how": f"{trackers.how(model)}, {words}{read_by_head}",
    }
