"""The side network of DP-MemArc (Liu et al., 2024, arXiv 2406.11087): a narrow ladder beside a frozen model.

The abstract and summaries of that paper were read, and no public code was found: a trainable branch reads compressed
activations of the frozen model, which no gradient passes. The construction is that of ladder side tuning (Sung et al.,
2022, arXiv 2206.06522; ylsung/Ladder-Side-Tuning): rung i mixes the branch with the compressed output h_i of layer i,
s <- g s + (1 - g) compress(h_i) with a gate g = sigmoid(a_i / 0.1) that starts at 1/2, and a block of the branch's width
follows. The model's width over the branch's is `reduction`, by default LST's 8.

Unknown of DP-MemArc, and chosen here: the blocks are adapters, which work token by token and so add no keys and values
to generation and need no mask (LST's are transformer layers); the branch is added to the model's last hidden states by a layer that
starts at 0, so that training starts from the model; and `compression`, which is LST's trained projection, or the mean
over neighbouring coordinates, which LST's code has, too, and which keeps no activation of the model's width. The paper
clips by BK-MixOpt, which takes per-sample gradients or ghost norms by layer; here that is `clipping: book_keeping`, and the
other ways are there, too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from .frozen_layers import layers_of

COMPRESSIONS = ("linear", "pool")
TEMPERATURE = 0.1  # of the gates, as in LST


class Adapter(nn.Module):
    """[..., width] -> [..., out]: normalise, project to `inner`, ReLU, project. With `zero` its output starts at 0.

    The normalisation has no parameters. Without it the few large coordinates of hidden states decide alone.
    """

    def __init__(self, width: int, inner: int, out: int, zero: bool = True) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, out)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        normal = nn.functional.layer_norm(hidden, hidden.shape[-1:])
        result: Tensor = self.up(nn.functional.relu(self.down(normal)))
        return result


class Pool(nn.Module):
    """[B, L, width] -> [B, L, out]: means over neighbouring coordinates, without parameters."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.out = out

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool1d(hidden, self.out)


class Rung(nn.Module):
    """Mixes the branch [B, L, narrow] with hidden states [B, L, width], and runs its block.

    The gate is a table of one row that every text looks up, which per-sample gradients support.
    """

    def __init__(self, width: int, narrow: int, compression: str, first: bool) -> None:
        super().__init__()
        self.compress = Pool(narrow) if compression == "pool" else nn.Linear(width, narrow)
        self.gate = None if first else nn.Embedding(1, 1, _weight=torch.zeros(1, 1))
        self.block = Adapter(narrow, narrow, narrow, zero=False)

    def forward(self, branch: Tensor | None, hidden: Tensor) -> Tensor:
        mixed: Tensor = self.compress(hidden)
        if branch is not None and self.gate is not None:
            row = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
            mixed = torch.lerp(mixed, branch, torch.sigmoid(self.gate(row) / TEMPERATURE))
        return mixed + self.block(mixed)


class SideNetwork(nn.Module):
    """One rung for the embeddings and one for each layer, climbed while the frozen model runs."""

    def __init__(self, layers: int, width: int, narrow: int, out: int, compression: str) -> None:
        super().__init__()
        rungs = [Rung(width, narrow, compression, first=not i) for i in range(layers + 1)]
        self.rungs = nn.ModuleList(rungs)
        self.output = Adapter(narrow, narrow, out)
        self.branch: Tensor | None = None  # of the forward pass under way

    def start(self, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A hook before the first layer."""
        hidden = arguments[0] if arguments else named["hidden_states"]
        self.branch = self.rungs[0](None, hidden)

    def climb(self, number: int, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """A hook after layer number - 1."""
        hidden = output if isinstance(output, Tensor) else output[0]
        self.branch = self.rungs[number](self.branch, hidden)

    def finish(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        """A hook after the model."""
        branch, self.branch = self.branch, None
        output.last_hidden_state = output.last_hidden_state + self.output(branch)
        return output


def attach(backbone: Any, *, reduction: int = 8, compression: str = "linear") -> None:
    """Give a frozen model its side network, whose start is drawn from torch's generator.

    Args:
        backbone: from transformers, with or without its output layer.
        reduction: the model's width over that of the side network.
        compression: linear or pool.
    """
    if compression not in COMPRESSIONS:
        raise UsageError(f"compression is {compression!r}: give one of {', '.join(COMPRESSIONS)}")
    base, layers = backbone.base_model, layers_of(backbone)
    weight = base.get_input_embeddings().weight  # as wide as the last hidden states
    width = base.config.hidden_size
    narrow = max(1, width // reduction)
    with weight.device:
        side = SideNetwork(len(layers), width, narrow, weight.shape[1], compression)
    base.side = side.to(weight.dtype)
    layers[0].register_forward_pre_hook(side.start, with_kwargs=True)
    for number, layer in enumerate(layers, 1):
        layer.register_forward_hook(partial(side.climb, number))
    base.register_forward_hook(side.finish)
