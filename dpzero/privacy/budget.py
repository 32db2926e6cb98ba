"""The privacy budget of one run: its sampler, its noise, its ledger, and the steps that are left.

`release` (with `release_vectors` and `release_`) is the only door through which a function of private examples leaves. What leaves
belongs to a batch that the budget handed out, each batch once. So the ledger counts what the accountant accounts.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import permute_and_flip
from .accounting import Setting
from .clipping import check_clip
from .discrete_noise import Bits
from .draws import Draw, Draws
from .ledger import Event, Ledger
from .mechanisms import Noise, delta_excess
from .randomness import RunKey
from .rounding import OthersMove
from .sampling import SAMPLERS, Sampler

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

UNITS = ("example", "user")
Terms = Callable[[Tensor], list[list[float]]]
NORM_ROUNDING = 1e-12  # of a norm that was clipped in float64
_SECRETS_IN_USE: set[str] = set()  # names of the secret keys that budgets of this process were made with


class Spent(ValueError):
    """No step is left."""


class Budget:
    """What a private method is given. Batches come from `batches` or `loader`; what was spent is `epsilon_spent`.

    The setting is public, dataset_size included: add_remove hides who is in, not the number that the rate is made with.

    Args:
        ledger: a file that keeps each release; a budget made with it again counts the releases that it has.
        noise_arithmetic: exact (integers, for scalars) or float; exact where the key is secret, unless it is given. Noise in floats is
            no valid release: its low-order bits give the sum away.
        unit: example or user. With user, dataset_size and batch_size count users (see `sampling.Users`).
        overspend: whether more steps may be taken than were calibrated for. `epsilon_spent` and `statement` then say what that gave.

    Raises:
        ValueError: a setting, key or noise that makes no sense; a ledger of another setting, or in use by another process.

    >>> budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=1024, batch_size=64, steps=1000)
    """

    probes_loss = True  # whether a loss is probed before the first release

    def __init__(
        self,
        setting: Setting,
        noise_scale: float,
        key: RunKey,
        ledger: str | Path | None = None,
        *,
        noise_arithmetic: str | None = None,
        unit: str = "example",
        overspend: bool = False,
        epsilon_target: float | None = None,
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"unit is {unit!r}: give one of {', '.join(UNITS)}")
        _check_noise(noise_scale, key)
        self.setting, self.noise_scale, self.key, self.unit = setting, noise_scale, key, unit
        self.overspend, self.epsilon_target = overspend, epsilon_target
        arithmetic = noise_arithmetic or ("exact" if key.valid_release else "float")
        self._noise = Noise(setting.mechanism, noise_scale, arithmetic, key.stream("noise"))
        self._check_excess()
        _claim(key)
        self.sampler = self._make_sampler()
        self.ledger = Ledger(self._event(), None if ledger is None else Path(ledger))
        self._draws = Draws(self.sampler, unit)
        self._clip: float | None = None  # of the last release
        self._process, self._released_here = os.getpid(), 0
        self._one_at_a_time = threading.RLock()  # two threads would both take the oldest batch, and its noise
        self._terms: Terms = own_terms
        self._shared = False  # whether this process is one of several ranks
        self._others_move = OthersMove()
        if any(name != key.name for _, name in self.ledger):
            self.start_at(len(self.ledger))
        self._warn_of_delta()

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
        ledger: str | Path | None = None,
        noise_arithmetic: str | None = None,
        unit: str = "example",
        overspend: bool = False,
    ) -> Budget:
        """The budget with the least noise that (epsilon, delta) allows. The key is secret unless one is given."""
        setting = Setting(mechanism, sampling, adjacency, dataset_size, batch_size, steps, delta, directions)
        return cls(
            setting,
            setting.noise_scale(epsilon),
            key or RunKey.secret(),
            ledger,
            noise_arithmetic=noise_arithmetic,
            unit=unit,
            overspend=overspend,
            epsilon_target=epsilon,
        )

    @staticmethod
    def require(given: object) -> Budget:
        """What a private method was given. Raises TypeError where it is no budget."""
        if not isinstance(given, Budget):
            raise TypeError(
                f"budget is {given!r}: give a private method Budget.calibrated(epsilon=..., delta=..., dataset_size=..., batch_size=..., "
                "steps=...)"
            )
        return given

    @classmethod
    def resume(cls, ledger: str | Path, *, key: RunKey | None = None, overspend: bool = False) -> Budget:
        """The budget whose ledger this file is, with what it has spent and the steps that are left, under a new secret key.

        Raises ValueError for a file that is no ledger.
        """
        event = Ledger.event_of(Path(ledger))
        if event.noise_key == "published" and key is None:
            raise ValueError(
                f"ledger {ledger} was begun under a published key: give it, as key=RunKey.published(seed)"
            )
        how = {"noise_arithmetic": event.noise_arithmetic, "unit": event.unit}
        return cls(
            event.setting(), event.noise_scale, key or RunKey.secret(), ledger, overspend=overspend, **how
        )

    def _make_sampler(self) -> Sampler:
        kind = SAMPLERS[self.setting.sampling]
        return kind(self.setting.dataset_size, self.setting.batch_size, self.key.stream("sampling"))

    def _event(self) -> Event:
        """What all releases share."""
        how = {"unit": self.unit, "noise_arithmetic": self.noise_arithmetic, "noise_key": self.key.noise_key}
        return Event.from_setting(self.setting, self.sampler.name, self.noise_scale, **how)

    @property
    def noise_arithmetic(self) -> str:
        return self._noise.arithmetic

    @property
    def batch_size(self) -> int:
        """The expected batch size: the constant that released sums are divided by."""
        return self.setting.batch_size

    # -- batches -------------------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[np.ndarray]:
        """Index arrays of the batches that are left, which no earlier call handed out. An empty one is a step like any other.

        With `overspend`, a call that finds none left hands out as many as were calibrated for.
        """
        self._check_process()
        yield from self._draws.loop(takewhile(self._is_left, self.remaining_batches()))

    def loader(self, dataset: Dataset, users: Sequence | None = None, **how) -> DataLoader:
        """A `torch.utils.data.DataLoader` over the batches that are left, each of which goes to `step`, the empty ones too.

        Args:
            dataset: of dataset_size examples, with `len` and integer indices.
            users: where the unit is the user, the user of each example. Batches are then pairs for `step(batch, users)`.
            how: collate_fn, num_workers, pin_memory and others of DataLoader, but for those that draw batches.
        """
        from .loader import BudgetLoader

        return BudgetLoader(self, dataset, users, **how)

    def remaining_batches(self) -> range:
        """The numbers of the batches that are left. Those which a killed process released under this key count no second time."""
        first = self._draws.position
        again = sum(number >= first for number in self.ledger.numbers_of(self.key.name))
        left = self.setting.steps - len(self.ledger)
        if left <= 0 and self.overspend:
            left = self.setting.steps
        stop = first + again + max(0, left)
        if not (
            self.sampler.independent or self.overspend
        ):  # a batch that was dropped is not made up for by one of a further period
            stop = min(stop, self.setting.steps)
        return range(first, max(first, stop))

    @property
    def collate_subset(self) -> Callable[[Sequence[int]], object] | None:
        """Makes a batch of the examples at some positions of the next one, collated anew. Only of a loader's."""
        return self._draws.oldest.take if self._draws.any_open else None

    @property
    def latest(self) -> Draw:
        """The batch that was handed out last."""
        return self._draws.latest

    def _is_left(self, number: int) -> bool:
        """Whether a batch may be released: another budget of the lineage may have spent the rest, and one that was released may replay."""
        return (
            self.overspend or len(self.ledger) < self.setting.steps or (number, self.key.name) in self.ledger
        )

    def admit(self, counts: int | Collection[int], batch: np.ndarray | None = None) -> int:
        """Compares the batch that a method was given with the one that was handed out; `release` and `release_` then release it.

        Args:
            counts: how many units the method was given; several numbers where its batch's structure leaves that open.
            batch: where the method was given indices, these.

        Returns:
            The number of units.

        Raises:
            ValueError: another batch than the next one in order, no step left, a forked process.
        """
        self._check_process()
        self._check_left(self.key.name)
        counts = {counts} if isinstance(counts, int) else set(counts)
        count = self._draws.next(counts, batch, self._shared)
        self._draws.admitted = True
        return count

    # -- releases ------------------------------------------------------------------------------------------------------

    def release(self, clipped: Tensor, clip: float) -> float | list[float]:
        """The noisy sum of clipped scalars of the next batch. The ledger has it before the caller does.

        Args:
            clipped: [batch], one value in [-clip, clip] for each unit, or [batch, directions] where the setting has several.

        Returns:
            One scalar, or a list of one for each direction.

        Raises:
            ValueError: a value beyond the clip, another number of values than the batch has units, another number of directions.
        """
        values = clipped.double()[:, None] if clipped.dim() == 1 else clipped.double()
        if values.shape[1:] != (self.setting.directions,):
            raise ValueError(
                f"values of shape {tuple(clipped.shape)} to be released: the setting has {self.setting.directions} for each {self.unit}"
            )
        check_clip(clip)
        if not (values.abs() <= clip).all():
            raise ValueError(f"a value to be released lies beyond the clip of {clip}: clip each one first")
        noisy = self._released(values, clip)
        return noisy[0] if self.setting.directions == 1 else noisy

    def release_vectors(self, clipped: Tensor, clip: float) -> list[float]:
        """The noisy sum of short vectors of the next batch, accounted as one release.

        Args:
            clipped: [batch, K], one vector of norm at most clip for each example.

        Raises:
            ValueError: a vector beyond the clip, another number of them than the batch has examples; Laplace noise, users, directions.
        """
        self._check_vectors()
        check_clip(clip)
        values = clipped.double()
        if not (torch.linalg.vector_norm(values, dim=1) <= clip * (1 + NORM_ROUNDING)).all():
            raise ValueError(
                f"a vector to be released is longer than the clip of {clip}: clip each one first"
            )
        return self._released(values, clip, norm=True)

    def release_(self, clipped_sums: Sequence[Tensor], clip: float) -> None:
        """In place: a list of tensors that together are one sum of vectors with norms of at most clip, of the batch last admitted.

        The noise is in floats, so that such a release is never called valid (see `statement`).
        """
        self.check_gradients()
        check_clip(clip)
        with self._one_at_a_time:
            if not self._draws.admitted:
                raise ValueError("a sum of gradients of no batch: call admit with the batch's size first")
            number, noise = self._record(clip, lambda: _digest(*map(_octets, clipped_sums)))
        noise.add_(number, clipped_sums, clip)

    def _released(self, values: Tensor, clip: float, norm: bool = False) -> list[float]:
        with self._one_at_a_time:
            self.admit(len(values))
            totals = self._noise.totals(self._bounded_terms(clip)(self._noise.summed(values, clip, norm)))
            number, noise = self._record(clip, lambda: _digest(repr(totals).encode()))
        return noise.sums(number, totals, clip)

    def _record(self, clip: float, value: Callable[[], str]) -> tuple[int, Noise]:
        """The next batch's release goes into the ledger, whatever becomes of it. Returns the batch's number, and the noise for it.

        Args:
            value: a digest of what is summed, which is asked for where the key is published.
        """
        self._check_process()
        number, name, noise = self._draws.oldest.number, self.key.name, self._noise
        if not self.key.valid_release:
            _, name = self.ledger.place(number, name, digest := value())
            if (
                name != self.key.name
            ):  # the same batch, another sum: with the same noise the two would differ by what has none
                self._check_left(name)
                noise = self._noise.with_stream(self.key.stream(f"noise {name}"))
            self.ledger.record(number, name, digest)
        elif (number, name) in self.ledger:
            raise ValueError(
                f"batch {number} was released before under this secret key and its noise cannot be used again: make a new budget"
            )
        else:
            self.ledger.record(number, name)
        self._draws.close()
        self._clip = clip
        self._released_here += 1
        return number, noise

    def _bounded_terms(self, clip: float) -> Terms:
        bound = self.setting.dataset_size * (clip if self.noise_arithmetic == "float" else math.inf)

        def terms(values: Tensor) -> list[list[float]]:
            columns = self._terms(values)
            if not all(abs(math.fsum(column)) <= bound for column in columns):
                raise ValueError("the clipped sum over all ranks is beyond its bound: a rank sent garbage")
            return columns

        return terms

    def join_ranks(self, terms: Terms) -> None:
        """From here on this process is one of several ranks, whose terms `terms` brings together."""
        self._terms, self._shared = terms, True

    def choose(self, counts: Mapping[int, int], epsilon: float) -> int:
        """One of the candidates with the largest counts, by permute and flip. The ledger has it before the caller does, and keeps it.

        Args:
            counts: candidate -> number, to which one example adds 0 or 1. Of examples that are not trained on: then each example has one
                of two guarantees, that of training or that of the choice, and what is spent is the larger.

        Raises:
            ValueError: no candidate, a choice that was made before at another epsilon, units other than examples.
        """
        self._check_process()
        if self.unit != "example":
            raise ValueError(
                f"a choice is offered for unit example: a {self.unit} adds more than 1 to a count"
            )
        with self._one_at_a_time:
            made = next((made for made in self.ledger.choices if made.chosen is not None), None)
            if made is None:
                candidates, bits = list(counts), Bits(self.key.stream("choice"))
                place = permute_and_flip.permute_and_flip([counts[c] for c in candidates], epsilon, bits)
                made = self.ledger.record_choice(self.key.name, epsilon, candidates[place])
        if made.epsilon != epsilon:
            raise ValueError(
                f"a choice was made before with epsilon {made.epsilon:g}, not {epsilon:g}: make a new budget"
            )
        return made.chosen

    @property
    def epsilon_of_choice(self) -> float:
        """The sum over those in the ledger, each made under a key of its own; 0 without one."""
        return math.fsum(made.epsilon for made in self.ledger.choices)

    # -- what was spent ------------------------------------------------------------------------------------------------

    @property
    def overspent(self) -> bool:
        if self.sampler.independent:
            return len(self.ledger) > self.setting.steps
        return self._counted() > self.setting.counted_steps(range(self.setting.steps))

    def _counted(self) -> int:
        """Steps that the releases count as. Under each key batches were drawn anew: a period of random allocation that two keys share counts twice."""
        return sum(map(self.setting.counted_steps, self.ledger.by_key().values()))

    def record_influence(self, others_move_over_clip: float | None) -> None:
        """Before its first release a method tells what the others' values move by, over the clip, when an example leaves; None where that
        cannot be told. Whoever calls `release` without a method tells it, too: else no release is called valid."""
        valid = self.key.valid_release and self.noise_arithmetic == "exact"
        self._others_move.add(others_move_over_clip, warn=valid)

    @property
    def others_move_over_clip(self) -> float | None:
        return self._others_move.largest

    @property
    def valid_release(self) -> bool:
        """Whether what was released is private by proof: the noise is secret, its low-order bits give nothing away, and an example moves
        no value but its own (see `others_move_over_clip`)."""
        exact = self.noise_arithmetic == "exact"
        return self.key.valid_release and exact and self.others_move_over_clip == 0

    def epsilon_spent(self) -> float:
        """From the ledger: 0 before the first release. The larger of that of training and that of a choice, if any."""
        return self._larger(
            self._of_what_ran(lambda setting: setting.epsilon(self.noise_scale)), self.epsilon_of_choice
        )

    def statement(self, clip: float | None = None, epsilon_target: float | None = None) -> dict:
        """The privacy part of a record, computed from the ledger. Clip and target are those of the budget unless they are given."""
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
            **({"overspent": f"{len(self.ledger)} steps of {setting.steps}"} if self.overspent else {}),
            "directions": setting.directions,
            "clip": self._clip if clip is None else clip,
            "noise_scale": self.noise_scale,
            "delta": setting.delta,
            "epsilon_target": self.epsilon_target if epsilon_target is None else epsilon_target,
            "epsilon_spent": self.epsilon_spent(),
            "epsilon_spent_rdp": self._larger(renyi, chosen),
            "gdp_mu": self._larger(mu, permute_and_flip.gdp_mu(chosen)),
            **({"choice": {"mechanism": permute_and_flip.MECHANISM, "epsilon": chosen}} if chosen else {}),
            "accountant": setting.accountant,
            "noise_arithmetic": self.noise_arithmetic,
            "noise_key": self.key.noise_key,
            "others_move_over_clip": self.others_move_over_clip,
            "valid_release": self.valid_release,
        }

    @staticmethod
    def _larger(of_training: float | None, of_choice: float) -> float | None:
        return None if of_training is None else max(of_training, of_choice)

    def _of_what_ran(self, epsilon) -> float | None:
        if len(self.ledger) == 0:
            return 0.0
        ran = replace(self.setting, steps=self._counted())
        left = ran.delta - self._excess(ran)
        spent = epsilon(replace(ran, delta=left)) if left >= 0 else math.inf
        return None if spent is None or math.isnan(spent) else spent

    def _excess(self, ran: Setting) -> float:
        """What the grid of exact noise takes of delta at most, at epsilons up to one above that of these steps (see `mechanisms`)."""
        if self.noise_arithmetic == "float" or ran.delta == 0 or self.noise_scale == 0:
            return 0.0
        return delta_excess(self.noise_scale, ran.steps * ran.directions, ran.epsilon(self.noise_scale) + 1)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Setting, ledger and the number of the next batch, without the key: what a checkpoint keeps beside the weights.

        Budgets of one process that go on from it count what all of them release. What another process has released since, a state
        cannot know: keep the ledger in a file.
        """
        moved = {"others_move_over_clip": self.others_move_over_clip} if len(self.ledger) else {}
        return {"position": self._draws.position, **moved, **self.ledger.state_dict()}

    def load_state_dict(self, state: Mapping) -> None:
        """Takes over what an earlier process spent.

        Raises:
            ValueError: a state of another setting; a ledger that has releases, but not all of those that the state has.
        """
        self._check_process()
        self.ledger.load_state_dict(state)
        if "others_move_over_clip" in state:
            self._others_move.add(state["others_move_over_clip"])
        self.start_at(state["position"])

    def start_at(self, number: int) -> None:
        """The next batch is the one of this number; once a batch was handed out, none of an earlier number than that."""
        others = any(name != self.key.name for _, name in self.ledger)
        self._draws.start_at(self.sampler.begin(number) if others else number)

    def record_transcript(self, count: int, key_name: str) -> None:
        """A transcript has this many rows, of a run that began under the key of this name: they are, or now become, releases of the ledger.

        Raises:
            ValueError: a ledger file that lacks some of them; a budget that has released already.
        """
        if count and self._released_here:
            raise ValueError(
                "a transcript is resumed by a budget that has taken steps of its own: write_transcript comes before the first step"
            )
        self.ledger.record_transcript(count, key_name)
        self.start_at(count)

    def close(self) -> None:
        """Gives the ledger's file free for another process."""
        self.ledger.close()

    def __reduce__(self):
        raise TypeError(
            "a budget is not copied, since the copy would draw the same noise: keep state_dict() and load it into a new budget, or give "
            "the new one the ledger's file (Budget.resume)"
        )

    # -- checks --------------------------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"this budget was made in process {self._process} and this is process {os.getpid()}, its fork, which would draw the same "
                "noise: make a budget of its own here"
            )

    def _check_left(self, key_name: str) -> None:
        """A batch that a killed process released under this key replays, and is none of the steps that are left."""
        again = self._draws.any_open and (self._draws.oldest.number, key_name) in self.ledger
        if len(self.ledger) >= self.setting.steps and not self.overspend and not again:
            raise Spent(
                f"the {self.setting.steps} steps of this budget are spent{self._elsewhere()}: calibrate a new one for more steps, or make "
                "it with overspend=True, and epsilon_spent() says what more steps cost"
            )

    def _elsewhere(self) -> str:
        """Who spent them, where it was not this budget alone."""
        others = len(self.ledger) - len(self.ledger.numbers_of(self.key.name))
        return f", {others} of them by others that went on from the same state or ledger" if others else ""

    def _check_vectors(self) -> None:
        if self.setting.mechanism != "gaussian":
            raise ValueError(
                f"the {self.setting.mechanism} mechanism is offered for scalars: use gaussian for vectors"
            )
        if self.unit != "example":
            raise ValueError(f"unit {self.unit} is offered for scalars: use unit example for vectors")

    def check_gradients(self) -> None:
        """Raises ValueError where `release_` is not offered."""
        self._check_vectors()
        if self.noise_arithmetic == "exact":
            raise ValueError(
                "exact noise is offered for scalars: make the budget with noise_arithmetic='float' for gradients, whose releases are "
                "then not called valid"
            )

    def _check_excess(self) -> None:
        excess = self._excess(self.setting)
        if excess > 1e-3 * self.setting.delta:
            raise ValueError(
                f"delta is {self.setting.delta:g}, but exact noise adds up to {excess:.1g} to it: give a larger delta, or "
                "noise_arithmetic='float', whose releases are not called valid"
            )

    def _warn_of_delta(self) -> None:
        if caution := self.setting.delta_warning(self.unit):
            warnings.warn(caution, stacklevel=3)


def own_terms(values: Tensor) -> list[list[float]]:
    """float64 [batch, K] -> for each of the K columns the numbers whose exact sum is released."""
    return values.T.tolist()


def _check_noise(noise_scale: float, key: RunKey) -> None:
    if not 0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale is {noise_scale}: it must be a finite number of at least 0")
    if noise_scale == 0 and key.valid_release:
        raise ValueError("noise_scale is 0 under a secret key: a private release needs noise")


def _digest(*parts: bytes | np.ndarray) -> str:
    """16 hexadecimal digits, others for other sums."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def _octets(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _claim(key: RunKey) -> None:
    """Two budgets with one secret key would add the same noise to two sums."""
    if not key.valid_release:
        return
    if key.name in _SECRETS_IN_USE:
        raise ValueError(
            "this secret key is another budget's, whose noise would be used again: draw a new one"
        )
    if key.process != os.getpid():
        raise ValueError(
            f"this secret key was drawn in process {key.process}, and another budget there or in a fork would add the same noise: draw "
            "one here with RunKey.secret()"
        )
    _SECRETS_IN_USE.add(key.name)
