"""Which rows are trained on: all, some of each class as LM-BFF draws them, or a fixed number as MeZO draws them for OPT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from .datasets import DEV_ROWS, Draw

TEST_ROWS = 1000  # of a drawn test split, at most
TEST_SEED = 42  # of LM-BFF's test rows, whatever the seed of the training rows


def few_shot_split(labels: Sequence[Hashable], shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that LM-BFF (Gao et al., ACL 2021) takes for train and dev, in the order of its files.

    Its script seeds NumPy's legacy generator, shuffles the rows and groups them by label, the labels in the order in which they now
    come; the first `shots` of a label are train, the next are dev. A class with fewer rows gives what it has.

    Args:
        labels: of all training rows, in the order of the data set's file, length n.
        shots: rows of each label.
        seed: 13, 21, 42, 87 and 100 in the papers.

    Returns:
        (train_indices, dev_indices), int64, disjoint.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}: it must be at least 1")
    groups: dict[Hashable, list[int]] = {}
    for index in np.random.RandomState(seed).permutation(len(labels)):
        groups.setdefault(labels[index], []).append(int(index))
    train = [index for group in groups.values() for index in group[:shots]]
    dev = [index for group in groups.values() for index in group[shots : 2 * shots]]
    return np.array(train, np.int64), np.array(dev, np.int64)


def drawn(
    labels: Sequence[Hashable], test_rows: int, draw: Draw, dev_rows: int = DEV_ROWS
) -> dict[str, np.ndarray]:
    """Indices of train, dev and test: the first two of the training rows, whose labels these are, the last of the test rows.

    With `shots`: the published test files of more than 1000 rows are sampled once and for all. With `train_examples`: MeZO's
    `sample_subset`, in which one seed draws the training, dev and test rows; where there are fewer training rows than both ask for,
    dev is served first.

    Raises ValueError where too few rows are there: no class has `shots`, or dev takes all.
    """
    if draw.shots:
        if max(Counter(labels).values(), default=0) < draw.shots:
            raise ValueError(f"no class has {draw.shots} training rows")
        train, dev = few_shot_split(labels, draw.shots, draw.seed)
        test = np.arange(test_rows) if test_rows <= TEST_ROWS else first_rows(test_rows, TEST_ROWS, TEST_SEED)
        return {"train": train, "dev": dev, "test": test}
    order = first_rows(len(labels), draw.train_examples + dev_rows, draw.seed)
    if len(order) <= dev_rows:
        raise ValueError(f"{len(order)} training rows leave none beside {dev_rows} for dev")
    test = first_rows(test_rows, TEST_ROWS, draw.seed)
    return {"train": order[:-dev_rows], "dev": order[-dev_rows:], "test": test}


def first_rows(rows: int, count: int, seed: int) -> np.ndarray:
    """The first of a permutation of the rows, by NumPy's legacy generator."""
    return np.random.RandomState(seed).permutation(rows)[:count]
