"""What the features of a frozen encoder tell of RTE, with no training to blame: python tests/language/features_bench.py DATA_FOLDER

Logistic regressions, their weight decay chosen by five-fold cross-validation, on all official training rows: of the one vector that
the head of the sweep `heads` reads (both sentences as one text), and of the vectors of the two sentences, u and v, as u, v, |u - v|,
u v. Writes results/heads/tables/rte_features.csv.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

from dpzero.language import frozen, models, rows, tasks, tokens
from dpzero.language.examples import Examples

OUT = Path("results/heads/tables/rte_features.csv")
MODEL, LENGTH, FOLDS = "minilm", 256, 5
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def vectors(model: models.Classifier, texts: list[str]) -> np.ndarray:
    read = tokens.tokenizer(MODEL, LENGTH)
    return frozen.features(model, Examples.of([read(text) for text in texts], [0] * len(texts)))


def regression(features: np.ndarray, labels: np.ndarray, decay: float) -> nn.Linear:
    head = nn.Linear(features.shape[1], 2).double()
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = nn.functional.cross_entropy(head(x), y) + decay * head.weight.square().sum() / 2
        value.backward()
        return value

    solver.step(loss)
    return head


@torch.no_grad()
def accuracy(head: nn.Linear, features: np.ndarray, labels: np.ndarray) -> float:
    return float((head(torch.from_numpy(features).double()).argmax(1).numpy() == labels).mean())


def cross_validated(features: np.ndarray, labels: np.ndarray, decay: float) -> float:
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    scores = [
        accuracy(
            regression(features[fold != k], labels[fold != k], decay), features[fold == k], labels[fold == k]
        )
        for k in range(FOLDS)
    ]
    return float(np.mean(scores))


def main(folder: str) -> None:
    os.environ[rows.DATA_FOLDER] = folder
    model, found = models.load(MODEL, tasks.load("rte"), "head", 0), rows.read("rte", tasks.stanza("rte"))
    labels = {split: np.array([row.label for row in found[split]]) for split in ("train", "test")}
    ways: dict[str, dict[str, np.ndarray]] = {"both sentences as one text": {}, "u, v, |u - v|, u v": {}}
    for split, some in found.items():
        if split in labels:
            one = vectors(model, [row.text for row in some])
            u, v = (vectors(model, [row.fields[f"sentence{i}"] for row in some]) for i in (1, 2))
            for way, values in zip(ways, (one, np.hstack([u, v, np.abs(u - v), u * v])), strict=True):
                ways[way][split] = values
    lines = []
    for way, values in ways.items():
        spread = values["train"].std(0) + 1e-9
        train, test = values["train"] / spread, values["test"] / spread
        scores = {decay: cross_validated(train, labels["train"], decay) for decay in DECAYS}
        decay = max(scores, key=scores.get)
        head = regression(train, labels["train"], decay)
        score = accuracy(head, test, labels["test"])
        error = 1.96 * (score * (1 - score) / len(labels["test"])) ** 0.5
        lines.append(
            {
                "features": way,
                "training_rows": len(labels["train"]),
                "weight_decay": decay,
                "accuracy_cross_validated": scores[decay],
                "accuracy_train": accuracy(head, train, labels["train"]),
                "accuracy_test": score,
                "accuracy_test_95_half_width": error,
                "test_rows": len(labels["test"]),
            }
        )
        print(lines[-1], flush=True)
    pandas.DataFrame(lines).to_csv(OUT, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(sys.argv[1])
