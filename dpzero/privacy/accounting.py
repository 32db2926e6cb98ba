"""Noise for a target epsilon, and epsilon for the noise that was added.

The accountant is dp-accounting's privacy loss distribution (PLD), pessimistic, discretisation 1e-4; pure epsilon for the
Laplace mechanism has a closed form. What is not proven is refused.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

DISCRETISATION = 1e-4
OFFERED = (
    "gaussian or laplace with poisson sampling and add_remove; gaussian with poisson sampling and replace_one; "
    "gaussian with full_batch and either adjacency; laplace with full_batch and add_remove; delta 0 with laplace"
)


@dataclass(frozen=True)
class Setting:
    """Everything that epsilon depends on, beside the noise scale.

    noise_scale, wherever it appears, is the Gaussian standard deviation or the Laplace scale divided by the clip bound, for
    the noisy sum. `directions` scalars of one step share the batch and are accounted jointly: sensitivity clip * sqrt(K).
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
                f"delta {self.delta:g} and {self.directions} directions: offered are {OFFERED}"
            )

    def _proven(self) -> bool:
        if self.mechanism == "gaussian":
            return (
                self.sampling in ("poisson", "full_batch")
                and self.adjacency in ("add_remove", "replace_one")
                and self.delta > 0
            )
        if self.mechanism == "laplace" and self.directions == 1:
            return self.sampling in ("poisson", "full_batch") and self.adjacency == "add_remove"
        return False

    @property
    def rate(self) -> float:
        return self.batch_size / self.dataset_size

    def epsilon(self, noise_scale: float, discretisation: float = DISCRETISATION) -> float:
        """The epsilon that `steps` releases with this noise give at delta (inf for no noise)."""
        if not noise_scale >= 0:
            raise ValueError(f"noise_scale is {noise_scale}: it must be a number of at least 0")
        if noise_scale == 0:
            return math.inf
        if self.delta == 0:
            return self.steps * math.log1p(self.rate * math.expm1(1 / noise_scale))
        from dp_accounting.pld import PLDAccountant

        accountant = PLDAccountant(self._relation(), value_discretization_interval=discretisation)
        return float(accountant.compose(self._event(noise_scale)).get_epsilon(self.delta))

    def epsilon_rdp(self, noise_scale: float) -> float | None:
        """The looser Renyi bound, for comparison with older papers; None where no library offers one that is proven."""
        if (
            self.delta == 0
            or self.mechanism != "gaussian"
            or self.adjacency != "add_remove"
            or noise_scale <= 0
        ):
            return None
        from dp_accounting.rdp import RdpAccountant

        return float(
            RdpAccountant(neighboring_relation=self._relation())
            .compose(self._event(noise_scale))
            .get_epsilon(self.delta)
        )

    def noise_scale(self, epsilon: float) -> float:
        """The least noise that `epsilon` allows, never less than it needs: the upper end of the final bracket."""
        if not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
        if self.delta == 0:
            return 1 / math.log1p(math.expm1(epsilon / self.steps) / self.rate)
        ever_drawn = -math.expm1(self.steps * math.log1p(-self.rate)) if self.rate < 1 else 1.0
        if (
            self.delta * (1 + 1e-9) >= ever_drawn
        ):  # any noise would do: the search for the least would not end
            raise ValueError(
                f"delta is {self.delta:g}, but an example is ever in a batch with probability {ever_drawn:g} only: give a "
                "smaller delta"
            )
        return _least_scale(lambda scale, grid: self.epsilon(scale, grid), epsilon)

    def _relation(self):
        from dp_accounting import NeighboringRelation

        return {
            "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
            "replace_one": NeighboringRelation.REPLACE_ONE,
        }[self.adjacency]

    def _event(self, noise_scale: float):
        import dp_accounting as dp

        if self.mechanism == "gaussian":
            event = dp.GaussianDpEvent(noise_scale / math.sqrt(self.directions))
        else:
            event = dp.LaplaceDpEvent(noise_scale)
        if self.sampling == "poisson":
            event = dp.PoissonSampledDpEvent(self.rate, event)
        return dp.SelfComposedDpEvent(event, self.steps)


def _least_scale(epsilon_of: Callable[[float, float], float], epsilon: float) -> float:
    """Least scale with epsilon_of(scale, DISCRETISATION) <= epsilon, to 2e-5 relative and never below it.

    epsilon falls smoothly with the scale, nearly a straight line in logarithms: a coarse and cheap grid brackets the answer
    and a few secant steps on the fine grid, each costing up to seconds where the scale is small, settle it.
    """
    coarse = 100 * DISCRETISATION
    high = 1.0
    while epsilon_of(high, coarse) > epsilon:
        high *= 2
    low = high / 2
    while epsilon_of(low, coarse) <= epsilon:
        low, high = low / 2, low
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon_of(middle, coarse) <= epsilon else (middle, high)
    points = [(math.log(s), math.log(epsilon_of(s, DISCRETISATION))) for s in (low, high)]
    goal = math.log(epsilon)
    for _ in range(20):
        (x0, y0), (x1, y1) = points[-2:]
        guess = (
            x1 + (goal - y1) * (x1 - x0) / (y1 - y0) + 1e-5
        )  # aims just above: the answer must not spend more
        points.append((guess, math.log(epsilon_of(math.exp(guess), DISCRETISATION))))
        slope = (y1 - y0) / (x1 - x0)
        if 0 <= goal - points[-1][1] <= 2e-5 * -slope:
            return math.exp(guess)
    raise ArithmeticError(f"the search for the noise scale at epsilon {epsilon} did not settle")


def accountant_name(setting: Setting) -> str:
    if setting.delta == 0:
        return "closed form, basic composition of pure epsilon"
    return f"dp-accounting {version('dp-accounting')} PLD, pessimistic, discretisation {DISCRETISATION:g}"


def cached_noise_scale(setting: Setting, epsilon: float, folder: Path) -> float:
    """`setting.noise_scale(epsilon)`, kept in `folder` under a hash of all that it depends on."""
    question = {**asdict(setting), "epsilon": epsilon, "accountant": accountant_name(setting)}
    path = folder / (sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:32] + ".json")
    if path.exists():
        return json.loads(path.read_text())["noise_scale"]
    answer = setting.noise_scale(epsilon)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump({**question, "noise_scale": answer}, file)
    Path(file.name).replace(path)
    return answer


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
    return Setting(
        mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions
    ).noise_scale(epsilon)


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
    return Setting(
        mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions
    ).epsilon(noise_scale)
