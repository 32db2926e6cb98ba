"""Whether the kernels of a device give the bits of the plain ones: directions of every law, whole steps, and transcripts.

The plain kernels are torch's operations on the CPU. The first element that differs is named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ...language.models import losses, random_models
from ...plan.registry import card
from ...zeroth_order import dispatch
from ...zeroth_order.directions import LAWS, make_law
from ...zeroth_order.kernels_torch import Move
from ...zeroth_order.transcript import replay
from ..benchmark import batch_of
from .machine import Machine

SHAPES = ((1,), (63,), (64,), (129, 65), (3, 5, 7), (1025, 257))
ADDRESSES = ((0, 0), (7, 3), (2**32 - 1, 1))  # step and direction
SCALES = (1e-3, -2e-3)
MODEL, STEPS = "minilm", 1
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rows(machine: Machine) -> Iterator[dict]:
    """One row for each comparison."""
    device = torch.device(machine.device)
    for law, dtype in product(LAWS, (torch.float32, torch.float64)):
        yield _row(f"{law} directions, {_name(dtype)}", device, *_directions(law, dtype, device))
    yield _row("rows of an embedding", device, *_embedding_rows(device))
    for law in LAWS:
        yield _row(f"{STEPS} step of {MODEL}, {law}", device, *_steps(law, device))
    yield from _replays(device)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Directions by torch's operations alone."""
    with patch.multiple(dispatch, kernels_numba=None, triton_kernels=lambda device: None):
        yield


def first_difference(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Where two lists of tensors differ first, with both values; empty if they have the same bits."""
    for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        one, other = one.detach().cpu().reshape(-1), other.detach().cpu().reshape(-1)
        kind = INTEGERS[one.element_size()]
        unequal = (one.view(kind) != other.view(kind)).nonzero()
        if len(unequal):
            place = int(unequal[0])
            count = f"{len(unequal)} of {len(one)} differ"
            return f"tensor {number}, element {place}: {one[place]!s} here, {other[place]!s} plain ({count})"
    return ""


def _row(what: str, device: torch.device, elements: int, difference: str) -> dict:
    return {
        "what": what,
        "device": str(device),
        "elements": elements,
        "same": not difference,
        "difference": difference,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _directions(law: str, dtype: torch.dtype, device: torch.device) -> tuple[int, str]:
    """Moves along directions at every address, in whole tensors and in those that begin in the middle of another."""

    def moved(target: torch.device) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        tensors = []
        for shape in SHAPES:
            values = torch.randn(shape, generator=generator, dtype=dtype)
            beside = torch.empty(values.numel() + 1, dtype=dtype, device=target)[1:].view(shape)
            tensors += [values.to(target), beside.copy_(values)]
        directions = make_law(law, 42, 2 if law == "low_rank" else 1)
        directions.fit(tensors)
        for step, direction in ADDRESSES:
            for scale in SCALES:
                directions.add_(tensors, step, scale, direction)
        return tensors

    return _compare(moved, device)


def _embedding_rows(device: torch.device) -> tuple[int, str]:
    def moved(target: torch.device) -> list[Tensor]:
        table = torch.randn(100, 384, generator=torch.Generator().manual_seed(0))
        chosen = torch.tensor([0, 3, 99])
        out = table[chosen].to(target)
        make_law("gaussian", 42).add_rows_(out, chosen.to(target), 5, table.shape, Move(7, 0, (SCALES[0],)))
        return [out]

    return _compare(moved, device)


def _steps(law: str, device: torch.device) -> tuple[int, str]:
    """Weights after steps whose losses are given, so that they are the same on every device."""

    def moved(target: torch.device) -> list[Tensor]:
        model = random_models.build(MODEL).to(target)
        given = iter([torch.tensor([1.5, 2.0]), torch.tensor([1.25, 2.5])] * STEPS)
        method = card("mezo").load()(
            model, lambda model, batch: next(given), 2, seed=1, learning_rate=1e-3, direction_law=law
        )
        for _ in range(STEPS):
            method.step([0, 1])
        return [p for p in model.parameters() if p.requires_grad]

    return _compare(moved, device)


def _compare(moved: Callable[[torch.device], list[Tensor]], device: torch.device) -> tuple[int, str]:
    with plain_kernels():
        plain = moved(torch.device("cpu"))
    mine = moved(device)
    return sum(tensor.numel() for tensor in mine), first_difference(mine, plain)


def _replays(device: torch.device) -> Iterator[dict]:
    """A transcript of the plain kernels on the CPU replayed on the device, and one of the device replayed by them."""
    plain, here = torch.device("cpu"), device
    for writes_here in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.transcript"
            with nullcontext() if writes_here else plain_kernels():
                trained = _trained(here if writes_here else plain, file)
            with plain_kernels() if writes_here else nullcontext():
                copy = _replayed(plain if writes_here else here, file)
        mine, theirs = _weights(copy), _weights(trained)
        what = f"transcript of {STEPS} step of {MODEL}, " + (
            "replayed plain" if writes_here else "written plain"
        )
        yield _row(what, device, sum(t.numel() for t in mine), first_difference(mine, theirs))


def _trained(target: torch.device, file: Path) -> nn.Module:
    model = random_models.build(MODEL).to(target)
    batch = batch_of(4, "16")
    method = card("mezo").load()(
        model, losses.CrossEntropy(64, "float32"), len(batch), seed=1, learning_rate=1e-4
    )
    method.write_transcript(file)
    for _ in range(STEPS):
        method.step(batch)
    return model


def _replayed(target: torch.device, file: Path) -> nn.Module:
    model = random_models.build(MODEL).to(target)
    replay(model, file)
    return model


def _weights(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]
