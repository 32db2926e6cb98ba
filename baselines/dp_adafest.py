"""DP-AdaFEST (Ghazi et al., NeurIPS 2023, arXiv 2311.08357), algorithm 1: noise on few rows of an embedding table.

for t = 0 .. T - 1:
    for each example i of the batch:  v_i: 1 for each row of the table that it uses, clipped to norm map_clip
                                      g_i: its gradient, of all trained parameters, clipped to norm clip
    n = sum_i v_i + sigma_1 map_clip noise                              (released)
    S = the rows j with n_j >= threshold sigma_1 map_clip
    g = sum_i g_i of the rows S and of all other parameters + sigma_2 clip noise there       (released)
    x_{t+1} = x_t - learning_rate g / batch_size                        (the other rows of the table stay)

The two releases of a step are one for the accountant, with sigma^-2 = sigma_1^-2 + sigma_2^-2 (`privacy.row_releases`).

Followed: the paper's algorithm, and the public code in TensorFlow Privacy, which also has one sigma and its split, counts of
examples and noise on rows that no example uses. What the paper leaves to tuning is a setting: the split (`map_share`, the
part of sigma^-2 that the counts have), `map_clip`, `threshold`. Here the threshold is in standard deviations of the counts'
noise, so that a value means the same at each epsilon; theirs is a count. TensorFlow Privacy draws the rows without any example
by geometric skips, which makes large tables fast; here all counts get noise, which has the same law. The paper's own
settings for language models were not read.
"""

# Opacus keeps its results as attributes of parameters:
# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from baselines._book_keeping import Group, Sums
from baselines._per_sample_gradients import PerSampleGradients, watching
from baselines.dp_sgd import DPSGD
from dpzero.privacy import Budget
from dpzero.privacy.clipping import clip_factors
from dpzero.privacy.row_releases import Rows
from dpzero.zeroth_order.protocols import PartitionedLoss

LookUps = list[tuple[Tensor, Tensor]]  # token ids [B, L] and what they gave [B, L, H]


class DPAdaFEST(DPSGD):
    """DP-SGD whose gradient of the word embeddings is sparse: it stores few rows, and adds noise to few.

    A row is used by an example if the example's gradient of it is not zero, so that padding counts for nobody. If
    the embeddings are frozen, the counts are empty and what remains is DP-SGD with the noise sigma_2.

    Attributes:
        rows_noised: rows of the table that got noise, over all steps since the constructor.
    """

    title = "DP-AdaFEST"
    contract_budget = {"first_share": 0.1}

    def __init__(
        self,
        model: nn.Module,
        loss: PartitionedLoss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        map_clip: float = 1.0,
        map_share: float = 0.1,
        threshold: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, loss, budget, learning_rate=learning_rate, clip=clip, seed=seed)
        if budget.unit == "user":
            raise ValueError("unit user is not offered for the rows of a table: use dp_sgd")
        self.map_clip, self.map_share, self.threshold = map_clip, map_share, threshold
        self.table = word_embeddings(model)
        self.rows_noised, self.steps_counted = 0, 0

    def watched(self) -> Group:
        table = None if self.table is None else self.table.weight
        return {name: p for name, p in super().watched().items() if p is not table}

    def further_metrics(self) -> dict[str, float]:
        """Rows of the table that got noise, as a mean over steps, and all of its rows, which DP-SGD would have given noise."""
        if self.table is None or not self.steps_counted:
            return {}
        rows = self.table.num_embeddings
        return {"noised_embedding_rows": self.rows_noised / self.steps_counted, "embedding_rows": rows}

    @contextmanager
    def _looked_up(self) -> Iterator[LookUps]:
        """Context manager: what the table gave in each forward pass, as if it were an input of the model."""
        found: LookUps = []
        if self.table is None:
            yield found
            return

        def keep(_: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
            found.append((arguments[0], output.detach().requires_grad_()))
            return found[-1][1]

        self.table.weight.requires_grad_(False)  # the hooks would make a whole table for each example
        handle = self.table.register_forward_hook(keep)
        try:
            yield found
        finally:
            handle.remove()
            self.table.weight.requires_grad_(True)

    def _clipped_sums(self, batch: Any) -> tuple[Sums, Tensor | float]:
        sums: Sums = {p: torch.zeros_like(p) for p in self.watched().values()}
        size, width = (0, 1) if self.table is None else self.table.weight.shape
        device = self.parameters[0].device
        self.counts = torch.zeros(size, dtype=torch.float64, device=device)
        pieces: list[tuple[Tensor, Tensor]] = []
        total: Tensor | float = 0.0
        with self._looked_up() as found, watching(self.model, PerSampleGradients) as hooks:
            for part in self.loss.parts(batch):
                found.clear()
                losses = self._losses(hooks, part)
                if hooks.size != len(part) or (self.table is not None and len(found) != 1):
                    raise RuntimeError("an example is more than one text that is looked up once: use dp_sgd")
                losses.sum().backward(inputs=[*hooks.needed, *(out for _, out in found)])  # type: ignore[no-untyped-call]
                total += losses.detach().sum()
                pieces += [self._add_clipped_rows(sums, losses, *found[0])] if found else []
                if not found:
                    self._add_watched(
                        sums,
                        clip_factors(self._squared_norms("grad_sample", losses, self.watched()), self.clip),
                    )
        numbers = torch.cat(
            [rows for rows, _ in pieces] or [torch.zeros(0, dtype=torch.int64, device=device)]
        )
        values = torch.cat([each for _, each in pieces] or [torch.zeros(0, width, device=device)])
        numbers, places = torch.unique(numbers, return_inverse=True)
        gradients = values.new_zeros(len(numbers), width).index_add_(0, places, values)
        self.table_rows = numbers, gradients
        return sums, total

    def _add_clipped_rows(
        self, sums: Sums, losses: Tensor, ids: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adds a micro-batch to the counts and to the sums beside the table.

        Returns:
            The used rows of each example, one after the other, and their clipped gradients.
        """
        assert self.table is not None and output.grad is not None
        count, size = len(losses), self.table.num_embeddings
        gradients = output.grad.flatten(0, 1)
        if self.table.padding_idx is not None:  # autograd leaves this row as it is
            gradients = gradients.masked_fill((ids.flatten() == self.table.padding_idx)[:, None], 0.0)
        example = torch.arange(count, device=ids.device)[:, None].expand_as(ids)
        keys, places = torch.unique((example * size + ids).flatten(), return_inverse=True)
        values = gradients.new_zeros(len(keys), gradients.shape[1]).index_add_(0, places, gradients)
        used = values.ne(0).any(1)
        owner, rows, values = keys[used] // size, keys[used] % size, values[used]
        squared = self._squared_norms("grad_sample", losses, self.watched())
        squared.index_add_(0, owner, torch.linalg.vector_norm(values, dim=1).double().square())
        factors = clip_factors(squared, self.clip)
        self._add_watched(sums, factors)
        # of norm at most map_clip; an example whose gradient is not finite is in neither sum
        entries = (self.map_clip / owner.bincount(minlength=count).double().sqrt()).clamp_max(1.0)
        self.counts.index_add_(0, rows, (entries * squared.isfinite())[owner])
        clean = values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return rows, clean * factors[owner, None].to(clean)

    def _add_watched(self, sums: Sums, factors: Tensor) -> None:
        for p in self.watched().values():
            gradients = p.grad_sample.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            sums[p] += torch.tensordot(factors.to(gradients), gradients, dims=1)
            p.grad_sample = gradients = None

    def _release(self, sums: Sums) -> None:
        numbers, gradients = self.table_rows
        rows = Rows(self.counts, self.map_clip, numbers, gradients, list(sums.values()))
        shares = {"threshold": self.threshold, "first_share": self.map_share}
        numbers, gradients = self.budget.release_rows_(rows, self.clip, **shares)
        for p, total in sums.items():
            p.grad = total.div_(self.batch_size)
        if self.table is not None:  # moved here: for torch's optimizer it would be a whole table
            rate = self.optimizer.param_groups[0]["lr"] / self.batch_size
            self.table.weight.data.index_add_(0, numbers, gradients, alpha=-rate)
        self.rows_noised += len(numbers)
        self.steps_counted += 1


def word_embeddings(model: nn.Module) -> nn.Embedding | None:
    """The trained table of word embeddings, None if it is frozen.

    Raises:
        ValueError: other layers use it, too.
    """
    modules: list[Any] = list(model.modules())
    tables = [m.get_input_embeddings() for m in modules if hasattr(m, "get_input_embeddings")]
    table = next((t for t in tables if isinstance(t, nn.Embedding) and t.weight.requires_grad), None)
    uses = sum(p is table.weight for m in modules for p in m.parameters(recurse=False)) if table else 0
    if uses > 1:
        raise ValueError(
            "the output layer is the table of word embeddings, too, so that a step uses all of its rows: set "
            "tie_embeddings to false, or tune to embeddings"
        )
    return table
