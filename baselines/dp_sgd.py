"""DP-SGD and DP-Adam (Abadi et al., 2016, arXiv 1607.00133): clip every example's gradient, add noise to the sum.

Opacus supplies the per-sample gradients, or with ghost clipping (Li et al., 2022, arXiv 2110.05679) their norms, and nothing
else: sampler, clip, noise and accountant are the same as those of the zeroth-order methods. Adam's moments are computed from the
noisy sums alone.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Sized
from typing import Literal

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks, GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.grad_sample.embedding import compute_embedding_norm_sample
from torch import Tensor, nn

from baselines.fine_tuning import FineTuning
from dpzero.privacy import Budget
from dpzero.privacy.clipping import clip_factors
from dpzero.zeroth_order.two_point import check_independence

# Opacus' hooks do not need the gradient of a module's input, which torch warns of where the first layers are frozen.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


class DPSGD(FineTuning):
    """`clip` bounds the Euclidean norm of one example's gradient over all trained parameters together.

    `clipping` says how, for the same released sum. hooks: every example's gradient is kept in memory, then scaled. ghost: only
    the norms are; a second backward pass sums the gradients of the losses, each times its clip factor.
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
        for module in model.modules():
            # Opacus' hooks sleep in evaluation mode; dropout, which has no parameters, stays off
            module.training = bool(module._parameters)
            if isinstance(module, nn.Embedding):
                # Opacus gives every row its plain gradient: so must the second backward pass
                module.padding_idx, module.scale_grad_by_freq = None, False
        check_independence(model)
        if clipping == "ghost":
            check_layers(model)
        self.per_sample = (GhostNorms if clipping == "ghost" else GradSampleModule)(
            model, loss_reduction="sum"
        )

    def gradients(self, batch: Sized) -> float:
        sums = [torch.zeros_like(p) for p in self.parameters]
        add = self._add_ghost if self.clipping == "ghost" else self._add_clipped
        total = sum(add(sums, part) for part in self.loss.parts(batch))
        self.budget.release_(self.steps_taken, sums, self.clip)
        for p, released in zip(self.parameters, sums, strict=True):
            p.grad = released.div_(self.batch_size)
        return total

    def _add_clipped(self, sums: list[Tensor], part: Sized) -> float:
        """Add the clipped gradients of a micro-batch; return the sum of its losses."""
        losses = self._losses(part)
        losses.sum().backward()
        squared = torch.zeros(len(part), dtype=torch.float64, device=losses.device)
        for name, p in zip(self.names, self.parameters, strict=True):
            check_examples(name, p.grad_sample, len(part))
            squared += p.grad_sample.flatten(1).square().sum(1)
        factors = clip_factors(squared, self.clip)
        for total, p in zip(sums, self.parameters, strict=True):
            # a gradient that is not finite has factor 0, but 0 * inf is not a number
            gradients = torch.nan_to_num(p.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
            total += torch.tensordot(factors.to(gradients), gradients, dims=1)
            p.grad_sample = p.grad = None
        return losses.sum().item()

    def _add_ghost(self, sums: list[Tensor], part: Sized) -> float:
        """The same without the gradients of single examples."""
        losses = self._losses(part)
        output, self.per_sample.output = self.per_sample.output, None
        if graph_uses(losses, output):
            raise RuntimeError("a loss is more than a function of the model's output: set clipping to hooks")
        check_examples("the model's output", output, len(part))
        losses.sum().backward(retain_graph=True)
        squared = torch.zeros(len(part), dtype=torch.float64, device=losses.device)
        for name, p in zip(self.names, self.parameters, strict=True):
            norms, p.grad = p.__dict__.pop("_norm_sample"), None
            check_examples(name, norms, len(part))
            squared += norms.square()
        finite = squared.isfinite()
        if finite.all():
            # norms have the order of the model's rows, and a loss may give its values in another: so weigh the rows
            factors = clip_factors(squared, self.clip).to(output).view(-1, *[1] * (output.dim() - 1))
            self.per_sample.disable_hooks()
            gradients = torch.autograd.grad(output, self.parameters, factors * output.grad)
            self.per_sample.enable_hooks()
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
        elif finite.any():
            # a gradient that is not finite has factor 0, but 0 * inf is not a number: halve until it is alone
            for half in np.array_split(np.arange(len(part)), 2):
                self._add_ghost(sums, part[half])
        return losses.sum().item()

    def _losses(self, part: Sized) -> Tensor:
        """The losses of a micro-batch, if Opacus saw every use of every parameter."""
        losses = self.loss(self.per_sample, part)
        uses = graph_uses(losses)
        for name, p in zip(self.names, self.parameters, strict=True):
            used, seen = uses[id(p)], p._forward_counter
            if used != seen or not seen:
                raise RuntimeError(
                    f"{name} is used {used} times in a forward pass, {seen} of them as a layer that Opacus sees, so that its gradient "
                    "would not be clipped as a whole: freeze it, or use it through its layer alone"
                )
            if seen > 1 and self.clipping == "ghost":
                raise RuntimeError(
                    f"{name} is used {seen} times in a forward pass, and ghost norms know one use alone: set clipping to hooks"
                )
        return losses


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


def check_examples(name: str, values: Tensor, size: int) -> None:
    """Raises RuntimeError where a layer flattens batch and length (it would be clipped per token) or has one row for all."""
    if len(values) != size:
        raise RuntimeError(
            f"Opacus returned {len(values)} gradients for {size} examples in {name}: this model needs a patch before DP-SGD is private "
            "on it"
        )


def check_layers(model: nn.Module) -> None:
    """Raises ValueError for a trained layer whose ghost norms may differ from those of the gradients that are summed.

    A layer that Opacus has no rule for is run again on its first input alone, so that it must have no other.
    """
    for name, layer in model.named_modules():
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        if type(layer) in GhostNorms.GRAD_SAMPLERS:
            exact = type(layer) in (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm)
        else:
            exact = len(inspect.signature(layer.forward).parameters) == 1
        if not exact:
            kind = type(layer).__name__
            raise ValueError(
                f"ghost norms are not exact for layer {name or 'model'} ({kind}): set clipping to hooks, or freeze it"
            )


def linear_norms(
    layer: nn.Linear, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Each example's norm of sum_t g_t a_t^T, whose square is sum_st <g_s, g_t> <a_s, a_t>, without the gradient itself.

    In float64: where tokens cancel, Opacus' float32 leaves a norm that is too small, even 0, and the example is not clipped.
    """
    inputs, outputs = (x[:, None] if x.dim() == 2 else x.flatten(1, -2) for x in (activations[0], backprops))
    norms = {}
    if layer.weight.requires_grad:
        a, g = inputs.double(), outputs.double()
        squared = ((a @ a.mT) * (g @ g.mT)).sum((1, 2)).clamp_min(0.0)
        # what is summed is float32: where tokens cancel all but exactly, its rounding is what remains to be clipped
        rounding = torch.finfo(torch.float32).eps * (a.norm(dim=2) * g.norm(dim=2)).sum(1)
        squared += rounding.square()
        norms[layer.weight] = squared.sqrt().to(backprops)
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = outputs.sum(1).norm(dim=1)
    return norms


def embedding_norms(
    layer: nn.Embedding, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Opacus' norms, which add up the tokens that an example repeats; they want indices that are no expanded view."""
    return compute_embedding_norm_sample(layer, [activations[0].contiguous()], backprops)


class GhostNorms(GradSampleModuleFastGradientClipping):
    """Opacus' ghost norms, with the two rules above; keeps the output of the last forward pass, and its gradient."""

    NORM_SAMPLERS = {nn.Linear: linear_norms, nn.Embedding: embedding_norms}

    def forward(self, *arguments, **named) -> Tensor:
        self.output = super().forward(*arguments, **named)
        if not isinstance(self.output, Tensor):
            raise RuntimeError(
                f"the model's output is no tensor but {type(self.output).__name__}: set clipping to hooks"
            )
        if self.output.requires_grad:
            self.output.retain_grad()
        return self.output

    def capture_activations_hook(self, module, forward_input, _forward_output) -> None:
        # a second use of a parameter is refused by DPSGD, which knows its name, and not here
        GradSampleHooks.capture_activations_hook(self, module, forward_input, _forward_output)
