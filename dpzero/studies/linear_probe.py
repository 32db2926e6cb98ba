"""Linear probes on RTE: what a linear head can learn from the frozen features of a model.

Logistic regressions on all official training rows, with weight decay chosen by five-fold cross-validation.
The features are those of both sentences as one text, which the heads of the sweeps see, and for an encoder
those of the two sentences, u and v, combined as u, v, |u - v|, u v.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..language.data import datasets, tasks
from ..language.models import caches, encoding, text_classifier

LENGTH, FOLDS = 256, 5
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Rows = dict[str, list[datasets.Row]]


def rows(model_name: str) -> Iterator[dict]:
    """One row for each kind of features."""
    splits = datasets.read("rte", tasks.stanza("rte"))
    splits = {split: splits[split] for split in ("train", "test")}
    train_labels, test_labels = (np.array([row.label for row in rows]) for rows in splits.values())
    for name, features in _features(model_name, splits).items():
        spread = features["train"].std(0) + 1e-9
        train, test = features["train"] / spread, features["test"] / spread
        scores = {decay: _cross_validate(train, train_labels, decay) for decay in DECAYS}
        decay = max(scores, key=scores.__getitem__)
        probe = _fit(train, train_labels, decay)
        accuracy = _accuracy(probe, test, test_labels)
        yield {
            "features": name,
            "training_rows": len(train_labels),
            "weight_decay": decay,
            "accuracy_cross_validated": scores[decay],
            "accuracy_train": _accuracy(probe, train, train_labels),
            "accuracy_test": accuracy,
            "accuracy_test_95_half_width": 1.96 * (accuracy * (1 - accuracy) / len(test_labels)) ** 0.5,
            "test_rows": len(test_labels),
        }


def _features(model_name: str, splits: Rows) -> dict[str, dict[str, NDArray]]:
    """{kind of features: {split: float32 [N, H]}}."""
    task = tasks.load("rte")
    model = text_classifier.load(model_name, task, "head", 0)
    encode_pair = encoding.row_encoder(task, model_name, LENGTH)
    encode = encoding.tokenizer(model_name, LENGTH)

    def vectors(texts: list[list[int]]) -> NDArray:
        return caches.features(model, encoding.Examples.from_token_ids(texts, [0] * len(texts)))

    kinds = {
        "both sentences as one text": {s: vectors([*map(encode_pair, rows)]) for s, rows in splits.items()}
    }
    if model.kind == "encoder":
        combined = {}
        for split, rows in splits.items():
            u, v = (vectors([encode(row.fields[f"sentence{i}"]) for row in rows]) for i in (1, 2))
            combined[split] = np.hstack([u, v, np.abs(u - v), u * v])
        kinds["u, v, |u - v|, u v"] = combined
    return kinds


def _fit(features: NDArray, labels: NDArray, decay: float) -> nn.Linear:
    """Logistic regression in float64."""
    probe = nn.Linear(features.shape[1], 2).double()
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    solver = torch.optim.LBFGS(probe.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = nn.functional.cross_entropy(probe(x), y) + decay * probe.weight.square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    return probe


@torch.no_grad()
def _accuracy(probe: nn.Linear, features: NDArray, labels: NDArray) -> float:
    return float((probe(torch.from_numpy(features).double()).argmax(1).numpy() == labels).mean())


def _cross_validate(features: NDArray, labels: NDArray, decay: float) -> float:
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    scores = []
    for k in range(FOLDS):
        probe = _fit(features[fold != k], labels[fold != k], decay)
        scores.append(_accuracy(probe, features[fold == k], labels[fold == k]))
    return float(np.mean(scores))
