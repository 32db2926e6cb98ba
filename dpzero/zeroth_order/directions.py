"""Random directions that are never stored: element i of tensor j at step t is a function of (seed, t, j, i) alone,
and of its number where a step has several.

Directions are public. They share no generator, key or counter with the noise of `dpzero.privacy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .philox import normals, philox

CHUNK = 2**15  # elements generated at once: the temporaries stay below 2 MiB
CUDA_CHUNK = 2**20  # some 40 MiB: on a GPU each operation is a launch, and few large ones are faster


class Gaussian:
    """z ~ N(0, I), as in the experiments of DPZero and MeZO.

    Block b (elements 4b .. 4b + 3) of tensor j in direction k of step t is philox(key of the seed, counter (b, j, t, k)).
    Bit-exact within a device kind for any order, chunking or sharding of the traversal.
    """

    law = "gaussian-philox4x32-10-boxmuller-v1"

    def __init__(self, seed: int) -> None:
        digest = hashlib.sha256(f"dpzero direction seed {seed}".encode()).digest()
        self.key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little"))

    def add_(self, tensors: Sequence[Tensor], step: int, scale: float, direction: int = 0) -> None:
        """In place: tensors += scale * z. Makes no temporary as large as a big tensor; small ones go together."""
        for group in _groups(tensors):
            blocks = [torch.arange(start // 4, (start + count + 3) // 4) for _, start, count in group]
            owners = [torch.full_like(b, j) for b, (j, _, _) in zip(blocks, group, strict=True)]
            device = tensors[group[0][0]].device
            block, owner = torch.cat(blocks).to(device), torch.cat(owners).to(device)
            of_step, of_direction = torch.full_like(block, step), torch.full_like(block, direction)
            z = normals(philox(self.key, (block, owner, of_step, of_direction)))
            for (j, start, count), part in zip(group, z.split([len(b) for b in blocks]), strict=True):
                target = tensors[j].view(-1)[start : start + count]
                target.add_(part.reshape(-1)[:count].to(target.dtype), alpha=scale)


def _groups(tensors: Sequence[Tensor]) -> Iterator[list[tuple[int, int, int]]]:
    """Pieces (tensor index, start, count) in groups of at most a chunk of elements, none across two devices."""
    group: list[tuple[int, int, int]] = []
    size = 0
    for j, tensor in enumerate(tensors):
        chunk = CUDA_CHUNK if tensor.is_cuda else CHUNK
        for start in range(0, tensor.numel(), chunk):
            count = min(chunk, tensor.numel() - start)
            if group and (size + count > chunk or tensors[group[0][0]].device != tensor.device):
                yield group
                group, size = [], 0
            group.append((j, start, count))
            size += count
    if group:
        yield group
