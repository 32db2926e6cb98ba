"""How far bfloat16 compute moves the projected gradient, on pretrained weights: python tests/zeroth_order/precision_bench.py

For each model and smoothing the per-example finite differences of 32 training texts along 4 directions, in float32 and with the
matrix products in bfloat16 (weights, norms and loss stay float32). Writes results/benchmark/tables/precision.csv.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import torch

from dpzero.language.data import encoding, tasks
from dpzero.language.models import losses, models
from dpzero.zeroth_order import TwoPoint

OUT = Path("results/benchmark/tables/precision.csv")
CASES = [("r8", "minilm"), ("movies", "smollm2-135m")]
SMOOTHINGS = (1e-3, 1e-2)
TEXTS, DIRECTIONS = 32, 4


class Differences(TwoPoint):
    """Remembers the finite differences and moves nowhere."""

    def projected_gradient(self, difference: torch.Tensor) -> float:
        self.found = (difference / (2 * self.smoothing)).numpy()
        return 0.0


def differences(task: str, model: str, smoothing: float, compute: str) -> np.ndarray:
    made = models.load(model, tasks.load(task), "full")
    texts = encoding.encode(task, model, 64)["train"][np.arange(TEXTS)]
    me = Differences(
        made,
        losses.CrossEntropy(2048, compute),
        batch_size=TEXTS,
        learning_rate=1e-3,
        smoothing=smoothing,
        seed=0,
    )
    found = []
    for _ in range(DIRECTIONS):
        me.step(texts)
        found.append(me.found)
    return np.concatenate(found)


def main() -> None:
    rows = []
    for task, model in CASES:
        for smoothing in SMOOTHINGS:
            exact, half = (differences(task, model, smoothing, c) for c in losses.COMPUTE)
            rows.append(
                {
                    "task": task,
                    "model": model,
                    "smoothing": smoothing,
                    "texts_times_directions": len(exact),
                    "rms_float32": np.sqrt(np.mean(exact**2)),
                    "rms_error_bfloat16": np.sqrt(np.mean((half - exact) ** 2)),
                    "correlation": np.corrcoef(exact, half)[0, 1],
                }
            )
            print(rows[-1], flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_csv(OUT, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
