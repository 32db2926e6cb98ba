"""The reversible network of DP-MemArc (Liu et al., 2024, arXiv 2406.11087): activations are computed back, not stored.

The abstract and summaries of that paper were read, and no public code was found. The construction is the second one of
MEFT (Liao et al., 2023, arXiv 2306.00477; BaohaoLiao/mefts): two streams (h, p), both the embeddings at first, and for
each frozen layer F and its trained adapter A

    p' = h + A(p),    h' = coupling p + F(p').

The inverse is p = (h' - F(p')) / coupling, h = p' - A(p). A backward pass computes the streams back from the last ones,
layer by layer, and a layer's own activations again from them.

Unknown of DP-MemArc, and chosen here:

* `coupling` is 0.5. MEFT takes 0.1 for this construction, to stay near the pretrained model at the start. But the inverse
  divides rounding errors by it in every layer: in float32, the embeddings of MiniLM came back with a relative error of
  0.06 from six layers.
* The streams are kept in float64, and layers and adapters compute in float32 on rounded streams. So the embeddings come
  back to the last bit of float32, from six layers of MiniLM and from twelve of SmolLM2.
* Both streams are kept after every `span` layers, of a deep model: errors grow over one span alone. MEFT has such a bound
  by leaving layers out of the reversible part (`num_rev_layers`).
* The coupling changes the pretrained function at the start: little where a layer ends in a norm (BERT, RoBERTa), but
  where layers add to one stream (OPT, Llama) the stream grows by it in each layer. SmolLM2 kept its features at a coupling
  of 0.01 and lost them at 0.1; the inverse at 0.01 needs a `span` of three or four.
* Adapters start at 0; the last h is the result (MEFT takes the mean of both streams, which is no hidden state of the
  pretrained model).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .frozen_layers import layers_of
from .side_network import Adapter

Streams = tuple[Tensor, Tensor]  # h and p, float64 [B, L, width]


class Pass:
    """A forward pass under way, and its backward pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype  # of hidden states
        self.partner: Tensor | None = None  # p after the layer that ran last
        self.restored: Streams | None = None  # the inputs of the layer that was computed back last


class Network:
    """What the layers of a reversible network share."""

    def __init__(self, coupling: float) -> None:
        self.coupling = coupling
        self.current: Pass | None = None


class ReversibleLayer(nn.Module):
    """Its forward pass is one step of both streams around that of the layer's own class.

    h is handed from layer to layer by transformers' code, p by `network`.
    """

    adapter: Adapter
    network: Network
    first: bool
    last: bool
    keeps: bool  # the streams after this layer are stored for the backward pass

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        own = super().forward

        def layer(read: Tensor) -> Tensor:
            output: Tensor = own(read, *arguments, **named)
            return output

        network = self.network
        if self.first:
            network.current = Pass(hidden_states.dtype)
            hidden_states = network.current.partner = hidden_states.double()
        now = network.current
        assert now is not None and now.partner is not None
        if torch.is_grad_enabled():
            if self.training:
                raise ValueError(
                    "a reversible network computes activations again, which would draw other dropout masks: leave dropout out"
                )
            if named.get("past_key_values") is not None:
                raise ValueError("a reversible network is trained on whole texts: set use_cache to false")
            step = _Step.apply(self, layer, now, hidden_states, now.partner, *self.adapter.parameters())
        else:
            step = self.couple(layer, now.dtype, hidden_states, now.partner)
        hidden, now.partner = step
        if not self.last:
            return hidden
        now.partner = network.current = None
        return hidden.to(now.dtype)

    def couple(
        self, layer: Callable[[Tensor], Tensor], dtype: torch.dtype, hidden: Tensor, partner: Tensor
    ) -> Streams:
        """h' and p'."""
        moved = hidden + self.adapter(partner.to(dtype))
        return self.network.coupling * partner + layer(moved.to(dtype)), moved


class _Step(torch.autograd.Function):
    """`ReversibleLayer.couple`, whose backward pass computes inputs and activations from the outputs."""

    @staticmethod
    def forward(
        ctx: Any, own: ReversibleLayer, layer: Any, now: Pass, hidden: Tensor, partner: Tensor, *_: Tensor
    ) -> Streams:
        kind = hidden.device.type
        precision: dict[str, Any] = {
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        ctx.same_precision = partial(torch.autocast, kind, cache_enabled=False, **precision)
        ctx.own, ctx.layer, ctx.now = own, layer, now
        streams = own.couple(layer, now.dtype, hidden, partner)
        if own.keeps:
            ctx.save_for_backward(*streams)
        return streams

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, now, (of_hidden, of_partner) = ctx.own, ctx.now, gradients
        hidden, moved = ctx.saved_tensors if own.keeps else now.restored
        with torch.enable_grad(), ctx.same_precision():
            read = moved.to(now.dtype).requires_grad_()
            output = ctx.layer(read)
        [through_layer] = torch.autograd.grad(output, read, of_hidden.to(output.dtype))
        partner = (hidden - output.detach()) / own.network.coupling
        del output
        of_moved = of_partner + through_layer
        parameters = list(own.adapter.parameters())
        with torch.enable_grad(), ctx.same_precision():
            read = partner.to(now.dtype).requires_grad_()
            output = own.adapter(read)
        through_adapter, *of_parameters = torch.autograd.grad(
            output, [read, *parameters], of_moved.to(output.dtype)
        )
        now.restored = None if own.first else (moved - output.detach(), partner)
        of_partner = own.network.coupling * of_hidden + through_adapter
        return None, None, None, of_moved, of_partner, *of_parameters


def attach(backbone: Any, *, reduction: int = 8, coupling: float = 0.5, span: int = 12) -> None:
    """Make a frozen model reversible, with adapters whose start is drawn from torch's generator.

    Args:
        backbone: from transformers, with or without its output layer.
        reduction: the model's width over that of an adapter.
        coupling: what a layer keeps of the other stream.
        span: layers after which both streams are stored.
    """
    if coupling <= 0:
        raise UsageError(f"coupling is {coupling}, by which the inverse divides: give a number above 0")
    layers, width = layers_of(backbone), backbone.base_model.config.hidden_size
    backbone.base_model.config.use_cache = (
        False  # a layer that runs again would add its keys and values again
    )
    network, weight = Network(coupling), backbone.base_model.get_input_embeddings().weight
    for number, layer in enumerate(layers, 1):
        kind = type(layer)
        with weight.device:
            layer.adapter = Adapter(width, max(1, width // reduction), width).to(weight.dtype)
        layer.network, layer.first, layer.last = network, number == 1, number == len(layers)
        layer.keeps = layer.last or number % span == 0
        layer.__class__ = type(kind.__name__, (ReversibleLayer, kind), {})
