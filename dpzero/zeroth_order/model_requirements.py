"""What a step requires of a model: examples that do not mix, and parameters that can be moved in place.

What costs nothing is checked again at each step, because one line far from the optimizer (`model.train()`)
changes a model.
"""

from __future__ import annotations

import ctypes
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

MERSENNE_TWISTER_BYTES = 625 * 4  # 624 words and the position among them
CHUNK = 2**24  # bytes of a tensor that are read at once


class ModelCheck:
    """Checks, before each step and around each forward pass, that a model meets the requirements.

    Raises:
        ValueError: a requirement that is not met, with the name of the layer, buffer or parameter. Also from
            `check`, `forward_passes` and `deterministic`.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        trained = set(map(id, parameters))
        self._trained = [(name, p) for name, p in model.named_parameters() if id(p) in trained]
        self._places = _places(model)
        kinds = (_BatchNorm, _DropoutNd, nn.RNNBase, nn.MultiheadAttention)
        self._layers = [(name or "model", m) for name, m in model.named_modules() if isinstance(m, kinds)]
        self._cuda = {p.device for p in parameters if p.is_cuda}
        self._fake = any(isinstance(p, FakeTensor) for p in parameters)  # memory is predicted, nothing drawn
        # before the first pass: buffers with their values, and tensors to be read
        self._first_buffers: list[tuple[Tensor, Tensor]] | None = [(b, b.clone()) for b in model.buffers()]
        tensors = [*model.parameters(), *model.buffers()]
        self._tensors = [] if self._fake else [t for t in tensors if not t.is_meta]
        for name, module in model.named_modules():
            if getattr(module, "max_norm", None) is not None:
                raise ValueError(
                    f"layer {name} has max_norm, which rewrites the rows that a batch asks for, without noise: make it "
                    "without"
                )
        self.check()

    def check(self) -> None:
        """Checks training flags and parameters."""
        check_normalisation(self._layers)
        for name, module in self._layers:
            if module.training and (getattr(module, "p", None) or getattr(module, "dropout", None)):
                raise ValueError(
                    f"layer {name} drops out, differently at the two points of a step and depending on the rest of the "
                    "batch: call model.eval()"
                )
        for name, p in self._trained:
            if not p.requires_grad:
                raise ValueError(
                    f"parameter {name} was frozen after the optimizer was made, and would still be moved: make a new "
                    "optimizer"
                )
        if moved := self._first_replaced():
            raise ValueError(
                f"parameter or buffer {moved} was replaced by another after the optimizer was made: make a new optimizer"
            )

    @contextmanager
    def forward_passes(self) -> Iterator[None]:
        """Context manager: forward passes in it change no tensor of the model.

        Around the first, the numbers are read, too, because torch does not see what is written through
        `.data`. Buffers that it changed are restored.
        """
        versions = self._versions()
        sums = checksums(self._tensors) if self._first_buffers is not None else None
        try:
            yield
        finally:
            self._check_unchanged(versions, sums)
        self._first_buffers = None

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """Context manager: the losses of a step, at all of its points, draw no random number."""
        states = self._random_states()
        try:
            yield
        finally:
            if self._random_states() != states:
                raise ValueError(
                    "the loss drew random numbers (dropout in a function? a data set or collate_fn that masks or augments?), "
                    "which differ at the two points of a step and depend on the rest of the batch: call model.eval(), draw "
                    "once before training, or make the loss a function of the example alone"
                )

    def _check_unchanged(self, versions: list[int], sums: list[int] | None) -> None:
        now, differing, changed = self._versions(), set(), []
        if sums is not None:
            read = zip(self._tensors, sums, checksums(self._tensors), strict=True)
            differing = {id(tensor) for tensor, old, new in read if old != new}
        if differing or now != versions:
            changed = [
                name
                for (name, *_, tensor), old, new in zip(self._places, versions, now, strict=True)
                if old != new or id(tensor) in differing
            ]
        if first := next(iter(changed), self._first_replaced()):
            for buffer, kept in self._first_buffers or ():
                buffer.detach().copy_(kept)
            raise ValueError(
                f"parameter or buffer {first} was changed by a forward pass: it would keep a function of private "
                "examples without noise, so call model.eval() or take it out"
            )

    def _versions(self) -> list[int]:
        return [place[-1]._version for place in self._places]

    def _first_replaced(self) -> str | None:
        """The name of a tensor that is no longer where it was."""
        return next((name for name, attributes, key, t in self._places if attributes.get(key) is not t), None)

    def _random_states(self) -> list[object]:
        """States of the global generators of torch, NumPy and Python."""
        if self._fake:
            return []
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]
        return [*(s.numpy().tobytes() for s in states), _numpy_state(), random.getstate()]


def _numpy_state() -> bytes:
    """State of NumPy's global generator, quicker than `np.random.get_state`."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined, unused-ignore]
    if isinstance(generator, np.random.MT19937):
        return ctypes.string_at(generator.ctypes.state_address, MERSENNE_TWISTER_BYTES)
    return repr(generator.state).encode()


def _places(model: nn.Module) -> list[tuple[str, dict[str, Any], str, Tensor]]:
    """(name, the dictionary that holds it, its key there, the tensor) of each parameter and buffer."""
    return [
        (f"{place}.{key}".lstrip("."), attributes, key, tensor)
        for place, module in model.named_modules()
        for attributes in (module._parameters, module._buffers)
        if isinstance(attributes, dict)  # in TorchScript no tensor is one object
        for key, tensor in attributes.items()
        if tensor is not None
    ]


def check_normalisation(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raises ValueError for a layer that normalises by statistics of the batch."""
    for name, module in layers:
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"layer {name} normalises over the batch, so that one example's loss depends on the others: call "
                "model.eval() or use a layer that normalises each example"
            )


def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """CRC-32 of each tensor's bytes as they lie in memory, also inside `PerturbOnRead`."""
    sums = [0] * len(tensors)
    with torch._C.DisableTorchFunction():
        for i, tensor in enumerate(tensors):
            for chunk in torch.split(tensor.detach().contiguous().view(-1).view(torch.uint8), CHUNK):
                sums[i] = zlib.crc32(chunk.cpu().numpy().data, sums[i])
    return sums


def trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters with `requires_grad`, each once.

    Raises:
        ValueError: none, or one that cannot be moved in place: half precision, not contiguous, shared memory,
            offloaded.
    """
    chosen = list({id(p): p for p in parameters if p.requires_grad}.values())
    if not chosen:
        raise ValueError("no parameter has requires_grad: nothing to train")
    for p in chosen:
        if p.is_meta:
            raise ValueError(
                f"a trainable parameter of shape {tuple(p.shape)} has no numbers (offloaded by accelerate?), and would "
                "never move: keep it on a device, or train an adapter that is"
            )
        if not p.is_contiguous():
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is not contiguous: make it so before training"
            )
        if p.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"a trainable parameter is stored in {p.dtype}, in which small zeroth-order updates vanish: use float32 "
                "weights"
            )
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a trainable parameter of shape {tuple(p.shape)} is stored in {p.dtype}, which is not perturbed: train "
                "float32 weights (a quantised model is trained through an adapter)"
            )
    _refuse_overlap(chosen)
    return chosen


def _refuse_overlap(chosen: Sequence[Tensor]) -> None:
    """Two parameters on the same memory would be moved twice. One parameter under two names is moved once."""
    spans = []
    for p in chosen:
        start = p.storage_offset() * p.element_size()
        span = p.untyped_storage()._cdata, start, start + p.numel() * p.element_size(), p.shape
        spans += [span] if p.numel() else []
    spans.sort()
    for (storage, _, end, first), (other, start, _, second) in pairwise(spans):
        if storage == other and start < end:
            raise ValueError(
                f"two parameters of shapes {tuple(first)} and {tuple(second)} share memory: tie them as one nn.Parameter "
                "under two names"
            )
