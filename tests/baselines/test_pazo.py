"""PAZO: its steps are the formulas, one example moves a release by the clip at most, and public rows are never drawn as private."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from baselines.pazo import PAZO
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import caches
from dpzero.plan import sweep
from dpzero.privacy import Budget, RunKey, Setting, StandInBudget
from dpzero.run.run import run_cell
from dpzero.run.setup import PUBLIC, Setup, _words
from dpzero.zeroth_order import Gaussian

SILENT = 1e-12  # noise over clip
X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(12, 2)
Y = torch.tensor([0, 1, 1, 0, 2, 1, 2, 0, 1, 2, 0, 1])
OPEN = torch.arange(6, 12)  # the public examples; the others are private


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 3).double()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(X[batch]), Y[batch], reduction="none")


def budget(noise_scale: float = SILENT, kind: type = StandInBudget) -> StandInBudget:
    return kind(
        Setting("gaussian", "poisson", "add_remove", 6, 3, 10, 1e-3), noise_scale, RunKey.published(0)
    )


def make(mine: nn.Module, share: Budget | None = None, **settings) -> PAZO:
    chosen = {"learning_rate": 0.1, "clip": 1e3, "seed": 7, "public_batch_size": 4} | settings
    me = PAZO(mine, loss, share or budget(), **chosen)
    me.public = OPEN
    return me


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def losses_at(weights: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    logits = X[batch] @ weights[:6].reshape(3, 2).T + weights[6:]
    return nn.functional.cross_entropy(logits, Y[batch], reduction="none")


def random(mine: nn.Module, k: int, step: int = 0) -> torch.Tensor:
    parts = [torch.zeros_like(p) for p in mine.parameters()]
    Gaussian(7).add_(parts, step, 1.0, k)
    return torch.cat([part.flatten() for part in parts])


def public_gradient(weights: torch.Tensor, candidate: int, step: int = 0) -> torch.Tensor:
    chosen = OPEN[np.random.default_rng([7, step, candidate]).permutation(6)[:4]]
    x = weights.clone().requires_grad_()
    return torch.autograd.grad(losses_at(x, chosen).mean(), x)[0]


def slope(x: torch.Tensor, v: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    return (losses_at(x + 1e-3 * v, batch) - losses_at(x - 1e-3 * v, batch)) / 2e-3


# The steps -------------------------------------------------------------------------------------------------------------


def test_a_mixed_step_is_the_formula():
    mine = model()
    x, batch = flat(mine), torch.arange(5)
    make(mine, directions=2, public_weight=0.3).step(batch)
    v = [random(mine, k) / 9**0.25 for k in range(2)]
    private = sum(slope(x, each, batch).sum() / 3 * each for each in v) / 2
    assert torch.allclose(flat(mine), x - 0.1 * (0.3 * public_gradient(x, 0) + 0.7 * private), atol=1e-9)


@pytest.mark.parametrize("basis", ["normalized", "orthonormal"])
def test_a_subspace_step_is_the_formula(basis):
    mine = model()
    x, batch = flat(mine), torch.arange(5)
    me = make(mine, variant="subspace", candidates=2, basis=basis)
    me.step(batch)
    coefficients = torch.zeros(2)
    Gaussian(7).add_([coefficients], 0, 1.0, 0)
    gradients = torch.stack([public_gradient(x, j) for j in range(2)])
    if basis == "orthonormal":
        assert torch.allclose(me.guides @ me.guides.T, torch.eye(2, dtype=torch.float64))
        assert torch.linalg.matrix_rank(torch.cat([me.guides, gradients]), tol=1e-9) == 2
    else:
        assert torch.allclose(me.guides, gradients / gradients.norm(dim=1, keepdim=True))
    v = coefficients.double() @ me.guides
    assert torch.allclose(flat(mine), x - 0.1 * slope(x, v, batch).sum() / 3 * v, atol=1e-9)


@pytest.mark.parametrize("exploration", [0.0, 2.0])
def test_a_select_step_takes_the_candidate_with_the_least_private_loss(exploration):
    mine, batch, chosen = model(), torch.arange(5), set()
    me = make(mine, variant="select", exploration=exploration)
    for step in range(8):
        x = flat(mine)
        candidates = [public_gradient(x, j, step) for j in range(3)]
        if exploration:
            candidates += [g + exploration * random(mine, 3 + j, step) for j, g in enumerate(candidates)]
        scores = [float(losses_at(x - 0.1 * v, batch).sum()) for v in candidates]
        best = int(np.argmin(scores))
        assert me.step(batch) == [float(j == best) for j in range(len(candidates))]
        assert torch.allclose(flat(mine), x - 0.1 * candidates[best], atol=1e-9)
        chosen.add(best)
    assert len(chosen) > 1


def test_points_leave_the_weights_to_the_bit():
    mine = model()
    x = flat(mine)
    make(mine, budget(0.0), learning_rate=0.0, directions=3).step(torch.arange(5))
    assert torch.equal(flat(mine), x)


# Privacy ---------------------------------------------------------------------------------------------------------------


class Watched(StandInBudget):
    def release_vectors(self, clipped, clip):
        self.seen = clipped.sum(0), clip
        return super().release_vectors(clipped, clip)


@pytest.mark.parametrize(
    "settings",
    [
        {"directions": 4},
        {"variant": "subspace", "directions": 4},
        {"variant": "select"},
        {"variant": "select", "exploration": 0.0},
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e9])
def test_one_example_more_moves_the_release_by_the_clip_at_most_and_the_worst_by_all_of_it(settings, size):
    """The neighbour's losses are as large as one likes: all its scalars are then at their bound."""

    def scaled(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return loss(model, batch) * torch.where(batch == 5, size, 1.0)

    sums = []
    for batch in (torch.arange(5), torch.arange(6)):
        share = budget(kind=Watched)
        me = make(model(), share, clip=0.01, **settings)
        me.loss = scaled
        me.step(batch)
        total, clip = share.seen
        assert clip == 0.01
        sums.append(total)
    moved = float((sums[1] - sums[0]).norm())
    assert moved <= 0.01 * (1 + 1e-12)
    if size > 1:
        assert moved == pytest.approx(0.01, rel=1e-9)


def test_private_examples_move_the_weights_by_the_release_alone():
    """A mixed step that gives the release no weight is the same on any private batch."""
    ends = []
    for batch in (torch.arange(3), torch.arange(3, 6)):
        mine = model()
        make(mine, budget(0.0), public_weight=1.0).step(batch)
        ends.append(flat(mine))
    assert torch.equal(*ends)


def test_a_step_without_public_examples_is_refused_before_a_release():
    share = budget()
    me = make(model(), share)
    me.public = None
    with pytest.raises(ValueError, match="no public examples"):
        me.step(torch.arange(3))
    assert len(share.ledger) == 0


def test_no_transcript_is_kept(tmp_path):
    with pytest.raises(ValueError, match="no transcript holds"):
        make(model()).write_transcript(tmp_path / "run.transcript")


# Runs ------------------------------------------------------------------------------------------------------------------


def test_a_candidate_that_breaks_the_model_is_not_selected():
    """Its losses are not finite: they count as the bound, not as 0, the least."""

    def breaks(mine: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        values = loss(mine, batch)
        moved = (flat(mine) - flat(model())).abs().max() > 0.5
        return torch.where(moved, torch.nan, values)

    mine = model()
    me = make(mine, variant="select", exploration=0.0, candidates=2, clip=10.0)
    me.loss, steps = breaks, iter((torch.full((9,), 9.0), torch.zeros(9).double()))
    me._public_gradient = lambda candidate: next(
        steps
    ).double()  # the first breaks the model, the second stays
    me.step(next(iter(me.budget.batches())))
    assert torch.equal(flat(mine), flat(model()))


def cell(task: str = "toy", seed: int = 3, **settings) -> dict:
    own = {"learning_rate": 0.01, "clip": 5.0, "public_examples": 24, "batch_size": 8, "steps": 4}
    own |= {"max_length": 16, "delta": 1e-4, "tune": "bias", "token_budget": 512}
    return sweep.complete(
        {
            **{"task": task, "model": "tiny-encoder", "method": "pazo", "use": "pazo", "title": "PAZO"},
            **{"epsilon": "2", "seed": seed, "settings": own | settings},
        }
    )


def texts(examples) -> Counter:
    return Counter(tuple(examples.ids(i).tolist()) for i in range(len(examples)))


def test_public_rows_are_taken_out_of_the_private_ones_and_the_accountant_counts_those(cache):
    setup = Setup(cell(), lambda _: None)
    public, private = setup.examples[PUBLIC], setup.examples["train"]
    assert (len(public), len(private)) == (24, 216)
    whole = setup.task.splits["train"]
    assert len(whole) == 240 and not texts(public) & texts(private)
    assert texts(public) + texts(private) == texts(
        Setup(cell() | {"use": "dpzero"}, lambda _: None).examples["train"]
    )
    share = setup.budget(None)
    assert share.setting.dataset_size == 216
    drawn = [batch for _, (batch,) in setup.batches(private, share, 0)]
    assert sum(map(len, drawn)) > 0 and not any(texts(batch) & texts(public) for batch in drawn)


def test_features_of_all_rows_are_in_the_cache_once_whichever_are_public(cache, monkeypatch):
    real, read = caches.read_features, []
    monkeypatch.setattr(
        caches,
        "read_features",
        lambda name, load, rows, *more: read.append(len(rows)) or real(name, load, rows, *more),
    )
    for seed in (0, 1):
        setup = Setup(cell(seed=seed, tune="head"), lambda _: None)
        _, examples = setup.model_and_examples()
        for part in ("train", PUBLIC):
            alone = real("tiny-encoder", setup.model, setup.examples[part], seed, "cpu")
            assert torch.equal(examples[part].labels, alone.labels)
            assert torch.allclose(examples[part].values, alone.values, atol=1e-5)
    assert 240 in read and not {24, 216} & set(read)


def test_every_seed_reads_the_same_public_rows(cache):
    """Else one run would protect what another reads without noise."""
    one, other = (Setup(cell(seed=seed), lambda _: None).examples[PUBLIC] for seed in (0, 1))
    assert texts(one) == texts(other)


def test_no_private_row_has_the_text_of_a_public_one(cache, monkeypatch):
    """With every text twice, a public row takes its double out, unless that is public itself."""
    rows = tasks.load("toy").splits
    twice = rows | {"train": rows["train"][:120] * 2}
    monkeypatch.setattr(tasks.Task, "splits", property(lambda _: twice))
    public = np.random.default_rng(0).permutation(240)[:24] % 120
    setup = Setup(cell(), lambda _: None)
    assert len(setup.examples[PUBLIC]) == 24
    assert setup.budget(None).setting.dataset_size == 240 - 2 * len(set(public)) < 240 - 24


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_public_task_with_rows_of_the_task_is_refused(cache, split):
    setup = Setup(cell(), lambda _: None)
    theirs = setup.task.splits[split][7].text.upper() + "!"
    with pytest.raises(
        UsageError, match=f"rows of split {split} are public examples of task .*: give another"
    ):
        setup._check_apart({_words(theirs)})
    setup._check_apart({_words("a text that is in no split")})


@pytest.mark.parametrize("variant", ["mixed", "subspace", "select"])
def test_epsilon_of_a_run_is_the_accountant_s_for_its_ledger_of_private_rows(cache, tmp_path, variant):
    record = run_cell(cell(variant=variant), tmp_path / "record.json", lambda _: None, "cpu")
    privacy = json.loads((tmp_path / "record.json").read_text())["privacy"]
    setting = Setting("gaussian", "poisson", "add_remove", 216, 8, 4, 1e-4)
    assert record["status"] == "ok" and (privacy["steps"], privacy["dataset_size"]) == (4, 216)
    assert privacy["epsilon_spent"] == pytest.approx(setting.epsilon(privacy["noise_scale"]), rel=1e-9)
    assert 1.9 < privacy["epsilon_spent"] <= 2
    each = {"mixed": 2, "subspace": 2, "select": 6}[variant]
    gradients = {"mixed": 1, "subspace": 3, "select": 3}[variant]
    assert record["metrics"]["example_forwards"] == 4 * (8 * each + 3 * gradients * 8)
    assert record["transcript"] is None


def test_a_public_task_has_the_same_labels():
    assert cell("movies", public_task="tweets")["settings"]["public_task"] == "tweets"
    for other in ("bbc", "movies"):
        with pytest.raises(
            UsageError, match=f"public_task {other} must be another task with the labels of movies"
        ):
            cell("movies", public_task=other)


def test_more_public_rows_than_there_are_leave_none(cache):
    with pytest.raises(
        UsageError, match="240 public examples of the 240 training rows of task toy leave none"
    ):
        Setup(cell(public_examples=240), lambda _: None)


def test_a_private_release_of_a_run_holds_nothing_unlisted(cache, tmp_path):
    record = run_cell(
        cell(noise_key="secret", token_budget=1), tmp_path / "record.json", lambda _: None, "cpu"
    )
    assert record["status"] == "ok" and record["privacy"]["noise_key"] == "secret"
    assert (
        record["privacy"]["valid_release"] is False
    )  # of a method that asks for gradients: its noise is in floats
