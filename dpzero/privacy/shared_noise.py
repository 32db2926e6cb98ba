"""Noise that the units of a sum share out, so that nobody holds all of it: for federation, where a unit is a client.

Each client draws under a key of its own whether it takes part in a round (Poisson sampling), and adds its share of the
noise to every sum, whether it takes part or not. So the server, if it learns no more than the sums (secure aggregation,
which is assumed here), learns neither who took part nor a sum without noise. Neighbours differ by the rows of one
client, which goes on answering without them.

Statement and header name that assumption. Epsilon and `valid_release` hold for who learns the sums alone: a server that
reads the terms sees each client's value under one share of the noise.

A share is discrete Gaussian noise of variance (noise_scale clip)^2 / least_shares. A sum of k shares is within a factor of
exp(10 (k - 1) exp(-pi^2 s^2)) of discrete Gaussian noise, for shares of deviation s on the grid (Kairouz, Liu and Steinke
2021, arXiv 2102.06387), which is 1 to far more digits than any delta has for s >= LEAST_DEVIATION. So the epsilon of the
ledger holds in each round with least_shares shares that the adversary does not know. Clients that drop out or tell the
adversary their shares take theirs away: `SharedNoiseBudget.epsilon_of_shares` says what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .accounting import Setting
from .budget import Budget
from .clipping import check_clip
from .ledger import Event
from .ledger_epsilon import grid_delta
from .mechanisms import GRID_BITS, Gaussian
from .randomness import RunKey
from .sampling import Indices, Poisson, Sampler

LEAST_DEVIATION = 2.0**10  # of a share, in units of the grid


def to_grid(clipped: float, clip: float) -> int:
    """A value in [-clip, clip] as an integer times clip * 2^-GRID_BITS, as exact noise takes it."""
    return round(clipped / clip * 2.0**GRID_BITS)


def from_grid(term: int, clip: float) -> float:
    return term * 2.0**-GRID_BITS * clip


def share_scale(noise_scale: float, least_shares: int) -> float:
    """Standard deviation of a share over the clip, rounded up: least_shares of them have at least noise_scale^2.

    Raises:
        ValueError: no share, no noise, or shares that are too small for the grid.
    """
    if not 0 < noise_scale < math.inf:
        raise ValueError(f"noise_scale is {noise_scale}: noise that is shared out needs a finite one above 0")
    if not isinstance(least_shares, Integral) or least_shares < 1:
        raise ValueError(
            f"least_shares is {least_shares}: give the number of clients, 1 or more, that surely add noise"
        )
    scale = noise_scale / math.sqrt(least_shares)
    while Fraction(scale) ** 2 * least_shares < Fraction(noise_scale) ** 2:
        scale = math.nextafter(scale, math.inf)
    if scale * 2.0**GRID_BITS < LEAST_DEVIATION:
        raise ValueError(
            f"a share of the noise would have deviation {scale:.3g} times the clip, too small for its grid: give more noise "
            "or fewer least_shares"
        )
    return scale


class NoiseShare:
    """What one client adds to the sum of each round: its clipped value if it takes part, and its share of the noise.

    Args:
        setting, noise_scale: of the budget.
        least_shares: of the budget.
        number: of the client, from 0.
        key: the client's own. A published one, of a benchmark, may be the same for all clients.
    """

    def __init__(
        self, setting: Setting, noise_scale: float, least_shares: int, number: int, key: RunKey
    ) -> None:
        key.claim()
        self.scale, self.number = share_scale(noise_scale, least_shares), number
        self._noise = key.stream(f"noise of client {number}")
        sampling = key.stream(f"sampling of client {number}")
        self._sampler = Poisson(setting.dataset_size, setting.batch_size, sampling)

    def takes_part(self, step: int) -> bool:
        """The client's own number among those that its own key draws."""
        return self.number in self._sampler.batch(step)

    def add(self, term: int, step: int) -> int:
        """Add the noise of a step to a term on the grid. The same step has the same noise: ask once a step."""
        return term + Gaussian.grid_noise(self._noise, self.scale, step)


class _EachForItself(Poisson):
    """Hands out all units, each of which draws for itself, with the rate of Poisson sampling."""

    def batch(self, step: int) -> Indices:
        return np.arange(self.dataset_size)


class SharedNoiseBudget(Budget):
    """The budget of sums to which the clients have added the noise. Its key draws nothing but names the releases.

    Args:
        setting: gaussian, poisson, one direction; sizes count clients.
        noise_scale: over the clip, of the noise that surely is in a sum.
        key: secret if those of the clients are.
        least_shares: the least number of shares in a sum that the adversary does not know.
    """

    def __init__(
        self,
        setting: Setting,
        noise_scale: float,
        key: RunKey,
        ledger: str | Path | None = None,
        *,
        least_shares: int,
        **options: Any,
    ) -> None:
        if (setting.mechanism, setting.sampling, setting.directions) != ("gaussian", "poisson", 1):
            raise ValueError(
                "noise is shared out for the gaussian mechanism, poisson sampling and one direction: change the setting"
            )
        share_scale(noise_scale, least_shares)
        if least_shares > setting.dataset_size:
            raise ValueError(f"least_shares is {least_shares}, of {setting.dataset_size} clients: give fewer")
        self.least_shares = least_shares
        super().__init__(setting, noise_scale, key, ledger, noise_arithmetic="exact", unit="user", **options)

    @classmethod
    def check_event(cls, event: Event, least_shares: int) -> None:
        """Raises ValueError if no budget of this kind has the settings of an event, which a client has from its server."""
        budget = cls(event.setting(), event.noise_scale, RunKey.secret(), least_shares=least_shares)
        said, own = asdict(event), asdict(replace(budget.ledger.event, noise_key=event.noise_key))
        if other := [name for name in own if said[name] != own[name]]:
            raise ValueError(
                f"{other[0]} is {said[other[0]]!r} where noise that is shared out has {own[other[0]]!r}: make the server with "
                "a SharedNoiseBudget"
            )

    def _make_sampler(self, setting: Setting, key: RunKey) -> Sampler:
        return _EachForItself(setting.dataset_size, setting.batch_size, key.stream("sampling"))

    def release(self, clipped: Tensor, clip: float) -> float | list[float]:
        raise ValueError("the clients have added this budget's noise: give release_shares their terms")

    def release_shares(self, terms: Sequence[int], clip: float) -> float:
        """Release the sum of what clients sent in the next round, after recording it in the ledger.

        Args:
            terms: one for each client that answered, from `NoiseShare.add`.
            clip: the clipping threshold.

        Returns:
            The sum; 0 if fewer than least_shares clients answered. That round counts, too.
        """
        check_clip(clip)
        with self.lock:
            self.admit(self.setting.dataset_size)
            total = sum(terms) if len(terms) >= self.least_shares else 0
            self._record(clip, [repr(total).encode()])
        return from_grid(total, clip)

    def epsilon_of_shares(self, count: int) -> float:
        """Epsilon of the releases in the ledger if the adversary does not know `count` shares of each sum."""
        if not len(self.ledger):
            return 0.0
        scale = self.noise_scale * math.sqrt(count / self.least_shares)
        ran = replace(self.setting, steps=self._counted_steps())
        left = ran.delta - grid_delta(ran, scale, self.noise_arithmetic)
        return replace(ran, delta=left).epsilon(scale) if count > 0 and left >= 0 else math.inf

    @property
    def conditions(self) -> dict[str, Any]:
        """What epsilon and `valid_release` stand on, for statement and header."""
        return {"least_noise_shares": self.least_shares, "assumes": "secure aggregation"}

    def statement(self, clip: float | None = None, epsilon_target: float | None = None) -> dict[str, Any]:
        return super().statement(clip, epsilon_target) | self.conditions

    def __repr__(self) -> str:
        noise = f"{self.least_shares} shares of the noise that the adversary does not know"
        return f"{super().__repr__()}\nassumed: secure aggregation, so that the server learns the sums alone, and {noise}"
