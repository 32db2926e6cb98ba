"""Noise for a target epsilon, and epsilon for the noise that was added.

The accountant is dp-accounting's privacy loss distribution (PLD), pessimistic, on the dominating profiles of `profiles`,
discretisation 1e-4 (there finer for small losses, coarser for large ones); pure epsilon for the Laplace mechanism has a closed
form. What is not proven is refused.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .calibration import cached, least_scale

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

DISCRETISATION = 1e-4
ANSWERS = 3  # raised when a change of this code may change an answer, were it by a rounding: kept answers are of one version
OFFERED = (
    "gaussian or laplace with poisson sampling and add_remove, with without_replacement and replace_one, and with full_batch "
    "and either adjacency; gaussian with poisson sampling and replace_one; delta 0 with laplace; several directions with gaussian"
)


@dataclass(frozen=True)
class Setting:
    """Everything that epsilon depends on, beside the noise scale.

    noise_scale, wherever it appears, is the Gaussian standard deviation or the Laplace scale divided by the clip bound, for
    the noisy sum. `directions` scalars of one step share the batch and are accounted jointly: sensitivity clip * sqrt(K).
    Where the unit is a user, dataset_size and batch_size count users.
    """

    mechanism: str
    sampling: str
    adjacency: str
    dataset_size: int
    batch_size: int
    steps: int
    delta: float
    directions: int = 1

    def __post_init__(self) -> None:
        for name in ("dataset_size", "batch_size", "steps", "directions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.batch_size > self.dataset_size:
            raise ValueError(f"batch_size {self.batch_size} is larger than dataset_size {self.dataset_size}")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta is {self.delta}: it must be at least 0 and below 1")
        if self.sampling == "full_batch" and self.batch_size != self.dataset_size:
            raise ValueError(f"full_batch needs batch_size {self.dataset_size}, not {self.batch_size}")
        if not self._proven():
            raise ValueError(
                f"no proven accounting for {self.mechanism} with {self.sampling} sampling, {self.adjacency}, "
                f"delta {self.delta:g}{self._several()}: offered are {OFFERED}"
            )

    def _several(self) -> str:
        return f" and {self.directions} directions" if self.directions > 1 else ""

    def _proven(self) -> bool:
        pair = (self.sampling, self.adjacency)
        for_both = pair in {
            ("poisson", "add_remove"),
            ("without_replacement", "replace_one"),
            ("full_batch", "add_remove"),
            ("full_batch", "replace_one"),
        }
        if self.mechanism == "gaussian":
            return self.delta > 0 and (for_both or pair == ("poisson", "replace_one"))
        return self.mechanism == "laplace" and self.directions == 1 and for_both

    @property
    def rate(self) -> float:
        return self.batch_size / self.dataset_size

    def sensitivity(self) -> float:
        """The largest change of the sum by one unit, over the clip bound."""
        return math.sqrt(self.directions) * (2 if self.adjacency == "replace_one" else 1)

    # -- epsilon -------------------------------------------------------------------------------------------------------

    def epsilon(self, noise_scale: float, discretisation: float = DISCRETISATION) -> float:
        """The epsilon that `steps` releases with this noise give at delta (inf for no noise)."""
        if _is_none(noise_scale):
            return math.inf
        if self.delta == 0:
            return self.steps * _sampled(self.sensitivity() / noise_scale, self.rate)
        import numpy as np

        with np.errstate(over="ignore"):  # dp-accounting divides by masses that may be all but nothing
            return float(
                self.loss_distribution(noise_scale, discretisation).get_epsilon_for_delta(self.delta)
            )

    def loss_distribution(
        self, noise_scale: float, discretisation: float = DISCRETISATION
    ) -> PrivacyLossDistribution:
        """dp-accounting's privacy loss distribution of all steps."""
        from . import profiles

        noise, rate = noise_scale / self.sensitivity(), self.rate
        base = {"gaussian": profiles.gaussian, "laplace": profiles.laplace}[self.mechanism](noise)
        if self.sampling == "full_batch" or rate == 1:
            step = (base,)
        elif self.sampling == "without_replacement":
            step = (profiles.without_replacement(base, rate),)
        elif self.adjacency == "replace_one":
            step = (profiles.replaced_gaussian(2 * noise, rate),)
        else:
            step = (profiles.removed(base, rate), profiles.added(base, rate))
        return profiles.loss_distribution(step, discretisation).self_compose(self.steps)

    def epsilon_rdp(self, noise_scale: float) -> float | None:
        """The looser Renyi bound, for comparison with older papers; None where no library offers one that is proven."""
        event = None if _is_none(noise_scale) else self.event(noise_scale)
        if event is None or self.delta == 0:
            return None
        return self.renyi_epsilon(event)

    def renyi_epsilon(self, event: DpEvent) -> float:
        """Of an event of dp-accounting, at this delta, by its Renyi accountant."""
        from absl import logging
        from dp_accounting.rdp import RdpAccountant

        before = logging.get_verbosity()
        logging.set_verbosity(
            logging.ERROR
        )  # it warns of each order that it leaves out, which only loosens the bound
        try:
            return float(
                RdpAccountant(neighboring_relation=self.relation()).compose(event).get_epsilon(self.delta)
            )
        finally:
            logging.set_verbosity(before)

    def event(self, noise_scale: float) -> DpEvent | None:
        """The run as dp-accounting's Renyi accountant reads it: there replace_one does not double the sensitivity, so the
        noise is divided by it here. None for what that accountant cannot do."""
        if self.mechanism != "gaussian" or (self.sampling, self.adjacency) == ("poisson", "replace_one"):
            return None
        import dp_accounting as dp

        event = dp.GaussianDpEvent(noise_scale / self.sensitivity())
        if self.sampling == "poisson":
            event = dp.PoissonSampledDpEvent(self.rate, event)
        elif self.sampling == "without_replacement":
            event = dp.SampledWithoutReplacementDpEvent(self.dataset_size, self.batch_size, event)
        return dp.SelfComposedDpEvent(event, self.steps)

    def relation(self):
        from dp_accounting import NeighboringRelation

        return {
            "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
            "replace_one": NeighboringRelation.REPLACE_ONE,
        }[self.adjacency]

    def gdp_mu(self, noise_scale: float) -> float:
        """The least mu whose Gaussian mechanism loses at least as much at every epsilon where the run's delta is at least
        `delta` (Gaussian differential privacy, Dong, Roth and Su 2022, down to delta). For delta 0 the mu of pure epsilon."""
        from scipy.special import log_expit, ndtri_exp

        from .gdp import least_mu

        if _is_none(noise_scale):
            return math.inf
        if self.delta == 0:
            return float(-2 * ndtri_exp(log_expit(-self.epsilon(noise_scale))))
        return least_mu(self.loss_distribution(noise_scale), self.delta)

    # -- noise ---------------------------------------------------------------------------------------------------------

    def noise_scale(self, epsilon: float) -> float:
        """The least noise that `epsilon` allows, to 2e-5 relative and never less than it needs."""
        if not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
        if self.delta == 0:
            return self.sensitivity() / _sampled(epsilon / self.steps, 1 / self.rate)
        ever_drawn = -math.expm1(self.steps * math.log1p(-self.rate)) if self.rate < 1 else 1.0
        if self.delta * (1 + 1e-9) >= ever_drawn:  # any noise would do: there is no least
            raise ValueError(
                f"delta is {self.delta:g}, but an example is ever in a batch with probability {ever_drawn:g} only: give a "
                "smaller delta"
            )
        return least_scale(self.epsilon, epsilon, DISCRETISATION)

    def cached_noise_scale(self, epsilon: float, folder: Path) -> float:
        """`noise_scale`, kept in `folder` under a hash of all that it depends on."""
        question = {**asdict(self), "epsilon": epsilon, "accountant": self.accountant, "answers": ANSWERS}
        return cached(question, folder, lambda: self.noise_scale(epsilon))

    @property
    def accountant(self) -> str:
        if self.delta == 0:
            return "closed form, basic composition of pure epsilon"
        grid = f"{DISCRETISATION:g} (finer for small losses, at most 200,000 cells a release)"
        return f"dp-accounting {version('dp-accounting')} PLD, pessimistic, discretisation {grid}"


def _is_none(noise_scale: float) -> bool:
    if not noise_scale >= 0:
        raise ValueError(f"noise_scale is {noise_scale}: it must be a number of at least 0")
    return noise_scale == 0


def _sampled(loss: float, rate: float) -> float:
    """The largest loss of a release that an example takes part in with probability `rate`, from that where it surely does.

    With 1 / rate it is its own inverse.
    """
    if loss > 700:  # beyond the range of exp
        return loss + math.log(rate)
    return math.log1p(rate * math.expm1(loss))


def calibrate_noise(
    *,
    mechanism: str,
    epsilon: float,
    delta: float,
    sampling: str,
    adjacency: str,
    dataset_size: int,
    batch_size: int,
    steps: int,
    directions: int = 1,
) -> float:
    """The noise scale (in units of the clip bound, on the sum) that (epsilon, delta) needs. See `Setting`."""
    setting = Setting(mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions)
    return setting.noise_scale(epsilon)


def spent_epsilon(
    *,
    mechanism: str,
    noise_scale: float,
    delta: float,
    sampling: str,
    adjacency: str,
    dataset_size: int,
    batch_size: int,
    steps: int,
    directions: int = 1,
) -> float:
    """The epsilon that `steps` releases with this noise scale give at delta. See `Setting`."""
    setting = Setting(mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions)
    return setting.epsilon(noise_scale)
