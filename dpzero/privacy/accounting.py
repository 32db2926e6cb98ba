"""Noise for a target epsilon, and epsilon for the noise that was added.

The accountant is dp-accounting's privacy loss distribution (PLD), pessimistic, on the dominating profiles of `profiles`,
discretisation 1e-4 (there finer for small losses, coarser for large ones). Deltas that it cannot resolve are composed by
`composition`; pure epsilon for the Laplace mechanism has a closed form. What is not proven is refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .calibration import cached, least_scale
from .checks import number, whole
from .offered_settings import check

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    from .composition import Composition
    from .dominating_pairs import Pair

DISCRETISATION = 1e-4
ANSWERS = 3  # raised when a change of this code may change an answer, were it by a rounding: kept answers are of one version
MOST_NOISE = 1e10  # over the sensitivity: of more the two outputs are not told apart in floating point, and it counts as this
# dp-accounting counts 1e-15 of each release as infinite and rounds as coarsely: left to it are 1e4 steps at the least delta,
# in proportion more at a larger one. Its transforms round, up or down, by 3e-13 of delta in 1e4 steps (measured): below
# SURE_DELTA the larger of the two answers counts
RESOLVED_DELTA, RESOLVED_STEPS, SURE_DELTA = 1e-10, 10**6, 1e-6


def period(dataset_size: int, batch_size: int) -> int:
    """Batches of a pass over the data."""
    return -(-dataset_size // batch_size)


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
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        object.__setattr__(self, "delta", number("delta", self.delta))
        check(self)

    @property
    def rate(self) -> float:
        return self.batch_size / self.dataset_size

    def delta_warning(self, unit: str = "unit") -> str | None:
        """What to say of a delta that protects nobody."""
        if self.delta < 1 / self.dataset_size:
            return None
        return (
            f"delta is {self.delta:g} for {self.dataset_size} {unit}s: at 1 / {self.dataset_size} or above it allows publishing "
            "one of them outright: choose a far smaller delta"
        )

    @property
    def period(self) -> int:
        """Steps of which random allocation gives each example exactly one."""
        return period(self.dataset_size, self.batch_size)

    @property
    def _allocated(self) -> bool:
        return self.sampling == "random_allocation" and self.period > 1

    def _releases(self) -> tuple[int, float]:
        """How many are composed, and the chance of an example to be in one. Of random allocation those are whole periods."""
        if self._allocated:
            return -(-self.steps // self.period), 1.0
        return self.steps, self.rate

    def counted_steps(self, released: Iterable[int]) -> int:
        """As how many `steps` the releases of these steps count. Of random allocation a period that was touched counts whole:
        16 steps from the middle of one period to that of the next may hold an example twice."""
        steps = list(released)
        return self.period * len({step // self.period for step in steps}) if self._allocated else len(steps)

    def sensitivity(self) -> float:
        """The largest change of the sum by one unit, over the clip bound."""
        return math.sqrt(self.directions) * (2 if self.adjacency == "replace_one" else 1)

    # -- epsilon -------------------------------------------------------------------------------------------------------

    def epsilon(self, noise_scale: float, discretisation: float = DISCRETISATION) -> float:
        """The epsilon that `steps` releases with this noise give at delta (inf for no noise, 0 for infinite noise)."""
        noise_scale = _scale(noise_scale)
        if noise_scale in (0.0, math.inf):
            return math.inf if noise_scale == 0 else 0.0
        if self.delta == 0:
            count, rate = self._releases()
            return count * _sampled(self.sensitivity() / noise_scale, rate)
        spent = 0.0
        if self.resolved:
            import numpy as np

            with np.errstate(over="ignore"):  # dp-accounting divides by masses that may be all but nothing
                spent = self.loss_distribution(noise_scale, discretisation).get_epsilon_for_delta(self.delta)
        if not self.resolved or self.delta < SURE_DELTA:
            spent = max(spent, self._tilted(noise_scale, discretisation).get_epsilon_for_delta(self.delta))
        return float(spent)

    def _tilted(self, noise_scale: float, discretisation: float = DISCRETISATION) -> Composition:
        """All steps, for deltas of any size."""
        from . import composition, random_allocation

        looseness = composition.LOOSENESS * discretisation / DISCRETISATION
        if self._allocated:
            periods, _ = self._releases()
            return random_allocation.compose(
                self._base(noise_scale), self.period, periods, self.delta, looseness
            )
        return composition.compose(self._pairs(noise_scale), self.steps, self.delta, looseness)

    @property
    def resolved(self) -> bool:
        """Whether dp-accounting answers, its arithmetic being fine enough for delta and steps."""
        return (
            not self._allocated
            and self.delta >= RESOLVED_DELTA
            and self.steps <= min(RESOLVED_STEPS, self.delta / RESOLVED_DELTA * 1e4)
        )

    def loss_distribution(
        self, noise_scale: float, discretisation: float = DISCRETISATION
    ) -> PrivacyLossDistribution:
        """dp-accounting's privacy loss distribution of all steps: for deltas of RESOLVED_DELTA and more."""
        from . import dominating_pairs, random_allocation

        if self._allocated:
            return random_allocation.loss_distribution(
                self._base(noise_scale), self.period, self._releases()[0]
            )
        return dominating_pairs.composed(self._pairs(noise_scale), self.steps, discretisation)

    def _noise(self, noise_scale: float) -> float:
        return min(noise_scale / self.sensitivity(), MOST_NOISE)

    def _base(self, noise_scale: float) -> Pair:
        """The dominating pair of a release that the example is surely in."""
        from . import dominating_pairs

        return {"gaussian": dominating_pairs.gaussian, "laplace": dominating_pairs.laplace}[self.mechanism](
            self._noise(noise_scale)
        )

    def _pairs(self, noise_scale: float) -> Sequence[Pair]:
        """The dominating pair of one step and, where it is not symmetric, its reverse."""
        from . import dominating_pairs

        base, rate = self._base(noise_scale), self.rate
        if rate == 1:
            return (base,)
        if self.sampling == "without_replacement":
            return (dominating_pairs.without_replacement(base, rate),)
        if self.adjacency == "replace_one":
            return (dominating_pairs.replaced_gaussian(2 * self._noise(noise_scale), rate),)
        return (dominating_pairs.removed(base, rate), dominating_pairs.added(base, rate))

    def epsilon_rdp(self, noise_scale: float) -> float | None:
        """The looser Renyi bound, for comparison with older papers; None where no library offers one that is proven."""
        noise_scale = _scale(noise_scale)
        event = None if noise_scale in (0.0, math.inf) else self.event(noise_scale)
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
        untold = self._allocated or (self.sampling, self.adjacency) == ("poisson", "replace_one")
        if self.mechanism != "gaussian" or untold:
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

        noise_scale = _scale(noise_scale)
        if noise_scale in (0.0, math.inf):
            return math.inf if noise_scale == 0 else 0.0
        if self.delta == 0:
            return float(-2 * ndtri_exp(log_expit(-self.epsilon(noise_scale))))
        losses = self.loss_distribution if self.resolved else self._tilted
        return least_mu(losses(noise_scale), self.delta)

    # -- noise ---------------------------------------------------------------------------------------------------------

    def noise_scale(self, epsilon: float) -> float:
        """The least noise that `epsilon` allows, to 2e-5 relative and never less than it needs."""
        if not 0 < number("epsilon", epsilon) < math.inf:
            raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
        count, rate = self._releases()
        if self.delta == 0:
            return self.sensitivity() / _sampled(epsilon / count, 1 / rate)
        ever_drawn = -math.expm1(count * math.log1p(-rate)) if rate < 1 else 1.0
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
        if self._allocated:
            return "PLD of a period of random allocation, composed under an exponential tilt, pessimistic"
        if not self.resolved:
            return "PLD composed under an exponential tilt, for deltas of any size, pessimistic"
        grid = f"{DISCRETISATION:g} (finer for small losses, at most 200,000 cells a release)"
        also = (
            ", or composed under an exponential tilt where that says more" if self.delta < SURE_DELTA else ""
        )
        return f"dp-accounting {version('dp-accounting')} PLD, pessimistic, discretisation {grid}{also}"


def _scale(noise_scale: float) -> float:
    scale = number("noise_scale", noise_scale)
    if not scale >= 0:
        raise ValueError(f"noise_scale is {noise_scale}: it must be a number of at least 0")
    return scale


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
    _warn(setting)
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
    _warn(setting)
    return setting.epsilon(noise_scale)


def _warn(setting: Setting) -> None:
    if caution := setting.delta_warning():
        warnings.warn(caution, stacklevel=3)
