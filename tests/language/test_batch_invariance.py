"""Batch invariance: no other example of a batch changes a bit of a loss, whatever the kernels of the machine do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from baselines.mezo import MeZO
from dpzero.language.data import tasks
from dpzero.language.models import (
    batch_invariance,
    caches,
    model_catalogue,
    random_models,
    text_classifier,
)
from dpzero.language.models.batch_invariance import Cutter, padded_length
from dpzero.language.models.encoding import Continuations, Examples
from dpzero.language.models.losses import COMPUTE, ContinuationLoss, CrossEntropy
from dpzero.zeroth_order.leave_one_out import others_move

OPT = {"model_type": "opt", "vocab_size": 1024, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}
OPT |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
SHAPES = {"opt": OPT, "roberta": model_catalogue.CATALOGUE.built_in["tiny-masked"]["config"]}
KINDS = ["tiny-encoder", "tiny-causal", *SHAPES]


def model_of(kind: str, monkeypatch) -> nn.Module:
    if kind in SHAPES:
        monkeypatch.setitem(random_models.catalogue(), kind, SHAPES[kind])
        return random_models.build(kind)
    return text_classifier.load(kind, tasks.load("toy"), "full")


def batch_of(count: int, seed: int = 0, longest: int = 40) -> Examples:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return Examples.from_token_ids(
        [random.integers(3, 1000, n) for n in lengths], random.integers(0, 2, count)
    )


def moved(loss, model, batch, smoothing: float = 1e-3) -> float:
    return others_move(loss, model, batch, clip=1e6, smoothing=smoothing)["others_move_over_clip"]


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("kind", KINDS)
def test_removing_an_example_changes_no_other_loss(kind, compute, monkeypatch):
    model = model_of(kind, monkeypatch)
    for size in (2, 5):
        assert moved(CrossEntropy(512, compute), model, batch_of(size, size)) == 0


def test_batch_shapes_are_not_batch_invariant(monkeypatch):
    """The measure finds micro-batches that are not batch-invariant."""

    class Old(CrossEntropy):
        def cut(self, model, batch):
            return batch_invariance.batch_shapes(batch, self.token_budget)

    model = model_of("tiny-causal", monkeypatch)
    assert sum(moved(Old(512), model, batch_of(2, seed)) for seed in range(8)) > 0


@torch.no_grad()
@pytest.mark.parametrize("perturb", ["in_place", "on_read"])
@pytest.mark.parametrize("kind", SHAPES)
def test_loss_differences_do_not_depend_on_other_examples(kind, perturb, monkeypatch):
    """Also if weights are perturbed on read."""
    model, batch = model_of(kind, monkeypatch), batch_of(9)
    start, differences = [p.clone() for p in model.parameters()], []
    for keep in (np.arange(9), np.arange(0, 9, 2), [3]):
        for p, x in zip(model.parameters(), start, strict=True):
            p.copy_(x)
        me = MeZO(model, CrossEntropy(512), 9, learning_rate=1, smoothing=1e-2, seed=1, perturb=perturb)
        plus, minus = me._losses_at_points(batch[np.array(keep)], len(keep))[:, 0]
        differences.append((plus - minus).numpy())
        assert (differences[-1] == differences[0][keep]).all() and differences[-1].all()


@torch.no_grad()
def test_shares_add_up_to_the_losses_of_the_batch(monkeypatch):
    model, batch = model_of("tiny-encoder", monkeypatch), batch_of(11)
    expected, parts = CrossEntropy(512)(model, batch), []
    for rank in range(3):
        loss = CrossEntropy(512)
        loss.share = rank, 3
        parts.append(loss(model, batch))
    assert torch.equal(sum(parts), expected)
    assert all((part != 0).sum() in (3, 4) for part in parts)


def test_removing_features_changes_no_other_loss(monkeypatch):
    model = text_classifier.HeadAlone(model_of("tiny-encoder", monkeypatch).head)
    random = np.random.default_rng(0)
    features = caches.Features.from_arrays(
        random.normal(size=(50, 32)).astype(np.float32), random.integers(0, 2, 50)
    )
    assert moved(CrossEntropy(2048), model, features) == 0


@pytest.mark.parametrize("compute", COMPUTE)
def test_removing_candidates_changes_no_other_loss(compute):
    model = text_classifier.TextScorer(model_catalogue.load_pretrained("tiny-causal"))
    random = np.random.default_rng(0)

    def candidate():
        length = int(random.integers(3, 30))
        return random.integers(3, 1000, length), int(random.integers(1, min(length, 7))), False

    counts = [1, 3, 2, 1, 4, 1]
    examples = [[(*candidate()[:2], i == 0) for i in range(n)] for n in counts]
    batch = Continuations.from_candidates(examples, [""] * len(counts))
    assert moved(ContinuationLoss(512, compute), model, batch) == 0


# --- what a machine's kernels may do


def kernel(*, sums_in_rows_from: int = 0, odd_places: bool = False, mask_matters: bool = False):
    """A forward pass that depends, as the last bits of a kernel do, on the number of rows, the place or the mask."""

    def forward(buckets):
        values = torch.zeros(len(buckets))
        values += (len(buckets) < sums_in_rows_from) + mask_matters * any(not bucket[1] for bucket in buckets)
        return values + odd_places * torch.arange(len(buckets)) % 2

    return forward


BUCKET = (16, False)


def cut(forward, count: int, budget: int = 2048, bucket=BUCKET) -> list[int]:
    parts = list(Cutter(budget).cut(nn.Linear(1, 1), [bucket] * count, forward))
    assert np.concatenate([order for order, _, _ in parts]).tolist() == list(range(count))
    return [len(filled) for _, filled, _ in parts]


def test_rows_are_powers_of_two_that_cost_the_least():
    assert cut(kernel(), 1) == [2] and cut(kernel(), 64) == [64] and cut(kernel(), 63) == [64]
    assert cut(kernel(), 36) == [32, 4] and cut(kernel(), 300) == [128, 128, 32, 8, 4]


def test_numbers_of_rows_that_change_bits_are_not_used():
    """As for RoBERTa on a CPU: two rows are summed in another order than four."""
    assert cut(kernel(sums_in_rows_from=4), 1) == [4]
    assert cut(kernel(sums_in_rows_from=4), 34) == [32, 4]


def test_if_only_the_usual_row_count_is_invariant_all_passes_use_it():
    def forward(buckets):
        return torch.full((len(buckets),), float(len(buckets)))

    assert cut(forward, 5) == [16] and cut(forward, 33) == [16, 16, 16]


def test_a_number_of_rows_can_be_tried_after_the_weights_moved():
    cutter, model, weight = Cutter(2048), nn.Linear(1, 1), [1.0]

    def forward(buckets):
        return torch.full((len(buckets),), weight[0])

    assert len(cutter.cut(model, [BUCKET] * 8, forward)) == 1
    weight[0] = 2.0
    assert len(cutter.cut(model, [BUCKET] * 64, forward)) == 1


def test_if_a_place_changes_bits_each_text_is_alone():
    assert cut(kernel(odd_places=True), 3) == [1, 1, 1]


def test_trials_are_repeated_under_other_conditions():
    """The number of threads, a torch function mode and the type of products choose other kernels."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    cutter, model, bad = Cutter(2048), nn.Linear(1, 1), kernel(odd_places=True)

    def rows(forward) -> list[int]:
        return [len(filled) for _, filled, _ in cutter.cut(model, [BUCKET] * 3, forward)]

    assert rows(kernel()) == [4] == rows(bad)  # tried before
    with Mode():
        assert rows(bad) == [1, 1, 1]
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert rows(bad) == [1, 1, 1]
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("medium")
        assert rows(bad) == [1, 1, 1]
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
    assert rows(bad) == [4]


def test_a_head_takes_one_pass_over_any_number_of_features():
    values = np.random.default_rng(0).normal(size=(70, 384)).astype(np.float32)
    features, model = (
        caches.Features.from_arrays(values, np.zeros(70, np.int64)),
        text_classifier.HeadAlone(nn.Linear(384, 6)),
    )
    with torch.no_grad():
        assert [len(filled) for _, filled, _ in CrossEntropy(2048).cut(model, features)] == [70]
        assert sum(len(filled) for _, filled, _ in CrossEntropy(64).cut(model, features)) >= 70


def test_the_number_of_kept_plans_is_limited():
    cutter, model = Cutter(2048), nn.Linear(1, 1)
    for count in [*range(1, batch_invariance.MAX_PLANS + 5), 7]:
        parts = cutter.cut(model, [BUCKET] * count, kernel())
    assert sum(len(order) for order, _, _ in parts) == 7
    assert parts is cutter.cut(model, [BUCKET] * 7, kernel())
    [known] = cutter._results[model].values()
    assert len(known["plans"]) <= batch_invariance.MAX_PLANS


def test_full_texts_have_their_own_bucket_only_if_a_mask_changes_bits():
    buckets = [(16, True), (16, False), (16, True)]
    for matters, expected in ((False, [[0, 1, 2]]), (True, [[0, 2], [1]])):
        forward = kernel(mask_matters=matters)
        parts = list(Cutter(2048).cut(nn.Linear(1, 1), buckets, forward))
        assert [order.tolist() for order, _, _ in parts] == expected


def test_each_shape_is_tried_once():
    calls, cutter, model = [], Cutter(2048), nn.Linear(1, 1)

    def forward(buckets):
        calls.append(len(buckets))
        return torch.zeros(len(buckets))

    list(cutter.cut(model, [BUCKET] * 5, forward))
    tried = len(calls)
    list(cutter.cut(model, [BUCKET] * 5, forward))
    assert len(calls) == tried > 0


@given(st.integers(1, 300), st.integers(1, 4000), st.integers(1, 300))
def test_passes_keep_the_budget_and_hold_each_text(count, budget, length):
    for rows in cut(kernel(), count, budget, (length, False)):
        assert rows == 1 or rows * length <= budget


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_padded_length_depends_on_the_text_alone(length, longest):
    padded = padded_length(length, longest)
    assert length <= padded <= max(length, longest)
    assert padded <= max(batch_invariance.SHORTEST, 1.5 * length)
    assert padded in (length, longest) or padded % 8 == 0


def test_earlier_batches_change_no_cut():
    """Trials cover padded and full texts, so that the shapes of a batch do not depend on earlier batches."""

    def forward(buckets):  # full texts alone want 16 rows
        return torch.full((len(buckets),), float(len(buckets) < 16 and all(bucket[1] for bucket in buckets)))

    for first in ((16, False), (16, True)):
        cutter, model = Cutter(2048), nn.Linear(1, 1)
        list(cutter.cut(model, [first], forward))
        assert [len(filled) for _, filled, _ in cutter.cut(model, [(16, False)] * 3, forward)] == [16]
