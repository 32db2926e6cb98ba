"""DP-SGD and DP-Adam (Abadi et al., 2016, arXiv 1607.00133): clip every example's gradient, add noise to the sum.

Sampler, clip, noise and accountant are the same as those of the zeroth-order methods. Adam's moments are computed from the noisy
sums alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from baselines._per_example import Record, trained_layers
from baselines.fine_tuning import FineTuning
from dpzero.privacy import Budget
from dpzero.privacy.clipping import clip_factors
from dpzero.zeroth_order.two_point import check_independence


class DPSGD(FineTuning):
    """`clip` bounds the Euclidean norm of one example's gradient over all trained parameters together.

    `clipping` says how, for the same released sum. hooks: every example's gradient is kept in memory, then scaled. ghost (Li et
    al., 2022, arXiv 2110.05679): only the norms are; a second backward pass sums the gradients of the losses, each times its clip
    factor.
    """

    title = "DP-SGD"
    private = True
    order = 1

    def __init__(
        self,
        model,
        loss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        optimizer: Literal["adamw", "adam", "sgd"] = "sgd",
        clipping: Literal["hooks", "ghost"] = "hooks",
        seed: int = 0,
    ) -> None:
        super().__init__(
            model, loss, budget.batch_size, learning_rate=learning_rate, optimizer=optimizer, seed=seed
        )
        if not clip > 0:
            raise ValueError(f"clip is {clip}: it must be positive")
        if clipping not in ("hooks", "ghost"):
            raise ValueError(f"clipping is {clipping!r}: give one of hooks, ghost")
        self.budget, self.clip, self.clipping = budget, clip, clipping
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        check_independence(model)
        model.eval()  # no dropout: a layer that is run again gives the same
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                # it divides by how often the batch, and not the example, has a token
                module.scale_grad_by_freq = False
        self.layers = trained_layers(model)

    def gradients(self, batch: Sized) -> Tensor | float:
        self.optimizer.zero_grad()
        add = self._add_ghost if self.clipping == "ghost" else self._add_clipped
        total = sum(map(add, self.loss.parts(batch)))
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.budget.release_(self.steps_taken, [p.grad for p in self.parameters], self.clip)
        for p in self.parameters:
            p.grad.div_(self.batch_size)
        return total

    def _add_clipped(self, part: Sized) -> Tensor:
        """Add the clipped gradients of a micro-batch to `grad`; return the sum of its losses."""
        losses, record = self._losses(part)
        record.backward(losses)
        factors = clip_factors(record.squared_norms(), self.clip)
        for p in self.parameters:
            # a gradient that is not finite has factor 0, but 0 * inf is not a number
            gradients = record.gradients.pop(p).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
            clipped = torch.tensordot(factors.to(gradients), gradients, dims=1)
            p.grad = clipped if p.grad is None else p.grad.add_(clipped)
        return losses.detach().sum()

    def _add_ghost(self, part: Sized) -> Tensor:
        """The same without the gradients of single examples."""
        losses, record = self._losses(part)
        output = record.output
        if not isinstance(output, Tensor):
            raise RuntimeError(
                f"the model's output is no tensor but {type(output).__name__}: set clipping to hooks"
            )
        if graph_uses(losses, output):
            raise RuntimeError("a loss is more than a function of the model's output: set clipping to hooks")
        if len(output) != len(part):
            raise RuntimeError(
                f"the model's output has {len(output)} rows for {len(part)} examples: set clipping to hooks"
            )
        [gradient] = record.backward(losses, output)
        squared = record.squared_norms()
        if all_finite(squared):
            # norms have the order of the model's rows, and a loss may give its values in another: so weigh the rows
            factors = clip_factors(squared, self.clip).to(output).view(-1, *[1] * (output.dim() - 1))
            torch.autograd.backward(output, factors * gradient, inputs=self.parameters)
        elif squared.isfinite().any():
            # a gradient that is not finite has factor 0, but 0 * inf is not a number: halve until it is alone
            for half in np.array_split(np.arange(len(part)), 2):
                self._add_ghost(part[half])
        return losses.detach().sum()

    def _losses(self, part: Sized) -> tuple[Tensor, Record]:
        """The losses of a micro-batch, if every use of every parameter was seen."""
        record = Record(len(part), ghost=self.clipping == "ghost")
        with record.watching(self.model, self.layers):
            losses = self.loss(self.model, part)
        uses = graph_uses(losses)
        for name, p in zip(self.names, self.parameters, strict=True):
            used, seen = uses[id(p)], record.uses[p]
            if used != seen or not seen:
                raise RuntimeError(
                    f"{name} is used {used} times in a forward pass, {seen} of them by its layer, so that its gradient would not be "
                    "clipped as a whole: freeze it, or use it through its layer alone"
                )
        return losses, record


def graph_uses(result: Tensor, below: Tensor | None = None) -> Counter[int]:
    """How many operations behind `result`, those behind `below` left out, read each trained parameter, by its id."""
    uses, known = Counter(), {None} if below is None else {None, below.grad_fn}
    rest = [result.grad_fn] if result.grad_fn not in known else []
    while rest:
        for node, _ in rest.pop().next_functions:
            if hasattr(node, "variable"):
                uses[id(node.variable)] += 1
            elif node not in known:
                known.add(node)
                rest.append(node)
    return uses


def all_finite(values: Tensor) -> bool:
    """Whether all values are finite; fake tensors, on which memory is predicted, have none and count as finite."""
    return is_fake(values) or bool(values.isfinite().all())
