"""Batch invariance of models of real size: pretrained weights on real texts, published shapes with random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dpzero.language.models.losses import COMPUTE, CrossEntropy
from dpzero.studies.batch_invariance import CLIP, HEAD, SMOOTHING, TOKENS, BatchShapes, load
from dpzero.zeroth_order.leave_one_out import others_move

pytestmark = [pytest.mark.slow, pytest.mark.network]

ASSETS = {"minilm": ("minilm", "reuters"), "smollm2-135m": ("smollm2", "vader")}
ASSETS |= {HEAD: ASSETS["minilm"], "opt-125m": (), "roberta-base": ()}
LONGEST = 32  # tokens
SIZES = {"minilm": (2, 16, 64), HEAD: (2, 16, 64)}


@pytest.fixture
def moves(cached) -> Callable[..., list[float]]:
    """How far the losses of the others move, over the clip, if the longest text leaves a batch of each size."""

    def measured(name: str, loss: CrossEntropy, sizes: tuple[int, ...]) -> list[float]:
        for asset in ASSETS[name]:
            cached(asset)
        model, texts = load(name)
        lengths = np.ones(len(texts)) if name == HEAD else texts.lengths()
        short, moves = np.flatnonzero(lengths <= LONGEST), []
        for size in sizes:
            drawn = short[:size]
            how = {"clip": CLIP, "smoothing": SMOOTHING, "leaving": [int(lengths[drawn].argmax())]}
            moves.append(others_move(loss, model, texts[drawn], **how)["others_move_over_clip"])
        return moves

    return measured


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("name", ASSETS)
def test_removing_an_example_changes_no_other_loss(name, compute, moves):
    sizes = SIZES.get(name, (2, 16))
    assert moves(name, CrossEntropy(TOKENS, compute), sizes) == [0] * len(sizes)


def test_batch_shapes_are_not_batch_invariant(moves):
    """The measure finds micro-batches that are not batch-invariant."""
    cheapest_first = [("opt-125m", "bfloat16"), ("roberta-base", "bfloat16"), ("minilm", "float32")]
    assert any(
        max(moves(name, BatchShapes(TOKENS, compute), (2, 16))) > 0 for name, compute in cheapest_first
    )
