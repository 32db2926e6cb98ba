"""What a forward pass leaves in plain attributes of a model, or behind torch's back: constants may stay, nothing of the examples may."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from dpzero import Budget, DPZero
from dpzero.privacy import RunKey, Setting
from dpzero.zeroth_order.model_requirements import checksums

SIZE = 64
X = torch.randn(SIZE, 10, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Keeping(nn.Module):
    """Does something with its inputs beside what a layer does."""

    def __init__(self, keep: Callable[[Keeping, torch.Tensor], object]) -> None:
        super().__init__()
        self.inner, self.keep = nn.Linear(10, 2), keep
        self.code, self.table = nn.Parameter(torch.zeros(10), requires_grad=False), torch.zeros(10)
        self.cache, self.calls, self.log, self.named = None, 0, [], {}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.keep(self, inputs)
        return self.inner(inputs)


def loss(model: nn.Module, rows) -> torch.Tensor:
    return functional.cross_entropy(model(X[rows]), Y[rows], reduction="none")


def stepped(model: nn.Module, loss=loss, steps: int = 6) -> Budget:
    budget = Budget(
        Setting("gaussian", "poisson", "add_remove", SIZE, 16, 20, 1e-3), 2.0, RunKey.published(0)
    )
    me = DPZero(model, loss, budget, learning_rate=0.01, clip=10.0)
    for batch in itertools.islice(budget.batches(), steps):
        me.step(batch)
    return budget


def once(model: Keeping, inputs: torch.Tensor) -> None:
    """As layers do that are initialised by the first data."""
    if model.cache is None:
        model.cache = inputs.mean(0)


def late(model: Keeping, inputs: torch.Tensor) -> None:
    model.calls += 1
    if model.calls > 14:
        model.cache = inputs


PRIVATE = {
    "inputs": ("cache", lambda model, inputs: setattr(model, "cache", inputs)),
    "a new attribute": ("fresh", lambda model, inputs: setattr(model, "fresh", inputs)),
    "a list": ("log", lambda model, inputs: model.log.append(inputs)),
    "a dictionary": ("named", lambda model, inputs: model.named.update(mean=inputs.mean())),
    "in place": ("table", lambda model, inputs: model.table.copy_(inputs.mean(0))),
    "through .data": ("table", lambda model, inputs: model.table.data.copy_(inputs.mean(0))),
    "a number": ("mean", lambda model, inputs: setattr(model, "mean", inputs.mean().item())),
    "an array": ("cache", lambda model, inputs: setattr(model, "cache", inputs.numpy())),
    "an extreme": ("cache", lambda model, inputs: setattr(model, "cache", inputs.amax(0))),
    "once": ("cache", once),
    "late": ("cache", late),
}


@pytest.mark.parametrize("how", PRIVATE)
def test_an_attribute_that_keeps_something_of_the_examples_is_refused(how):
    name, keep = PRIVATE[how]
    model = Keeping(keep)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    with pytest.raises(
        ValueError, match=f"attribute {name} of the model was changed by a forward pass and depends on"
    ):
        stepped(model)
    if how != "late":  # then it is found in the next step
        assert not model.table.any() and model.cache is None and not model.log and not model.named
        assert not hasattr(model, "fresh") and not hasattr(model, "mean")  # it is put back
        end = nn.utils.parameters_to_vector(model.parameters()).detach()
        assert torch.allclose(start, end, atol=1e-6)


def test_a_hook_that_keeps_activations_is_refused():
    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, inputs, out: setattr(module, "seen", out))
    with pytest.raises(ValueError, match=re.escape("attribute 0.seen of the model was changed")):
        stepped(model)


@pytest.mark.parametrize("write", [lambda p, x: p.copy_(x.mean(0)), lambda p, x: p.fill_(float(x.mean()))])
def test_a_frozen_parameter_that_is_written_behind_torchs_back_is_refused(write):
    with pytest.raises(ValueError, match="parameter or buffer code was changed by a forward pass"):
        stepped(Keeping(lambda model, inputs: write(model.code.data, inputs)))


def table_of_positions(model: Keeping, inputs: torch.Tensor) -> None:
    if model.cache is None or len(model.cache) < len(inputs):
        model.cache = torch.arange(len(inputs)).float()


CONSTANT = {
    "a table that grows": table_of_positions,
    "a table at each pass": lambda model, inputs: setattr(model, "cache", torch.zeros(len(inputs))),
    "a function of weights": lambda model, inputs: setattr(model, "cache", model.inner.weight.norm()),
    "calls": lambda model, inputs: setattr(model, "calls", model.calls + 1),
    "shapes": lambda model, inputs: setattr(model, "shape", inputs.shape),
    "nothing": lambda model, inputs: None,
}


@pytest.mark.parametrize("how", CONSTANT)
def test_attributes_that_depend_on_shapes_and_weights_alone_are_allowed(how):
    assert len(stepped(Keeping(CONSTANT[how])).ledger) == 6


def test_weights_that_are_made_in_each_pass_may_stay():
    """Of torch's own: pruning keeps its product in a plain attribute."""
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 2))
    prune.random_unstructured(model[0], "weight", amount=0.5)
    assert len(stepped(model).ledger) == 6


def test_what_a_user_sets_between_steps_stays():
    model = Keeping(CONSTANT["nothing"])
    budget = Budget(
        Setting("gaussian", "poisson", "add_remove", SIZE, 16, 20, 1e-3), 2.0, RunKey.published(0)
    )
    me = DPZero(model, loss, budget, learning_rate=0.01, clip=10.0)
    for number, batch in zip(range(4), budget.batches(), strict=False):
        model.table = torch.full((10,), float(number))
        model.added = torch.ones(number + 1)
        me.step(batch)
    assert model.table[0] == 3 and len(model.added) == 4


def test_checksums_cover_each_byte_of_a_tensor():
    tensor = torch.zeros(3, 70_001, dtype=torch.bfloat16)
    for view in (tensor, tensor.T, tensor[:, ::2]):
        before = checksums([view])
        view[1, 2] = 2.0**-40
        assert checksums([view]) != before
    assert checksums([torch.zeros(()), torch.zeros(0)]) == checksums([torch.zeros(()), torch.zeros(0)])


TEXTS = [np.random.default_rng(i).integers(3, 200, 4 + i % 20) for i in range(SIZE)]


def of_texts(model: nn.Module, rows) -> torch.Tensor:
    """An ordinary user's: padded to the longest, at the last token."""
    texts = [torch.from_numpy(TEXTS[row]) for row in rows]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
    mask = (ids != 1).long()
    out = model(input_ids=ids, attention_mask=mask)[0]
    logits = out if out.dim() == 2 else out[torch.arange(len(ids)), mask.sum(1) - 1]
    return functional.cross_entropy(logits[:, :2].float(), Y[rows], reduction="none")


def in_bfloat16(model: nn.Module, rows) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return of_texts(model, rows)


def of_config(name: str) -> nn.Module:
    import transformers as hf

    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = sizes | {"intermediate_size": 64, "max_position_embeddings": 66}
    torch.manual_seed(0)
    if name == "opt":
        own = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
        return hf.OPTForCausalLM(hf.OPTConfig(**sizes | own)).eval()
    if name == "roberta":
        return hf.RobertaForSequenceClassification(hf.RobertaConfig(**common)).eval()
    if name == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=4, n_positions=64)
        ).eval()
    return hf.LlamaForCausalLM(hf.LlamaConfig(**common, num_key_value_heads=2)).eval()


@pytest.mark.parametrize("loss", [of_texts, in_bfloat16])
@pytest.mark.parametrize("name", ["opt", "roberta", "gpt2", "llama"])
def test_common_models_pass(name, loss):
    assert len(stepped(of_config(name), loss, 2).ledger) == 2
