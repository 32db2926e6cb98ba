"""A first clip and learning rate for DPZero, from public or stand-in examples alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .privacy import Budget
from .zeroth_order import batches
from .zeroth_order.directions import make_law
from .zeroth_order.loss_checks import per_example_losses
from .zeroth_order.model_requirements import ModelCheck, trainable
from .zeroth_order.perturbation import Perturbation
from .zeroth_order.protocols import PerExampleLoss

DOUBLINGS, HALVINGS = 40, 6  # of the radius: from the smoothing to 1e12 times that, and then to 1 %


@torch.no_grad()
def suggest(
    model: nn.Module,
    loss: PerExampleLoss,
    batch: Any,
    budget: Budget,
    *,
    quantile: float = 0.5,
    tolerance: float = 0.1,
    directions: int = 8,
    smoothing: float = 1e-3,
    seed: int = 0,
) -> dict[str, float]:
    """A clip and a learning rate to begin with: `DPZero(model, loss, budget, **suggest(...))`.

    The clip C is a quantile of |d_i|, the slopes of the examples along random directions. The median is the
    usual compromise between noise, which grows with C, and bias, which falls with it (Andrew et al., NeurIPS
    2021).

    The learning rate bounds the harm of the noise. A step moves the weights by learning_rate g z, where the scalar
    g has the root mean square
        s = sqrt((noise_scale C / batch_size)^2 + E[mean clip(d)]^2 + Var[clip(d)] / batch_size).
    If all of it were noise, the run of T steps would end at x + r z with r = learning_rate s sqrt(T), because a
    sum of T independent normal vectors is normal. The largest r is measured at which the public loss, averaged
    over x ± r z, rises by `tolerance` times itself, and learning_rate = r / (s sqrt(T)). So the number of trained
    weights and the curvature count as far as they move the loss.

    Args:
        model: in evaluation mode. Its weights stay, to the bit.
        batch: public or stand-in examples, some tens, as for `step`. What private examples would reveal here
            is not covered by the budget.
        budget: of the run, for its noise, batch size and steps. Nothing is spent.
        quantile: of |d_i|, above 0 and at most 1.
        tolerance: the rise of the loss, relative.
        directions: how many are averaged.
        smoothing, seed: as for the optimizer.

    Returns:
        `clip` and `learning_rate`, to two digits.

    Raises:
        ValueError: fewer than two examples, a batch that the budget handed out, a loss that does not change with the weights, never rises by the
            tolerance (of an untrained model, perhaps) or is not finite, a model that does not meet `zeroth_order.model_requirements`.
    """
    parameters, count = trainable(model.parameters()), max(batches.sizes(batch))
    if count < 2:
        raise ValueError(f"a batch of {count} examples: give some tens of public ones")
    if budget.has_handed_out(batch):
        raise ValueError(
            "these examples are private, as the budget handed them out: give public or stand-in ones"
        )
    ModelCheck(model, parameters)
    perturbation = Perturbation.of_model(model, parameters, make_law("gaussian", seed), "on_read")

    def losses_at(direction: int, scale: float) -> Tensor:
        with perturbation.perturbed(0, direction, scale):
            return per_example_losses(loss, model, batch, count)

    def rise(radius: float) -> float:
        """Of the mean loss over x ± radius z, relative."""
        ends = [losses_at(k, side * radius).mean() for k in range(directions) for side in (1, -1)]
        return float(torch.stack(ends).mean() / start) - 1

    start = losses_at(0, 0.0).mean().abs()
    pairs = [(losses_at(k, smoothing), losses_at(k, -smoothing)) for k in range(directions)]
    slopes = torch.stack([(plus - minus) / (2 * smoothing) for plus, minus in pairs])
    clip = float(slopes.abs().quantile(quantile))
    if not (0 < clip < math.inf and 0 < start < math.inf):
        raise ValueError(
            "the loss of these examples is not finite, is 0, or does not change with the weights: give examples like "
            "those of the run"
        )
    spread = _root_mean_square(slopes.clamp(-clip, clip), clip, budget)
    learning_rate = _radius(rise, smoothing, tolerance) / (spread * math.sqrt(budget.setting.steps))
    return {"learning_rate": float(f"{learning_rate:.1e}"), "clip": float(f"{clip:.1e}")}


def _root_mean_square(clipped: Tensor, clip: float, budget: Budget) -> float:
    """Of the released scalar, from clipped slopes float64 [directions, examples]."""
    laplace = budget.setting.mechanism == "laplace"
    noise = budget.noise_scale * clip / budget.batch_size * (math.sqrt(2) if laplace else 1)
    signal = clipped.mean(1).square().mean() + clipped.var(1).mean() / budget.batch_size
    return math.sqrt(noise**2 + float(signal))


def _radius(rise: Callable[[float], float], least: float, tolerance: float) -> float:
    """The radius at which the loss has risen by the tolerance."""
    low = least
    for _ in range(DOUBLINGS):
        if not rise(2 * low) <= tolerance:  # what is not a number has risen, too
            break
        low *= 2
    else:
        raise ValueError(
            f"the loss never rises by {tolerance:g} of itself along the directions: give a smaller tolerance"
        )
    high = 2 * low
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rise(middle) <= tolerance else (low, middle)
    return low
