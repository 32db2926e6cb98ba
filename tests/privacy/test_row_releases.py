"""Releases of two sums, the second of the rows that the first selects: their noise, and what they cost together."""

from __future__ import annotations

import math

import dp_accounting as dp
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from dpzero.privacy import Budget, Ledger, RunKey, Setting
from dpzero.privacy.row_releases import Rows, noise_scales

V, H, CLIP, COUNT_CLIP, SHARE, THRESHOLD = 20_000, 4, 0.5, 2.0, 0.3, 2.0
SCALE = 0.8


def budget(steps=5, size=10, batch_size=10, sampling="full_batch", **options) -> Budget:
    setting = Setting("gaussian", sampling, "add_remove", size, batch_size, steps, 1e-5)
    return Budget(setting, SCALE, RunKey.published(0), first_share=SHARE, **options)


def rows(used=(), counts=()) -> Rows:
    table = torch.zeros(V, dtype=torch.float64)
    table[list(used)] = torch.tensor(counts, dtype=torch.float64)
    return Rows(
        table, COUNT_CLIP, torch.tensor(used, dtype=torch.int64), torch.ones(len(used), H), [torch.zeros(3)]
    )


def release(source: Budget, given: Rows, share=SHARE) -> tuple[torch.Tensor, torch.Tensor]:
    source.admit(len(next(source.batches())))
    return source.release_rows_(given, CLIP, threshold=THRESHOLD, first_share=share)


def test_the_two_releases_of_the_ledger_compose_to_the_joint_noise(tmp_path):
    """Read from the file of the ledger, as two Gaussian mechanisms each step: dp-accounting finds what is spent."""
    source = budget(ledger=tmp_path / "ledger")
    for batch in source.batches():
        source.admit(len(batch))
        source.release_rows_(rows(), CLIP, threshold=THRESHOLD, first_share=SHARE)
    spent, said = source.epsilon_spent(), source.statement()
    source.close()
    event = Ledger.read_event(tmp_path / "ledger")
    first, second = noise_scales(event.noise_scale, event.first_share)
    assert (first**-2 + second**-2) ** -0.5 == pytest.approx(event.noise_scale, rel=1e-12) == SCALE
    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp.GaussianDpEvent(first), 5).compose(dp.GaussianDpEvent(second), 5)
    assert spent == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert said["noise_scales"] == f"{first:.6g} for the counts, {second:.6g} for the gradient"
    assert said["steps"] == 5 and said["noise_scale"] == SCALE


def test_a_row_survives_by_its_noisy_count_and_unused_rows_may():
    """The share of 20,000 empty rows beyond two deviations, at six standard errors: a false alarm below 1e-8."""
    given = rows(used=(7, 19_000), counts=(100.0, 100.0))
    numbers, gradients = release(budget(), given)
    assert {7, 19_000} <= set(numbers.tolist()) and (numbers.diff() > 0).all()
    chance = math.erfc(THRESHOLD / math.sqrt(2)) / 2
    deviation = math.sqrt(V * chance * (1 - chance))
    assert abs(len(numbers) - 2 - V * chance) < 6 * deviation
    first, _ = noise_scales(SCALE, SHARE)
    assert (given.counts[numbers] >= THRESHOLD * first * COUNT_CLIP).all()
    assert gradients.shape == (len(numbers), H)


def test_each_sum_has_its_own_noise():
    """Standard deviations of 20,000 counts and some 1,900 entries, each at six standard errors: below 1e-8."""
    given = rows()
    _, gradients = release(budget(), given)
    first, second = noise_scales(SCALE, SHARE)
    for values, scale in ((given.counts, first * COUNT_CLIP), (gradients.flatten(), second * CLIP)):
        assert abs(float(values.std()) / scale - 1) < 6 / math.sqrt(2 * values.numel())
    both = torch.corrcoef(torch.stack([given.counts[: gradients.numel()], gradients.flatten().double()]))
    assert abs(float(both[0, 1])) < 6 / math.sqrt(gradients.numel())
    assert given.others[0].abs().min() > 0


def test_the_rows_below_the_threshold_release_nothing_of_their_gradient():
    used = tuple(range(50))
    numbers, _ = release(budget(), rows(used, [-1e9] * 50))
    assert not set(numbers.tolist()) & set(used)
    shown, _ = release(budget(), rows(used, [1e9] * 50))
    assert set(used) <= set(shown.tolist())


def test_another_split_than_the_ledger_says_is_refused():
    source = budget()
    with pytest.raises(
        ValueError, match=r"the counts have 0.1 of each release, and the budget was made with first_share 0.3"
    ):
        release(source, rows(), share=0.1)
    assert len(source.ledger) == 0
    setting = Setting("gaussian", "full_batch", "add_remove", 10, 10, 5, 1e-5)
    with pytest.raises(ValueError, match=r"first_share 0\.0"):
        release(Budget(setting, 1.0, RunKey.published(0)), rows(), share=0.0)


def test_rows_of_no_admitted_batch_are_refused():
    with pytest.raises(ValueError, match="belong to no batch"):
        budget().release_rows_(rows(), CLIP, threshold=THRESHOLD, first_share=SHARE)
