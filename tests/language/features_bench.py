"""What the features of a frozen body tell of RTE, with no training to blame:
python tests/language/features_bench.py DATA_FOLDER [minilm | smollm2-135m]

Logistic regressions, their weight decay chosen by five-fold cross-validation, on all official training rows: of the one vector that
the head of the sweep `heads` or `heads-lm` reads (both sentences as one text), and for the encoder of the vectors of the two
sentences, u and v, as u, v, |u - v|, u v. Writes results/SWEEP/tables/rte_features.csv.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn

from dpzero.language.data import columns, datasets, encoding, tasks
from dpzero.language.models import feature_cache, models, tokenizers

SWEEPS = {"minilm": "heads", "smollm2-135m": "heads-lm"}
LENGTH, FOLDS = 256, 5
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def vectors(model: models.Classifier, texts: list[list[int]]) -> np.ndarray:
    return feature_cache.features(model, encoding.Examples.of(texts, [0] * len(texts)))


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


def features(name: str, found: dict[str, list[datasets.Row]]) -> dict[str, dict[str, np.ndarray]]:
    """{way: {split: vectors}}."""
    task = tasks.load("rte")
    model = models.load(name, task, "head", 0)
    read, plain = encoding._reader(task, name, LENGTH), tokenizers.tokenizer(name, LENGTH)
    ways = {
        "both sentences as one text": {s: vectors(model, [*map(read, some)]) for s, some in found.items()}
    }
    if model.kind == "encoder":
        ways["u, v, |u - v|, u v"] = apart = {}
        for split, some in found.items():
            u, v = (vectors(model, [plain(row.fields[f"sentence{i}"]) for row in some]) for i in (1, 2))
            apart[split] = np.hstack([u, v, np.abs(u - v), u * v])
    return ways


def main(folder: str, name: str = "minilm") -> None:
    os.environ[columns.DATA_FOLDER] = folder
    read = datasets.read("rte", tasks.stanza("rte"))
    found = {split: read[split] for split in ("train", "test")}
    labels = {split: np.array([row.label for row in some]) for split, some in found.items()}
    lines = []
    for way, values in features(name, found).items():
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
    out = Path("results") / SWEEPS[name] / "tables" / "rte_features.csv"
    pandas.DataFrame(lines).to_csv(out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(*sys.argv[1:])
