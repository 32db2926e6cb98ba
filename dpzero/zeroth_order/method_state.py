"""What a zeroth-order method keeps between steps, and how it resumes from a state or a transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .directions import Gaussian
from .perturbation import Perturbation
from .transcript import FORMAT, SecondMoment, Transcript, digest, rate_at, read, replay


class MethodState:
    """The state of a `TwoPoint`, whose constructor sets these attributes."""

    title: str
    directions: int
    parameters: Sequence[Tensor]  # trained, in the order that numbers them
    law: Gaussian
    law_settings: dict[str, Any]  # name, seed and rank of the law
    perturbation: Perturbation
    smoothing: float
    schedule: list[tuple[int, float]]  # (first step, learning rate)
    moment: SecondMoment
    steps_taken: int
    transcript: Transcript | None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return rate_at(self.schedule, self.steps_taken)

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_taken": self.steps_taken,
            "parameters": [p.detach().clone() for p in self.parameters],
            "schedule": self.schedule,
            "second_moment": [self.moment.mean, self.moment.steps],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, saved in zip(self.parameters, state["parameters"], strict=True):
            mine.copy_(saved)
        self.steps_taken, self.schedule = state["steps_taken"], state["schedule"]
        self.moment.mean, self.moment.steps = state["second_moment"]
        self.perturbation.position = (self.steps_taken, 0, 0.0)  # wherever a step that failed left them

    def write_transcript(self, path: str | Path) -> None:
        """Writes the scalars of every further step to a file: with the base model it is the fine-tuned model.

        If the file exists, the steps that it has beyond those taken are replayed from it, without asking the
        model. A private method's budget counts what they released.

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
        self.moment = SecondMoment(self.moment.decay, transcript.scalars.tolist())

    def _header(self, base_sha256: str, privacy: Mapping[str, Any]) -> dict[str, Any]:
        law = self.law_settings
        return {
            "format": FORMAT,
            "method": self.title,
            "law": {
                "name": law["name"],
                "version": self.law.law,
                "seed": law["seed"],
                "rank": law["rank"],
            },
            "directions": self.directions,
            "smoothing": self.smoothing,
            "schedule": self.schedule,
            "second_moment": self.moment.decay,
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
