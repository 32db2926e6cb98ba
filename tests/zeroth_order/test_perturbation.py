"""Wherever a weight is perturbed, in place or where it is read, the model computes at x + scale z, and x moves by the plain formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from baselines.dp_aggzo import DPAggZO
from baselines.mezo import MeZO
from dpzero.privacy import RunKey, Setting, StandInBudget
from dpzero.zeroth_order import dispatch
from dpzero.zeroth_order import perturbation as module_of_perturbation
from dpzero.zeroth_order.directions import LAWS, Move, make_law
from dpzero.zeroth_order.model_requirements import trainable
from dpzero.zeroth_order.perturbation import PERTURB, Perturbation, numbers_on_read
from tests.all_pairs import pairwise

WORDS, WIDTH, LENGTH = 23, 8, 6
SMOOTHING = 1e-3
ALL = [(name, 1) for name in LAWS] + [("low_rank", 2)]

every_law = pytest.mark.parametrize("law", ALL, ids=lambda law: f"{law[0]}-{law[1]}")
either_way = pytest.mark.parametrize("perturb", PERTURB)


class Small(nn.Module):
    """A transformer's layers, and parameters that are used in other ways than by layers: [B, LENGTH] words -> [B, WORDS]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.transposed = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.mixed = nn.Parameter(torch.randn(2, WIDTH, WIDTH))
        self.left, self.right = (
            nn.Parameter(torch.randn(WIDTH, 3)),
            nn.Parameter(torch.randn(WIDTH, WIDTH - 3)),
        )
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.embedding.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words) + self.positions.weight[: words.shape[1]]
        x = x + self.attention(self.norm(x), self.norm(x), x, need_weights=False)[0]
        x = x + self.down(functional.gelu(self.up(x))) * self.scale
        x = x + x.transpose(0, 1).contiguous().transpose(0, 1) @ self.transposed.T
        x = x + torch.einsum("blw,hwv->blv", x, self.mixed) + x @ torch.cat([self.left, self.right], dim=1)
        x = x / x.norm(dim=-1, keepdim=True) + self.embedding(words.flip(1))  # a table that is read twice
        return self.head(self.up(x[:, -1])[:, :WIDTH])


def small(dtype=torch.float32) -> Small:
    torch.manual_seed(0)
    return Small().to(dtype).eval()


BATCH = torch.randint(0, WORDS, (5, LENGTH + 1), generator=torch.Generator().manual_seed(1))
BATCH[0, :3] = 0  # padding


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(batch[:, :-1]), batch[:, -1], reduction="none")


def method(model: nn.Module, directions: int, **engine):
    settings = {"learning_rate": 1e-3, "smoothing": SMOOTHING, "seed": 5} | engine
    if directions == 1:
        return MeZO(model, loss, len(BATCH), **settings)
    setting = Setting("gaussian", "poisson", "add_remove", 50, len(BATCH), 100, 1e-3)
    budget = StandInBudget(
        setting, 1e-12, RunKey.published(0)
    )  # noise that does not count, a clip that clips nothing
    return DPAggZO(model, loss, budget, clip=1e4, directions=directions, **settings)


def read_of(model: nn.Module, law, perturb: str) -> Perturbation:
    parameters = trainable(model.parameters())
    return Perturbation(parameters, law, numbers_on_read(model, parameters, perturb))


def written_out(law, parameters, step: int, direction: int) -> list[torch.Tensor]:
    z = [torch.zeros_like(p) for p in parameters]
    law.add_(z, step, 1.0, direction)
    return z


def at(model: nn.Module, moved) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p, value in zip(trainable(twin.parameters()), moved, strict=True):
            p.copy_(value)
    return twin


# The plain formula -----------------------------------------------------------------------------------------------------


@pairwise("law, perturb, directions, dtype", ALL, PERTURB, [1, 3], [torch.float32, torch.float64])
def test_twenty_steps_are_the_plain_formula_with_the_weights_written_out(law, perturb, directions, dtype):
    model = small(dtype)
    me = method(model, directions, direction_law=law[0], direction_rank=law[1], perturb=perturb)
    same = make_law(law[0], 5, law[1])
    x = [p.detach().clone() for p in me.parameters]
    # a loss of about 3 carries 3e-7 in float32, the finite difference 1000 times as much
    gradient_tolerance, tolerance = (3e-3, 3e-5) if dtype == torch.float32 else (1e-6, 1e-7)
    for step in range(20):
        z = [written_out(same, x, step, k) for k in range(directions)]
        expected = []
        for z_k in z:
            with torch.no_grad():
                plus, minus = (
                    loss(at(model, [a + h * b for a, b in zip(x, z_k, strict=True)]), BATCH).double()
                    for h in (SMOOTHING, -SMOOTHING)
                )
            expected.append((plus - minus).mean().item() / (2 * SMOOTHING) / directions)
        gradients = me.step(BATCH)
        gradients = gradients if directions > 1 else [gradients]
        assert gradients == pytest.approx(expected, rel=gradient_tolerance, abs=gradient_tolerance)
        for gradient, z_k in zip(gradients, z, strict=True):
            x = [a - 1e-3 * gradient * b for a, b in zip(x, z_k, strict=True)]
        for mine, theirs in zip(me.parameters, x, strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=tolerance)
    assert max(abs(g) for g in expected) > 0.01  # it did move


@every_law
@either_way
def test_inside_the_model_computes_at_the_moved_point(law, perturb):
    model = small(torch.float64)
    mine = make_law(law[0], 2, law[1])
    perturbation = read_of(model, mine, perturb)
    x = [p.detach().clone() for p in trainable(model.parameters())]
    with torch.no_grad():
        for direction, scale in ((0, 0.1), (1, -0.3), (1, 0.2)):
            z = written_out(mine, x, 4, direction)
            expected = at(model, [a + scale * b for a, b in zip(x, z, strict=True)])(BATCH[:, :-1])
            with perturbation.perturbed(4, direction, scale):
                assert torch.allclose(model(BATCH[:, :-1]), expected, rtol=1e-5, atol=1e-6)
        perturbation.plan_point(4, 1, 0.0)
        perturbation.apply()
    for p, origin in zip(trainable(model.parameters()), x, strict=True):
        assert torch.allclose(p, origin, rtol=0, atol=1e-12)


@pytest.mark.parametrize("law", ["gaussian", "sphere", "rademacher"])
def test_a_matrix_too_large_to_be_copied_is_applied_in_slices(law, monkeypatch):
    model = small(torch.float64)
    perturbation, outs = read_of(model, make_law(law, 0), "on_read"), []
    for largest in (2**24, 5 * WIDTH):
        monkeypatch.setattr(module_of_perturbation, "LARGEST_COPY", largest)
        with perturbation.perturbed(0, 0, 0.1), torch.no_grad():
            outs.append(model(BATCH[:, :-1]))
    assert torch.allclose(*outs, rtol=1e-9)


# What is read stays where it is ------------------------------------------------------------------------------------------


def test_in_place_only_embedding_tables_are_perturbed_on_read():
    model = small()
    names = {id(p): name for name, p in model.named_parameters()}
    read = read_of(model, make_law("gaussian", 0), "in_place").on_read
    assert {names[id(p)] for p in read.values()} == {"embedding.weight", "positions.weight"}
    assert len(read_of(model, make_law("gaussian", 0), "on_read").on_read) == len(names)
    with pytest.raises(ValueError, match="perturb is 'never': give one of in_place, on_read"):
        read_of(model, make_law("gaussian", 0), "never")


@every_law
def test_on_read_the_weights_are_at_x_to_the_bit_during_and_after_the_passes(law):
    model = small()
    perturbation = read_of(model, make_law(law[0], 0, law[1]), "on_read")
    same_storage = [p.detach() for p in model.parameters()]
    x = [p.clone() for p in same_storage]
    plain = model(BATCH[:, :-1])
    for step in range(3):
        for scale in (0.5, -0.5):
            with perturbation.perturbed(step, 0, scale), torch.no_grad():
                assert not torch.allclose(model(BATCH[:, :-1]), plain, atol=0.01)
                assert all(torch.equal(a, b) for a, b in zip(same_storage, x, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(same_storage, x, strict=True))
    assert torch.equal(model(BATCH[:, :-1]), plain)


@pytest.mark.parametrize("law", ["gaussian", "low_rank"])
def test_only_the_rows_in_the_batch_are_perturbed_and_all_are_updated(law):
    model = small()
    me = method(model, 1, direction_law=law)
    before = model.embedding.weight.detach().clone()
    me.step(BATCH)
    assert (model.embedding.weight != before).any(1).all()


@pairwise("law, perturb, directions, call", ALL, PERTURB, [1, 3], [1, 2, "last"])
def test_a_failing_loss_leaves_the_weights_where_they_were(law, perturb, directions, call):
    model, calls = small(), []
    last = 2 * directions if call == "last" else call
    start = [p.detach().clone() for p in model.parameters()]

    def failing(model, batch):
        calls.append(1)
        if len(calls) == last:
            raise RuntimeError("out of memory")
        return loss(model, batch)

    me = method(model, directions, direction_law=law[0], direction_rank=law[1], perturb=perturb)
    me.loss = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        me.step(BATCH)
    for p, origin in zip(model.parameters(), start, strict=True):
        assert (
            torch.equal(p, origin) if perturb == "on_read" else torch.allclose(p, origin, rtol=0, atol=1e-6)
        )
    twin = small()
    other = method(twin, directions, direction_law=law[0], direction_rank=law[1], perturb=perturb)
    assert me.step(BATCH) == pytest.approx(
        other.step(BATCH), abs=3e-3
    )  # and it goes on as if nothing had been
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-5)


@every_law
@either_way
def test_frozen_parameters_are_neither_read_nor_written(law, perturb):
    model = small()
    frozen = [model.embedding.weight, model.up.weight, model.norm.bias]
    for p in frozen:
        p.requires_grad_(False)
    start = [p.clone() for p in frozen]
    me = method(model, 1, direction_law=law[0], direction_rank=law[1], perturb=perturb)
    held = {id(p) for p in [*me.perturbation.on_read.values(), *me.perturbation.in_place.values()]}
    assert not held & {id(p) for p in frozen}
    with me.perturbation.perturbed(0, 0, 0.1), torch.no_grad():
        assert torch.equal(model.embedding(BATCH), functional.embedding(BATCH, start[0]))
        assert torch.equal(model.norm.bias + 0, start[2])
    me.perturbation.plan_point(0, 0, 0.0)
    me.step(BATCH)
    assert all(torch.equal(p, origin) for p, origin in zip(frozen, start, strict=True))


@either_way
@pytest.mark.parametrize("law", LAWS)
def test_a_tied_table_and_head_move_as_one(law, perturb):
    """Both see the same numbers at a time, and one update."""
    model = small()
    me = method(model, 1, direction_law=law, perturb=perturb)
    assert sum(p is model.embedding.weight for p in me.parameters) == 1
    with me.perturbation.perturbed(0, 0, 0.5), torch.no_grad():
        rows = model.embedding(torch.arange(WORDS))
        head = functional.linear(torch.eye(WIDTH), model.head.weight).T
    assert torch.allclose(rows, head, atol=1e-6) and not torch.allclose(
        rows, model.embedding.weight, atol=0.1
    )


def test_a_table_that_rescales_its_rows_is_refused():
    """It would write to the weights what the batch asks for, without noise."""
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"layer 0 has max_norm, which rewrites the rows .* make it without"):
        method(model, 1)


def compiled(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("opaque", "what"),
    [(compiled, "compiled"), (torch.jit.script, "TorchScript"), (nn.DataParallel, "DataParallel")],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_models_whose_reads_are_hidden_are_perturbed_in_place(opaque, what):
    model = opaque(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)))
    assert method(model, 1).perturbation.on_read == {}
    with pytest.raises(
        ValueError, match=f"is {what}, whose reads of weights cannot be seen: perturb in_place"
    ):
        method(model, 1, perturb="on_read")


@every_law
def test_a_padding_row_that_is_not_fixed_moves_like_the_others(law):
    """As where another module holds the table, too: a tied output layer."""
    table, words = nn.Embedding(9, 4, padding_idx=0), torch.tensor([0, 0, 3])
    mine = make_law(law[0], 0, law[1])
    [z] = written_out(mine, [table.weight.detach()], 0, 0)
    with read_of(table, mine, "in_place").perturbed(0, 0, 0.25), torch.no_grad():
        rows = table(words)
    assert torch.allclose(rows, (table.weight + 0.25 * z)[words], rtol=0, atol=1e-6)


@every_law
def test_questions_about_a_weight_are_answered_and_its_numbers_are_the_moved_ones(law):
    w = nn.Parameter(torch.randn(4, 3))
    mine = make_law(law[0], 0, law[1])
    moved = mine.fit([w]).perturbed_copy(w, 0, Move(0, 0, (0.5,)))
    with Perturbation([w], mine, [0]).perturbed(0, 0, 0.5), torch.no_grad():
        assert w.shape == w.size() == (4, 3) and w.size(1) == 3 and len(w) == 4
        assert w.dtype == torch.float32 and w.device.type == "cpu" and w.requires_grad and w.grad is None
        assert w.dim() == w.ndim == 2 and w.numel() == 12 and w.is_contiguous() and w.is_floating_point()
        assert w.stride() == (3, 1) and isinstance(w, nn.Parameter) and not w.is_cuda
        numbers = [
            w.T,
            w.t(),
            w.mT,
            w.data.T,
            w.detach().T,
            torch.transpose(w, 0, 1),
            w.permute(1, 0),
            (w * 1).T,
        ]
        numbers += [
            torch.stack([w[i] for i in range(4)], dim=1),
            torch.cat([w, w])[4:].T,
            w.to(torch.float64).float().T,
        ]
        numbers += [
            functional.linear(torch.eye(3), w),
            functional.linear(input=torch.eye(3), weight=w),
            torch.eye(3) @ w.T,
        ]
        numbers += [torch.addmm(torch.zeros(3, 4), torch.eye(3), mat2=w.T), torch.einsum("ij->ji", w)]
    for read in numbers:
        assert torch.allclose(read, moved.T, atol=1e-6)
    assert not torch.allclose(w, moved, atol=0.1)


@every_law
def test_a_linear_layer_takes_inputs_of_any_shape_and_layout(law):
    layer = nn.Linear(3, 4).double()
    mine = make_law(law[0], 0, law[1])
    perturbation = Perturbation(list(layer.parameters()), mine, [0, 1])
    z, zb = written_out(mine, list(layer.parameters()), 0, 0)
    inputs = [torch.randn(3), torch.randn(5, 3), torch.randn(2, 5, 3), torch.randn(5, 2, 3).transpose(0, 1)]
    inputs += [torch.randn(3, 5).t(), torch.randn(0, 3), torch.randn(2, 0, 3)]
    for x in (x.double() for x in inputs):
        with perturbation.perturbed(0, 0, 0.5), torch.no_grad():
            out = layer(x)
        assert torch.allclose(
            out, x @ (layer.weight + 0.5 * z).T + layer.bias + 0.5 * zb, rtol=1e-5, atol=1e-6
        )


# Many moves in one pass ------------------------------------------------------------------------------------------------


@every_law
def test_planned_moves_are_done_in_their_order_whenever_they_are_flushed(law):
    ends = []
    for often in (True, False):
        model = small()
        perturbation = read_of(model, make_law(law[0], 0, law[1]), "in_place")
        with torch.no_grad():
            for step in range(3):
                for direction in range(2):
                    for scale in (0.01, -0.01):
                        perturbation.plan_point(step, direction, scale)
                        if often:
                            perturbation.apply()
                perturbation.plan_update(step, [0.3, -0.2])
                if often:
                    perturbation.apply()
            perturbation.apply()
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(
    "left_at", [(0, 2), (0, 0), (1, 0)], ids=["another direction", "this one", "another step"]
)
def test_an_update_starts_from_any_position_of_the_weights(left_at):
    model, law = small(torch.float64), make_law("gaussian", 0)
    perturbation = read_of(model, law, "in_place")
    x = [p.detach().clone() for p in trainable(model.parameters())]
    z = written_out(law, x, 0, 0)
    with torch.no_grad():
        perturbation.plan_point(*left_at, 0.5)
        perturbation.plan_update(0, [0.25])
        perturbation.apply()
    for p, origin, z_ in zip(trainable(model.parameters()), x, z, strict=True):
        assert torch.allclose(p, origin + 0.25 * z_, rtol=0, atol=1e-12)


def test_without_numba_a_step_is_the_same_to_the_bit(monkeypatch):
    ends = []
    for compiled in (dispatch.kernels_numba, None):
        monkeypatch.setattr(dispatch, "kernels_numba", compiled)
        model = small()
        me = method(model, 3)
        for _ in range(2):
            me.step(BATCH)
        ends.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
