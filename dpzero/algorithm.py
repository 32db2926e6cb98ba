"""DPZero (Zhang et al., ICML 2024, arXiv 2310.09639), Algorithm 2, with Poisson mini-batches.

for t = 0 .. T - 1:
    u_t: a random direction, public                                     (Gaussian, as in the paper's experiments)
    for each example i of the batch:  d_i = (f(x_t + smoothing u_t; i) - f(x_t - smoothing u_t; i)) / (2 smoothing)
    g_t = (sum_i clip(d_i) + noise) / batch_size                        (one scalar: all that is released)
    x_{t+1} = x_t - learning_rate g_t u_t
"""

from __future__ import annotations

from torch import Tensor, nn

from .privacy import Budget, check_clip, clip_scalars
from .zeroth_order import TwoPoint
from .zeroth_order.two_point import PerExampleLoss


class DPZero(TwoPoint):
    """Private fine-tuning in the memory of inference.

    Args:
        model: any module; the parameters with `requires_grad` are trained, in place. Switch dropout off (`model.eval()`).
        loss: (model, batch) -> one loss per example, float32 or better, each from its own example alone.
        budget: `Budget.calibrated(epsilon=..., delta=..., dataset_size=..., batch_size=..., steps=...)`. It hands out the batches
            (`budget.batches()` as indices, `budget.loader(dataset)` as a DataLoader) and `step` takes no other. If its unit is
            the user, they are batches of users: give `step` the examples and whose they are (`privacy.sampling.Users`).
        learning_rate: step size.
        clip: bound on each example's finite difference, after the division by 2 smoothing (the paper's C).
        smoothing: the paper's lambda.
        seed: of the directions, which are public. The noise does not depend on it.
        engine: `direction_law`, `direction_rank`, `perturb`, `one_at_a_time`: see `TwoPoint`.

    Raises:
        ValueError: nothing to train, weights in half precision, a setting that makes no sense, a loss that is not per example.

    >>> budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=len(data), batch_size=64, steps=1000)
    >>> optimizer = DPZero(model, loss, budget, learning_rate=1e-6, clip=100.0)
    >>> for indices in budget.batches():
    ...     optimizer.step([data[i] for i in indices])
    >>> budget.epsilon_spent()
    """

    title = "DPZero"
    private = True

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        smoothing: float = 1e-3,
        seed: int = 0,
        **engine,
    ) -> None:
        super().__init__(
            model,
            loss,
            batch_size=Budget.require(budget).batch_size,
            learning_rate=learning_rate,
            smoothing=smoothing,
            seed=seed,
            **engine,
        )
        check_clip(clip)
        self.budget, self.clip, self.unit = budget, clip, budget.unit

    def projected_gradient(self, difference: Tensor) -> float:
        clipped = clip_scalars(difference / (2 * self.smoothing), self.clip)
        return self.budget.release(clipped, self.clip) / self.batch_size
