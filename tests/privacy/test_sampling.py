"""The samplers have the distribution that is accounted. Chance of failure below 1e-6 each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpzero.privacy import RunKey, Setting
from dpzero.privacy.sampling import SAMPLERS, FullBatch, Poisson, ShuffledEpochs, Users, WithoutReplacement

SIZE, BATCH, STEPS = 50, 8, 20_000
RATE = BATCH / SIZE


def sampler(kind=Poisson, size=SIZE, batch=BATCH, seed=0):
    return kind(size, batch, RunKey.published(seed).stream("sampling"))


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """Membership [step, example] of Poisson batches."""
    source = sampler()
    member = np.zeros((STEPS, SIZE))
    for step in range(STEPS):
        member[step, source.batch(step)] = 1
    return member


def sigmas(count: np.ndarray, trials: int, probability: float) -> np.ndarray:
    return (count - trials * probability) / math.sqrt(trials * probability * (1 - probability))


def test_poisson_batch_sizes_are_binomial(drawn):
    sizes = drawn.sum(1)
    variance = SIZE * RATE * (1 - RATE)
    assert abs(sizes.mean() - BATCH) < 5.2 * math.sqrt(variance / STEPS)
    assert abs(sizes.var() / variance - 1) < 5.2 * math.sqrt(
        2 / STEPS
    )  # fixed batches have no variance at all
    law = stats.binom(SIZE, RATE)
    edges = np.arange(2, 17)
    seen = [(sizes < 2).sum(), *((sizes == edge).sum() for edge in edges), (sizes > 16).sum()]
    expected = STEPS * np.array([law.cdf(1), *law.pmf(edges), law.sf(16)])
    assert stats.chisquare(seen, expected).pvalue > 5e-7


def test_every_example_joins_with_the_same_probability(drawn):
    assert np.abs(sigmas(drawn.sum(0), STEPS, RATE)).max() < 6.5


def test_examples_join_independently_of_each_other(drawn):
    """Shuffled or fixed-size batches of the same mean size fail here: their pairs meet less often than rate
    squared.
    """
    together = drawn.T @ drawn
    pairs = sigmas(together[np.triu_indices(SIZE, 1)], STEPS, RATE**2)
    assert np.abs(pairs).max() < 7
    total = together[np.triu_indices(SIZE, 1)].sum() / len(pairs) / STEPS
    assert total == pytest.approx(RATE**2, rel=0.03)  # six standard deviations


def test_examples_join_independently_from_step_to_step(drawn):
    """No epochs: an example is drawn twice in a row as often as by chance."""
    again = (drawn[1:] * drawn[:-1]).sum()
    trials = (STEPS - 1) * SIZE
    assert (
        abs(sigmas(again, trials, RATE**2)) < 8
    )  # neighbouring pairs share a step, which widens the spread by an eighth


def test_an_empty_batch_is_an_index_array_like_any_other():
    source = sampler(size=4, batch=1)
    batches = [source.batch(step) for step in range(200)]
    empty = [batch for batch in batches if not len(batch)]
    assert 20 < len(empty) < 110  # 63 expected
    assert all(batch.dtype == np.int64 and batch.shape == (0,) for batch in empty)


@pytest.mark.parametrize("kind", [*SAMPLERS.values(), ShuffledEpochs])
def test_a_batch_is_a_function_of_key_and_step(kind):
    batch = SIZE if kind is FullBatch else BATCH
    backwards = {step: sampler(kind, batch=batch).batch(step) for step in reversed(range(20))}
    source = sampler(kind, batch=batch)
    for step in range(20):
        assert np.array_equal(source.batch(step), backwards[step])
        assert np.array_equal(backwards[step], np.unique(backwards[step]))


@pytest.mark.parametrize("kind", [Poisson, WithoutReplacement, ShuffledEpochs])
def test_another_key_draws_other_batches(kind):
    one, other = sampler(kind), sampler(kind, seed=1)
    assert any(not np.array_equal(one.batch(step), other.batch(step)) for step in range(3))


def test_without_replacement_draws_exactly_the_batch_size_uniformly():
    source, count = sampler(WithoutReplacement), 5000
    member = np.zeros((count, SIZE))
    for step in range(count):
        batch = source.batch(step)
        assert len(batch) == BATCH
        member[step, batch] = 1
    assert np.abs(sigmas(member.sum(0), count, RATE)).max() < 6.5
    pair = BATCH * (BATCH - 1) / SIZE / (SIZE - 1)
    assert np.abs(sigmas((member.T @ member)[np.triu_indices(SIZE, 1)], count, pair)).max() < 7.5


def test_a_full_batch_holds_all_examples():
    assert np.array_equal(sampler(FullBatch, batch=SIZE).batch(3), np.arange(SIZE))
    with pytest.raises(ValueError, match="full_batch needs dataset_size, 50"):
        sampler(FullBatch)


def test_poisson_at_rate_one_draws_all_examples():
    assert np.array_equal(sampler(batch=SIZE).batch(0), np.arange(SIZE))


@pytest.mark.parametrize("batch", [0, -1, SIZE + 1])
def test_a_batch_size_outside_the_data_is_refused(batch):
    with pytest.raises(ValueError, match=f"batch_size is {batch}"):
        sampler(batch=batch)


# Shuffled epochs, for reproductions -----------------------------------------------------------------------


def test_a_shuffled_epoch_holds_every_example_once_and_ends_with_what_is_left():
    source, steps = sampler(ShuffledEpochs), math.ceil(SIZE / BATCH)
    epochs = [[source.batch(step) for step in range(e * steps, (e + 1) * steps)] for e in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8, 8, 8, 8, 8, 8, 2]
        assert np.array_equal(np.sort(np.concatenate(epoch)), np.arange(SIZE))
    assert not np.array_equal(epochs[0][0], epochs[1][0])


def test_shuffled_epochs_cannot_be_accounted_for():
    assert ShuffledEpochs.name not in SAMPLERS
    with pytest.raises(ValueError, match="no proven accounting for gaussian with shuffled_epochs sampling"):
        Setting("gaussian", ShuffledEpochs.name, "add_remove", SIZE, BATCH, STEPS, 1e-5)


# Users ----------------------------------------------------------------------------------------------------

AUTHORS = ["ann", "bob", "ann", "cid", "ann", "bob"]


def test_drawn_users_give_all_their_examples_and_no_others():
    users = Users(AUTHORS)
    assert len(users) == 3
    examples, whose = users.examples(np.array([0, 2]))
    assert examples.tolist() == [0, 2, 4, 3] and whose.tolist() == [0, 0, 0, 1]
    assert (examples.dtype, whose.dtype) == (np.int64, np.int64)
    everyone, _ = users.examples(np.arange(3))
    assert sorted(everyone.tolist()) == list(range(6))


def test_no_users_give_no_examples():
    examples, whose = Users(AUTHORS).examples(np.zeros(0, np.int64))
    assert examples.shape == whose.shape == (0,)
    assert (examples.dtype, whose.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize("names", [[7, 7, 3], [("a", 1), ("a", 1), ("a", 2)], ["x", "x", ""]])
def test_a_user_may_be_any_hashable(names):
    examples, whose = Users(names).examples(np.array([0, 1]))
    assert examples.tolist() == [0, 1, 2] and whose.tolist() == [0, 0, 1]


def test_a_user_with_many_examples_is_drawn_no_more_often():
    """The sampler draws users at rate batch_size / users, whatever the number of their examples."""
    users = Users(["prolific"] * 91 + list(range(9)))
    source, count = sampler(size=len(users), batch=2), 4000
    drawn = np.zeros((count, len(users)))
    sizes = np.zeros(count)
    for step in range(count):
        batch = source.batch(step)
        drawn[step, batch] = 1
        sizes[step] = len(users.examples(batch)[0])
    assert np.abs(sigmas(drawn.sum(0), count, 0.2)).max() < 6.5
    assert np.array_equal(sizes, drawn[:, 0] * 91 + drawn[:, 1:].sum(1))
