"""What public implementations of private zeroth-order methods do, and the epsilon that it gives.

Read in their repositories at the commits named in IMPLEMENTATIONS. The sweep `guarantees` tabulates claim and guarantee side by side;
a run with `as_published` (see `as_published`) reproduces sampler, noise, accountant and divisor under its honest epsilon.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from .accounting import Setting

if TYPE_CHECKING:
    from .shuffled_epochs import Epochs


@dataclass(frozen=True)
class Implementation:
    """One public implementation. The noise on the sum of a full batch is `factor` times the accountant's multiplier times clip."""

    title: str
    source: str
    accountant: str  # of the claim; all assume Poisson sampling and one example added or removed
    factor: int
    share: float  # of epsilon for the scalars; the rest goes to a noisy count of the examples
    sampling: str  # what runs
    adjacency: str  # what the guarantee of what runs is stated for
    divisor: str  # of the sum: see DIVISORS
    noise_source: str  # why the noise is no secret


DIVISORS = {
    "actual": "own size, then noise",  # the mean over the batch's rows, and noise for a full batch
    "actual_with_noise": "own size, with noise",
    "noisy_count": "noisy size, with noise",  # rate times a noisy count of the examples
}
IMPLEMENTATIONS = {
    "dpzero": Implementation(
        title="DPZero",
        source="arXiv 2310.09639; Liang137/DPZero @ 485f236",
        accountant="opacus RDP",
        factor=2,
        share=1.0,
        sampling="shuffled_epochs",
        adjacency="replace_one",  # the paper's definition 2.1, and what the factor 2 is for
        divisor="actual",
        noise_source="drawn from the generator that the public direction seed has just seeded",
    ),
    "dp_aggzo": Implementation(
        title="DP-AggZO",
        source="USENIX Security 2025; erguteb/dp-aggzo @ 8662f09",
        accountant="opacus RDP",
        factor=1,
        share=0.95,
        sampling="poisson",
        adjacency="add_remove",
        divisor="noisy_count",
        noise_source="drawn from the generator seeded with 100 + step (RoBERTa) or with the last direction seed (OPT)",
    ),
    "dp_zoso": Implementation(
        title="DP-ZOSO, DP-ZOPO",
        source="arXiv 2402.07818; Liuxiaohao6/DPZOPO @ 88fe31b",
        accountant="PRV upper bound, error 0.1",
        factor=1,
        share=1.0,
        sampling="shuffled_epochs",
        adjacency="zero_out",  # one example's contribution taken away, all batches in place: as near to its claim as such batches get
        divisor="actual_with_noise",
        noise_source="drawn from NumPy's global generator, seeded with the run's seed, between the direction seeds",
    ),
}


@dataclass(frozen=True)
class PublicRun:
    """One setting under the practice of a public implementation.

    `assumed_size` is the number of examples that its accountant is told, where that is not the true one.
    """

    implementation: Implementation
    epsilon: float
    delta: float
    dataset_size: int
    batch_size: int
    steps: int
    assumed_size: int | None = None

    def __post_init__(self) -> None:
        _ = self.setting  # refuses what makes no sense

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise on the sum of a full batch over the clip bound, by the practice's own accountant."""
        rate = self.batch_size / (self.assumed_size or self.dataset_size)
        multiplier = {"opacus RDP": _by_rdp, "PRV upper bound, error 0.1": _by_prv}[
            self.implementation.accountant
        ]
        share = self.implementation.share * self.epsilon
        return self.implementation.factor * multiplier(share, self.delta, rate, self.steps)

    @property
    def batches(self) -> int:
        """Of an epoch."""
        return math.ceil(self.dataset_size / self.batch_size)

    @property
    def last_batch(self) -> int:
        """Rows in the last batch of an epoch."""
        return self.dataset_size - (self.batches - 1) * self.batch_size

    @property
    def setting(self) -> Setting:
        """The setting that the claim assumes and that this project samples: Poisson, one example added or removed."""
        return Setting(
            "gaussian", "poisson", "add_remove", self.dataset_size, self.batch_size, self.steps, self.delta
        )

    @property
    def bound(self) -> str:
        """How `epsilon_upper` is computed."""
        if self.implementation.sampling == "poisson":
            return f"{self.setting.accountant}, with the noisy count"
        return "one release an epoch on all data, no amplification by sampling; " + self.setting.accountant

    def epsilon_upper(self, steps: int | None = None) -> float:
        """An upper bound of the epsilon at delta that so many steps give, if their noise were secret."""
        if self.implementation.sampling == "poisson":
            return self._by_poisson(steps or self.steps)
        return self._epochs(steps or self.steps).epsilon_upper(self.delta)

    def epsilon_lower(self) -> float:
        """A lower bound of it: a pair of data sets that can be told apart so well."""
        if self.implementation.sampling == "poisson":
            return self._by_poisson(self.steps)  # the accounted pair is a pair of data sets
        epochs = self._epochs(self.steps)
        return epochs.epsilon_lower(
            self.delta, without=epochs.shift if self.implementation.adjacency == "zero_out" else 0.0
        )

    def _epochs(self, steps: int) -> Epochs:
        from .shuffled_epochs import Epochs

        changes = {"replace_one": 2, "zero_out": 1}[self.implementation.adjacency]
        growth = self.batch_size / self.last_batch if self.implementation.divisor == "actual" else 1.0
        share = self.last_batch / self.dataset_size
        return Epochs(
            changes / self.noise_scale, self.batches, math.ceil(steps / self.batches), share, growth
        )

    def _by_poisson(self, steps: int) -> float:
        from dp_accounting.pld.privacy_loss_distribution import from_laplace_mechanism

        scalars = replace(self.setting, steps=steps).loss_distribution(self.noise_scale)
        grid = scalars._pmf_remove._discretization  # the two must share it
        count = from_laplace_mechanism(self.count_scale, value_discretization_interval=grid)
        return float(scalars.compose(count).get_epsilon_for_delta(self.delta))

    @property
    def count_scale(self) -> float:
        """Laplace scale of the noisy count of the examples."""
        return 1 / ((1 - self.implementation.share) * self.epsilon)


@cache
def _by_rdp(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with _quiet():
        return get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
        )


@cache
def _by_prv(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants import PRVAccountant

    def upper(multiplier: float) -> float:
        accountant = PRVAccountant()
        accountant.history = [(multiplier, rate, steps)]
        with _quiet():
            return accountant.get_epsilon(delta, eps_error=0.1)

    return _least_on_grid(upper, epsilon)


def _least_on_grid(upper: Callable[[float], float], epsilon: float) -> float:
    """DP-ZOSO's search: down from 10 by 0.5 while the bound stays below epsilon, then on by a tenth of that, three times."""
    multiplier, interval = 10.0, 0.5
    if upper(multiplier) >= epsilon:
        raise ValueError(
            f"epsilon {epsilon} needs more than 10 times the clip of noise, where the public search begins"
        )
    for _ in range(4):
        while multiplier > interval and upper(multiplier) < epsilon:
            multiplier -= interval
        multiplier += interval
        interval /= 10
    return multiplier


@contextmanager
def _quiet() -> Iterator[None]:
    """opacus warns that the best order lies at the end of its list: so it does in the public code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
