"""What a step asks of a model, whatever its order: examples that do not mix, and parameters that can be moved in place.

What costs nothing is asked again at each step: a model is changed by a line (`model.train()`) far from its optimizer.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .held import Held, checksums

MERSENNE_TWISTER = 625 * 4  # bytes: 624 words and the place among them


class Watch:
    """The promises that a model keeps from step to step.

    Raises ValueError, naming the layer, buffer or parameter, where one is broken.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        trained = set(map(id, parameters))
        self._trained = [(name, p) for name, p in model.named_parameters() if id(p) in trained]
        self._places = _places(model)
        self._normalising = _named(model, _BatchNorm)
        self._dropping = _named(model, (_DropoutNd, nn.RNNBase, nn.MultiheadAttention))
        self._cuda = {p.device for p in parameters if p.is_cuda}
        self._fake = any(isinstance(p, FakeTensor) for p in parameters)  # which no number is drawn for
        self._first_buffers: list[tuple[Tensor, Tensor]] | None = [(b, b.clone()) for b in model.buffers()]
        self._parameters = [] if self._fake else [p for p in model.parameters() if not p.is_meta]
        self.held = Held(model)
        for name, module in model.named_modules():
            if getattr(module, "max_norm", None) is not None:
                raise ValueError(
                    f"layer {name} has max_norm, which rewrites the rows that a batch asks for, without noise: make it without"
                )
        self.check()

    def check(self) -> None:
        """Training flags, and the parameters."""
        check_normalisation(self._normalising)
        for name, module in self._dropping:
            if module.training and (getattr(module, "p", 0) or getattr(module, "dropout", 0)):
                raise ValueError(
                    f"layer {name} drops out, at other places at the two points of a step, and by what else is in the batch: call "
                    "model.eval()"
                )
        for name, p in self._trained:
            if not p.requires_grad:
                raise ValueError(
                    f"parameter {name} was frozen after the optimizer was made, and would still be moved: make a new optimizer"
                )
        if moved := self._first_elsewhere():
            raise ValueError(
                f"parameter or buffer {moved} was put in another's place after the optimizer was made: make a new optimizer"
            )

    @contextmanager
    def passes(self) -> Iterator[None]:
        """Around forward passes: they change no tensor of the model and draw no random number. Where the first does, buffers are put back;
        around it the parameters are read, too, since torch does not see what is written through `.data`."""
        versions, states = self._versions(), self._random_states()
        sums = checksums(self._parameters) if self._first_buffers is not None else None
        try:
            yield
        finally:
            self._check_unmoved(versions, states, sums)
        self._first_buffers = None

    def _check_unmoved(self, versions: list[int], states: list[object], sums: list[int] | None) -> None:
        now = self._versions()
        differing = {
            id(b) for b, kept in self._first_buffers or () if not (self._fake or torch.equal(b, kept))
        }
        if sums is not None:
            read = zip(self._parameters, sums, checksums(self._parameters), strict=True)
            differing |= {id(p) for p, old, new in read if old != new}
        changed = []
        if differing or now != versions:
            changed = [
                name
                for (name, *_, tensor), old, new in zip(self._places, versions, now, strict=True)
                if old != new or id(tensor) in differing  # behind torch's back, through `.data`
            ]
        if first := next(iter(changed), self._first_elsewhere()):
            self._restore_buffers()
            raise ValueError(
                f"parameter or buffer {first} was changed by a forward pass: it would keep a function of private examples without noise, so "
                "call model.eval() or take it out"
            )
        if self._random_states() != states:
            raise ValueError(
                "the loss drew random numbers (dropout in a function?), which differ at the two points of a step and follow what else is "
                "in the batch: call model.eval(), or make the loss a function of the example alone"
            )

    def _versions(self) -> list[int]:
        return [place[-1]._version for place in self._places]

    def _first_elsewhere(self) -> str | None:
        """The name of a tensor that is no longer where it was."""
        return next((name for name, held, key, tensor in self._places if held.get(key) is not tensor), None)

    def _random_states(self) -> list[object]:
        """Of the global generators: torch's, NumPy's and Python's."""
        if self._fake:
            return []
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]
        return [*(s.numpy().tobytes() for s in states), _numpy_state(), random.getstate()]

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for buffer, kept in self._first_buffers or ():
            buffer.copy_(kept)


def _numpy_state() -> bytes:
    """Of its global generator. `np.random.get_state` takes longer than the head of a small model."""
    generator = np.random.get_bit_generator()
    if isinstance(generator, np.random.MT19937):
        return ctypes.string_at(generator.ctypes.state_address, MERSENNE_TWISTER)
    return repr(generator.state).encode()


def _places(model: nn.Module) -> list[tuple[str, dict, str, Tensor]]:
    """Name, the dictionary that holds it, its key there, and the tensor, of each parameter and buffer."""
    return [
        (f"{place}.{key}".lstrip("."), held, key, tensor)
        for place, module in model.named_modules()
        for held in (module._parameters, module._buffers)
        if isinstance(held, dict)  # not so of TorchScript, whose tensors have no one object
        for key, tensor in held.items()
        if tensor is not None
    ]


def check_normalisation(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Raises ValueError for one that takes its statistics from the batch. Only layers that can are looked at."""
    for name, module in layers:
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"layer {name} normalises over the batch, so that one example's loss depends on the others: call model.eval() or "
                "use a layer that normalises each example"
            )


def _named(model: nn.Module, kinds) -> list[tuple[str, nn.Module]]:
    return [(name or "model", module) for name, module in model.named_modules() if isinstance(module, kinds)]


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
