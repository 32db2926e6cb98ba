"""What each example adds to the gradient of a trained parameter, seen at the layers that use it.

A layer's input and the gradient of its output are enough (Goodfellow, 2015, arXiv 1510.01799): no example is run alone. A parameter
may have several uses, as an embedding that is tied to the output layer has: what they add is summed before anything is clipped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.func import functional_call, grad, vmap

# Layers that hand these of their parts all texts of a batch one after another, as [batch * length, width]
FLATTENED = {"OPTDecoderLayer": ("final_layer_norm", "fc1", "fc2")}


@dataclass(frozen=True)
class Products:
    """One use of a weight, of which example i's gradient is sum_t rows[i, t] columns[i, t]^T.

    rows [examples, tokens, height], or for a look-up integers [examples, tokens], which stand for unit vectors; columns
    [examples, tokens, width].
    """

    rows: Tensor
    columns: Tensor

    @property
    def looks_up(self) -> bool:
        return not self.rows.is_floating_point()

    def add_to(self, gradients: Tensor) -> None:
        """Add to gradients [examples, height, width], in place."""
        columns = self.columns.to(gradients.dtype)
        if self.looks_up:
            gradients.scatter_add_(1, self.rows[..., None].expand_as(columns), columns)
        else:
            gradients.baddbmm_(self.rows.to(gradients.dtype).mT, columns)

    def inner(self, other: Products) -> Tensor:
        """Each example's inner product of the two gradients, without the gradients: float64 [examples]."""
        if self.looks_up and not other.looks_up:
            return other.inner(self)
        if self.looks_up:
            rows = self.rows[:, :, None] == other.rows[:, None, :]
        elif other.looks_up:
            rows = self.rows.gather(2, other.rows[:, None, :].expand(-1, self.rows.shape[1], -1))
        else:
            rows = self.rows.double() @ other.rows.double().mT
        return (rows * (self.columns.double() @ other.columns.double().mT)).sum((1, 2))

    def sizes(self) -> Tensor:
        """The sum of the norms of what is added up: float64 [examples]."""
        columns = self.columns.double().norm(dim=2)
        return (columns if self.looks_up else columns * self.rows.double().norm(dim=2)).sum(1)


def squared_norms(uses: list[Products]) -> Tensor:
    """Squared norms [examples], float32, of the sum over all uses of a weight, and of the rounding in it.

    In float64: where tokens cancel, float32 leaves a norm that is too small, even 0, and the example is not clipped. What is
    released is summed in float32: where they cancel all but exactly, its rounding is what remains to be clipped.
    """
    squared = sum(use.inner(use) for use in uses)
    for one, other in combinations(uses, 2):
        squared = squared + 2 * one.inner(other)
    rounding = torch.finfo(torch.float32).eps * sum(use.sizes() for use in uses)
    return (squared.clamp_min(0.0) + rounding.square()).float()


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own that are trained, by their names in it."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    flattened_by: nn.Module | None

    @property
    def title(self) -> str:
        return f"layer {self.name or 'model'} ({type(self.module).__name__})"


def trained_layers(model: nn.Module) -> list[Layer]:
    """Where trained parameters are used. What a module shares with a linear layer or an embedding is used there."""
    modules = dict(model.named_modules())
    plain = [m for m in modules.values() if is_linear(m) or isinstance(m, nn.Embedding)]
    shared = {p for m in plain for p in m.parameters(recurse=False)}
    flattened = {
        part: m
        for m in modules.values()
        for name in FLATTENED.get(type(m).__name__, ())
        for part in m.get_submodule(name).modules()
    }
    layers = []
    for name, module in modules.items():
        own = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if module not in plain:
            own = {key: p for key, p in own.items() if p not in shared}
        if own:
            layers.append(Layer(name, module, own, flattened.get(module)))
    return layers


def is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear


class Record:
    """What a forward pass and the backward pass after it show of `size` examples.

    gradients: of each parameter [examples, *shape]; with `ghost` not of the weights of linear layers and embeddings, whose squared
    norms [examples] are in `squared`. uses: how many layers used a parameter. output: the model's last one. The first dimension of
    what a layer reads must be the examples'.

    Raises RuntimeError where what is seen is not each example's gradient, and ValueError for half precision with `ghost`.
    """

    def __init__(self, size: int, ghost: bool) -> None:
        self.size, self.ghost = size, ghost
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.squared: dict[nn.Parameter, Tensor] = {}
        self.uses: Counter[nn.Parameter] = Counter()
        self.output: object = None
        self._received: Counter[nn.Parameter] = Counter()
        self._products: dict[nn.Parameter, list[Products]] = defaultdict(list)
        self._ends, self._handles, self._texts = [], [], {}

    @contextmanager
    def watching(self, model: nn.Module, layers: Iterable[Layer]) -> Iterator[None]:
        """Every forward pass of the model inside is seen; outside, the model is as it was."""
        handles = [model.register_forward_hook(self._keep_output)]
        for outer in {layer.flattened_by for layer in layers} - {None}:
            handles.append(outer.register_forward_pre_hook(self._keep_shape, with_kwargs=True))
        for layer in layers:

            def see(module, arguments, named, output, layer=layer):
                self._see(layer, [*arguments, *named.values()], output)

            handles.append(layer.module.register_forward_hook(see, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def backward(self, losses: Tensor, *outputs: Tensor) -> list[Tensor]:
        """Fill `gradients` and `squared`; return the gradients of the sum of the losses by `outputs`, whose graph is then kept.

        It ends at the first layers that are trained, and no gradient of a whole batch is taken of a parameter.
        """
        edges = [*outputs, *(edge for edge, _ in self._ends)]
        found = torch.autograd.grad(losses.sum(), edges, retain_graph=bool(outputs), allow_unused=True)
        for (_, receive), gradient in zip(self._ends, found[len(outputs) :], strict=True):
            if gradient is not None:
                receive(gradient)
        for handle in self._handles:
            handle.remove()
        del self._handles[:], self._ends[:]  # they hold what the layers read
        if self._received != self.uses or self._products:
            raise RuntimeError(
                "a layer's output is not what the losses depend on: freeze layers that are run in vain"
            )
        return list(found[: len(outputs)])

    def squared_norms(self) -> Tensor:
        """Of each example's gradient over all parameters: float64 [examples]."""
        small = (
            torch.linalg.vector_norm(g.flatten(1), dim=1).double().square() for g in self.gradients.values()
        )
        return sum([*small, *(squared.double() for squared in self.squared.values())])

    def _keep_output(self, _module, _arguments, output) -> None:
        self.output = output

    def _keep_shape(self, module, arguments, named) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        self._texts[module] = hidden.shape[:2]

    def _see(self, layer: Layer, inputs: list, output: object) -> None:
        """The layer ran: have the gradient of its output when it comes."""
        if not torch.is_grad_enabled():
            return
        if isinstance(layer.module, nn.Embedding):
            # of a look-up, the rows that were read: a subclass may compute or scale them
            node = look_up(output, layer.module.weight)
            read, edge = node._saved_indices, GradientEdge(node, 0)
        else:
            if len(inputs) != 1 or not all(isinstance(x, Tensor) for x in (*inputs, output)):
                raise RuntimeError(f"{layer.title} does more than map one tensor to one: freeze it")
            read, edge = inputs[0], get_gradient_edge(output)
        if self.ghost and output.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{layer.title} computes in {output.dtype}, in which a sum of clipped gradients is rounded by more than one example's "
                "share: set clipping to hooks, or compute to float32"
            )
        texts = self._texts.get(layer.flattened_by) if read.dim() == 2 else None
        self._check_examples(layer, texts[0] if texts else len(read))
        self.uses.update(layer.parameters.values())
        detached, version = read.detach(), read._version

        def receive(gradient: Tensor) -> None:
            if detached._version != version:
                raise RuntimeError(f"the input of {layer.title} was overwritten: give the layer a copy")
            pair = detached, gradient.detach()
            self._add(layer, *(x.unflatten(0, texts) for x in pair) if texts else pair)

        if read.requires_grad:
            self._handles.append(output.register_hook(receive))
        else:
            self._ends.append((edge, receive))

    def _check_examples(self, layer: Layer, rows: int) -> None:
        if rows != self.size:
            raise RuntimeError(
                f"{layer.title} has {rows} rows for {self.size} examples, so that rows would be clipped and not examples: this model needs "
                "a patch before DP-SGD is private on it"
            )

    def _add(self, layer: Layer, read: Tensor, gradient: Tensor) -> None:
        """read and gradient [examples, ..., width]: what the layer read, and the gradient of what it gave."""
        module, shares = layer.module, {}
        if isinstance(module, nn.Embedding):
            if module.padding_idx is not None:  # the one row that autograd leaves as it is
                gradient = gradient.masked_fill((read == module.padding_idx)[..., None], 0.0)
            self._add_products(module.weight, Products(read.reshape(self.size, -1), by_token(gradient)))
        elif is_linear(module):
            if "weight" in layer.parameters:
                self._add_products(module.weight, Products(by_token(gradient), by_token(read)))
            if "bias" in layer.parameters:
                shares[module.bias] = by_token(gradient).sum(1, dtype=module.bias.dtype)
        else:
            shares = run_again(layer, read, gradient)
        for p, share in shares.items():
            self.gradients[p] = self.gradients[p] + share if p in self.gradients else share
        self._received.update(layer.parameters.values())

    def _add_products(self, weight: nn.Parameter, products: Products) -> None:
        if not self.ghost:
            if weight not in self.gradients:
                self.gradients[weight] = weight.new_zeros(self.size, *weight.shape)
            products.add_to(self.gradients[weight])
            return
        self._products[weight].append(products)
        if len(self._products[weight]) == self.uses[weight]:
            self.squared[weight] = squared_norms(self._products.pop(weight))


def by_token(values: Tensor) -> Tensor:
    """[examples, ..., width] -> [examples, tokens, width]."""
    return values.reshape(len(values), -1, values.shape[-1])


def run_again(layer: Layer, inputs: Tensor, gradient: Tensor) -> dict[nn.Parameter, Tensor]:
    """Each example's gradients [examples, *shape] of any layer that maps one tensor to one, by running it on that example."""
    if inputs.is_floating_point():
        inputs = inputs.to(next(iter(layer.parameters.values())).dtype)

    def weighted(parameters: dict[str, Tensor], one: Tensor, weight: Tensor) -> Tensor:
        return (functional_call(layer.module, parameters, (one[None],)) * weight[None]).sum()

    values = {key: p.detach() for key, p in layer.parameters.items()}
    found = vmap(grad(weighted), in_dims=(None, 0, 0))(values, inputs, gradient)
    return {p: found[key] for key, p in layer.parameters.items()}


def look_up(output: Tensor, weight: Tensor) -> Node:
    """The operation behind an embedding's output that looks up rows of its weight."""
    known, rest = set(), [output.grad_fn]
    while rest:
        node = rest.pop()
        for below, _ in node.next_functions:
            if getattr(below, "variable", None) is weight and node.name().startswith("EmbeddingBackward"):
                return node
            if below is not None and below not in known:
                known.add(below)
                rest.append(below)
    raise RuntimeError(f"an embedding ({tuple(weight.shape)}) gives more than rows of its weight: freeze it")
