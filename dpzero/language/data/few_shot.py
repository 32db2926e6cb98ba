"""Draws of training rows: LM-BFF's, some of each class, and MeZO's for OPT, a number in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from .datasets import DEV_ROWS, Draw

TEST_ROWS = 1000  # of a drawn test split, at most
ROW_SEEDS = 10_000  # the seeds of the rows' own demonstrations are below it
TEST_SEED = 42  # of LM-BFF's test rows, whatever the seed of the training rows


def few_shot_split(
    labels: Sequence[Hashable], shots: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that LM-BFF (Gao et al., ACL 2021) draws for train and dev, in the order of its files.

    Its script shuffles the rows by NumPy's legacy generator and groups them by label. The first `shots` rows
    of a label are train, the next are dev. A class with fewer rows gives what it has.

    Args:
        labels: of all training rows, in the order of the data set's file, length n.
        shots: rows of each label.
        seed: 13, 21, 42, 87 and 100 in the papers.

    Returns:
        (train_indices, dev_indices), int64, disjoint.

    Raises:
        ValueError: shots is below 1.
    """
    if shots < 1:
        raise ValueError(f"shots is {shots}: it must be at least 1")
    groups: dict[Hashable, list[int]] = {}
    for index in np.random.RandomState(seed).permutation(len(labels)):
        groups.setdefault(labels[index], []).append(int(index))
    train = [index for group in groups.values() for index in group[:shots]]
    dev = [index for group in groups.values() for index in group[shots : 2 * shots]]
    return np.array(train, np.int64), np.array(dev, np.int64)


def draw_rows(
    labels: Sequence[Hashable], test_rows: int, draw: Draw, dev_rows: int = DEV_ROWS
) -> dict[str, NDArray[np.int64]]:
    """Indices of the drawn rows.

    With `shots`, train and dev are LM-BFF's; a test file of more than 1000 rows is sampled by one fixed seed,
    as in its published files. With `train_examples`, one seed draws train, dev and test (MeZO's
    `sample_subset`). If there are fewer training rows than both splits ask for, dev is served first.

    Args:
        labels: of all training rows.
        test_rows: how many test rows there are.
        draw: with `shots` or `train_examples`.
        dev_rows: of a draw with `train_examples`.

    Returns:
        Train and dev as indices of the training rows, test as indices of the test rows.

    Raises:
        ValueError: no class has `shots` rows, or dev takes all rows.
    """
    if draw.shots:
        if max(Counter(labels).values(), default=0) < draw.shots:
            raise ValueError(f"no class has {draw.shots} training rows")
        train, dev = few_shot_split(labels, draw.shots, draw.seed)
        test = np.arange(test_rows)
        if test_rows > TEST_ROWS:
            test = sample_rows(test_rows, TEST_ROWS, TEST_SEED)
        return {"train": train, "dev": dev, "test": test}
    order = sample_rows(len(labels), draw.train_examples + dev_rows, draw.seed)
    if len(order) <= dev_rows:
        raise ValueError(f"{len(order)} training rows leave none after {dev_rows} for dev")
    test = sample_rows(test_rows, TEST_ROWS, draw.seed)
    return {"train": order[:-dev_rows], "dev": order[-dev_rows:], "test": test}


def draw_demonstrations(rows: int, answered: int, draw: Draw) -> list[NDArray[np.int64]]:
    """Indices of the training rows that stand before the prompts of a split.

    With `demonstrations_for` "each_row" they are those of MeZO's `icl.sh`, whose seed is 0: one seed draws a
    number for each row, and this number is the seed of the row's own draw (`sample_train_sets` without a seed).

    Args:
        rows: how many training rows there are.
        answered: how many rows the split has, in the order in which they were drawn.
        draw: with `demonstrations`.

    Returns:
        For each row of the split, indices of shape [demonstrations].
    """
    if draw.demonstrations_for == "all_rows":
        return [sample_rows(rows, draw.demonstrations, draw.seed)] * answered
    seeds = np.random.RandomState(draw.seed).randint(0, ROW_SEEDS, answered)
    return [sample_rows(rows, draw.demonstrations, int(seed)) for seed in seeds]


def sample_rows(rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """The first `count` of a permutation of the rows, by NumPy's legacy generator."""
    return np.random.RandomState(seed).permutation(rows)[:count]
