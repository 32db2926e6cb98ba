"""What a step asks of a model, whatever its order: examples that do not mix, and parameters that can be moved in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_independence(model: nn.Module) -> None:
    """Raises ValueError for a layer that mixes the examples of a batch."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"layer {name} normalises over the batch, so that one example's loss depends on the others: call model.eval() or "
                "use a layer that normalises each example"
            )
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(
                f"layer {name} has max_norm, which rewrites the rows that a batch asks for, without noise: make it without"
            )


def trainable(parameters: Iterable[Tensor]) -> Sequence[Tensor]:
    """The parameters that ask for a gradient, each once, checked."""
    chosen = list({id(p): p for p in parameters if p.requires_grad}.values())
    if not chosen:
        raise ValueError("no parameter has requires_grad: nothing to train")
    for p in chosen:
        if not p.is_contiguous():
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is not contiguous: make it so before training"
            )
        if p.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"a trainable parameter is stored in {p.dtype}, in which small zeroth-order updates vanish: use float32 weights"
            )
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a trainable parameter of shape {tuple(p.shape)} is stored in {p.dtype}, which is not perturbed: train float32 weights "
                "(a quantised model is trained through an adapter)"
            )
    _refuse_overlap(chosen)
    return chosen


def _refuse_overlap(chosen: Sequence[Tensor]) -> None:
    """Two parameters on the same memory would be moved twice; one parameter under two names is moved once."""
    spans = []
    for p in chosen:
        start = p.storage_offset() * p.element_size()
        where = p.untyped_storage()._cdata, start, start + p.numel() * p.element_size(), p.shape
        spans += [where] if p.numel() else []
    spans.sort()
    for (storage, _, end, first), (other, start, _, second) in pairwise(spans):
        if storage == other and start < end:
            raise ValueError(
                f"two parameters of shapes {tuple(first)} and {tuple(second)} share memory: tie them as one nn.Parameter under two names"
            )
