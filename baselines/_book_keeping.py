"""Book-keeping (Bu et al., 2023, arXiv 2210.00038): clipped sums from one backward pass, without a second one.

A backward pass keeps each layer's input and the gradient of its output. Both give the norms of the examples'
gradients, and then the sum of the clipped ones, sum_it f_i g_it a_it^T, without autograd. As in the paper's
BK-MixOpt each linear layer takes the cheaper way to its norms: inner products of tokens (ghost norms) where
2 T^2 is below its number of weights, else its per-sample gradients, which are then scaled and summed, too.

Opacus 1.6 has no such pass. The authors' code (fastDP) leaves out the inner product of the two uses of a tied
embedding, so that its norms are too small, keeps one input of a layer that is called twice, and fails on OPT of
transformers 5. The ghost norms here are those of `_per_sample_gradients`, which have that product.
"""

# Opacus is not typed, and keeps its counters as attributes of parameters:
# mypy: allow-subclassing-any, disable-error-code="attr-defined"

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import reduce
from operator import attrgetter
from typing import Any

import torch
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from torch import Tensor, nn

from ._per_sample_gradients import PLAIN, PerSampleGradients, embedding_norms, linear_norms, one_norm_covers

Group = dict[str, Tensor]  # name -> parameter, of those that are clipped together
Sums = dict[Tensor, Tensor]  # parameter -> sum of clipped gradients
NORMS: dict[type, Any] = {nn.Linear: linear_norms, nn.Embedding: embedding_norms}
requires_grad = attrgetter("requires_grad")


class BookKeeping(PerSampleGradients):
    """A backward pass adds the sums of clipped gradients to `sums`, and leaves nothing on parameters.

    A group is clipped when the last gradient of its parameters has come; what was kept for it is then freed. With
    one group that is the end of the pass. With a group for each layer it is the layer's place in the pass (He et
    al., 2023, arXiv 2212.01539), so that no more than one layer is kept.
    """

    def begin(self, groups: Sequence[Group], factors: Callable[[Tensor], Tensor], sums: Sums) -> None:
        """Prepare for the backward pass of a micro-batch.

        Args:
            groups: together all trained parameters.
            factors: squared norms of a group's gradients, float64 [size] -> clip factors [size].
            sums: added to.
        """
        self.groups, self.factors, self.sums = groups, factors, sums
        self.group_of = {p: number for number, group in enumerate(groups) for p in group.values()}
        self.left = [set(group.values()) for group in groups]  # whose gradients have not come
        self.squared: dict[int, Tensor] = {}  # of a group
        self.norms: dict[Tensor, Tensor] = {}
        self.gradients: dict[Tensor, Tensor] = {}  # of each sample
        self.kept: dict[Tensor, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # input, gradient of output

    def missing(self) -> list[str]:
        """Names of the parameters whose gradients a backward pass did not reach."""
        pairs = zip(self.groups, self.left, strict=True)
        return [name for group, left in pairs for name, p in group.items() if p in left]

    def capture_backprops_hook(
        self,
        module: nn.Module,
        _: object,
        output_gradients: tuple[Tensor],
        loss_reduction: str,
        batch_first: bool,
    ) -> None:
        [read], backprops = self.rearrange_grad_samples(
            module=module,
            backprops=output_gradients[0].detach(),
            loss_reduction=loss_reduction,
            batch_first=batch_first,
        )
        if not module.activations:
            del module.max_batch_len
        self._keep(module, read, backprops)
        for p in filter(requires_grad, module.parameters()):
            p._forward_counter -= 1
            if p._forward_counter == 0:
                self._finish(p)

    def _keep(self, module: Any, read: Tensor, backprops: Tensor) -> None:
        """What norms and clipped sums of a layer's parameters are made of."""
        kind = type(module)
        if kind in PLAIN and requires_grad(module.weight) and self._takes_ghost_norms(module.weight, read):
            self.norms[module.weight] = NORMS[kind](module, [read], backprops)[module.weight]
            self.kept[module.weight].append((read, backprops))
            bias = getattr(module, "bias", None)
            gradients = {} if bias is None else {bias: backprops[:, None].flatten(1, -2).sum(1)}
        else:
            sampler: Any = self.GRAD_SAMPLERS.get(kind, ft_compute_per_sample_gradient)
            gradients = sampler(module, [read], backprops)
        for p, gradient in gradients.items():
            if p.requires_grad:
                self.gradients[p] = self.gradients[p] + gradient if p in self.gradients else gradient

    def _takes_ghost_norms(self, weight: Tensor, read: Tensor) -> bool:
        """Whether a weight's norms come from inner products: the same answer at each of its uses."""
        uses, tokens = self.uses[weight], math.prod(read.shape[1:-1])
        return 2 * tokens**2 < weight.numel() if uses == [nn.Linear] else one_norm_covers(uses)

    def _finish(self, p: Tensor) -> None:
        """All gradients of a parameter have come: adds their squared norms to those of its group."""
        norms = self.norms.pop(p, None)
        if norms is None:
            norms = torch.linalg.vector_norm(self.gradients[p].flatten(1), dim=1)
        number = self.group_of[p]
        squared = norms.double().square()
        self.squared[number] = self.squared[number] + squared if number in self.squared else squared
        self.left[number].remove(p)
        if not self.left[number]:
            self._clip(number)

    def _clip(self, number: int) -> None:
        """Adds the clipped sums of a group. A gradient that is not finite has factor 0, and is left out."""
        factors = self.factors(self.squared.pop(number))
        finite = factors > 0
        chosen = slice(None) if finite.all() else finite
        for p in self.groups[number].values():
            if p in self.gradients:
                gradients = self.gradients.pop(p)[chosen]
                clipped = torch.tensordot(factors[chosen].to(gradients), gradients, dims=1)
            else:
                uses = ((read[chosen], backprops[chosen]) for read, backprops in self.kept.pop(p))
                clipped = reduce(Tensor.add_, (weighted_products(p, *use, factors[chosen]) for use in uses))
            self.sums[p] = self.sums[p].add_(clipped) if p in self.sums else clipped


def weighted_products(weight: Tensor, read: Tensor, backprops: Tensor, factors: Tensor) -> Tensor:
    """What one use of a weight adds to its clipped sum.

    Args:
        weight: [out, in] of a linear layer, [rows, width] of an embedding.
        read: its input, float [size, ..., in], or tokens, int [size, ...].
        backprops: gradient of its output, [size, ..., out or width].
        factors: [size].
    """
    weighted = backprops * factors.to(backprops).view(-1, *[1] * (backprops.dim() - 1))
    weighted = weighted.flatten(0, -2)
    if read.is_floating_point():
        return weighted.T @ read.flatten(0, -2)
    return torch.zeros_like(weight).index_add_(0, read.flatten(), weighted)
