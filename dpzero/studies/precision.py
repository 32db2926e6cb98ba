"""How far bfloat16 matrix products move the projected gradient of a pretrained model.

For each model and smoothing: the finite differences of 32 training texts along 4 directions, with matrix
products in float32 and in bfloat16. Weights, norms and losses stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..language.data import tasks
from ..language.models import encoding, losses, text_classifier
from ..zeroth_order import TwoPoint

CASES = [("r8", "minilm"), ("movies", "smollm2-135m")]
SMOOTHINGS = (1e-3, 1e-2)
TEXTS, DIRECTIONS = 32, 4


class _Recorder(TwoPoint):
    """Keeps the finite differences and leaves the weights as they are."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.differences: list[NDArray] = []

    def projected_gradient(self, difference: torch.Tensor) -> float:
        self.differences.append((difference / (2 * self.smoothing)).numpy())
        return 0.0


def rows() -> Iterator[dict]:
    """One row for each model and smoothing."""
    for task, model in CASES:
        for smoothing in SMOOTHINGS:
            exact, rounded = (finite_differences(task, model, smoothing, c) for c in losses.COMPUTE)
            yield {
                "task": task,
                "model": model,
                "smoothing": smoothing,
                "texts_times_directions": len(exact),
                "rms_float32": np.sqrt(np.mean(exact**2)),
                "rms_error_bfloat16": np.sqrt(np.mean((rounded - exact) ** 2)),
                "correlation": np.corrcoef(exact, rounded)[0, 1],
            }


def finite_differences(task: str, model_name: str, smoothing: float, compute: str) -> NDArray:
    """(f(x + smoothing z) - f(x - smoothing z)) / (2 smoothing) of each text and direction, [TEXTS * DIRECTIONS]."""
    model = text_classifier.load(model_name, tasks.load(task), "full")
    texts = encoding.encode(tasks.load(task), model_name, 64)["train"][np.arange(TEXTS)]
    settings = {"learning_rate": 1e-3, "smoothing": smoothing, "seed": 0}
    recorder = _Recorder(model, losses.CrossEntropy(2048, compute), batch_size=TEXTS, **settings)
    for _ in range(DIRECTIONS):
        recorder.step(texts)
    return np.concatenate(recorder.differences)
