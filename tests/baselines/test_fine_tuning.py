"""Fine-tuning without privacy: one update, whatever computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from baselines.fine_tuning import IMPLEMENTATIONS, OPTIMIZERS, FineTuning
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.studies.method_contract import read_by_the_loss


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_implementation_makes_the_same_update(optimizer):
    draw = np.random.default_rng(0)
    batch = encoding.Examples.from_token_ids(draw.integers(3, 1000, (6, 5)).tolist(), draw.integers(0, 4, 6))
    ends = {}
    for implementation in IMPLEMENTATIONS:
        model = text_classifier.load("tiny-encoder", tasks.load("toy"), "bias")
        me = FineTuning(
            model,
            losses.CrossEntropy(2048),
            6,
            learning_rate=1e-3,
            optimizer=optimizer,
            weight_decay=0.1,
            implementation=implementation,
        )
        read = read_by_the_loss(model).values()
        start = nn.utils.parameters_to_vector(read).detach()
        for _ in range(3):
            me.step(batch)
        ends[implementation] = nn.utils.parameters_to_vector(read).detach() - start
    assert ends["default"].abs().max() > 1e-4
    assert all(torch.allclose(end, ends["default"], rtol=1e-3, atol=1e-6) for end in ends.values())


def test_an_implementation_that_torch_does_not_have_is_refused():
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "head")
    with pytest.raises(
        ValueError, match="implementation is 'compiled': give one of default, loop, foreach, fused"
    ):
        FineTuning(model, losses.CrossEntropy(64), 6, learning_rate=1e-3, implementation="compiled")
