"""What the modules of a model hold beside parameters and buffers: tensors in plain attributes, or in lists and dictionaries of these.

A forward pass may keep there what follows shapes and weights alone, as tables of positions do. What follows the examples it may not keep.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # what torch itself keeps in a module
MANY = 256  # items of a list, beyond which it is looked through where it holds tensors alone
CHUNK = 2**24  # octets
MIXES = (
    [0, 1, 1],
    [1, 0, 0],
    [2, 2, 2],
)  # of three examples: the first two have the same shapes, however texts are padded


class Held:
    """Raises ValueError, naming the attribute, where one keeps what follows the examples."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(name, vars(module)) for name, module in model.named_modules()]
        # torch's own layers keep nothing: a hook that has them do so is seen by the first passes
        self._others = {
            id(vars(m)) for m in model.modules() if not type(m).__module__.startswith("torch.nn.")
        }
        self._harmless: set[str] = set()  # attributes that passes change, though not with the examples
        self._asked = False
        self._was: Snapshot | None = None  # before the first pass, and from then on after the last step

    def begin(self) -> None:
        """Before a pass."""
        self._was = self._was or Snapshot(self._modules, self._others)

    def ask(self, loss: Callable[[Any], object], take: Callable[[Sequence[int]], Any], count: int) -> None:
        """After passes. Where they may have changed some: whether the examples show in them, by passes over mixes of a few of `count`, each
        from how it was before."""
        if (self._asked and not self._was.moved()) or count < 2:
            return
        self._asked = True
        if suspects := self._was.changed().keys() - self._harmless:
            self._compare(suspects, loss, [take(rows) for rows in MIXES[: 2 + (count > 2)]])
        self._was = Snapshot(self._modules, self._others)

    def _compare(self, suspects: Collection[str], loss: Callable[[Any], object], mixes: list) -> None:
        now, seen = Snapshot(self._modules, self._others), []
        for part in mixes:
            self._was.restore()
            if part is None:
                _refuse(suspects, "may follow")
            loss(part)
            seen.append({name: _told(value) for name, value in self._was.changed().items()})
        self._was.restore()
        one, two, *others = seen
        _refuse([name for name in {**one, **two} if one.get(name) != two.get(name)], "follows")
        for other in others:
            same_shape = [name for name in other if name in one and one[name][0] == other[name][0]]
            _refuse([name for name in same_shape if one[name] != other[name]], "follows")
        self._harmless |= one.keys()
        now.restore()  # what is left a user may have set


class Snapshot:
    """Of the attributes of modules: objects, lists and dictionaries item by item, and the numbers of tensors."""

    def __init__(self, modules: Sequence[tuple[str, dict]], looked_at: set[int]) -> None:
        self._held = [
            (name, held, [(key, value, _copied(value)) for key, value in held.items() if key not in OWN])
            for name, held in modules
        ]
        quick = [(held, items) for _, held, items in self._held if id(held) in looked_at]
        self._counts = [(held, len(held)) for held, _ in quick]
        self._values = [(held, key, value) for held, items in quick for key, value, _ in items]
        self._lists = [(value, copy) for _, items in quick for _, value, copy in items if copy is not None]
        parts = [part for *_, items in self._held for _, value, _ in items for part in _parts(value)]
        self._tensors = [
            (part, part._version, part.clone())
            for part in parts
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter)
        ]

    def moved(self) -> bool:
        """Whether an attribute is another: asked at each step, so it is quick, and blind to what is written through `.data`."""
        for held, count in self._counts:
            if len(held) != count:
                return True
        for held, key, value in self._values:
            if held.get(key) is not value:
                return True
        if not all(_same(value, copy) for value, copy in self._lists):
            return True
        return any(tensor._version != version for tensor, version, _ in self._tensors)

    def changed(self) -> dict[str, Any]:
        """Name -> value of the attributes with numbers that are others than they were."""
        written = {id(tensor) for tensor, _, clone in self._tensors if not _equal(tensor, clone)}
        found = {}
        for name, held, items in self._held:
            was = {key: (value, copy) for key, value, copy in items}
            for key, value in held.items():
                before, copy = was.get(key, (None, None))
                other = value is not before or (copy is not None and not _same(value, copy))
                parts = [part for part in _parts(value) if isinstance(part, (Tensor, np.ndarray, float))]
                if key not in OWN and parts and (other or any(id(part) in written for part in parts)):
                    found[f"{name}.{key}".lstrip(".")] = value
        return found

    @torch.no_grad()
    def restore(self) -> None:
        for _, held, items in self._held:
            for key in held.keys() - OWN - {key for key, *_ in items}:
                del held[key]
            for key, value, copy in items:
                held[key] = value
                if isinstance(copy, list):
                    value[:] = copy
                elif copy is not None:
                    value.clear()
                    value.update(copy)
        for tensor, _, clone in self._tensors:
            if not _equal(tensor, clone):
                tensor.copy_(clone)
        self._tensors = [(tensor, tensor._version, clone) for tensor, _, clone in self._tensors]


def _refuse(names: Collection[str], follows: str) -> None:
    for name in names:
        raise ValueError(
            f"attribute {name} of the model was changed by a forward pass and {follows} the examples: it would keep a function of private "
            "examples without noise, so take it out"
        )


def checksums(tensors: Sequence[Tensor]) -> list[int]:
    """Of the octets; reads each tensor once, as it lies in memory, and not as a mode of torch would have it read (see `reads`)."""
    with torch._C.DisableTorchFunction():
        return [_checksum(tensor) for tensor in tensors]


def _checksum(tensor: Tensor) -> int:
    found = 0
    for chunk in tensor.detach().contiguous().view(-1).view(torch.uint8).split(CHUNK):
        found = zlib.crc32(chunk.cpu().numpy(), found)
    return found


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    else:
        yield value


def _copied(value: object) -> list | dict | None:
    looked_through = isinstance(value, (list, dict)) and (
        len(value) <= MANY or any(isinstance(part, Tensor) for part in _parts(value))
    )
    return value.copy() if looked_through else None


def _same(container: list | dict, copied: list | dict) -> bool:
    """The same objects at the same places."""
    return len(container) == len(copied) and all(
        a is b for a, b in zip(_parts(container), _parts(copied), strict=True)
    )


def _equal(tensor: Tensor, clone: Tensor) -> bool:
    return tensor.shape == clone.shape and torch.equal(tensor, clone)


def _told(value: object) -> tuple[list, str]:
    """Shapes and a digest of the numbers."""
    shapes, found = [], hashlib.sha256()
    for part in _parts(value):
        if isinstance(part, Tensor):
            part = (
                part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
                if part.numel()
                else np.zeros(0)
            )
        if isinstance(part, (np.ndarray, float)):
            shapes.append(np.shape(part))
            found.update(np.asarray(part).tobytes())
    return shapes, found.hexdigest()
