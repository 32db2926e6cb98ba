"""What the releases in a ledger cost: epsilon, and the privacy statement of a record."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .accounting import Setting
from .ledger import Ledger
from .ledger_lines import FOREIGN, SELECTIVE, UNMEASURED, Finding
from .mechanisms import delta_excess
from .permute_and_flip import MECHANISM
from .randomness import RunKey
from .row_releases import noise_scales

BATCH_DEPENDENT = (
    "the last bits of an example's loss depend on the rest of its batch: removing one example moves the "
    "others by up to {:g} of the clip, so no release is called valid. Give the method one_at_a_time=True, "
    "or a loss whose bits are each example's own, as in dpzero.language"
)
UNMEASURABLE = (
    "this batch may be padded as a whole, so it is unknown whether the last bits of an example's loss depend "
    "on the rest of the batch, and no release is called valid: give step indices, a list of examples, or "
    "what budget.loader hands out"
)
FOREIGN_BATCH = (
    "this batch is not what the budget handed out, so it is unknown whether it holds the examples that were drawn, "
    "and no release is called valid: give step what budget.loader(dataset) or budget.batches(take) hands out, as "
    "it is"
)


class Spending:
    """Privacy loss of the releases in a ledger: the half of `Budget` that only reads it.

    With a folder as `cached_costs`, what the same releases cost is computed once for all runs.
    """

    cached_costs: Path | None = None

    def __init__(self, setting: Setting, key: RunKey, ledger: Ledger, epsilon_target: float | None) -> None:
        self.setting, self.key, self.ledger, self.epsilon_target = setting, key, ledger, epsilon_target
        self.unit, self.noise_scale = ledger.event.unit, ledger.event.noise_scale
        self.noise_arithmetic = ledger.event.noise_arithmetic
        self._clip: float | None = None  # of the last release

    @property
    def protects(self) -> str:
        """The unit that epsilon is about, in words."""
        if self.unit != "group":
            return self.unit
        size = self.setting.group_size
        return f"user, as a group of at most {size} example{'s' if size > 1 else ''}"

    @property
    def overspent(self) -> bool:
        """Whether more was released than the noise was calibrated for."""
        return self._counted_steps() > self.setting.counted_steps(range(self.setting.steps))

    @property
    def epsilon_of_choice(self) -> float:
        """Epsilon of the private selections in the ledger. Each was made under its own key, so they add up."""
        return math.fsum(choice.epsilon for choice in self.ledger.choices)

    def record_influence(self, others_move_over_clip: float | None) -> None:
        """Record how much the other clipped values move when one example leaves the batch.

        A method measures this before its first release. Callers of `release` without a method must report it
        too; otherwise no release is called valid.

        Args:
            others_move_over_clip: in units of the clip; None if it cannot be measured.
        """
        moved = others_move_over_clip
        word = UNMEASURED if moved is None else repr(float(moved))
        new = self.ledger.record_finding(self.key.name, word)
        if new and self._may_be_valid and moved != 0 and not self._has_foreign_batches:
            words = UNMEASURABLE if moved is None else BATCH_DEPENDENT.format(moved)
            warnings.warn(words, stacklevel=2)

    def record_foreign_batch(self) -> None:
        """Record that the next release may be of other examples than those that were drawn. Warns once."""
        if self.ledger.record_finding(self.key.name, FOREIGN) and self._may_be_valid:
            warnings.warn(FOREIGN_BATCH, stacklevel=2)

    def record_selective(self) -> None:
        """Record that the method also reads the examples without noise, but for what is sensitive in them (baselines/jft.py).

        Epsilon is then that of their sensitive words, in this process and in every later one.
        """
        self.ledger.record_finding(self.key.name, SELECTIVE)

    @property
    def definition(self) -> str:
        """`selective` if the ledger says so (see `record_selective`), else nothing: epsilon is that of whole units."""
        return SELECTIVE if any(finding.word == SELECTIVE for finding in self.ledger.findings) else ""

    def _influences(self) -> list[Finding]:
        """What was found about how far one example moves the others."""
        return [finding for finding in self.ledger.findings if finding.word not in (FOREIGN, SELECTIVE)]

    @property
    def others_move_over_clip(self) -> float | None:
        """The largest recorded influence; None if it was not measured, could not be, or not in all processes."""
        words = [finding.word for finding in self._influences()]
        if UNMEASURED in words or self._unmeasured_keys():
            return None
        return max(map(float, words), default=None)

    def _unmeasured_keys(self) -> set[str]:
        """Secret keys under which there are releases, and nothing is known of the loss."""
        measured = {finding.key_name for finding in self._influences()}
        return set(self.ledger.by_key()) - measured if self.key.valid_release else set()

    @property
    def _may_be_valid(self) -> bool:
        if self.definition:
            return False
        return self.key.valid_release and self.noise_arithmetic == "exact"

    @property
    def _has_foreign_batches(self) -> bool:
        return any(finding.word == FOREIGN for finding in self.ledger.findings)

    @property
    def valid_release(self) -> bool:
        """Whether the releases are private by proof.

        The noise must be secret, its low-order bits must reveal nothing, an example must move no value but its
        own, and each batch must be the one that was drawn. All processes that continued the ledger count.
        """
        return self._may_be_valid and self.others_move_over_clip == 0 and not self._has_foreign_batches

    def epsilon_spent(self) -> float:
        """Epsilon at the setting's delta, from the ledger: the larger of training and private selection.

        That of an example as a whole: infinite under selective privacy.
        """
        return math.inf if self.definition else self._epsilon_of_releases()

    def selective_epsilon_spent(self) -> float:
        """Epsilon of the sensitive words of an example; infinite unless examples are replaced, as both then look the same
        where nothing is sensitive.
        """
        replaced = self.definition == SELECTIVE and self.setting.adjacency == "replace_one"
        return self._epsilon_of_releases() if replaced else math.inf

    def _epsilon_of_releases(self) -> float:
        trained = self._training_cost(Setting.epsilon)
        return math.inf if trained is None else max(trained, self.epsilon_of_choice)

    def statement(self, clip: float | None = None, epsilon_target: float | None = None) -> dict[str, Any]:
        """Return the privacy part of a record, computed from the ledger.

        Under selective privacy epsilon is `selective_epsilon_spent`, beside the keys that are of whole examples.

        Args:
            clip: the clipping threshold; that of the last release if not given.
            epsilon_target: the epsilon that the noise was calibrated for; the budget's own if not given.
        """
        event = asdict(self.ledger.event) | {"unit": self.protects}
        del event["group_size"]  # the unit names it
        if share := event.pop("first_share"):
            event["noise_scales"] = "{:.6g} for the counts, {:.6g} for the gradient".format(
                *noise_scales(self.noise_scale, share)
            )
        target = self.epsilon_target if epsilon_target is None else epsilon_target
        return event | {
            "steps": len(self.ledger),
            **({"overspent": f"{len(self.ledger)} steps of {self.setting.steps}"} if self.overspent else {}),
            "clip": self._clip if clip is None else clip,
            **(self._selective_costs() if self.definition else self._costs(target)),
            "accountant": self.setting.accountant,
            "others_move_over_clip": self.others_move_over_clip,
            "valid_release": self.valid_release,
        }

    def _costs(self, epsilon_target: float | None) -> dict[str, Any]:
        chosen = self.epsilon_of_choice
        renyi, mu = self._training_cost(Setting.epsilon_rdp), self._training_cost(Setting.gdp_mu)
        return {
            "epsilon_target": epsilon_target,
            "epsilon_spent": self.epsilon_spent(),
            "epsilon_spent_rdp": None if renyi is None else max(renyi, chosen),
            "gdp_mu": mu if mu is None or not chosen else max(mu, _mu_of_epsilon(chosen)),
            **({"choice": {"mechanism": MECHANISM, "epsilon": chosen}} if chosen else {}),
        }

    def _selective_costs(self) -> dict[str, Any]:
        of_examples = dict.fromkeys(
            ("epsilon_target", "epsilon_spent", "epsilon_spent_rdp", "gdp_mu"), math.inf
        )
        selective = {"definition": self.definition, "selective_epsilon_spent": self.selective_epsilon_spent()}
        return of_examples | {"epsilon_target": None} | selective

    def __repr__(self) -> str:
        """The privacy statement in a few lines: what was promised, what is spent, for whom, and whether it is valid."""
        said, setting = self.statement(), self.setting
        target = "" if said["epsilon_target"] is None else f" of {said['epsilon_target']:g}"
        clip = "" if said["clip"] is None else f" of {said['clip']:g}"
        selective = (
            f" (of whole examples; selective: {self.selective_epsilon_spent():.4g})"
            if self.definition
            else ""
        )
        valid = "yes" if self.valid_release else f"no, {self._why_not_valid()}"
        return "\n".join(
            (
                f"epsilon {said['epsilon_spent']:.4g}{target}{selective} spent at delta {setting.delta:g}, in {said['steps']:,} of "
                f"{setting.steps:,} steps",
                f"protects: each {self.protects} of {setting.dataset_size:,}, adjacency {setting.adjacency}",
                f"batches: {said['sampling']}, {setting.batch_size:,} expected",
                f"noise: {setting.mechanism}, {self.noise_scale:.4g} times the clip{clip}, {self.noise_arithmetic}",
                f"accountant: {said['accountant']}, from the ledger of what was released",
                f"valid release: {valid}",
            )
        )

    def _why_not_valid(self) -> str:
        if not self.key.valid_release:
            return "the key of the noise is published"
        if self.definition:
            return "a pass without noise read the examples"
        if self.noise_arithmetic != "exact":
            return "noise in floats leaks through its low-order bits"
        if self._has_foreign_batches:
            return "a batch may hold other examples than those that were drawn"
        if not self.ledger.findings and not len(self.ledger):
            return "nothing was released yet"
        if self._unmeasured_keys():
            return "it is unknown how an earlier process made its releases, or what their loss depended on"
        return "the last bits of an example's loss may depend on its batch"

    def _counted_steps(self) -> int:
        """Steps that the releases count as; a period that two keys share counts twice."""
        return sum(map(self.setting.counted_steps, self.ledger.by_key().values()))

    def _training_cost(self, measure: Callable[[Setting, float], float | None]) -> float | None:
        """`measure(setting, noise_scale)` of the steps that ran, at the delta that exact noise leaves."""
        if len(self.ledger) == 0:
            return 0.0
        ran = replace(self.setting, steps=self._counted_steps())
        left = ran.delta - grid_delta(ran, self.noise_scale, self.noise_arithmetic)
        cost: float | None = math.inf
        if left >= 0:
            ran = replace(ran, delta=left)
            folder, scale = self.cached_costs, self.noise_scale
            cost = measure(ran, scale) if folder is None else ran.cached_cost(measure, scale, folder)
        return None if cost is None or math.isnan(cost) else cost


def _mu_of_epsilon(epsilon: float) -> float:
    from .gdp import mu_of_epsilon  # with scipy's optimizers, which take a third of a second to import

    return mu_of_epsilon(epsilon)


def grid_delta(setting: Setting, noise_scale: float, noise_arithmetic: str) -> float:
    """Delta that the grid of exact noise adds at most, at epsilons up to one above the setting's own."""
    if noise_arithmetic == "float" or setting.delta == 0 or noise_scale == 0:
        return 0.0
    scalars = setting.steps * setting.directions
    return delta_excess(noise_scale, scalars, setting.epsilon(noise_scale) + 1)
