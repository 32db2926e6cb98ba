"""Few-shot splits: those of LM-BFF's script, row by row."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest

import dpzero.language
from dpzero.language.data.datasets import Draw
from dpzero.language.data.few_shot import draw_rows, few_shot_split

LABELS = ["b", "a", "c", "a", "b", "a", "c", "a", "b", "b", "a", "c", "b", "a"]


def as_the_script_does(labels: list, shots: int, seed: int) -> tuple[list[int], list[int]]:
    """With the script's own calls: the global generator, a Python list of lines, groups in a dict."""
    lines = [f"{i}\t{label}" for i, label in enumerate(labels)]
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    np.random.shuffle(lines)  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    groups: dict[str, list[int]] = {}
    for line in lines:
        number, label = line.split("\t")
        groups.setdefault(label, []).append(int(number))
    sides = ((0, shots), (shots, 2 * shots))
    return tuple([i for group in groups.values() for i in group[a:b]] for a, b in sides)


@pytest.mark.parametrize("seed", [13, 21, 42, 87, 100])
@pytest.mark.parametrize("shots", [1, 2, 16])
def test_rows_and_order_are_those_of_the_published_script(seed, shots):
    labels = LABELS + [str(i % 3) for i in range(200)]
    train, dev = dpzero.language.few_shot_split(labels, shots, seed)
    assert (train.tolist(), dev.tolist()) == as_the_script_does(labels, shots, seed)
    assert train.dtype == dev.dtype == np.int64


def test_known_rows_of_seed_42():
    """Fixed values, which show a NumPy with another stream."""
    train, dev = few_shot_split(LABELS, 2, 42)
    assert (train.tolist(), dev.tolist()) == ([9, 0, 11, 2, 5, 1], [12, 8, 6, 13, 7])
    assert sorted(LABELS[i] for i in train) == ["a", "a", "b", "b", "c", "c"]
    assert sorted(LABELS[i] for i in dev) == ["a", "a", "b", "b", "c"]


def test_a_rare_class_gives_what_it_has():
    labels = [0] * 600 + [1] * 86
    train, dev = few_shot_split(labels, 512, 13)
    assert np.bincount(np.array(labels)[train]).tolist() == [512, 86]
    assert np.bincount(np.array(labels)[dev], minlength=2).tolist() == [88, 0]
    assert not set(train.tolist()) & set(dev.tolist())


def test_no_shots_are_refused():
    with pytest.raises(ValueError, match="shots is 0: it must be at least 1"):
        few_shot_split(LABELS, 0, 1)


def test_a_test_file_is_sampled_only_above_1000_rows():
    all_rows = draw_rows(LABELS, 1000, Draw(shots=2, seed=13))["test"]
    assert all_rows.tolist() == list(range(1000))
    samples = [draw_rows(LABELS, 2210, Draw(shots=2, seed=seed))["test"] for seed in (13, 21)]
    assert np.array_equal(*samples) and len(set(samples[0].tolist())) == 1000
    sampled = pandas.DataFrame({"row": range(2210)}).sample(n=1000, random_state=42)  # as the script does
    assert samples[0].tolist() == sampled["row"].tolist()


def test_mezo_draws_train_and_dev_from_one_permutation_and_test_with_the_same_seed():
    drawing = draw_rows([0] * 3000, 2000, Draw(train_examples=1000, seed=29))
    order = np.random.RandomState(29).permutation(3000)
    assert drawing["train"].tolist() == order[:1000].tolist()
    assert drawing["dev"].tolist() == order[1000:1500].tolist()
    assert drawing["test"].tolist() == np.random.RandomState(29).permutation(2000)[:1000].tolist()


@pytest.mark.parametrize(
    "rows, dev_rows, train", [(250, 100, 150), (400, 100, 300), (554, 500, 54), (1200, 500, 700)]
)
def test_a_small_task_fills_dev_before_train(rows, dev_rows, train):
    """CB, COPA and WSC: MeZO's script draws train and dev together and cuts dev off the end."""
    drawing = draw_rows([0] * rows, 56, Draw(train_examples=1000, seed=29), dev_rows)
    order = np.random.RandomState(29).permutation(rows)
    assert drawing["train"].tolist() == order[:train].tolist()
    assert drawing["dev"].tolist() == order[train:].tolist()
    assert sorted(drawing["test"].tolist()) == list(range(56))


def test_a_draw_that_the_rows_cannot_give_is_refused():
    with pytest.raises(ValueError, match="500 training rows leave none after 500 for dev"):
        draw_rows([0] * 500, 56, Draw(train_examples=1000, seed=29))
    with pytest.raises(ValueError, match="no class has 512 training rows"):
        draw_rows([0] * 16 + [1] * 16, 56, Draw(shots=512, seed=13))


def test_trec_with_512_shots_has_the_2646_rows_that_were_trained_on(data):
    lines = (data / "trec" / "train.jsonl").read_text("utf-8").splitlines()
    labels = [json.loads(line)["coarse_label"] for line in lines]
    train, dev = few_shot_split(labels, 512, 42)
    assert np.bincount(np.array(labels)[train]).tolist() == [512, 512, 86, 512, 512, 512]
    assert np.bincount(np.array(labels)[dev], minlength=6).tolist() == [512, 512, 0, 512, 323, 384]
