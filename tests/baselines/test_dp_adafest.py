"""DP-AdaFEST: the sums that get noise are those of a loop over examples, and few rows of the table move."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from baselines.dp_adafest import DPAdaFEST, word_embeddings
from baselines.dp_sgd import DPSGD
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.plan import sweep
from dpzero.privacy import RunKey, Setting, StandInBudget
from dpzero.run.run import run_cell

SETTING = Setting("gaussian", "poisson", "add_remove", 240, 8, 100, 1e-5)
LOSS = losses.CrossEntropy(48)  # several micro-batches


class Kept(StandInBudget):
    """Keeps the rows as they are before noise."""

    def release_rows_(self, rows, clip, **options):
        self.rows = rows._replace(counts=rows.counts.clone(), others=[o.clone() for o in rows.others])
        return super().release_rows_(rows, clip, **options)


@pytest.fixture
def batch(cache):
    return encoding.encode(tasks.load("toy"), "tiny-encoder", 16)["train"][np.arange(9)]


def model(tune="embeddings"):
    return text_classifier.load("tiny-encoder", tasks.load("toy"), tune)


@pytest.mark.parametrize("tune", ["embeddings", "full"])
@pytest.mark.parametrize(("clip", "map_clip"), [(0.05, 1.0), (1e3, 1e3)])
def test_the_sums_are_those_of_a_loop_over_examples(batch, tune, clip, map_clip):
    mine, budget = model(tune), Kept(SETTING, 1.0)
    table, trained = word_embeddings(mine), [p for p in mine.parameters() if p.requires_grad]
    counts, sums = torch.zeros(1024, dtype=torch.float64), [torch.zeros_like(p) for p in trained]
    for i in range(len(batch)):
        gradients = torch.autograd.grad(LOSS(mine, batch[np.array([i])]).sum(), trained, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trained, strict=True)]
        norm = torch.cat([g.flatten() for g in gradients]).double().norm().item()
        for total, g, p in zip(sums, gradients, trained, strict=True):
            total += g * min(1.0, clip / norm)
            if p is table.weight:
                used = g.ne(0).any(1)
                assert set(used.nonzero()[:, 0].tolist()) == set(batch.ids(i).tolist())
                counts += used.double() * min(1.0, map_clip / used.sum().double().sqrt().item())
    DPAdaFEST(mine, LOSS, budget, learning_rate=0.1, clip=clip, map_clip=map_clip).step(batch)
    assert torch.allclose(budget.rows.counts, counts, atol=1e-12)
    others = [total for total, p in zip(sums, trained, strict=True) if p is not table.weight]
    of_table = next(total for total, p in zip(sums, trained, strict=True) if p is table.weight)
    largest = max(float(total.abs().max()) for total in sums)
    for one, other in zip(budget.rows.others, others, strict=True):
        assert (one - other).abs().max() < 1e-5 * largest
    assert (budget.rows.gradients - of_table[budget.rows.numbers]).abs().max() < 1e-5 * largest
    assert of_table.ne(0).any(1).sum() == len(budget.rows.numbers)


def test_one_example_moves_the_map_by_its_clip_and_the_gradient_by_its_clip(batch):
    seen = []
    for rows in (np.arange(8), np.arange(9)):
        budget = Kept(SETTING, 1.0)
        DPAdaFEST(model(), LOSS, budget, learning_rate=0.1, clip=0.05, map_clip=0.7).step(batch[rows])
        table = torch.zeros(1024, 32).index_add_(0, budget.rows.numbers, budget.rows.gradients)
        gradient = torch.cat([table.flatten(), *(o.flatten() for o in budget.rows.others)])
        seen.append((budget.rows.counts, gradient.double()))
    (counts, gradient), (more_counts, more_gradient) = seen
    assert (more_counts - counts).norm().item() == pytest.approx(0.7, rel=1e-9)
    assert (more_gradient - gradient).norm().item() == pytest.approx(0.05, rel=1e-4)


def test_without_noise_and_threshold_it_is_dp_sgd(batch):
    ends = []
    for kind in (DPAdaFEST, DPSGD):
        mine = model()
        more = {"threshold": 0.0} if kind is DPAdaFEST else {}
        kind(mine, LOSS, StandInBudget(SETTING, 1e-9), learning_rate=0.5, clip=0.05, **more).step(batch)
        ends.append(torch.cat([p.detach().flatten() for p in mine.parameters()]))
    assert (ends[0] - ends[1]).abs().max() < 1e-6


def test_few_rows_move_and_the_method_counts_them(batch):
    mine = model()
    before = mine.backbone.get_input_embeddings().weight.detach().clone()
    method = DPAdaFEST(mine, LOSS, StandInBudget(SETTING, 1.0), learning_rate=0.5, clip=1.0, threshold=2.5)
    method.step(batch)
    moved = int((mine.backbone.get_input_embeddings().weight != before).any(1).sum())
    assert method.further_metrics() == {"noised_embedding_rows": moved, "embedding_rows": 1024}
    assert 0 < moved < 40


def test_a_table_that_is_the_output_layer_is_refused(cache):
    tied = model()
    tied.head.weight = tied.backbone.get_input_embeddings().weight
    with pytest.raises(ValueError, match="the output layer is the table of word embeddings, too"):
        DPAdaFEST(tied, LOSS, StandInBudget(SETTING, 1.0), learning_rate=0.5, clip=1.0)


def test_a_run_says_the_two_noises_and_the_rows(cache, tmp_path, smoke):
    given = smoke("dp_sgd")
    own = {"map_share": 0.2, "threshold": 2.0, "tune": "embeddings", "learning_rate": 0.1, "clip": 1.0}
    kept = {k: v for k, v in given["settings"].items() if k not in ("clipping", "optimizer")}
    cell = sweep.complete(given | {"use": "dp_adafest", "settings": kept | own})
    run_cell(cell, tmp_path / "record.json", lambda line: None, "cpu")
    record = json.loads((tmp_path / "record.json").read_text())
    privacy, metrics = record["privacy"], record["metrics"]
    assert 1.99 < privacy["epsilon_spent"] <= 2
    first, second = (float(word) for word in privacy["noise_scales"].split() if word[0].isdigit())
    assert (first**-2 + second**-2) ** -0.5 == pytest.approx(privacy["noise_scale"], rel=1e-4)
    assert first**-2 * privacy["noise_scale"] ** 2 == pytest.approx(0.2, rel=1e-4)
    assert metrics["embedding_rows"] == 1024 and 0 < metrics["noised_embedding_rows"] < 200


def test_another_key_has_other_noise_in_the_map(batch):
    counts = []
    for seed in (0, 1):
        budget = StandInBudget(SETTING, 1.0, RunKey.published(seed))
        mine = model()
        DPAdaFEST(mine, LOSS, budget, learning_rate=0.5, clip=1.0).step(batch)
        counts.append(mine.backbone.get_input_embeddings().weight.detach().clone())
    assert not torch.equal(*counts)
