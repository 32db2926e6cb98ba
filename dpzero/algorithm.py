"""DPZero (Zhang et al., ICML 2024, arXiv 2310.09639), Algorithm 2, with Poisson mini-batches.

for t = 0 .. T - 1:
    u_t: a random direction, public                                     (Gaussian, as in the paper's experiments)
    for each example i of the batch:  d_i = (f(x_t + smoothing u_t; i) - f(x_t - smoothing u_t; i)) / (2 smoothing)
    g_t = (sum_i clip(d_i) + noise) / batch_size                        (one scalar: all that is released)
    x_{t+1} = x_t - learning_rate g_t u_t
"""

from __future__ import annotations

from torch import Tensor

from .private_two_point import PrivateTwoPoint


class DPZero(PrivateTwoPoint):
    """Private fine-tuning in the memory of inference. Arguments: see `PrivateTwoPoint`.

    `clip` is the paper's C, `smoothing` its lambda. Switch dropout off (`model.eval()`).

    >>> budget = Budget.calibrated(epsilon=2, delta=1e-5, dataset_size=len(data), batch_size=64, steps=1000)
    >>> optimizer = DPZero(model, loss, budget, learning_rate=1e-6, clip=100.0)
    >>> for batch in budget.loader(data, collate_fn=list):
    ...     optimizer.step(batch)
    >>> budget.epsilon_spent()
    """

    title = "DPZero"

    def projected_gradient(self, difference: Tensor) -> float:
        slopes = difference / (2 * self.smoothing)
        return self.noisy_sum(slopes) / self.batch_size
