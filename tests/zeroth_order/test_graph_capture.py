"""Forward passes as CUDA graphs. Without a GPU the book-keeping is tested with a capture that runs the model again on the same places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.mezo import MeZO
from dpzero.language.models import architectures
from dpzero.language.models.losses import CrossEntropy
from dpzero.studies.benchmark import batch_of
from dpzero.zeroth_order import graph_capture
from dpzero.zeroth_order.graph_capture import Graphed

CONFIG = {
    "model_type": "roberta", "vocab_size": 30_000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 140, "intermediate_size": 64,
}  # fmt: skip


class Again(Graphed):
    """Replays by running the model on what stands at the captured places, into the captured output."""

    captures = 0

    def forward(self, *inputs):
        return self._replayed(inputs)

    def _capture(self, inputs):
        self.captures += 1
        places = [x.clone() for x in inputs]
        output = self.model(*places)
        return places, output, lambda: output.copy_(self.model(*places))


@pytest.fixture
def model(monkeypatch) -> nn.Module:
    monkeypatch.setitem(architectures.catalogue(), "small", CONFIG)
    return architectures.build("small")


def mezo(model: nn.Module, device: str = "cpu", **settings) -> MeZO:
    loss = CrossEntropy(300)
    return MeZO(model.to(device), loss, 12, learning_rate=1e-3, smoothing=1e-2, seed=3, **settings)


@torch.no_grad()
def test_each_shape_is_captured_once_and_reads_its_inputs_and_weights_anew():
    layer = nn.Linear(3, 2)
    graphed, kept = Again(layer), []
    for rows in (4, 2, 4, 2, 4):
        x = torch.randn(rows, 3)
        layer.weight += 0.1
        out = graphed(x)
        assert torch.equal(out, layer(x))
        kept.append((out, out.clone()))
    assert graphed.captures == 2
    assert all(torch.equal(out, copy) for out, copy in kept)  # an output is not overwritten by the next call


@torch.no_grad()
def test_the_type_of_the_products_is_part_of_the_shape():
    graphed, x = Again(nn.Linear(3, 2)), torch.randn(4, 3)
    graphed(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert graphed(x).dtype == torch.bfloat16
    assert graphed(x).dtype == torch.float32 and graphed.captures == 2


@torch.no_grad()
def test_beyond_so_many_shapes_the_model_is_called_as_it_is(monkeypatch):
    monkeypatch.setattr(graph_capture, "MOST", 2)
    layer = nn.Linear(3, 2)
    graphed = Again(layer)
    for rows in (1, 2, 3, 4):
        x = torch.randn(rows, 3)
        assert torch.equal(graphed(x), layer(x))
    assert graphed.captures == 2


def test_without_a_gpu_steps_are_those_without_graphs(model):
    found = []
    for cuda_graphs in (False, True):
        me = mezo(architectures.build("small"), cuda_graphs=cuda_graphs)
        found.append([me.step(batch_of(12, "short", seed)) for seed in range(3)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "settings", [{"perturb": "on_read"}, {"perturb": "both_signs"}, {"direction_law": "low_rank"}], ids=str
)
def test_ways_that_a_graph_would_not_read_anew_are_refused(model, settings):
    with pytest.raises(ValueError, match="perturbed in_place, by a law that is not low_rank"):
        mezo(model, cuda_graphs=True, **settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs are CUDA's")
@pytest.mark.parametrize("law", ["gaussian", "sphere", "rademacher"])
def test_on_a_gpu_steps_are_those_without_graphs(model, law):
    """Embedding rows are perturbed inside the graph, along each step's own direction."""
    found = []
    for cuda_graphs in (False, True):
        me = mezo(architectures.build("small"), "cuda", cuda_graphs=cuda_graphs, direction_law=law)
        found.append(torch.tensor([me.step(batch_of(12, "short", seed)) for seed in range(6)]))
    # losses of about .7 in float32 over 2e-2
    assert torch.allclose(*found, rtol=0, atol=1e-4) and found[0].abs().min() > 1e-3
