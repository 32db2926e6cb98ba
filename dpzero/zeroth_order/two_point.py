"""The two-point step (SPSA), as a torch optimizer: two losses at x ± smoothing z, and a move along z."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from pathlib import Path
from types import MethodType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import check_names
from . import batches
from .arguments import signature_of
from .directions import make_law
from .distributed import CHECK_EVERY, Ranks, exact_sum
from .loss_checks import check_loss_arguments, explained, per_example_losses
from .model_requirements import ModelCheck, trainable
from .perturbation import Perturbation, points
from .protocols import PerExampleLoss
from .transcript import FORMAT, SecondMoment, Transcript, digest, read, replay

LEAST_SMOOTHING = 1e-10  # below it no weight of order 1 moves, even in float64


class TwoPoint(torch.optim.Optimizer):
    """What all zeroth-order methods share: everything but the scalar.

    A method turns per-example loss differences f(x + smoothing z) - f(x - smoothing z) into a scalar in
    `projected_gradient`. The step is x <- x - learning_rate * projected_gradient * z. Sums are divided by the
    expected batch size, a constant. Memory is that of inference: z is regenerated whenever it is needed and
    never stored.

    It is a `torch.optim.Optimizer`: it has `param_groups` with a learning rate each, and the schedulers of
    `torch.optim.lr_scheduler` work on it. The rates that were used are kept in the transcript. They must not
    depend on private examples but by what was released.

    Args:
        model: its parameters with `requires_grad` are trained, in place.
        loss: (model, batch) -> one loss per example.
        batch_size: the expected size of a batch.
        learning_rate: step size; 0 moves nothing.
        smoothing: distance of the two points from x, along z.
        seed: of the directions.
        direction_law: of z.
        direction_rank: of low_rank directions.
        perturb: in_place, or on_read, which copies one matrix at a time and never drifts by rounding.
        second_moment: a decay such as 0.99 divides a step's scalars by the root of Adam's second moment of
            the scalars so far; 0 divides by nothing.
        one_at_a_time: gives the loss each example alone. Slower, but no other example can change its last
            bits, without which no release is called valid.
        groups: parameters with a learning rate each, `{"params": [...], "lr": 1e-6}`, as for torch.optim. They
            must be all that are trained; a group without `lr` has `learning_rate`. One group by default.

    Raises:
        ValueError: nothing to train, weights in half precision, or a setting that makes no sense.
    """

    title = "two-point step"
    order: int | None = 0
    unit = "example"
    directions = 1  # scalars of a step
    one_sided = False  # whether the second point of all directions is x, whose losses are then taken once
    ranks = Ranks()  # one process: see `join`
    how_to_step = "give it a list of examples or what a collator made of them"
    elsewhere: Mapping[str, str] = {}  # arguments that people look for here: see `errors.unknown`

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__signature__ = signature_of(cls)  # type: ignore[attr-defined]

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        if arguments or named:  # none if it is copied
            expected = signature_of(cls)
            check_names(cls.__name__, named, expected.parameters, cls.elsewhere)
            try:
                expected.bind(*arguments, **named)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}: {error}, see help({cls.__name__})") from None
        return super().__new__(cls)

    @property
    def forwards_per_example(self) -> int:
        return self.directions + 1 if self.one_sided else 2 * self.directions

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        batch_size: float,
        *,
        learning_rate: float,
        smoothing: float = 1e-3,
        seed: int = 0,
        direction_law: Literal["gaussian", "sphere", "rademacher", "low_rank"] = "gaussian",
        direction_rank: int = 1,
        perturb: Literal["in_place", "on_read"] = "in_place",
        second_moment: float = 0.0,
        one_at_a_time: bool = False,
        groups: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}: give the model, not its parameters")
        check_loss_arguments(loss)
        for name, value, least in (
            ("smoothing", smoothing, LEAST_SMOOTHING),
            ("batch_size", batch_size, 0.0),
        ):
            if not least < value < math.inf:
                above = f", above {least:g}" if least else ""
                raise ValueError(f"{name} is {value}: it must be positive and finite{above}")
        self.model, self.loss, self.one_at_a_time = model, loss, one_at_a_time
        self.batch_size, self.smoothing = batch_size, smoothing
        self.moment = SecondMoment(second_moment)
        self.parameters = trainable(model.parameters())
        chosen = [{"params": self.parameters}] if groups is None else [dict(group) for group in groups]
        super().__init__(chosen, {"lr": learning_rate})
        self.groups = numbered(self.param_groups, self.parameters, model)
        self._first_rates = checked_rates(self.param_groups)
        self.model_check = ModelCheck(model, self.parameters)
        self.law = make_law(direction_law, seed, direction_rank)
        self.law_settings = {"name": direction_law, "seed": seed, "rank": direction_rank}
        self.perturbation = Perturbation.of_model(model, self.parameters, self.law, perturb, self.groups)
        self.steps_taken = 0
        self.transcript: Transcript | None = None
        self.training_loss: float | None = None

    def projected_gradient(self, difference: Tensor) -> float:
        """The scalar that multiplies z.

        Args:
            difference: f(x + smoothing z) - f(x - smoothing z) for each unit, float64 [B], B >= 0. If the
                unit is the user, each value is the mean over the user's examples. Sum with `total` or a
                budget, which know of other ranks.
        """
        raise NotImplementedError

    def projected_gradients(self, differences: Tensor) -> list[float]:
        """The scalars that multiply the K directions, from differences float64 [B, K]."""
        return [self.projected_gradient(differences[:, 0])]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, batch: Any = None, users: ArrayLike | None = None
    ) -> float | list[float]:
        """Takes one step on a batch, which may be empty.

        Args:
            batch: for a private method the batch that the budget handed out: a list, an array of indices, or
                what a collator made of it.
            users: if the unit is the user, the user of each example, integers or strings [B].

        Returns:
            The scalar by which the weights moved along z; K scalars if the method has K > 1 directions.

        Raises:
            ValueError: another batch than the budget handed out, no step left, a learning rate that is negative
                or not finite, a model that does not meet `model_requirements`, users if the unit is the example
                or none if it is the user. Nothing is released then, and the weights stay, up to rounding.
        """
        if batch is None or (callable(batch) and not hasattr(batch, "__len__")):
            raise TypeError(f"step needs a batch, and no closure: {self.how_to_step}")
        with self._whole_step():
            rates = self.learning_rates()
            count, user_numbers = self._begin(batch, users)
            try:
                with self.model_check.deterministic(), explained():
                    losses = self._losses_at_points(batch, count)
                self.training_loss = self._mean_loss(losses[1] if self.one_sided else losses.mean(0))
                scalars = self.released_scalars(losses[0], losses[1], user_numbers)
                if self.transcript is not None:
                    self.transcript.append(scalars, rates)  # before the weights move
                scalars = self.ranks.agreed(scalars)
            except BaseException:
                self.perturbation.restore()  # a loss or a release was refused
                raise
            # x <- x - learning_rate * sum over k of scalars[k] z_k, from wherever the weights are
            self.perturbation.plan_update(
                self.steps_taken, self.moment.scaled(scalars), [-rate for rate in rates]
            )
            self.perturbation.apply()
            self.steps_taken += 1
            if self.steps_taken % CHECK_EVERY == 0:
                self.check_ranks()
            return scalars if self.directions > 1 else scalars[0]

    def _whole_step(self) -> AbstractContextManager[None]:
        """Around a step. A private method keeps other threads out, for one."""
        return nullcontext()

    def released_scalars(self, first: Tensor, second: Tensor, users: np.ndarray | None) -> list[float]:
        """The scalars of a step, from the losses at its points.

        Args:
            first: at x + smoothing z_k, float64 [K, B].
            second: at x - smoothing z_k, float64 [K, B]; of a one-sided method at x, the same for all k.
            users: of the examples, if the unit is the user.
        """
        return self.projected_gradients(batches.user_means((first - second).T, users))

    def _losses_at_points(self, batch: Any, count: int) -> Tensor:
        """Losses at the points of a step, at the last of which weights are left: see `released_scalars`."""
        losses = torch.zeros(2, self.directions, count, dtype=torch.float64)
        for k, side, scale in points(self.directions, self.smoothing, self.one_sided):
            with (
                self.perturbation.perturbed(self.steps_taken, k, scale),
                self.model_check.forward_passes(),
            ):
                losses[side, k] = self._losses(batch, count)
        if self.one_sided:
            losses[1] = losses[1, 0].clone()
        return losses

    def _begin(self, batch: Any, users: ArrayLike | None) -> tuple[int, np.ndarray | None]:
        """Checks model and batch. Returns the number of examples and, if given, their users as numbers."""
        if (users is None) == (self.unit == "user"):
            raise ValueError(f"the unit is the {self.unit}: give `users` if it is the user, and only then")
        self.model_check.check()
        sizes = batches.sizes(batch)
        if users is None:
            return self._admit(sizes, batches.indices(batch)), None
        numbers = batches.number_users(users, sizes)
        self._admit({len(np.unique(numbers))}, None)
        return len(numbers), numbers

    def _admit(self, sizes: set[int], indices: np.ndarray | None) -> int:
        """The number of units in a batch: of several possible ones (see `batches.sizes`) the fields' length."""
        return max(sizes) if len(sizes) == 1 else max(sizes - {0}, default=0)

    def _losses(self, batch: Any, count: int) -> Tensor:
        """Losses at the current weights, float64 [count]."""
        return self._evaluate(batch, count, partial(batches.take, batch, size=count))

    def _evaluate(self, batch: Any, count: int, pick: batches.Take) -> Tensor:
        """`pick` makes a batch of some of the examples."""
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        if not self.one_at_a_time:
            return per_example_losses(self.loss, self.model, batch, count)
        examples = batches.single_examples(batch, count, pick)
        return torch.cat([per_example_losses(self.loss, self.model, one, 1) for one in examples])

    def _mean_loss(self, losses: Tensor) -> float | None:
        """None for an empty batch, and if this rank has only a share of the batch."""
        return float(losses.mean()) if losses.numel() and self.ranks.size == 1 else None

    # -- state and transcript

    def learning_rates(self) -> list[float]:
        """The learning rate of each group in the next step. Raises ValueError: see `checked_rates`."""
        return checked_rates(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """For the constructor only. Raises ValueError later, or for a setting that groups do not have."""
        if hasattr(self, "perturbation"):
            raise ValueError(
                "a parameter group was added to an optimizer that exists: make a new one, with all `groups`"
            )
        if not {"params"} <= param_group.keys() <= {"params", "lr", "param_names"}:
            raise ValueError(f"a group has {', '.join(sorted(param_group))}: give `params` and `lr` alone")
        super().add_param_group(param_group)

    def _patch_step_function(self) -> None:
        """Wraps `step` only once a hook is registered: torch's wrapper takes 5 % of a small step."""
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        self._call_hooks()
        return super().register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        self._call_hooks()
        return super().register_step_post_hook(hook)

    def _call_hooks(self) -> None:
        if not getattr(self.step, "calls_hooks", False):
            step = self.step  # a scheduler may have wrapped it

            @wraps(step)
            def taken(_: TwoPoint, *arguments: Any, **named: Any) -> Any:
                return step(*arguments, **named)

            taken.calls_hooks = True  # type: ignore[attr-defined]
            self.step = MethodType(self.profile_hook_step(taken), self)  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """All of it: a copy needs more than the groups, and a budget refuses to be copied."""
        return self.__dict__

    def state_dict(self) -> dict[str, Any]:
        """Weights, steps and learning rates: with the settings of the constructor all that a run needs to go on.

        The transcript is on disk then, so that a saved state is never ahead of it.
        """
        if self.transcript is not None:
            self.transcript.sync()
        settings = [{key: group[key] for key in group if key != "params"} for group in self.param_groups]
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "param_groups": settings,
            "second_moment": [self.moment.mean, self.moment.steps],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.transcript is not None and state["steps_taken"] != self.steps_taken:
            raise ValueError(
                f"a state of step {state['steps_taken']} was loaded at step {self.steps_taken} of a transcript: load it "
                "before write_transcript"
            )
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        for group, settings in zip(self.param_groups, state["param_groups"], strict=True):
            group.update(settings)
        self.steps_taken = state["steps_taken"]
        self.moment.mean, self.moment.steps = state["second_moment"]
        self.perturbation.position = (self.steps_taken, 0, 0.0)  # wherever a step that failed left them

    def write_transcript(self, path: str | Path) -> None:
        """Writes the scalars of every further step to a file: with the base model it is the fine-tuned model.

        If the file exists, the steps that it has beyond those taken are replayed from it, without asking the
        model, at the learning rates in it. A private method's budget counts what they released. A scheduler
        follows with `while scheduler.last_epoch < optimizer.steps_taken: scheduler.step()`.

        Raises:
            ValueError: the file of another run or budget, a damaged file, one with fewer steps than were
                taken, or a ledger that lacks some of them.
        """
        path = Path(path)
        if self.steps_taken and not path.exists():
            raise ValueError(
                f"{self.steps_taken} steps were taken without a transcript at {path}: begin it before the first step"
            )
        before = read(path)[0] if path.exists() and path.stat().st_size else {}
        base = digest(self.parameters) if self.steps_taken == 0 else before["base_sha256"]
        transcript = Transcript(path, self._header(base, before.get("privacy") or {}))
        if not len(transcript):  # the first release decides under which key the run began
            transcript.begin(self._header(base, {}))
        if len(transcript) < self.steps_taken:
            raise ValueError(
                f"transcript {path} has {len(transcript)} of the {self.steps_taken} steps taken: start from the base "
                "model"
            )
        self._count_releases(transcript)
        self.transcript = transcript
        self.steps_taken = replay(self.parameters, path, self.steps_taken, self.perturbation)
        self._opt_called = self.steps_taken > 0  # else a scheduler that follows warns of steps not taken
        self.moment = SecondMoment.of_header(self.moment.header(), transcript.scalars.tolist())

    def _header(self, base_sha256: str, privacy: Mapping[str, Any]) -> dict[str, Any]:
        law = self.law_settings
        return {
            "format": FORMAT,
            "method": self.title,
            "law": {"name": law["name"], "version": self.law.law, "seed": law["seed"], "rank": law["rank"]},
            "directions": self.directions,
            "smoothing": self.smoothing,
            "learning_rates": self._first_rates,
            "groups": self.groups,
            **self.moment.header(),
            **({"one_sided": True} if self.one_sided else {}),
            "perturbed_on_read": sorted(self.perturbation.on_read),
            "still": [[j, row] for j, row in self.perturbation.fixed_rows.items()],
            "base_sha256": base_sha256,
            "privacy": self._privacy_header(privacy),
        }

    def _privacy_header(self, existing: Mapping[str, Any]) -> dict[str, Any] | None:
        """The part of a private method. `existing` is that of an existing file, whose key may be another."""
        return None

    def _count_releases(self, transcript: Transcript) -> None:
        """A private method's budget counts the releases of a transcript."""

    # -- several ranks

    def join(self, ranks: Ranks) -> None:
        """Makes `step` take this rank's share of each batch, or all of it with losses of 0 for other shares.

        Any division of a batch gives the same step to the bit, if it keeps the bits of each example's loss.

        Raises:
            ValueError: the unit is the user, whose examples several ranks might have.
            RankFailure: the ranks are not at the same step with the same weights. Also from `step`: see
                `distributed`.
        """
        if self.unit == "user":
            raise ValueError("the unit is the user, whose examples may lie with several ranks: use one rank")
        self.ranks = ranks
        self.check_ranks()

    def check_ranks(self) -> None:
        """Compares step and weights with the other ranks."""
        if self.ranks.size > 1:
            self.ranks.check(self.steps_taken, digest(self.parameters))

    def total(self, values: Tensor) -> list[float]:
        """float64 [B, K] -> the K sums over all ranks' examples, each rounded once."""
        return [exact_sum(terms) for terms in self.ranks.terms(values)]


def checked_rates(groups: Sequence[Mapping[str, Any]]) -> list[float]:
    """The learning rate of each group. Raises ValueError for one that is negative or not finite."""
    rates = [float(group["lr"]) for group in groups]
    for number, rate in enumerate(rates):
        if not 0 <= rate < math.inf:
            group = f" of group {number}" if len(rates) > 1 else ""
            raise ValueError(f"learning_rate{group} is {rate}: it must be finite and not negative")
    return rates


def numbered(
    groups: Sequence[Mapping[str, Any]], parameters: Sequence[Tensor], model: nn.Module
) -> list[list[int]]:
    """The numbers of each group's parameters among the trained ones.

    Raises:
        ValueError: groups that are not all of the trained parameters, and no others.
    """
    numbers = {id(p): j for j, p in enumerate(parameters)}
    grouped = {id(p) for group in groups for p in group["params"]}
    if not grouped <= numbers.keys():
        raise ValueError(
            "a group has a parameter that is frozen or not of the model: take it out of `groups`"
        )
    if missing := [name for name, p in model.named_parameters() if id(p) in numbers.keys() - grouped]:
        raise ValueError(f"parameter {missing[0]} is trained and in no group: add it to one, or freeze it")
    return [[numbers[id(p)] for p in group["params"]] for group in groups]
