"""Private hyperparameter selection: the best of a random number of tries.

Papernot and Steinke 2022 (arXiv 2110.03620). Which of several settings did best is itself a function of the
private data. Releasing the best one costs little more than a single run under three conditions: the number of
tries is drawn beforehand from one of these laws, each setting is drawn independently of the data, and each
try is scored by what its private run released (or on public data). A fixed number of tries is plain
composition. The bound is dp-accounting's, through Renyi divergences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from .accounting import Setting
from .calibration import least_scale
from .randomness import RunKey

SHAPES = {"logarithmic": 0.0, "truncated_negative_binomial": 0.5, "geometric": 1.0, "poisson": math.inf}
MAX_MEAN = 500  # exp(-500) is about the smallest first probability that `draw` can start from
MAX_TRIES = 10**7


@dataclass(frozen=True)
class Tries:
    """Law and mean of the number of tries. A Poisson number may be 0: then nothing is released."""

    law: str
    mean: float

    def __post_init__(self) -> None:
        if self.law not in SHAPES:
            raise ValueError(f"the law of tries is {self.law!r}: give one of {', '.join(SHAPES)}")
        least = 0 if self.law == "poisson" else 1
        if not least < self.mean <= MAX_MEAN:
            raise ValueError(
                f"the mean number of tries is {self.mean:g}: with the {self.law} law it must be above "
                f"{least} and at most {MAX_MEAN}"
            )

    def epsilon(self, setting: Setting, noise_scale: float) -> float:
        """Epsilon of all tries and the selection; each try is a run of `setting` with this noise scale."""
        from dp_accounting.dp_event import RepeatAndSelectDpEvent

        event = setting.dp_event(noise_scale)
        if event is None:
            raise ValueError(
                "selection is accounted through Renyi divergences, which are not offered for "
                f"{setting.mechanism} with {setting.sampling} sampling and {setting.adjacency}: offered is "
                "gaussian with poisson and add_remove, without_replacement and replace_one, or full_batch"
            )
        return setting.renyi_epsilon(RepeatAndSelectDpEvent(event, self.mean, SHAPES[self.law]))

    def noise_scale(self, setting: Setting, epsilon: float) -> float:
        """The least noise scale of a try such that all tries and the selection cost at most epsilon."""
        if not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon is {epsilon}: it must be a positive number")
        return least_scale(lambda scale, _: self.epsilon(setting, scale), epsilon, 0.0)

    def draw(self, key: RunKey) -> int:
        """Draw the number of tries, once, before the first try."""
        u = float(key.stream("tries").uniforms(1, 0)[0])
        shape, gamma = SHAPES[self.law], self._gamma
        if self.law == "poisson":
            number, mass = 0, math.exp(-self.mean)
        elif shape == 0:
            number, mass = 1, (1 - gamma) / math.log(1 / gamma)
        else:
            number, mass = 1, (1 - gamma) * shape / (gamma**-shape - 1)
        below = 0.0
        while below + mass < u and number < MAX_TRIES:
            below += mass
            rise = self.mean if self.law == "poisson" else (1 - gamma) * (number + shape)
            number += 1
            mass *= rise / number
        return number

    @cached_property
    def _gamma(self) -> float:
        """The parameter of the (truncated) negative binomial law that has this mean (their definition 1)."""
        from scipy.optimize import brentq

        shape = SHAPES[self.law]
        if self.law == "poisson":  # the limit of large shapes
            return 1.0

        def mean(log_gamma: float) -> float:
            gamma = math.exp(log_gamma)
            if shape == 0:
                return (1 / gamma - 1) / -log_gamma
            return float(shape * (1 - gamma) / (gamma * (1 - gamma**shape)))

        return math.exp(float(brentq(lambda x: mean(x) - self.mean, -40.0, -1e-9, xtol=1e-14)))
