"""Batch invariance: how far one example that leaves a batch moves the others' losses, and what a step takes.

Compares two ways to cut a batch: micro-batches padded to their longest text (`batch`), and padded by each
text's own length (`text`). Models of four kinds and a head on frozen features, float32 and bfloat16. Steps
alternate between the two ways on one thread, and times are processor times. Rows that the table has are not
measured again.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..language.data import tasks
from ..language.models import caches, encoding, losses, random_models, text_classifier
from ..language.models.batch_invariance import Cut, batch_shapes
from ..plan.registry import card
from ..zeroth_order.leave_one_out import others_move
from .benchmark import batch_of

CLIP, SMOOTHING, TOKENS, HEAD = 50.0, 1e-3, 2048, "minilm head"
MODELS = ("minilm", HEAD, "opt-125m", "roberta-base", "smollm2-135m")
LARGE = MODELS[2:]
SIZES, TIMED_SIZE = (1, 2, 8, 16, 64), 64
ROUNDS, FEW_ROUNDS, HEAD_STEPS = 15, 3, 200


class BatchShapes(losses.CrossEntropy):
    """Micro-batches padded to their longest text."""

    def cut(self, model: nn.Module, batch: encoding.Examples) -> list[Cut]:
        return batch_shapes(batch, self.token_budget)


WAYS = {"batch": BatchShapes, "text": losses.CrossEntropy}


def rows(table: Path) -> Iterator[dict]:
    """One row for each model, type of products and batch size; those that `table` has come first."""
    torch.set_num_threads(1)
    known = list(csv.DictReader(table.read_text("utf-8").splitlines())) if table.exists() else []
    yield from known
    measured = {(row["model"], row["compute"], int(row["batch_size"])) for row in known}
    for model, compute, size in product(MODELS, losses.COMPUTE, SIZES):
        if (model, compute, size) in measured or (model == HEAD and compute != "float32"):
            continue  # features are float32
        row = {"model": model, "compute": compute, "batch_size": size} | _measure_moves(model, compute, size)
        yield row | (_time_steps(model, compute) if size == TIMED_SIZE else {})


def load(name: str) -> tuple[nn.Module, Any]:
    """A model and its texts; the weights of published architectures are random."""
    r8, movies = tasks.load("r8"), tasks.load("movies")
    model: Any
    if name == HEAD:
        model, texts = text_classifier.load("minilm", r8, "head"), encoding.encode(r8, "minilm", 24)["train"]
        features = caches.read_features("minilm", lambda: model, texts[np.arange(1000)], 0, "cpu")
        return text_classifier.HeadAlone(model.head), features
    if name == "minilm":
        return text_classifier.load(name, r8, "bias"), encoding.encode(r8, name, 24)["train"]
    if name == "smollm2-135m":
        return text_classifier.load(name, movies, "bias"), encoding.encode(movies, name, 64)["train"]
    model = random_models.build(name)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.endswith("bias"))
    return model, batch_of(400, "short")


def _measure_moves(name: str, compute: str, size: int) -> dict[str, float]:
    """How far the others move, over the clip, when one of up to three examples leaves."""
    model, texts = load(name)
    batch = texts[np.random.default_rng(size).choice(len(texts), size, replace=False)]
    count = 1 if name in LARGE and size == TIMED_SIZE else 3
    leaving = list(range(0, size, max(1, size // count)))[:count]
    moves = {}
    for way, loss in WAYS.items():
        moved = others_move(
            loss(TOKENS, compute), model, batch, clip=CLIP, smoothing=SMOOTHING, leaving=leaving
        )
        moves[f"others_move_over_clip_{way}"] = moved["others_move_over_clip"]
    return moves


def _time_steps(name: str, compute: str) -> dict[str, float]:
    """Seconds of a step in each way, and their ratio in pairs."""
    model, texts = load(name)
    settings = {"learning_rate": 1e-9, "smoothing": SMOOTHING, "seed": 0}
    mezo = card("mezo").load()
    ways = {way: mezo(model, loss(TOKENS, compute), TIMED_SIZE, **settings) for way, loss in WAYS.items()}
    rounds, steps = FEW_ROUNDS if name in LARGE else ROUNDS, HEAD_STEPS if name == HEAD else 1
    random, times = np.random.default_rng(1), []
    for number in range(rounds + 1):
        batches = [texts[random.choice(len(texts), TIMED_SIZE, replace=False)] for _ in range(steps)]
        with torch.no_grad():
            for batch in batches:
                ways["text"].loss.cut(model, batch)  # tries new shapes before they are timed
        seconds = {}
        for way in list(WAYS)[:: -1 if number % 2 else 1]:
            start = time.process_time()
            for batch in batches:
                ways[way].step(batch)
            seconds[way] = (time.process_time() - start) / steps
        times += [seconds] * (number > 0)  # the first round warms up
    ratios = sorted(seconds["text"] / seconds["batch"] for seconds in times)
    return {
        "step_seconds_batch": statistics.median(seconds["batch"] for seconds in times),
        "step_seconds_text": statistics.median(seconds["text"] for seconds in times),
        "ratio_median": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "rounds": rounds,
    }
