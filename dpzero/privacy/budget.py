"""The privacy budget of one run, already turned into a sampler, a noise law and a ledger.

`release` is the only door through which a function of private examples leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .accounting import Setting, accountant_name
from .ledger import Event, Ledger
from .mechanisms import MECHANISMS
from .sampling import SAMPLERS
from .streams import RunKey

CHUNK = 2**18  # numbers of noise drawn at once: 2 MiB


class Budget:
    """What a private method is given. Add noise with `release`; read what was spent with `epsilon_spent`.

    >>> budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=1024, batch_size=64, steps=1000)
    """

    def __init__(self, setting: Setting, noise_scale: float, key: RunKey, ledger: Path | None = None) -> None:
        self.setting, self.noise_scale, self.key = setting, noise_scale, key
        self.sampler = SAMPLERS[setting.sampling](
            setting.dataset_size, setting.batch_size, key.stream("sampling")
        )
        self.ledger = Ledger(
            Event(
                setting.mechanism,
                setting.sampling,
                setting.adjacency,
                setting.dataset_size,
                setting.batch_size,
                noise_scale,
                setting.directions,
            ),
            ledger,
        )
        self._noise = key.stream("noise")

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
    ) -> Budget:
        """The budget with the least noise that (epsilon, delta) allows. The key is secret unless one is given."""
        setting = Setting(mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions)
        return cls(setting, setting.noise_scale(epsilon), key or RunKey.secret())

    @property
    def batch_size(self) -> int:
        """The expected batch size: the constant that released sums are divided by."""
        return self.setting.batch_size

    def batches(self, start: int = 0) -> Iterator[np.ndarray]:
        """Index arrays of the batches of steps start, start + 1, ... An empty one is a step like any other."""
        for step in range(start, self.setting.steps):
            yield self.sampler.batch(step)

    def release(self, step: int, clipped_sum: float, clip: float) -> float:
        """One scalar: the sum of values clipped to [-clip, clip], plus noise. The ledger has it before the caller does."""
        noise = self._unit_noise(1, step, 0, 0)[0]
        self._record(step)
        return float(clipped_sum) + self.noise_scale * clip * float(noise)

    def release_(self, step: int, clipped_sums: Sequence[Tensor], clip: float) -> None:
        """In place: a list of tensors that together are one sum of vectors with norms of at most clip."""
        if self.setting.mechanism != "gaussian":
            raise ValueError(
                f"the {self.setting.mechanism} mechanism is offered for scalars: use gaussian for vectors"
            )
        self._record(step)
        for index, tensor in enumerate(clipped_sums):
            flat = tensor.view(-1)
            for chunk, start in enumerate(range(0, flat.numel(), CHUNK)):
                part = flat[start : start + CHUNK]
                noise = torch.from_numpy(self._unit_noise(part.numel(), step, index, chunk))
                part.add_(noise.to(part), alpha=self.noise_scale * clip)

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
        """From the ledger: 0 before the first release."""
        return self._of_what_ran(lambda setting: setting.epsilon(self.noise_scale))

    def statement(self, clip: float, epsilon_target: float) -> dict:
        """The privacy part of a record, computed from the ledger."""
        setting = self.setting
        return {
            "unit": "example",
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
            "epsilon_spent_rdp": self._of_what_ran(lambda setting: setting.epsilon_rdp(self.noise_scale)),
            "accountant": accountant_name(setting),
            "noise_key": self.key.noise_key,
            "valid_release": self.key.valid_release,
        }

    def _of_what_ran(self, epsilon) -> float | None:
        if len(self.ledger) == 0:
            return 0.0
        spent = epsilon(replace(self.setting, steps=len(self.ledger)))
        return None if spent is None or math.isnan(spent) else spent
