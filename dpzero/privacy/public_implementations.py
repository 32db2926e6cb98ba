"""What public implementations of private zeroth-order methods do, and the epsilon that this gives.

Read in their repositories at the commits named here. The sweep `guarantees` tabulates claims and guarantees;
`imitation_budget` reproduces sampler, noise, accountant and divisor in a run and reports its actual epsilon.
PACZero claims no epsilon: what its releases give is computed in `sign_releases`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from .accounting import Setting

if TYPE_CHECKING:
    from .shuffled_epochs import Epochs


@dataclass(frozen=True)
class Implementation:
    """One public implementation."""

    title: str
    source: str
    accountant: str  # of the claim; all assume Poisson sampling and add_remove
    factor: int  # noise on the sum of a full batch, over the accountant's multiplier times clip
    share: float  # of epsilon for the scalars; the rest is for a noisy count of the examples
    sampling: str  # the sampler that runs
    adjacency: str  # for which a guarantee of what runs is stated
    divisor: str  # of the sum: see DIVISORS
    noise_source: str  # why the noise is not secret


DIVISORS = {
    "actual": "own size, then noise",  # the mean over the batch's rows, plus noise for a full batch
    "actual_with_noise": "own size, with noise",
    "noisy_count": "noisy size, with noise",  # rate times a noisy count of the examples
    "expected": "expected size, with noise",  # rate times the number of examples
}
IMPLEMENTATIONS = {  # by the method of this project that can run as they do
    "dpzero": Implementation(
        title="DPZero",
        source="arXiv 2310.09639; Liang137/DPZero @ 485f236",
        accountant="opacus RDP",
        factor=2,
        share=1.0,
        sampling="shuffled_epochs",
        adjacency="replace_one",  # the paper's definition 2.1; the factor 2 is for it
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
        adjacency="zero_out",  # one contribution removed, all batches in place: closest to its claim
        divisor="actual_with_noise",
        noise_source="drawn from NumPy's global generator, seeded with the run's seed, between the direction seeds",
    ),
    "geo_dpzo": Implementation(
        title="GeoDPZO",
        source="no paper found; NoNameSha/GeoDPZO @ 1d2be6d",
        accountant="opacus RDP",
        factor=1,
        share=1.0,
        sampling="shuffled_epochs",  # roberta/src: makes a Poisson sampler, then returns a loader without it
        adjacency="zero_out",
        divisor="expected",
        noise_source="drawn from the generator seeded with 100 + step",
    ),
}
PUBLIC_CODE = IMPLEMENTATIONS | {
    "geo_dpzo_opt": replace(
        IMPLEMENTATIONS["geo_dpzo"],
        title="GeoDPZO (OPT)",
        sampling="poisson",  # opt/src: its loader has the sampler
        adjacency="add_remove",
        noise_source="drawn from the generator that the last public direction seed has seeded",
    ),
}


@dataclass(frozen=True)
class SubsetImplementation:
    """A public implementation that claims mutual information with a secret subset, and no epsilon."""

    title: str
    source: str
    accountant: str
    noise_source: str


SUBSET_CODE = {
    "paczero": SubsetImplementation(
        title="PACZero",
        source="arXiv 2605.06505; bilgehanertan/paczero @ b9c661b",
        accountant="information of a noisy sign, to 1e-6 nats a step",
        noise_source=(
            "and coins, the candidate subsets and the secret one: drawn from NumPy's global generator, seeded with 42 "
            "in every script"
        ),
    ),
}


@dataclass(frozen=True)
class PublicRun:
    """A run of a public implementation.

    Args:
        implementation: whose sampler, noise and divisor.
        epsilon: the claim.
        setting: what the claim assumes: Gaussian noise, Poisson sampling, add_remove.
        assumed_size: the number of examples given to its accountant, if not the true one.
    """

    implementation: Implementation
    epsilon: float
    setting: Setting
    assumed_size: int | None = None

    @property
    def noise_scale(self) -> float:
        """Noise on the sum of a full batch over the clip, by the implementation's accountant."""
        setting, share = self.setting, self.implementation.share
        rate = setting.batch_size / (self.assumed_size or setting.dataset_size)
        multiplier = _by_rdp if self.implementation.accountant == "opacus RDP" else _by_prv
        noise = multiplier(share * self.epsilon, setting.delta, rate, setting.steps)
        return self.implementation.factor * noise

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.setting.period

    @property
    def last_batch(self) -> int:
        """Rows in the last batch of an epoch."""
        return self.setting.dataset_size - (self.batches - 1) * self.setting.batch_size

    @property
    def bound(self) -> str:
        """How `epsilon_upper` is computed, in words."""
        if self.implementation.sampling == "poisson":
            count = ", with the noisy count" if self.implementation.divisor == "noisy_count" else ""
            return self.setting.accountant + count
        return "one release an epoch on all data, no amplification by sampling; " + self.setting.accountant

    def epsilon_upper(self, steps: int | None = None) -> float:
        """Upper bound on epsilon at delta after so many steps (all by default), if the noise were secret."""
        if self.implementation.sampling == "poisson":
            return self._by_poisson(steps or self.setting.steps)
        return self._epochs(steps or self.setting.steps).epsilon_upper(self.setting.delta)

    def epsilon_lower(self) -> float:
        """Lower bound on epsilon, from a worst-case pair of data sets."""
        if self.implementation.sampling == "poisson":
            return self._by_poisson(self.setting.steps)  # the dominating pair is a pair of data sets
        epochs = self._epochs(self.setting.steps // self.batches * self.batches)  # those that are complete
        return epochs.epsilon_lower(
            self.setting.delta, without=epochs.shift if self.implementation.adjacency == "zero_out" else 0.0
        )

    def _epochs(self, steps: int) -> Epochs:
        from .shuffled_epochs import Epochs

        sensitivity = {"replace_one": 2, "zero_out": 1}[self.implementation.adjacency]
        growth = self.setting.batch_size / self.last_batch if self.implementation.divisor == "actual" else 1.0
        share = self.last_batch / self.setting.dataset_size
        return Epochs(
            sensitivity / self.noise_scale, self.batches, math.ceil(steps / self.batches), share, growth
        )

    def _by_poisson(self, steps: int) -> float:
        from dp_accounting.pld.privacy_loss_distribution import from_laplace_mechanism

        scalars = replace(self.setting, steps=steps).loss_distribution(self.noise_scale)
        if self.implementation.divisor != "noisy_count":
            return float(scalars.get_epsilon_for_delta(self.setting.delta))
        grid = scalars._pmf_remove._discretization  # the two must share it
        count = from_laplace_mechanism(self.count_scale, value_discretization_interval=grid)
        return float(scalars.compose(count).get_epsilon_for_delta(self.setting.delta))

    @property
    def count_scale(self) -> float:
        """Laplace scale of the noisy count of the examples."""
        return 1 / ((1 - self.implementation.share) * self.epsilon)


@cache
def _by_rdp(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    with warnings.catch_warnings(action="ignore"):  # that the best order is the last of its list
        target = {"target_epsilon": epsilon, "target_delta": delta}
        return float(get_noise_multiplier(**target, sample_rate=rate, steps=steps, accountant="rdp"))


@cache
def _by_prv(epsilon: float, delta: float, rate: float, steps: int) -> float:
    from opacus.accountants import PRVAccountant

    def upper(multiplier: float) -> float:
        accountant = PRVAccountant()
        accountant.history = [(multiplier, rate, steps)]
        with warnings.catch_warnings(action="ignore"):
            return float(accountant.get_epsilon(delta, eps_error=0.1))

    return _least_on_grid(upper, epsilon)


def _least_on_grid(upper: Callable[[float], float], epsilon: float) -> float:
    """DP-ZOSO's search: down from 10 while the bound stays below epsilon, in steps of 0.5 to 0.0005."""
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
