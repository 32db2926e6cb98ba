"""Noise for a target epsilon, and epsilon for the noise that was added.

The accountant is dp-accounting's privacy loss distribution (PLD), pessimistic, on the dominating pairs of
`dominating_pairs`, with discretisation 1e-4 (finer for small losses, coarser for large ones). `composition`
handles deltas that it cannot resolve; pure epsilon of the Laplace mechanism has a closed form. Settings
without a proof are refused.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import check_names
from ..files import write_whole
from .calibration import least_scale

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    from .composition import Composition
    from .dominating_pairs import Pair

DISCRETISATION = 1e-4
MAX_STEPS = 10**10  # beyond, rounding is no longer small
ACCOUNTANT = (
    "DPZERO_ACCOUNTANT"  # version of dp-accounting that gave the kept answers, where it is not installed
)
CACHE_VERSION = 3  # raised when a change of this code may change an answer, be it by rounding
MAX_NOISE = 1e10  # over the sensitivity; larger noise counts as this: floats no longer tell the outputs apart
# dp-accounting counts 1e-15 of each release as infinite and rounds as coarsely. It answers up to 1e4 steps at
# the least delta, and proportionally more at larger ones. Its transforms round, up or down, by 3e-13 of delta
# in 1e4 steps (measured): below SURE_DELTA the larger of the two answers counts
RESOLVED_DELTA, RESOLVED_STEPS, SURE_DELTA = 1e-10, 10**6, 1e-6
MIN_DELTA = 1e-30  # tested down to here against an independent accountant
MAX_GROUP = 64
GROUPED = (("gaussian", "poisson", "add_remove"), ("gaussian", "full_batch", "add_remove"))
PROVEN = (  # (sampling, adjacency) for both mechanisms
    ("poisson", "add_remove"),
    ("random_allocation", "add_remove"),
    ("without_replacement", "replace_one"),
    ("full_batch", "add_remove"),
    ("full_batch", "replace_one"),
)
OFFERED = (
    "gaussian or laplace with poisson sampling and add_remove, with random_allocation and add_remove, with "
    "without_replacement and replace_one, and with full_batch and either adjacency; gaussian with poisson "
    "sampling and replace_one; delta 0 with laplace; several directions with gaussian"
)
SHUFFLING = ". To shuffle, use random_allocation: each example is in exactly one batch of each pass, which is accounted for"


def batches_per_pass(dataset_size: int, batch_size: int) -> int:
    """Batches of one pass over the data."""
    return -(-dataset_size // batch_size)


@dataclass(frozen=True)
class Setting:
    """Everything that epsilon depends on, except the noise scale.

    In all methods noise_scale is the Gaussian standard deviation or the Laplace scale of the noisy sum, over
    the clip: before the sum is divided by the expected batch size.

    Args:
        mechanism: gaussian or laplace.
        sampling: poisson, without_replacement, full_batch or random_allocation.
        adjacency: add_remove or replace_one.
        dataset_size: number of units (examples or users).
        batch_size: the expected number of units in a batch.
        steps: number of releases: one a batch, however many micro-batches it is evaluated in. As many as make an
            epoch, dataset_size / batch_size, leave out about 1/e of the units (see `share_seen`).
        delta: 0 for pure epsilon (laplace).
        directions: scalars per step. They share the batch and are accounted jointly: sensitivity clip *
            sqrt(directions).
        group_size: if a user with at most so many examples is protected, each of which is drawn on its own
            (group privacy): dataset_size and batch_size then count examples. 1: units are drawn whole.

    Raises:
        ValueError: an inconsistent setting, or one without a proven accounting.
    """

    mechanism: str
    sampling: str
    adjacency: str
    dataset_size: int
    batch_size: int
    steps: int
    delta: float
    directions: int = 1
    group_size: int = 1

    def __post_init__(self) -> None:
        for name in ("dataset_size", "batch_size", "steps", "directions", "group_size"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        object.__setattr__(self, "delta", _real("delta", self.delta))
        if self.steps > MAX_STEPS:
            raise ValueError(f"steps is {self.steps}: at most {MAX_STEPS} are accounted for")
        if self.batch_size > self.dataset_size:
            raise ValueError(f"batch_size {self.batch_size} is larger than dataset_size {self.dataset_size}")
        if self.sampling == "full_batch" and self.batch_size != self.dataset_size:
            raise ValueError(f"full_batch needs batch_size {self.dataset_size}, not {self.batch_size}")
        _check_proven(self.mechanism, self.sampling, self.adjacency, self.delta, self.directions)
        if self.group_size > 1:
            self._check_group()

    def _check_group(self) -> None:
        kind = (self.mechanism, self.sampling, self.adjacency)
        if kind not in GROUPED or self.group_size > MAX_GROUP:
            raise ValueError(
                f"no accounting for groups of {self.group_size} examples with {' '.join(kind)}: offered are gaussian "
                f"noise, poisson sampling or full_batch, add_remove, and groups of at most {MAX_GROUP}"
            )

    @property
    def rate(self) -> float:
        """Sampling rate."""
        return self.batch_size / self.dataset_size

    def delta_warning(self, unit: str = "unit") -> str | None:
        """A warning if delta is too large to protect anybody."""
        if self.delta < 1 / self.dataset_size:
            return None
        return (
            f"delta is {self.delta:g} for {self.dataset_size} {unit}s: at 1 / {self.dataset_size} or above "
            "it allows publishing one of them outright: choose a far smaller delta"
        )

    @property
    def period(self) -> int:
        """Steps in which random allocation uses each example exactly once."""
        return batches_per_pass(self.dataset_size, self.batch_size)

    def share_seen(self, steps: int) -> float:
        """The expected share of the units that are in a batch of so many steps.

        Poisson batches of an epoch's steps, n / B, have 1 - (1 - B / n)^(n / B) of them, nearly 1 - 1/e. Only
        random allocation (and a full batch) has all.
        """
        if self._allocated:
            return min(1.0, steps / self.period)
        return 1.0 if self.rate == 1 else -math.expm1(steps * math.log1p(-self.rate))

    @property
    def _allocated(self) -> bool:
        return self.sampling == "random_allocation" and self.period > 1

    def _composed_releases(self) -> tuple[int, float]:
        """Number of composed releases (periods for random allocation) and the sampling rate of each."""
        if self._allocated:
            return -(-self.steps // self.period), 1.0
        return self.steps, self.rate

    def counted_steps(self, released: Collection[int]) -> int:
        """Number of steps as which the releases of these steps count.

        A started period of random allocation counts whole: 16 steps from the middle of one period to that of
        the next may use an example twice.
        """
        if not self._allocated:
            return len(released)
        return self.period * len({step // self.period for step in released})

    def sensitivity(self) -> float:
        """The largest change of the sum by one unit, over the clip."""
        return math.sqrt(self.directions) * (2 if self.adjacency == "replace_one" else 1)

    # -- epsilon ---------------------------------------------------------------------------------------------

    def epsilon(self, noise_scale: float, discretisation: float = DISCRETISATION) -> float:
        """Epsilon of `steps` releases at delta: inf for no noise, 0 for infinite noise."""
        noise_scale = _scale(noise_scale)
        if noise_scale in (0.0, math.inf):
            return math.inf if noise_scale == 0 else 0.0
        if self.delta == 0:
            count, rate = self._composed_releases()
            return count * amplified_loss(self.sensitivity() / noise_scale, rate)
        spent = 0.0
        if self.resolved:
            import numpy as np

            with np.errstate(over="ignore"):  # dp-accounting divides by tiny masses
                spent = self.loss_distribution(noise_scale, discretisation).get_epsilon_for_delta(self.delta)
        if not self.resolved or self.delta < SURE_DELTA:
            spent = max(spent, self._tilted(noise_scale, discretisation).get_epsilon_for_delta(self.delta))
        return float(spent)

    def _tilted(self, noise_scale: float, discretisation: float = DISCRETISATION) -> Composition:
        """The composition of all steps, for deltas of any size."""
        from . import composition, random_allocation

        looseness = composition.LOOSENESS * discretisation / DISCRETISATION
        if self._allocated:
            periods, _ = self._composed_releases()
            return random_allocation.compose(
                self._base(noise_scale), self.period, periods, self.delta, looseness
            )
        return composition.compose(self._pairs(noise_scale), self.steps, self.delta, looseness)

    @property
    def resolved(self) -> bool:
        """Whether dp-accounting's arithmetic is fine enough for delta and steps."""
        return (
            not self._allocated
            and self.delta >= RESOLVED_DELTA
            and self.steps <= min(RESOLVED_STEPS, self.delta / RESOLVED_DELTA * 1e4)
        )

    def loss_distribution(
        self, noise_scale: float, discretisation: float = DISCRETISATION
    ) -> PrivacyLossDistribution:
        """dp-accounting's privacy loss distribution of all steps, for deltas of at least RESOLVED_DELTA."""
        from . import dominating_pairs, random_allocation

        if self._allocated:
            return random_allocation.loss_distribution(
                self._base(noise_scale), self.period, self._composed_releases()[0]
            )
        return dominating_pairs.compose(self._pairs(noise_scale), self.steps, discretisation)

    def _noise(self, noise_scale: float) -> float:
        return min(noise_scale / self.sensitivity(), MAX_NOISE)

    def _base(self, noise_scale: float) -> Pair:
        """The dominating pair of a release that surely includes the example."""
        from . import dominating_pairs

        return {"gaussian": dominating_pairs.gaussian, "laplace": dominating_pairs.laplace}[self.mechanism](
            self._noise(noise_scale)
        )

    def _pairs(self, noise_scale: float) -> Sequence[Pair]:
        """The dominating pair of one step and, if it is not symmetric, its reverse."""
        from . import dominating_pairs

        base, rate = self._base(noise_scale), self.rate
        if self.group_size > 1:
            grouped = dominating_pairs.group(self._noise(noise_scale), rate, self.group_size)
            return (grouped, grouped.swapped())
        if rate == 1:
            return (base,)
        if self.sampling == "without_replacement":
            return (dominating_pairs.without_replacement(base, rate),)
        if self.adjacency == "replace_one":
            return (dominating_pairs.replaced_gaussian(2 * self._noise(noise_scale), rate),)
        removed = dominating_pairs.removed(base, rate)
        return (removed, removed.swapped())

    def epsilon_rdp(self, noise_scale: float) -> float | None:
        """The looser Renyi bound, for comparison with older papers; None if no library offers a proven one."""
        noise_scale = _scale(noise_scale)
        event = None if noise_scale in (0.0, math.inf) else self.dp_event(noise_scale)
        if event is None or self.delta == 0:
            return None
        return self.renyi_epsilon(event)

    def renyi_epsilon(self, event: DpEvent) -> float:
        """Epsilon of a dp-accounting event at this delta, by the Renyi accountant."""
        from absl import logging
        from dp_accounting import NeighboringRelation
        from dp_accounting.rdp import RdpAccountant

        replaced = self.adjacency == "replace_one"
        relation = NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.ADD_OR_REMOVE_ONE
        verbosity = logging.get_verbosity()
        # it warns of each order that it leaves out, which only loosens the bound
        logging.set_verbosity(logging.ERROR)
        try:
            return float(RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(self.delta))
        finally:
            logging.set_verbosity(verbosity)

    def dp_event(self, noise_scale: float) -> DpEvent | None:
        """The run as an event for dp-accounting's Renyi accountant; None if it is not supported there.

        That accountant does not double the sensitivity for replace_one, so the noise is divided by it here.
        """
        unsupported = self._allocated or (self.sampling, self.adjacency) == ("poisson", "replace_one")
        unsupported = unsupported or self.group_size > 1
        if self.mechanism != "gaussian" or unsupported:
            return None
        import dp_accounting as dp

        event = dp.GaussianDpEvent(noise_scale / self.sensitivity())
        if self.sampling == "poisson":
            event = dp.PoissonSampledDpEvent(self.rate, event)
        elif self.sampling == "without_replacement":
            event = dp.SampledWithoutReplacementDpEvent(self.dataset_size, self.batch_size, event)
        return dp.SelfComposedDpEvent(event, self.steps)

    def gdp_mu(self, noise_scale: float) -> float:
        """Mu of Gaussian differential privacy (Dong, Roth and Su 2022), down to delta.

        The least mu whose Gaussian mechanism loses at least as much at every epsilon where the run's delta is
        at least `delta`. For delta 0, the mu of pure epsilon.
        """
        from .gdp import least_mu, mu_of_epsilon

        noise_scale = _scale(noise_scale)
        if noise_scale in (0.0, math.inf):
            return math.inf if noise_scale == 0 else 0.0
        if self.delta == 0:
            return mu_of_epsilon(self.epsilon(noise_scale))
        losses = self.loss_distribution if self.resolved else self._tilted
        return least_mu(losses(noise_scale), self.delta)

    # -- noise -----------------------------------------------------------------------------------------------

    def noise_scale(self, epsilon: float) -> float:
        """The least noise scale that `epsilon` allows: at most 2e-5 (relative) too large, never too small."""
        if not 0 < _real("epsilon", epsilon) < math.inf:
            raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
        count, rate = self._composed_releases()
        if self.delta == 0:
            return self.sensitivity() / amplified_loss(epsilon / count, 1 / rate)
        draws = count * self.group_size
        ever_drawn = -math.expm1(draws * math.log1p(-rate)) if rate < 1 else 1.0
        if self.delta * (1 + 1e-9) >= ever_drawn:  # any noise is enough: there is no least
            raise ValueError(
                f"delta is {self.delta:g}, but an example is ever in a batch with probability {ever_drawn:g} "
                "only: give a smaller delta"
            )
        return least_scale(self.epsilon, epsilon, DISCRETISATION)

    # -- answers that are kept ---------------------------------------------------------------------------------

    def cached_noise_scale(self, epsilon: float, folder: Path) -> float:
        """`noise_scale`, cached in `folder` under a hash of everything that it depends on."""
        answer = partial(self.noise_scale, epsilon)
        return float(self._cached("noise_scale", answer, {"epsilon": epsilon}, folder))

    def cached_cost(
        self, measure: Callable[[Setting, float], float | None], noise_scale: float, folder: Path
    ) -> float | None:
        """`measure(self, noise_scale)` of a method of this class such as `Setting.epsilon`, cached in `folder`."""
        about = {"cost": measure.__name__, "noise_scale": noise_scale}
        cost: float | None = self._cached("answer", partial(measure, self, noise_scale), about, folder)
        return cost

    def _cached(self, name: str, answer: Callable[[], Any], about: dict[str, Any], folder: Path) -> Any:
        question = asdict(self) | about | {"accountant": self.accountant, "answers": CACHE_VERSION}
        if self.group_size == 1:  # as before there were groups, so that answers are found
            del question["group_size"]
        path = folder / (sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32] + ".json")
        if not path.exists():
            write_whole(path, json.dumps({**question, name: answer()}))
        return json.loads(path.read_text("utf-8"))[name]

    @property
    def accountant(self) -> str:
        """Name of the accountant that answers for this setting, for records."""
        if self.delta == 0:
            return "closed form, basic composition of pure epsilon"
        if self._allocated:
            return "PLD of a period of random allocation, composed under an exponential tilt, pessimistic"
        if not self.resolved:
            return "PLD composed under an exponential tilt, for deltas of any size, pessimistic"
        grid = f"{DISCRETISATION:g} (finer for small losses, at most 200,000 cells a release)"
        if self.group_size > 1:
            grid += ", for a binomial number of a user's examples"
        also = (
            ", or composed under an exponential tilt where that says more" if self.delta < SURE_DELTA else ""
        )
        return f"dp-accounting {_library_version()} PLD, pessimistic, discretisation {grid}{also}"


def _library_version() -> str:
    """Of dp-accounting; where it is not installed, of the one whose kept answers were brought there."""
    try:
        return version("dp-accounting")
    except PackageNotFoundError:
        if brought := os.environ.get(ACCOUNTANT):
            return brought
        raise


def _scale(noise_scale: float) -> float:
    scale = _real("noise_scale", noise_scale)
    if not scale >= 0:
        raise ValueError(f"noise_scale is {noise_scale}: it must be a number of at least 0")
    return scale


def amplified_loss(loss: float, rate: float) -> float:
    """The largest loss of a release that includes an example with probability `rate`.

    `loss` is that of a release which surely includes it. 1 / rate inverts the function.
    """
    if loss > 700:  # beyond the range of exp
        return loss + math.log(rate)
    return math.log1p(rate * math.expm1(loss))


def calibrate_noise(*, epsilon: float, **setting: Any) -> float:
    """Return the noise scale that (epsilon, delta) needs: of the noisy sum, over the clip.

    The noise on the sum has this scale times the clip; that on the mean has it divided by the expected batch
    size, as has the sum.

    Args:
        epsilon: the target at the setting's delta.
        setting: the arguments of `Setting`: mechanism, sampling, adjacency, dataset_size, batch_size, steps,
            delta and directions.
    """
    return _checked("calibrate_noise", setting).noise_scale(epsilon)


def spent_epsilon(*, noise_scale: float, **setting: Any) -> float:
    """Return the epsilon of all steps with this noise scale at delta. `setting` as for `calibrate_noise`."""
    return _checked("spent_epsilon", setting).epsilon(noise_scale)


def _checked(function: str, given: dict[str, Any]) -> Setting:
    check_names(function, given, [field.name for field in fields(Setting)])
    setting = Setting(**given)
    if caution := setting.delta_warning():
        warnings.warn(caution, stacklevel=3)
    return setting


def _check_proven(mechanism: str, sampling: str, adjacency: str, delta: float, directions: int) -> None:
    """Raise ValueError unless the accounting of this setting is proven."""
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}: it must be at least 0 and below 1")
    if 0 < delta < MIN_DELTA:
        raise ValueError(
            f"delta is {delta:g}: it must be 0 (with laplace) or at least {MIN_DELTA:g}, the least that is "
            "accounted for"
        )
    pair = (sampling, adjacency)
    if mechanism == "gaussian":
        proven = delta > 0 and (pair in PROVEN or pair == ("poisson", "replace_one"))
    else:
        proven = mechanism == "laplace" and directions == 1 and pair in PROVEN
    if not proven:
        several = f" and {directions} directions" if directions > 1 else ""
        raise ValueError(
            f"no proven accounting for {mechanism} with {sampling} sampling, {adjacency}, delta "
            f"{delta:g}{several}: offered are {OFFERED}{SHUFFLING if 'shuffle' in str(sampling) else ''}"
        )


def _integer(name: str, value: object) -> int:
    """Convert any integer type; True and 3.0 are refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}: it must be an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1")
    return int(value)


def _real(name: str, value: object) -> float:
    """Convert any real type; True is refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}: it must be a number")
    return float(value)
