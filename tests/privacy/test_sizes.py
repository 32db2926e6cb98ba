"""Many steps, examples, tensors and releases: faults that show only beyond the sizes of other tests.

Keys are published, so a test that passes once always passes; each fails for at most one key in a million.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from dpzero.privacy import Budget, RunKey, Setting, discrete_noise
from dpzero.privacy.ledger import Ledger
from dpzero.privacy.mechanisms import ARITHMETICS, GRID_BITS

SIZE, BATCH_SIZE, STEPS, SCALE = 1000, 250, 100_000, 200.0
NUMBERS = (
    *range(20),
    *(2**k + d for k in range(5, 21) for d in (-1, 0, 1)),
    *range(1000, STEPS, 9973),
    STEPS - 1,
)
FAR = sorted({n for n in NUMBERS if n < STEPS})


def budget(
    mechanism="gaussian", arithmetic="float", size=SIZE, batch_size=BATCH_SIZE, directions=1, **options
) -> Budget:
    setting = Setting(mechanism, "poisson", "add_remove", size, batch_size, STEPS, 1e-5, directions)
    return Budget(setting, SCALE, RunKey.published(3), noise_arithmetic=arithmetic, **options)


def at(source: Budget, number: int) -> np.ndarray:
    """The batch of this number."""
    source.start_at(number)
    return next(source.batches())


def noise_of(source: Budget, number: int, directions: int, clip: float) -> list[float]:
    """By the definition: the noise of step t and direction k is a function of the stream, t and k alone."""
    stream, mechanism = source.key.stream("noise"), source.setting.mechanism
    if source.noise_arithmetic == "float":
        unit = {"gaussian": stream.normals, "laplace": stream.laplaces}[mechanism](directions, number, 0, 0)
        return list(SCALE * clip * unit)
    scale = Fraction(SCALE) * 2**GRID_BITS
    law, size = {"gaussian": (discrete_noise.gaussian, scale**2), "laplace": (discrete_noise.laplace, scale)}[
        mechanism
    ]
    drawn = [law(discrete_noise.Bits(stream, number, k), math.ceil(size)) for k in range(directions)]
    return [n * 2.0**-GRID_BITS * clip for n in drawn]


# Noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_a_release_is_its_sum_and_its_own_noise_at_any_step(mechanism, arithmetic):
    """Full noise at the first step, at the last and in between, for batches of any size, and never the same
    noise twice.
    """
    source, noises = budget(mechanism, arithmetic), []
    for number in FAR:
        clip = 10.0 ** (number % 7 - 3)
        values = clip * torch.cos(torch.arange(float(len(at(source, number)))).double())
        (noise,) = noise_of(source, number, 1, clip)
        assert source.release(values, clip) == pytest.approx(
            float(values.sum()) + noise, rel=1e-9, abs=1e-9 * clip
        )
        noises.append(noise / clip)
    assert len(set(noises)) == len(FAR) == len(source.ledger)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_each_of_many_directions_has_noise_of_its_own(arithmetic, directions=70):
    source, seen = budget(arithmetic=arithmetic, directions=directions), set()
    for number in (0, 1, 70, STEPS - 1):
        released = source.release(torch.zeros(len(at(source, number)), directions), 0.5)
        assert released == pytest.approx(noise_of(source, number, directions, 0.5), rel=1e-9)
        seen.update(released)
    assert len(seen) == 4 * directions


def test_each_of_many_tensors_has_noise_of_its_own():
    """Each part of a large tensor has its own noise, too."""
    source = budget()
    sums = [torch.zeros(100, dtype=torch.float64) for _ in range(300)] + [
        torch.zeros(2**19 + 5, dtype=torch.float64)
    ]
    for number in (0, STEPS - 1):
        source.admit(len(at(source, number)))
        source.release_(sums, 1.0)
    noise = torch.cat(sums)
    assert len(noise.unique()) > len(noise) - 5  # sums of two steps, some 2^53 different numbers
    assert abs(noise.std() / (2**0.5 * SCALE) - 1) < 0.01


def test_noise_and_batches_are_uncorrelated():
    """Noise and batches are independent, though both come from one key."""
    source, steps = budget(size=60, batch_size=30), 4000
    member, noise = np.zeros((steps, 60)), np.zeros(steps)
    for step, batch in zip(range(steps), source.batches(), strict=False):
        member[step, batch] = 1
        noise[step] = source.release(torch.zeros(len(batch)), 1.0)
    for statistic in (noise, np.abs(noise)):
        correlations = [np.corrcoef(statistic, column)[0, 1] for column in member.T]
        assert np.abs(correlations).max() < 6 / steps**0.5


# Batches --------------------------------------------------------------------------------------------------


def test_each_batch_is_that_of_its_step_after_many_steps():
    source, seen = budget(), set()
    for number in FAR:
        batch = at(source, number)
        assert np.array_equal(batch, source.sampler.batch(number))
        seen.add(batch.tobytes())
    assert len(seen) == len(FAR)


def test_large_batches_are_binomial_and_no_two_examples_are_always_together():
    size, steps = 5000, 64
    source = budget(size=size, batch_size=size // 2)
    member = np.zeros((steps, size), dtype=bool)
    for step in range(steps):
        member[step, at(source, step)] = True
    spread = math.sqrt(size) / 2
    assert np.abs(member.sum(1) - size / 2).max() < 6 * spread
    assert abs(member.sum() - steps * size / 2) < 5.5 * spread * math.sqrt(steps)
    assert np.abs(member.sum(0) - steps / 2).max() < 7 * math.sqrt(steps) / 2  # none is always in or out
    assert len(np.unique(np.packbits(member, axis=0), axis=1).T) == size


# The ledger -----------------------------------------------------------------------------------------------


def test_a_ledger_counts_every_one_of_many_releases():
    source = Budget(budget().setting, SCALE, RunKey.secret(), noise_arithmetic="float")
    for number in range(20_000):
        source.ledger.record(number, source.key.name)
    assert len(source.ledger) == 20_000
    state = source.state_dict()
    other = Budget(source.setting, SCALE, RunKey.secret(), noise_arithmetic="float")
    other.load_state_dict(state)
    assert len(other.ledger) == 20_000 and other.remaining_batches() == range(0, STEPS - 20_000)


def test_a_long_ledger_is_read_to_its_end(tmp_path):
    event = budget().ledger.event
    lines = [json.dumps(asdict(event)), *(f"{n} {k:016x}" for k in range(2) for n in range(10_000))]
    (tmp_path / "ledger").write_text("\n".join(lines) + "\n")
    ledger = Ledger(event, tmp_path / "ledger")
    assert len(ledger) == 20_000
    assert Counter(name for _, name in ledger) == {f"{k:016x}": 10_000 for k in range(2)}
