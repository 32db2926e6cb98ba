"""Checks which tensors a model keeps in plain attributes, beside parameters and buffers.

A forward pass may keep there what depends on shapes and weights alone, such as tables of positions. It may
not keep what depends on the examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batches import Take

MODULE_FIELDS = frozenset(vars(nn.Module()))  # what torch keeps in every module
MAX_ITEMS = 256  # items of a list, beyond which it is looked through only if it has tensors
SELECTIONS = ([0, 1, 1], [1, 0, 0], [2, 2, 2])  # the first two have the same shapes, however texts are padded
Attributes = dict[str, Any]


class AttributeCheck:
    """Compares a model's attributes with those it had when this was made, before the first forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.named_modules())
        self._harmless: set[str] = set()  # attributes that change, but not with the examples
        self._checked = False
        self._before = Snapshot(self._modules)  # before the first pass, and later after the last step

    def check(self, loss: Callable[[Any], object], take: Take, count: int) -> None:
        """After passes: if attributes changed, compares what mixes of a few of `count` examples leave in them.

        Raises:
            ValueError: an attribute that depends on the examples.
        """
        if (self._checked and not self._before.moved()) or count < 2:
            return
        self._checked = True
        if suspects := self._before.changed().keys() - self._harmless:
            self._compare(
                self._before, suspects, loss, [take(rows) for rows in SELECTIONS[: 2 + (count > 2)]]
            )
        self._before = Snapshot(self._modules)

    def _compare(
        self, before: Snapshot, suspects: Collection[str], loss: Callable[[Any], object], mixes: list[Any]
    ) -> None:
        now, contents = Snapshot(self._modules), []
        for mix in mixes:
            before.restore()
            if mix is None:
                _refuse(suspects, "may depend on")
            loss(mix)
            contents.append({name: _contents(value) for name, value in before.changed().items()})
        before.restore()
        one, two, *others = contents
        _refuse([name for name in {**one, **two} if one.get(name) != two.get(name)], "depends on")
        for other in others:
            same_shape = [name for name in other if name in one and one[name][0] == other[name][0]]
            _refuse([name for name in same_shape if one[name] != other[name]], "depends on")
        self._harmless |= one.keys()
        now.restore()  # a user may have set what is left


class Snapshot:
    """The attributes of modules: objects, the items of lists and dictionaries, and the numbers of tensors."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self._modules = [
            (
                name,
                vars(m),
                [(k, value, _copied(value)) for k, value in vars(m).items() if k not in MODULE_FIELDS],
            )
            for name, m in modules
        ]
        # torch's own layers keep nothing; a hook that makes them is seen in the first passes
        self._quick = [vars(m) for _, m in modules if not type(m).__module__.startswith("torch.nn.")]
        self._identities, quick = _identities(self._quick), set(map(id, self._quick))
        self._containers = [
            (value, copy)
            for _, attributes, items in self._modules
            for _, value, copy in items
            if copy is not None and id(attributes) in quick
        ]
        items = [part for *_, items in self._modules for _, value, _ in items for part in _items(value)]
        self._tensors = [
            (item, item._version, item.clone())
            for item in items
            if isinstance(item, Tensor) and not isinstance(item, nn.Parameter)
        ]

    def moved(self) -> bool:
        """Whether an attribute changed. Quick: it does not see what is written through `.data`."""
        return (
            _identities(self._quick) != self._identities
            or not all(_same(value, copy) for value, copy in self._containers)
            or any(tensor._version != version for tensor, version, _ in self._tensors)
        )

    def changed(self) -> Attributes:
        """Name -> value of the attributes whose numbers changed."""
        written = {id(tensor) for tensor, _, clone in self._tensors if not torch.equal(tensor, clone)}
        changed: Attributes = {}
        for name, attributes, items in self._modules:
            kept = {key: (value, copy) for key, value, copy in items}
            for key, value in attributes.items():
                before, copy = kept.get(key, (None, None))
                replaced = value is not before or (copy is not None and not _same(value, copy))
                numbers = [item for item in _items(value) if isinstance(item, (Tensor, np.ndarray, float))]
                if (
                    key not in MODULE_FIELDS
                    and numbers
                    and (replaced or any(id(n) in written for n in numbers))
                ):
                    changed[f"{name}.{key}".lstrip(".")] = value
        return changed

    @torch.no_grad()
    def restore(self) -> None:
        """Restores all attributes."""
        for _, attributes, items in self._modules:
            for key in attributes.keys() - MODULE_FIELDS - {key for key, *_ in items}:
                del attributes[key]
            for key, value, copy in items:
                attributes[key] = value
                if isinstance(copy, list):
                    value[:] = copy
                elif copy is not None:
                    value.clear()
                    value.update(copy)
        for tensor, _, clone in self._tensors:
            if not torch.equal(tensor, clone):
                tensor.copy_(clone)
        self._tensors = [(tensor, tensor._version, clone) for tensor, _, clone in self._tensors]


def _refuse(names: Collection[str], depends: str) -> None:
    for name in names:
        raise ValueError(
            f"attribute {name} of the model was changed by a forward pass and {depends} the examples: it would keep a "
            "function of private examples without noise, so take it out"
        )


def _identities(modules: Sequence[Attributes]) -> list[int]:
    return [id(value) for attributes in modules for k, value in attributes.items() if k not in MODULE_FIELDS]


def _items(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    else:
        yield value


def _copied(value: object) -> list[Any] | dict[Any, Any] | None:
    """A shallow copy of a container that is looked through."""
    if not isinstance(value, (list, dict)):
        return None
    looked_through = len(value) <= MAX_ITEMS or any(isinstance(item, Tensor) for item in _items(value))
    return value.copy() if looked_through else None


def _same(container: Any, copied: Any) -> bool:
    """Whether two containers hold the same objects at the same places."""
    return [*map(id, _items(container))] == [*map(id, _items(copied))]


def _contents(value: object) -> tuple[list[Any], str]:
    """Shapes and a digest of the numbers of an attribute."""
    shapes, digest = [], hashlib.sha256()
    for item in _items(value):
        if isinstance(item, Tensor):
            flat = item.detach().cpu().contiguous().view(-1)
            item = flat.view(torch.uint8).numpy() if item.numel() else np.zeros(0)
        if isinstance(item, (np.ndarray, float)):
            shapes.append(np.shape(item))
            digest.update(np.asarray(item).tobytes())
    return shapes, digest.hexdigest()
