"""What a test may not ask of a machine: the value of a number that is rounding and nothing else."""

from __future__ import annotations

from torch import Tensor, nn


def read_by_the_loss(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters, by name, without the biases of keys.

    Softmax takes the same amount off every score of a query, so the loss does not read such a bias. Its gradient is what
    rounding leaves, which follows the processor; Adam then makes whole steps of it.
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad and "key.bias" not in name}
