"""The untrained start: no private example is read, so epsilon is 0. Every method of a sweep starts here."""

from __future__ import annotations


class ZeroShot:
    title = "Zero-shot"
    private = False
    order = None

    def __init__(self, model, loss, batch_size: int, *, seed: int = 0) -> None:
        self.steps_taken = 0
        self.training_loss: float | None = None

    def step(self, batch) -> None:
        self.steps_taken += 1

    def state_dict(self) -> dict:
        return {"steps_taken": self.steps_taken}

    def load_state_dict(self, state: dict) -> None:
        self.steps_taken = state["steps_taken"]
