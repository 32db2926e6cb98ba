"""A model's forward pass as CUDA graphs: launched as one, where a step of many small kernels would wait for their launches.

A graph repeats what it saw: the shapes of its inputs, the addresses of weights and inputs, the way in which weights are read. So there is
one for each shape; inputs are copied to where it reads them; and it is used for the forward passes of steps alone, in which weights
are perturbed in one way. Where weights are and along what they are perturbed is data, which a graph reads anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

MOST = 64  # graphs that are kept; each is some megabytes, and takes as long as some steps to make

Captured = tuple[Sequence[Tensor], Tensor, Callable[[], object]]
"""Where the graph reads its inputs, where it leaves its output, and what runs it."""


class Graphed(nn.Module):
    """The model, called with tensors alone. Inputs on another device than CUDA, and shapes beyond the first MOST, go to it as it is.

    A loss pads its batches to few shapes, with examples whose outputs it does not read.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._graphs: dict[tuple, Captured] = {}
        self._pool = None

    def forward(self, *inputs: Tensor) -> Tensor:
        if not inputs[0].is_cuda:
            return self.model(*inputs)
        return self._replayed(inputs)

    def _replayed(self, inputs: Sequence[Tensor]) -> Tensor:
        device = inputs[0].device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = compute, tuple((tuple(x.shape), x.dtype) for x in inputs)
        if key not in self._graphs:
            if len(self._graphs) == MOST:
                return self.model(*inputs)
            self._graphs[key] = self._capture(inputs)
        places, output, replay = self._graphs[key]
        for place, x in zip(places, inputs, strict=True):
            place.copy_(x)
        replay()
        return output.clone()  # the graphs share their memory

    def _capture(self, inputs: Sequence[Tensor]) -> Captured:
        places = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # once outside: kernels are compiled, workspaces made
            self.model(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = self.model(*places)
        except RuntimeError as error:
            raise RuntimeError(
                f"this model's forward pass cannot be a CUDA graph ({str(error).splitlines()[0]}): set cuda_graphs to false"
            ) from error
        self._pool = self._pool or graph.pool()
        return places, output, graph.replay
