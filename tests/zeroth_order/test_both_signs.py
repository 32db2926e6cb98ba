"""Both points of a two-point step in one batch: the same scalars as one point after the other, and half the calls of the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from baselines.dp_aggzo import DPAggZO
from baselines.mezo import MeZO
from dpzero.language.models import architectures
from dpzero.language.models.losses import CrossEntropy
from dpzero.privacy import Rehearsal, RunKey, Setting
from dpzero.studies.benchmark import batch_of
from dpzero.zeroth_order import perturb_on_read
from dpzero.zeroth_order.directions import LAWS

SMALL = {"vocab_size": 30_000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "roberta": {"max_position_embeddings": 140, "intermediate_size": 64},
    "opt": {"max_position_embeddings": 140, "word_embed_proj_dim": 32, "ffn_dim": 64},
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64},
}


@pytest.fixture(params=FAMILIES)
def model(request, monkeypatch) -> nn.Module:
    config = {"model_type": request.param} | SMALL | FAMILIES[request.param]
    monkeypatch.setitem(architectures.catalogue(), "small", config)
    return architectures.build("small")


def engine(perturb: str, law: str) -> dict:
    rank = {"direction_rank": 2} if law == "low_rank" else {}
    return {"seed": 3, "smoothing": 1e-2, "perturb": perturb, "direction_law": law} | rank


def mezo(model: nn.Module, perturb: str, law: str = "gaussian", loss=None) -> MeZO:
    return MeZO(model, loss or CrossEntropy(300), 12, learning_rate=1e-3, **engine(perturb, law))


@torch.no_grad()
def sides(me: MeZO, batch) -> torch.Tensor:
    return torch.stack(me._both_sides(batch, len(batch)))


@pytest.mark.parametrize("law", LAWS)
def test_the_losses_of_either_point_are_those_of_one_after_the_other(model, law):
    """Whatever the model's family: rows keep their order through micro-batches by length."""
    batch, found = batch_of(12, "short"), {}
    for perturb in ("on_read", "both_signs"):
        found[perturb] = sides(mezo(model, perturb, law), batch)
    # a loss of about .7 in float32: its rounding, however the products are summed
    assert torch.allclose(found["both_signs"], found["on_read"], rtol=0, atol=2e-6)
    assert (found["both_signs"][0] - found["both_signs"][1]).abs().min() > 2e-6


def test_weights_stay_at_x_to_the_bit_and_move_by_the_scalars(model):
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    me = mezo(model, "both_signs")
    sides(me, batch_of(12, "short"))
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())
    scalar = me.step(batch_of(12, "short"))
    expected = [start[name] for name, p in model.named_parameters() if p.requires_grad]
    me.law.add_(expected, 0, -1e-3 * scalar)
    for j, row in me.passes.still.items():  # RoBERTa's padding
        expected[j][row] = me.parameters[j][row]
    assert all(torch.equal(p, x) for p, x in zip(me.parameters, expected, strict=True))


def test_the_model_is_called_once_for_both(model):
    batch, found = batch_of(12, "20"), {}
    for perturb in ("on_read", "both_signs"):
        me, calls = mezo(model, perturb, loss=CrossEntropy(10_000)), []
        me.step(batch)  # shapes are tried
        with model.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(len(args[0]))):
            me.step(batch)
        found[perturb] = calls
    assert found == {"on_read": [8, 4, 8, 4], "both_signs": [16, 8]}


def test_several_directions_take_as_many_pairs(model):
    setting, found = Setting("gaussian", "poisson", "add_remove", 50, 12, 100, 1e-3), []
    for perturb in ("on_read", "both_signs"):
        budget = Rehearsal(setting, 1e-12, RunKey.published(0))  # noise that does not count
        twin = architectures.build("small")
        me = DPAggZO(
            twin, CrossEntropy(300), budget, clip=1e4, directions=3, learning_rate=1e-3, **engine(perturb, "gaussian")
        )  # fmt: skip
        me.step(batch_of(12, "short"))
        found.append(torch.cat([p.detach().flatten() for p in me.parameters]))
    # scalars of order 1, each a difference of losses over 2e-2 times a rate of 1e-3
    assert torch.allclose(*found, rtol=0, atol=1e-6)


def test_a_matrix_too_large_to_be_copied_is_applied_in_slices(model, monkeypatch):
    whole = sides(mezo(model, "both_signs"), batch_of(12, "short"))
    monkeypatch.setattr(perturb_on_read, "LARGEST_COPY", 5 * 32)
    sliced = sides(mezo(model, "both_signs"), batch_of(12, "short"))
    assert torch.allclose(sliced, whole, rtol=0, atol=2e-6)


def test_an_empty_batch_asks_nothing_of_the_model(model):
    model.register_forward_pre_hook(lambda module, args: pytest.fail("called"))
    assert mezo(model, "both_signs").step(batch_of(12, "short")[[]]) == 0.0


# Refusals ------------------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """[B, L] words -> [B, 2]; `middle` reads a weight in its own way."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.table, self.out, self.own = (
            nn.Embedding(30_000, 8),
            nn.Linear(8, 2),
            nn.Parameter(torch.randn(8, 8)),
        )
        self.middle = middle

    def forward(self, ids, mask):
        return self.out(self.middle(self.table(ids), self.own).mean(1))


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda x, w: x @ w.T, "both_signs does not know __get__ on a weight: perturb on_read"),
        (lambda x, w: torch.einsum("blw,wv->blv", x, w), "both_signs does not know einsum on a weight"),
        (
            lambda x, w: functional.linear(x.transpose(0, 1), w).transpose(0, 1),
            "linear reads a weight with a tensor of shape .*, which does not begin with the 16 rows of both signs: perturb on_read",
        ),
    ],
)
def test_a_model_that_reads_weights_apart_from_examples_is_refused(middle, message):
    batch = batch_of(7, "20")
    with pytest.raises(ValueError, match=message):
        mezo(Words(middle), "both_signs", loss=CrossEntropy(10_000)).step(batch)
    mezo(Words(middle), "on_read", loss=CrossEntropy(10_000)).step(batch)


def test_a_loss_of_one_point_at_a_time_is_refused(model):
    def loss(model, batch):
        return CrossEntropy(300)(model, batch)

    with pytest.raises(ValueError, match="this has no both_sides: perturb on_read"):
        mezo(model, "both_signs", loss=loss)
