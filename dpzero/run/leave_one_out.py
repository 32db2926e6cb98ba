"""Batch invariance on this machine: how far losses move by rounding when one example leaves a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STAND_INS = 8
CLIP, SMOOTHING, LENGTH = 50.0, 1e-3, 16
ARCHITECTURES = ("roberta-base", "opt-125m")  # an encoder and a decoder


def measure(loss: Any, model: Any, batch: Any, *, clip: float, smoothing: float) -> dict:
    """The part `batch_invariance` of a record, measured on `stand_ins`: no private example enters."""
    from ..zeroth_order.leave_one_out import losses_move

    moved = losses_move(loss, model, batch, clip=clip, smoothing=smoothing, leaving=(0, STAND_INS // 2))
    how = f"losses of {len(batch)} stand-ins, without one of them"
    return {"others_move_over_clip": moved, "compute": loss.compute, "how": how}


def stand_ins(like: Any, model: Any, length: int) -> Any:
    """Random examples of the type of `like` (a split of a task, or its features), of 2 to `length` tokens."""
    import numpy as np

    from ..language.models.batch_invariance import stand_in_ids
    from ..language.models.caches import Features
    from ..language.models.encoding import Continuations, Examples

    if isinstance(like, Features):
        values = np.random.default_rng(0).normal(size=(STAND_INS, like.values.shape[1]))
        return Features(values.astype(np.float32), np.zeros(STAND_INS, np.int64))
    texts: list[Any] = [stand_in_ids(model, int(n)) for n in np.linspace(length, 2, STAND_INS)]
    if isinstance(like, Continuations):
        return Continuations.from_candidates([[(ids, 1, True)] for ids in texts], [""] * STAND_INS)
    return Examples.from_token_ids(texts, [0] * STAND_INS)


def measure_architectures(names: Sequence[str] = ARCHITECTURES) -> list[dict]:
    """How far the others move when one of eight random texts leaves, by model and type of matrix products.

    Weights are random, in the published shapes, and the biases are perturbed.
    """
    import torch

    from ..language.models import losses, random_models
    from ..zeroth_order.leave_one_out import others_move

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name in names:
        model = random_models.build(name, device=device)
        for place, parameter in model.named_parameters():
            parameter.requires_grad_(place.endswith("bias"))
        batch = stand_ins(None, model, LENGTH)
        for compute in (*losses.COMPUTE, *(["tf32"] if device == "cuda" else [])):
            loss = losses.CrossEntropy(2048, compute.replace("tf32", "float32"))
            with _tf32(compute == "tf32"):
                moved = others_move(loss, model, batch, clip=CLIP, smoothing=SMOOTHING, leaving=(0, 4))
            rows.append({"model": name, "compute": compute, **moved})
    return rows


@contextmanager
def _tf32(used: bool) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if used else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
