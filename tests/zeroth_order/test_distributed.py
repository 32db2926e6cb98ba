"""Any number of ranks takes the same steps, bit for bit; a failure names the rank."""

from __future__ import annotations

import math
import os
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpzero.errors import RankFailure
from dpzero.zeroth_order import TwoPoint, two_point
from dpzero.zeroth_order.distributed import WORDS, Dismissed, Ranks, exact_sum, join_ranks, words
from dpzero.zeroth_order.transcript import digest
from tests.forked import forked

BATCH = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Sums(TwoPoint):
    def projected_gradient(self, difference):
        return self.total(difference[:, None])[0] / (2 * self.smoothing * self.batch_size)


def loss(model, batch):
    return torch.stack(
        [model(x[None])[0].square().sum() for x in batch]
    )  # one by one: the same bits in any share


def method(**settings) -> Sums:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    return Sums(model, loss, batch_size=24, learning_rate=0.01, smoothing=0.01, seed=3, **settings)


def steps(ranks: Ranks, count: int = 7) -> tuple[list[float], str, float]:
    mine = method()
    if ranks.size > 1:
        mine.join(ranks)
    scalars = [mine.step(BATCH[ranks.rank :: ranks.size]) for _ in range(count)]
    mine.check_ranks()
    ranks.close()
    return scalars, digest(mine.parameters), (ranks.sent_bytes, ranks.received_bytes)


def is_failure(outcome: object, words: str) -> bool:
    return isinstance(outcome, RankFailure) and words in str(outcome)


# --- sums


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(-1e6, 1e6, width=64).map(lambda x: round(x, 12)), max_size=40),
    st.integers(1, 5),
)
def test_sums_of_shares_add_up_exactly(values, ranks):
    terms = [word for r in range(ranks) for word in words(values[r::ranks])]
    assert len(terms) == ranks * WORDS and exact_sum(terms) == math.fsum(values)


@pytest.mark.parametrize("values", [[math.inf], [math.nan, 1.0], [math.inf, -math.inf], [1e308] * 3])
def test_sums_that_are_not_finite_stay_so(values):
    assert not math.isfinite(exact_sum(words(values))) and not math.isfinite(exact_sum(values))


def test_one_process_is_a_single_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join_ranks().size == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_ranks().size == 1


# --- steps


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_ranks_take_the_steps_of_one_to_the_bit(count):
    scalars, weights, _ = steps(Ranks())
    (*first, (sent, received)), *others = forked(lambda rank: steps(join_ranks()), count)
    assert first == [scalars, weights] and len(set(scalars)) == 7
    checks = 2 * (8 + 32)
    assert received == (count - 1) * (7 * 32 + checks) and sent == (count - 1) * 7 * 16
    assert others == [(scalars, weights, (7 * 32 + checks, 7 * 16))] * (count - 1)


def test_a_rank_that_dies_is_named():
    def die(rank):
        ranks = join_ranks(timeout_seconds=20)
        for _ in range(5):
            ranks.terms(BATCH.double())
            if rank == 1 and ranks.exchanges == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.agreed([1.0])

    first, killed, other = forked(die, 3)
    assert (
        is_failure(first, "rank 1 is gone")
        and killed == signal.SIGKILL
        and is_failure(other, "rank 0 is gone")
    )


def test_a_rank_that_is_slow_is_named():
    def wait(rank):
        ranks = join_ranks(timeout_seconds=1)
        if rank == 1:
            time.sleep(2)
        ranks.terms(BATCH.double())
        ranks.agreed([1.0])

    first, *_ = forked(wait, 2)
    assert is_failure(first, "rank 1 did not answer within 1 s")


def test_a_rank_with_other_weights_is_named_at_the_next_check(monkeypatch):
    monkeypatch.setattr(two_point, "CHECK_EVERY", 4)

    def fail(rank):
        ranks, mine = join_ranks(timeout_seconds=20), method()
        mine.join(ranks)
        for step in range(8):
            if (rank, step) == (2, 5):
                flat = mine.parameters[0].data.view(-1)
                flat[0] = torch.nextafter(flat[0], flat[0] + 1)
            mine.step(BATCH[rank::3])
        ranks.close()

    first, *_ = forked(fail, 3)
    assert is_failure(first, "the weights of rank 2 are not those of rank 0 after step 8")


def test_sums_of_another_step_are_refused():
    def skip(rank):
        ranks = join_ranks(timeout_seconds=20)
        ranks.exchanges += rank
        ranks.terms(BATCH.double())
        ranks.agreed([1.0])

    first, _ = forked(skip, 2)
    assert is_failure(first, "rank 1 sent corrupt sums")


def test_ranks_of_different_starts_do_not_join():
    def join(rank):
        mine = method()
        if rank:
            mine.parameters[0].data[0, 0] += 1
        ranks = join_ranks(timeout_seconds=20)
        mine.join(ranks)
        ranks.close()

    first, _ = forked(join, 2)
    assert is_failure(first, "the weights of rank 1 are not those of rank 0 after step 0")


def test_rank_0_dismisses_the_other_ranks():
    def part(rank):
        ranks = join_ranks(timeout_seconds=20)
        ranks.terms(BATCH.double())
        ranks.agreed([1.0])
        if rank == 0:
            return ranks.dismiss()
        ranks.terms(BATCH.double())
        ranks.agreed([1.0])

    first, *others = forked(part, 3)
    assert first is None and all(isinstance(outcome, Dismissed) for outcome in others)


def test_users_examples_may_not_lie_with_several_ranks():
    mine = method()
    mine.unit = "user"
    with pytest.raises(ValueError, match="use one rank"):
        mine.join(Ranks())
