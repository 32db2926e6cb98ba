"""A torch DataLoader whose batches are those of a privacy budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, default_collate

from .accounting import Setting
from .sampling import BatchQueue, Indices, Users

DRAWING = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")  # arguments that draw batches


class BatchSource(Protocol):
    """What a loader needs of a `Budget`."""

    setting: Setting
    queue: BatchQueue

    def batches(self) -> Iterator[Indices]: ...
    def remaining_batches(self) -> range: ...


class BudgetLoader(DataLoader[Any]):
    """A loop over it hands out the batches that are left. See `Budget.loader`.

    Workers may read ahead; a batch counts as handed out when the loop receives it. An empty batch is what
    `collate_fn` makes of the first example, cut to length 0.
    """

    def __init__(
        self, budget: BatchSource, dataset: Dataset[Any], users: Sequence[Any] | None, **options: Any
    ) -> None:
        unit = budget.queue.unit
        if given := [name for name in DRAWING if name in options]:
            raise ValueError(
                f"{given[0]} would draw other batches than those that are accounted: leave it out, the "
                "budget draws them"
            )
        if not options.get("in_order", True):
            raise ValueError(
                "in_order=False would hand out batches in another order than drawn: leave it out"
            )
        if (users is None) == (unit == "user"):
            raise ValueError(f"the unit is the {unit}: give `users` if it is the user, and only then")
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                "the data set has no indices to draw from: give one with len() and integer indices"
            )
        if users is not None and len(users) != len(dataset):
            raise ValueError(f"{len(users)} users for {len(dataset)} examples: give the user of each example")
        self._users = None if users is None else Users(users)
        size = len(dataset) if self._users is None else len(self._users)
        if size != budget.setting.dataset_size:
            raise ValueError(
                f"the data set has {size} {unit}s and the budget was made for {budget.setting.dataset_size}: "
                f"make it with dataset_size={size}"
            )
        if users is None:
            _refuse_repeated(dataset)
        self._budget = budget
        collate = CollateAny(options.pop("collate_fn", None) or default_collate, dataset)
        super().__init__(dataset, batch_sampler=_ReadAhead(self), collate_fn=collate, **options)

    def __len__(self) -> int:
        """Number of batches that are left."""
        return len(self._budget.remaining_batches())

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch, drawn in zip(super().__iter__(), self._budget.batches(), strict=False):
            rows = self.examples(drawn)
            made = batch if self._users is None else (batch, self._users.examples(drawn)[1])
            yield self._budget.queue.hand_out(made, partial(self._collate_subset, rows))

    def examples(self, drawn: Indices) -> Indices:
        """Indices of the drawn units -> indices of their examples."""
        return drawn if self._users is None else self._users.examples(drawn)[0]

    def _collate_subset(self, rows: Indices, positions: Sequence[int]) -> object:
        return self.collate_fn([self.dataset[int(rows[position])] for position in positions])


def _refuse_repeated(dataset: Dataset[Any]) -> None:
    """Raises ValueError for an example that a list, Subset or ConcatDataset has twice, as when a class is oversampled."""
    origins = _origins(dataset) if isinstance(dataset, (list, Subset, ConcatDataset)) else []
    if repeated := len(origins) - len(set(origins)):
        raise ValueError(
            f"{repeated} of the {len(origins)} examples are there before, so that epsilon would cover only one of "
            "an example's copies: take each once, or make a budget with unit='user' and give each copy the same user"
        )


def _origins(dataset: Dataset[Any]) -> list[tuple[int, int]]:
    """The data set and the index that each example comes from, or the object that it is."""
    if isinstance(dataset, Subset):
        inner = _origins(dataset.dataset)
        return [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [origin for part in dataset.datasets for origin in _origins(part)]
    if isinstance(dataset, list):  # equal numbers and words are one object, and no copy
        return [
            (id(row), -1) if isinstance(_first(row), (Mapping, Tensor)) else (id(dataset), index)
            for index, row in enumerate(dataset)
        ]
    return [(id(dataset), index) for index in range(len(dataset))]  # type: ignore[arg-type]


def _first(row: Any) -> Any:
    return row[0] if isinstance(row, (tuple, list)) and row else row


class _ReadAhead:
    """The batch sampler: the batches that the next loop will hand out, as lists of example indices."""

    def __init__(self, loader: BudgetLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        budget = self._loader._budget
        for number in budget.remaining_batches():
            yield self._loader.examples(budget.queue.sampler.batch(number)).tolist()


class CollateAny:
    """A `collate_fn` that accepts empty batches. A class, because spawned workers pickle it."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any], dataset: Dataset[Any]) -> None:
        self.collate_fn, self.dataset = collate_fn, dataset

    def __call__(self, examples: list[Any]) -> object:
        if examples:
            return self.collate_fn(examples)
        first = self.dataset[0]
        return _empty_batch(self.collate_fn([first]), self.collate_fn([first, first]))


def _empty_batch(one: Any, two: Any) -> Any:
    """The fields of an empty batch, from batches of one and of two examples."""
    if isinstance(one, Mapping):
        fields_by_name = {key: _empty_batch(field, two[key]) for key, field in one.items()}
        return type(one)(fields_by_name)  # type: ignore[call-arg]
    if isinstance(one, (list, tuple)) and len(one) == len(two):
        fields = [_empty_batch(*pair) for pair in zip(one, two, strict=True)]
        return type(one)(*fields) if hasattr(one, "_fields") else type(one)(fields)
    return one[:0] if hasattr(one, "__getitem__") else one
