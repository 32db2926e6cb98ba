"""A real DataLoader whose batches are the budget's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .sampling import Users

if TYPE_CHECKING:
    from .budget import Budget

DRAWS = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class BudgetLoader(DataLoader):
    """Each loop over it hands out the batches that are left. See `Budget.loader`.

    Workers may read ahead; a batch counts as handed out when the loop gets it. Of an empty batch it gives what `collate_fn` makes of
    the first example, cut to no examples.

    Raises:
        ValueError: a data set of another size than the budget's, one without an order, arguments that draw batches, or users where
            the unit is the example and none where it is the user.
    """

    def __init__(self, budget: Budget, dataset: Dataset, users: Sequence | None, **how) -> None:
        if given := [name for name in DRAWS if name in how]:
            raise ValueError(
                f"{given[0]} would draw other batches than those that are accounted: leave it out, the budget draws them"
            )
        if (users is None) == (budget.unit == "user"):
            raise ValueError(f"the unit is the {budget.unit}: give `users` if it is the user, and only then")
        self._users = None if users is None else Users(users)
        _check_size(budget, dataset, users, self._users)
        self._budget = budget
        collate = Collate(how.pop("collate_fn", None) or default_collate, dataset)
        super().__init__(dataset, batch_sampler=_Ahead(self), collate_fn=collate, **how)

    def __len__(self) -> int:
        """Batches that are left."""
        return len(self._budget.remaining_batches())

    def __iter__(self) -> Iterator:
        ahead, handed_out = super().__iter__(), self._budget.batches()
        for batch, drawn in zip(ahead, handed_out, strict=False):  # which ends with the budget
            rows = drawn if self._users is None else self._users.examples(drawn)[0]
            self._budget.latest.take = partial(self._some_of, rows)
            yield batch if self._users is None else (batch, self._users.examples(drawn)[1])

    def _some_of(self, rows: np.ndarray, positions: Sequence[int]) -> object:
        return self.collate_fn([self.dataset[int(rows[position])] for position in positions])


class _Ahead:
    """The batches that the next loop will hand out, as lists of indices of examples."""

    def __init__(self, loader: BudgetLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[int]]:
        budget, users = self._loader._budget, self._loader._users
        for number in budget.remaining_batches():
            drawn = budget.sampler.batch(number)
            yield (drawn if users is None else users.examples(drawn)[0]).tolist()

    def __len__(self) -> int:
        return len(self._loader)


class Collate:
    """`collate_fn`, for no examples, too. A class: workers that are spawned get it by pickle."""

    def __init__(self, collate_fn: Callable, dataset: Dataset) -> None:
        self.collate_fn, self.dataset = collate_fn, dataset

    def __call__(self, examples: list) -> object:
        if examples:
            return self.collate_fn(examples)
        first = self.dataset[0]
        return _none_of(self.collate_fn([first]), self.collate_fn([first, first]))


def _none_of(one: object, two: object) -> object:
    """The fields of a batch without its examples, from batches of one and of two: what grows from one to the other are examples."""
    if isinstance(one, Mapping):
        return type(one)({key: _none_of(field, two[key]) for key, field in one.items()})
    if isinstance(one, (list, tuple)) and len(one) == len(two):
        fields = [_none_of(*pair) for pair in zip(one, two, strict=True)]
        return type(one)(*fields) if hasattr(one, "_fields") else type(one)(fields)
    return one[:0] if hasattr(one, "__getitem__") else one


def _check_size(budget: Budget, dataset: Dataset, users: Sequence | None, grouped: Users | None) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError("the data set has no indices to draw from: give one with len() and integer indices")
    if users is not None and len(users) != len(dataset):
        raise ValueError(f"{len(users)} users for {len(dataset)} examples: give the user of each example")
    size = len(dataset) if grouped is None else len(grouped)
    if size != budget.setting.dataset_size:
        raise ValueError(
            f"the data set has {size} {budget.unit}s and the budget was made for {budget.setting.dataset_size}: make it with "
            f"dataset_size={size}"
        )
