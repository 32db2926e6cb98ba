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
    """Private fine-tuning in the memory of inference: a torch optimizer whose `step` takes a batch.

    Args:
        model: its parameters with `requires_grad` are trained, in place. Switch dropout off (`model.eval()`).
        loss: (model, batch) -> one loss for each example, float32 [B], such as those of `dpzero.losses`.
        budget: hands out the batches, adds the noise and counts the releases: see `Budget.calibrated`.
        learning_rate: of the step along the direction.
        clip: the paper's C, which bounds each example's slope; `dpzero.suggest` finds one, and a rate.
        smoothing: the paper's lambda, the distance of the two points from the weights.
        seed: of the directions, which are public; the noise does not depend on it.
        one_at_a_time: gives the loss each example alone, so that no other example can change its last bits.
        shrinkage, moment_floor: see `PrivateTwoPoint`.
        direction_law, direction_rank, perturb, second_moment, groups: see `zeroth_order.TwoPoint`.

    Raises:
        TypeError: an unknown argument, no budget, or a loss that does not take (model, batch).
        ValueError: nothing to train, weights in half precision, or a setting that makes no sense.

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
