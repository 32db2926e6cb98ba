"""The privacy budget of one run, already turned into a sampler, a noise law and a ledger.

`release` is the only door through which a function of private examples leaves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import choice
from .accounting import Setting
from .discrete import Bits
from .ledger import Event, Ledger
from .mechanisms import ARITHMETICS, GRID_BITS, MECHANISMS
from .sampling import SAMPLERS, Sampler
from .streams import RunKey

UNITS = ("example", "user")
CHUNK = 2**18  # numbers of noise drawn at once: 2 MiB
_SECRETS_IN_USE: set[str] = set()  # names of the secret keys that budgets of this process were made with


class Budget:
    """What a private method is given. Add noise with `release`; read what was spent with `epsilon_spent`.

    The setting is public, dataset_size included: add_remove hides who is in, not the number that the rate is made with.

    >>> budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=1024, batch_size=64, steps=1000)
    """

    def __init__(
        self,
        setting: Setting,
        noise_scale: float,
        key: RunKey,
        ledger: Path | None = None,
        *,
        noise_arithmetic: str = "float",
        unit: str = "example",
    ) -> None:
        for name, value, known in (
            ("noise_arithmetic", noise_arithmetic, ARITHMETICS),
            ("unit", unit, UNITS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: give one of {', '.join(known)}")
        _claim(key)
        self.setting, self.noise_scale, self.key = setting, noise_scale, key
        self.noise_arithmetic, self.unit = noise_arithmetic, unit
        self.sampler = self._make_sampler()
        self.ledger = Ledger(
            Event(
                setting.mechanism,
                self.sampler.name,
                setting.adjacency,
                setting.dataset_size,
                setting.batch_size,
                noise_scale,
                setting.directions,
            ),
            ledger,
        )
        if setting.delta >= 1 / setting.dataset_size:
            warnings.warn(
                f"delta is {setting.delta:g} for {setting.dataset_size} {unit}s: at 1 / {setting.dataset_size} or above it "
                "allows publishing one of them outright: choose a far smaller delta",
                stacklevel=2,
            )
        self._noise = key.stream("noise")
        # float64 [batch, directions] -> for each direction numbers whose exact sum is released: on several ranks those of all
        self.terms: Callable[[Tensor], list[list[float]]] = lambda values: values.T.tolist()

    @classmethod
    def calibrated(
        cls,
        *,
        epsilon: float,
        delta: float,
        dataset_size: int,
        batch_size: int,
        steps: int,
        mechanism: str = "gaussian",
        sampling: str = "poisson",
        adjacency: str = "add_remove",
        directions: int = 1,
        key: RunKey | None = None,
        noise_arithmetic: str = "float",
        unit: str = "example",
    ) -> Budget:
        """The budget with the least noise that (epsilon, delta) allows. The key is secret unless one is given.

        With `unit="user"` dataset_size and batch_size count users (see `sampling.Users`).
        """
        setting = Setting(mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions)
        scale = setting.noise_scale(epsilon)
        return cls(setting, scale, key or RunKey.secret(), noise_arithmetic=noise_arithmetic, unit=unit)

    def _make_sampler(self) -> Sampler:
        kind = SAMPLERS[self.setting.sampling]
        return kind(self.setting.dataset_size, self.setting.batch_size, self.key.stream("sampling"))

    @property
    def batch_size(self) -> int:
        """The expected batch size: the constant that released sums are divided by."""
        return self.setting.batch_size

    def batches(self, start: int = 0) -> Iterator[np.ndarray]:
        """Index arrays of the batches of steps start, start + 1, ... An empty one is a step like any other."""
        for step in range(start, self.setting.steps):
            yield self.sampler.batch(step)

    def release(self, step: int, clipped: Tensor, clip: float) -> float | list[float]:
        """The noisy sum of clipped scalars. The ledger has it before the caller does.

        Args:
            clipped: [batch], one value in [-clip, clip] for each unit, or [batch, directions] where the setting has several.

        Returns:
            One scalar, or a list of one for each direction.

        Raises:
            ValueError: a value beyond the clip, another number of directions, a step released before under a secret key.
        """
        _check_clip(clip)
        values = clipped.double()[:, None] if clipped.dim() == 1 else clipped.double()
        if values.shape[1:] != (self.setting.directions,):
            raise ValueError(
                f"values of shape {tuple(clipped.shape)} to be released: the setting has {self.setting.directions} for each {self.unit}"
            )
        if not (values.abs() <= clip).all():
            raise ValueError(f"a value to be released lies beyond the clip of {clip}: clip each one first")
        sums = self._exact_sums if self.noise_arithmetic == "exact" else self._float_sums
        noisy = sums(step, values, clip)
        self._record(step)
        return noisy[0] if self.setting.directions == 1 else noisy

    def _float_sums(self, step: int, values: Tensor, clip: float) -> list[float]:
        noise = self._unit_noise(self.setting.directions, step, 0, 0)
        return [
            self._sum(terms, clip) + self.noise_scale * clip * float(z)
            for terms, z in zip(self.terms(values), noise, strict=True)
        ]

    def _exact_sums(self, step: int, values: Tensor, clip: float) -> list[float]:
        """Integers in units of clip * 2^-GRID_BITS up to the last line, which is a function of the released integers."""
        whole = self.terms(torch.round(values / clip * 2.0**GRID_BITS))
        draw = MECHANISMS[self.setting.mechanism].grid_noise
        noisy = [
            sum(map(int, terms)) + draw(self._noise, self.noise_scale, step, k)
            for k, terms in enumerate(whole)
        ]
        return [n * 2.0**-GRID_BITS * clip for n in noisy]

    def _sum(self, terms: list[float], clip: float) -> float:
        total = math.fsum(terms)
        if not abs(total) <= clip * self.setting.dataset_size:
            raise ValueError("the clipped sum over all ranks is beyond its bound: a rank sent garbage")
        return total

    def release_(self, step: int, clipped_sums: Sequence[Tensor], clip: float) -> None:
        """In place: a list of tensors that together are one sum of vectors with norms of at most clip."""
        if self.setting.mechanism != "gaussian":
            raise ValueError(
                f"the {self.setting.mechanism} mechanism is offered for scalars: use gaussian for vectors"
            )
        if self.noise_arithmetic == "exact":
            raise ValueError("exact noise is offered for scalars: use noise_arithmetic float for vectors")
        if self.unit != "example":
            raise ValueError(f"unit {self.unit} is offered for scalars: use unit example for vectors")
        _check_clip(clip)
        self._record(step)
        for index, tensor in enumerate(clipped_sums):
            flat = tensor.view(-1)
            for chunk, start in enumerate(range(0, flat.numel(), CHUNK)):
                part = flat[start : start + CHUNK]
                noise = torch.from_numpy(self._unit_noise(part.numel(), step, index, chunk))
                part.add_(noise.to(part), alpha=self.noise_scale * clip)

    def choose(self, counts: Mapping[int, int], epsilon: float) -> int:
        """One of the candidates with the largest counts, by permute and flip. The ledger has it before the caller does, and keeps it.

        Args:
            counts: candidate -> number, to which one example adds 0 or 1. Of examples that are not trained on: then each example has one
                of two guarantees, that of training or that of the choice, and what is spent is the larger.

        Raises:
            ValueError: no candidate, a choice that was made before at another epsilon, units other than examples.
        """
        if self.unit != "example":
            raise ValueError(
                f"a choice is offered for unit example: a {self.unit} adds more than 1 to a count"
            )
        if self.ledger.choice is None:
            candidates, bits = list(counts), Bits(self.key.stream("choice"))
            place = choice.permute_and_flip([counts[c] for c in candidates], epsilon, bits)
            self.ledger.record_choice(epsilon, candidates[place])
        spent, chosen = self.ledger.choice
        if spent != epsilon:
            raise ValueError(
                f"a choice was made before with epsilon {spent:g}, not {epsilon:g}: make a new budget"
            )
        return chosen

    @property
    def epsilon_of_choice(self) -> float:
        """Of that in the ledger; 0 without one."""
        return self.ledger.choice[0] if self.ledger.choice else 0.0

    def _record(self, step: int) -> None:
        if self.key.valid_release and (step, self.key.name) in self.ledger:
            # another sum with the same noise: their difference would be exact. A published key may replay.
            raise ValueError(
                f"step {step} was released before under this secret key and its noise cannot be used again: make a new budget"
            )
        self.ledger.record(step, self.key.name)

    def _unit_noise(self, count: int, *counter: int) -> np.ndarray:
        return MECHANISMS[self.setting.mechanism].unit_noise(self._noise, count, *counter)

    def epsilon_spent(self) -> float:
        """From the ledger: 0 before the first release. The larger of that of training and that of a choice, if any."""
        return self._larger(
            self._of_what_ran(lambda setting: setting.epsilon(self.noise_scale)), self.epsilon_of_choice
        )

    def statement(self, clip: float, epsilon_target: float) -> dict:
        """The privacy part of a record, computed from the ledger."""
        setting, chosen = self.setting, self.epsilon_of_choice
        renyi = self._of_what_ran(lambda setting: setting.epsilon_rdp(self.noise_scale))
        mu = self._of_what_ran(lambda setting: setting.gdp_mu(self.noise_scale))
        return {
            "unit": self.unit,
            "adjacency": setting.adjacency,
            "sampling": self.sampler.name,
            "mechanism": setting.mechanism,
            "dataset_size": setting.dataset_size,
            "batch_size": setting.batch_size,
            "steps": len(self.ledger),
            "directions": setting.directions,
            "clip": clip,
            "noise_scale": self.noise_scale,
            "delta": setting.delta,
            "epsilon_target": epsilon_target,
            "epsilon_spent": self.epsilon_spent(),
            "epsilon_spent_rdp": self._larger(renyi, chosen),
            "gdp_mu": self._larger(mu, choice.gdp_mu(chosen)),
            **({"choice": {"mechanism": choice.MECHANISM, "epsilon": chosen}} if chosen else {}),
            "accountant": setting.accountant,
            "noise_arithmetic": self.noise_arithmetic,
            "noise_key": self.key.noise_key,
            "valid_release": self.key.valid_release,
        }

    @staticmethod
    def _larger(of_training: float | None, of_choice: float) -> float | None:
        return None if of_training is None else max(of_training, of_choice)

    def _of_what_ran(self, epsilon) -> float | None:
        if len(self.ledger) == 0:
            return 0.0
        spent = epsilon(replace(self.setting, steps=len(self.ledger)))
        return None if spent is None or math.isnan(spent) else spent


def _claim(key: RunKey) -> None:
    """Two budgets with one secret key would add the same noise to two sums."""
    if not key.valid_release:
        return
    if key.name in _SECRETS_IN_USE:
        raise ValueError(
            "this secret key is another budget's, whose noise would be used again: draw a new one"
        )
    _SECRETS_IN_USE.add(key.name)


def _check_clip(clip: float) -> None:
    if not 0 < clip < math.inf:
        raise ValueError(f"clip is {clip}: a release needs a positive and finite bound")
