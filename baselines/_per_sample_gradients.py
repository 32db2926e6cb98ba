"""Per-sample gradients and ghost norms by Opacus' hooks, made exact for the models here or refused in one sentence.

Opacus 1.6 fails on RoBERTa's output layer and on OPT's positions, clips tokens in place of texts if OPT
flattens them, and computes a norm in the precision of its summands. The subclasses here correct that through
Opacus' own hooks. Outside of `watching` the model is unchanged: none of its forward passes is replaced.
"""

# Opacus is not typed, and keeps its results as attributes of parameters:
# mypy: allow-subclassing-any, disable-error-code="attr-defined"

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.embedding_norm_sample import compute_embedding_norm_sample
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from torch import Tensor, nn

# Layers that flatten the texts of a batch to [batch * length, width] before these of their parts
FLATTENED = {"OPTDecoderLayer": ("final_layer_norm", "fc1", "fc2")}
PLAIN = (nn.Linear, nn.Embedding)
Norms = dict[Tensor, Tensor]  # of parameters


@contextmanager
def watching(model: nn.Module, kind: type[PerSampleGradients]) -> Iterator[PerSampleGradients]:
    """Context manager: backward passes do with each sample's gradients what this kind of hooks does.

    Opacus has no rule for subclasses of nn.Embedding (OPT's positions, Gemma's words), whose forward pass
    computes positions or scales rows around nn.Embedding's. Inside they look up rows by a plain one.
    """
    own = {m: type(m) for m in model.modules() if isinstance(m, nn.Embedding) and type(m) is not nn.Embedding}
    for module, its_type in own.items():
        count, width = module.weight.shape
        module.rows = nn.Embedding(count, width, module.padding_idx, device="meta")
        module.rows.weight = module.weight
        module.__class__ = type(its_type.__name__, (its_type, PlainLookUp), {})
    try:
        with warnings.catch_warnings():
            # gradients of a layer's input, which torch misses if the first layers are frozen, are not needed
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            hooks = kind(model)
            try:
                yield hooks
            finally:
                hooks.cleanup()
    finally:
        for module, its_type in own.items():
            module.__class__ = its_type
            del module.rows


class PlainLookUp(nn.Embedding):
    """Its forward pass is what `super().forward` of an embedding's subclass calls inside `watching`."""

    rows: nn.Embedding

    def forward(self, input: Tensor) -> Tensor:
        rows: Tensor = self.rows(input)
        return rows


class PerSampleGradients(GradSampleHooks):
    """A backward pass leaves `grad_sample` [size, *shape], summed over uses, on each trained parameter.

    Attributes:
        size: the number of the model's rows, one an example unless the loss names their owners. Set it before
            a forward pass.
        uses: the types of the layers that read a parameter since `uses` was cleared. Layers of types that are
            not in GRAD_SAMPLERS are run again by Opacus for each example.
        needed: the inputs that the backward pass needs to reach every layer that read a parameter since
            `needed` was cleared. The parameters of a linear layer that passes a gradient on are left out, so
            that their gradient over the batch, which is not used, is not computed.

    Raises:
        RuntimeError: in a forward pass, if a layer's gradients would not be those of single examples.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, modules = model, list(model.modules())
        plain = (m for m in modules if type(m) in PLAIN)
        self.size, self.shared = 0, {p for m in plain for p in m.parameters(recurse=False)}
        self.uses: dict[Tensor, list[type]] = defaultdict(list)
        self.needed: set[Tensor] = set()
        self.texts: dict[nn.Module, torch.Size] = {}
        bare = any(type(m) is nn.LayerNorm and m.bias is None for m in modules)
        kinds = PLAIN if bare else (*PLAIN, nn.LayerNorm)  # its rule needs a bias
        self.GRAD_SAMPLERS = {kind: GradSampleHooks.GRAD_SAMPLERS[kind] for kind in kinds}
        # Opacus walks over its modules many times, at each module through its whole depth: for a deep model with few
        # trained parameters that took longer than the passes. So it gets the watched layers and nothing around them
        watched = nn.ModuleList(self.iterate_submodules(model))
        super().__init__(watched, loss_reduction="sum", strict=False)

    def name(self, module: nn.Module) -> str:
        place = next(place for place, m in self.model.named_modules() if m is module)
        return f"{place or 'model'} ({type(module).__name__})"

    def iterate_submodules(self, module: nn.Module) -> Iterator[nn.Module]:
        """The watched layers. A parameter shared with a plain layer (RoBERTa's output bias) is used there."""
        own = {p for p in module.parameters(recurse=False) if p.requires_grad}
        if (type(module) in PLAIN and own) or own - self.shared:
            yield module
        else:
            for child in module.children():
                yield from self.iterate_submodules(child)

    def add_hooks(self, **settings: Any) -> None:
        super().add_hooks(**settings)
        handles = self.autograd_grad_sample_hooks
        for module in self.iterate_submodules(self._module):
            handles.append(module.register_forward_pre_hook(self._check_inputs, with_kwargs=True))
        for module in self.model.modules():
            if names := FLATTENED.get(type(module).__name__):
                parts = [part for name in names for part in module.get_submodule(name).modules()]
                keep = partial(self._keep_texts, parts)
                handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))

    def cleanup(self) -> None:
        super().cleanup()
        for thing in (*self._module.modules(), *self._module.parameters()):
            for name in ("activations", "max_batch_len", "_norm_sample", "_tied", "_read"):
                thing.__dict__.pop(name, None)

    def capture_activations_hook(
        self, module: nn.Module, forward_input: tuple[Tensor], output: Tensor
    ) -> None:
        [read] = forward_input
        if module in self.texts and read.dim() == 2:
            read = read.reshape(*self.texts[module], -1)
        if len(read) != self.size:
            raise RuntimeError(
                f"layer {self.name(module)} has {len(read)} rows for {self.size} examples, so that rows would be clipped "
                "and not examples: this model needs a patch before DP-SGD is private on it"
            )
        for p in module.parameters():
            self.uses[p].append(type(module))
        if type(module) is not nn.Linear or not read.requires_grad:
            self.needed.update(p for p in module.parameters() if p.requires_grad)
        mode, module.training = module.training, True  # Opacus' hook does nothing in evaluation mode
        GradSampleHooks.capture_activations_hook(self, module, (read,), output)
        module.training = mode

    def rearrange_grad_samples(self, *, module: nn.Module, **settings: Any) -> tuple[list[Tensor], Tensor]:
        """Input and gradient of the output, both [size, ..., width] in the precision of the weights."""
        [read], backprops = super().rearrange_grad_samples(module=module, **settings)
        dtype = next(module.parameters()).dtype
        read = read.to(dtype) if read.is_floating_point() else read.contiguous()
        backprops = backprops.to(dtype)
        if module in self.texts and backprops.dim() < read.dim():
            backprops = backprops.unflatten(0, read.shape[:2])
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # autograd leaves this row as it is
            backprops = backprops.masked_fill((read == module.padding_idx)[..., None], 0.0)
        return [read], backprops

    def _check_inputs(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if len(arguments) != 1 or named or not isinstance(arguments[0], Tensor):
            raise RuntimeError(f"layer {self.name(module)} does more than map one tensor to one: freeze it")

    def _keep_texts(
        self, parts: list[nn.Module], _: object, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        self.texts |= dict.fromkeys(parts, hidden.shape[:2])


def linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> Norms:
    """Norms of the examples' gradients sum_t g_t a_t^T: the square is sum_st <g_s, g_t> <a_s, a_t>.

    In float64: if tokens cancel, Opacus' float32 gives a norm that is too small, even 0, and the example is
    not clipped.
    """
    read, backprops = (x[:, None] if x.dim() == 2 else x.flatten(1, -2) for x in (activations[0], backprops))
    norms = {}
    if layer.weight.requires_grad:
        a, g = products(read), products(backprops)
        squared, size = (a * g).sum((1, 2)), (a.diagonal(0, 1, 2) * g.diagonal(0, 1, 2)).sqrt().sum(1)
        norms[layer.weight] = with_rounding(squared, size)
        if layer.weight._forward_counter > 1:  # the embedding comes next
            layer.weight._tied = squared, size, read, backprops
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = backprops.sum(1).double().norm(dim=1)
    return norms


def one_norm_covers(uses: Sequence[type]) -> bool:
    """Whether a ghost norm is known for these uses of a weight together: one, look-ups, look-up and output layer."""
    return len(uses) == 1 or set(uses) == {nn.Embedding} or list(uses) == [nn.Embedding, nn.Linear]


def products(tokens: Tensor) -> Tensor:
    """Inner products of every two tokens: [examples, tokens, width] -> float64 [examples, tokens, tokens]."""
    tokens = tokens.double()
    return tokens @ tokens.mT


def embedding_norms(layer: nn.Embedding, activations: list[Tensor], backprops: Tensor) -> Norms:
    """Opacus' norms, which sum over an example's repeated tokens, with those of earlier look-ups in the weight.

    If the output layer reads the same weight, the square of the sum contains twice the inner product of both
    gradients: sum_st <h_s, a_t> g_t[token_s], for tokens s with gradients h, inputs a of the output layer and
    gradients g of its output.
    """
    tokens, h = activations[0].flatten(1), backprops.flatten(1, -2)
    if earlier := layer.weight.__dict__.pop("_read", None):
        tokens, h = (torch.cat(pair, 1) for pair in zip(earlier, (tokens, h), strict=True))
    if layer.weight._forward_counter > 1:  # another look-up comes
        layer.weight._read = tokens, h
    tied = layer.weight.__dict__.pop("_tied", None)
    h = h.double() if tied else h
    [norms] = compute_embedding_norm_sample(layer, [tokens], h).values()
    squared, size = norms.double().square(), h.norm(dim=2).sum(1)
    if tied:
        squared_there, size_there, a, g = tied
        g = g.gather(2, tokens[:, None].expand(-1, g.shape[1], -1)).double()
        squared = squared + squared_there + 2 * ((a.double() @ h.mT) * g).sum((1, 2))
        size = size + size_there
    return {layer.weight: with_rounding(squared, size)}


def with_rounding(squared: Tensor, size: Tensor) -> Tensor:
    """Norms [examples] of sums that are computed in float32, with the rounding of such a sum.

    If summands cancel almost exactly, this rounding is what remains to be clipped. `size`: the sum of their
    norms.
    """
    return (squared.clamp_min(0.0) + (torch.finfo(torch.float32).eps * size).square()).sqrt()


class GhostNorms(PerSampleGradients, GradSampleHooksFastGradientClipping):
    """Leaves `_norm_sample` [size], float64, in place of `grad_sample`. Keeps the last output and its gradient.

    Raises:
        ValueError: a layer in half precision.
    """

    NORM_SAMPLERS = {nn.Linear: linear_norms, nn.Embedding: embedding_norms}

    def add_hooks(self, **settings: Any) -> None:
        super().add_hooks(**settings)
        self.output: object = None
        self.autograd_grad_sample_hooks.append(self.model.register_forward_hook(self._keep_output))

    def capture_activations_hook(
        self, module: nn.Module, forward_input: tuple[Tensor], output: Tensor
    ) -> None:
        if output.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"layer {self.name(module)} computes in {output.dtype}, in which a sum of clipped gradients is rounded by "
                "more than one example's share: set clipping to hooks, or compute to float32"
            )
        super().capture_activations_hook(module, forward_input, output)

    def covers(self, p: Tensor) -> bool:
        """Whether the norm covers all uses, which it also does for layers that run again."""
        uses = self.uses[p]
        return one_norm_covers(uses) or not set(uses) & set(self.NORM_SAMPLERS)

    def _keep_output(self, _module: nn.Module, _arguments: tuple[Any, ...], output: object) -> None:
        self.output = output
        if isinstance(output, Tensor) and output.requires_grad:
            output.retain_grad()
