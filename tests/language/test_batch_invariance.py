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
def test_one_example_that_leaves_moves_no_other(kind, compute, monkeypatch):
    model = model_of(kind, monkeypatch)
    for size in (2, 5):
        assert moved(CrossEntropy(512, compute), model, batch_of(size, size)) == 0


def test_with_the_shapes_of_the_batch_it_does(monkeypatch):
    """The measure finds micro-batches that are not batch-invariant."""

    class Old(CrossEntropy):
        def cut(self, model, batch):
            return batch_invariance.batch_shapes(batch, self.token_budget)

    model = model_of("tiny-causal", monkeypatch)
    assert sum(moved(Old(512), model, batch_of(2, seed)) for seed in range(8)) > 0


@torch.no_grad()
@pytest.mark.parametrize("perturb", ["in_place", "on_read"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_step_has_the_same_differences_in_any_company(kind, perturb, monkeypatch):
    """Also if weights are perturbed on read."""
    model, batch = model_of(kind, monkeypatch), batch_of(9)
    start, found = [p.clone() for p in model.parameters()], []
    for keep in (np.arange(9), np.arange(0, 9, 2), [3]):
        for p, x in zip(model.parameters(), start, strict=True):
            p.copy_(x)
        me = MeZO(model, CrossEntropy(512), 9, learning_rate=1, smoothing=1e-2, seed=1, perturb=perturb)
        plus, minus = me._losses_at_both_points(batch[np.array(keep)], len(keep))[:, 0]
        found.append((plus - minus).numpy())
        assert (found[-1] == found[0][keep]).all() and found[-1].all()


@torch.no_grad()
def test_a_share_has_the_bits_of_the_whole(monkeypatch):
    model, batch = model_of("tiny-encoder", monkeypatch), batch_of(11)
    whole, parts = CrossEntropy(512)(model, batch), []
    for rank in range(3):
        loss = CrossEntropy(512)
        loss.share = rank, 3
        parts.append(loss(model, batch))
    assert torch.equal(sum(parts), whole)
    assert all((part != 0).sum() in (3, 4) for part in parts)


def test_features_of_one_example_move_no_other(monkeypatch):
    model = model_of("tiny-encoder", monkeypatch)
    model.backbone.requires_grad_(False)
    random = np.random.default_rng(0)
    made = caches.Features(random.normal(size=(50, 32)).astype(np.float32), random.integers(0, 2, 50))
    assert moved(CrossEntropy(2048), model, made) == 0


@pytest.mark.parametrize("compute", COMPUTE)
def test_candidates_of_one_example_move_no_other(compute):
    model = text_classifier.TextScorer(text_classifier.load_pretrained("tiny-causal"))
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

    def made(buckets):
        values = torch.zeros(len(buckets))
        values += (len(buckets) < sums_in_rows_from) + mask_matters * any(not bucket[1] for bucket in buckets)
        return values + odd_places * torch.arange(len(buckets)) % 2

    return made


BUCKET = (16, False)


def cut(made, count: int, budget: int = 2048, bucket=BUCKET) -> list[int]:
    parts = list(Cutter(budget).cut(nn.Linear(1, 1), [bucket] * count, made))
    assert np.concatenate([order for order, _, _ in parts]).tolist() == list(range(count))
    return [len(filled) for _, filled, _ in parts]


def test_rows_are_powers_of_two_that_cost_the_least():
    assert cut(kernel(), 1) == [2] and cut(kernel(), 64) == [64] and cut(kernel(), 63) == [64]
    assert cut(kernel(), 36) == [32, 4] and cut(kernel(), 300) == [128, 128, 32, 8, 4]


def test_numbers_of_rows_that_change_bits_are_not_used():
    """As for RoBERTa on a CPU: two rows are summed in another order than four."""
    assert cut(kernel(sums_in_rows_from=4), 1) == [4]
    assert cut(kernel(sums_in_rows_from=4), 34) == [32, 4]


def test_where_only_the_usual_number_has_the_bits_all_have_it():
    def made(buckets):
        return torch.full((len(buckets),), float(len(buckets)))

    assert cut(made, 5) == [16] and cut(made, 33) == [16, 16, 16]


def test_where_a_place_changes_bits_each_is_alone():
    assert cut(kernel(odd_places=True), 3) == [1, 1, 1]


def test_what_was_found_in_other_circumstances_is_tried_anew():
    """The number of threads, a torch function mode and the type of products choose other kernels."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    cutter, model, bad = Cutter(2048), nn.Linear(1, 1), kernel(odd_places=True)

    def rows(made) -> list[int]:
        return [len(filled) for _, filled, _ in cutter.cut(model, [BUCKET] * 3, made)]

    assert rows(kernel()) == [4] == rows(bad)  # found before
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


def test_the_head_alone_takes_one_pass_where_a_second_costs_more_than_the_rows():
    head, model = (
        caches.Features(np.zeros((70, 4), np.float32), np.zeros(70, np.int64)),
        nn.Linear(4, 2),
    )
    model.forward = lambda values, mask: values
    with torch.no_grad():
        assert [len(filled) for _, filled, _ in CrossEntropy(2048).cut(model, head)] == [128]


def test_plans_of_cuts_are_kept_for_some_batches_alone():
    cutter, model = Cutter(2048), nn.Linear(1, 1)
    for count in [*range(1, batch_invariance.MAX_PLANS + 5), 7]:
        parts = cutter.cut(model, [BUCKET] * count, kernel())
    assert sum(len(order) for order, _, _ in parts) == 7
    assert parts is cutter.cut(model, [BUCKET] * 7, kernel())
    [known] = cutter._results[model].values()
    assert len(known["plans"]) <= batch_invariance.MAX_PLANS


def test_texts_that_fill_their_length_stand_apart_only_where_a_mask_changes_bits():
    buckets = [(16, True), (16, False), (16, True)]
    for matters, expected in ((False, [[0, 1, 2]]), (True, [[0, 2], [1]])):
        made = kernel(mask_matters=matters)
        parts = list(Cutter(2048).cut(nn.Linear(1, 1), buckets, made))
        assert [order.tolist() for order, _, _ in parts] == expected


def test_each_shape_is_tried_once():
    calls, cutter, model = [], Cutter(2048), nn.Linear(1, 1)

    def made(buckets):
        calls.append(len(buckets))
        return torch.zeros(len(buckets))

    list(cutter.cut(model, [BUCKET] * 5, made))
    tried = len(calls)
    list(cutter.cut(model, [BUCKET] * 5, made))
    assert len(calls) == tried > 0


@given(st.integers(1, 300), st.integers(1, 4000), st.integers(1, 300))
def test_passes_keep_the_budget_and_hold_each_text(count, budget, length):
    for rows in cut(kernel(), count, budget, (length, False)):
        assert rows == 1 or rows * length <= budget


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_text_alone_says_how_it_is_padded(length, longest):
    padded = padded_length(length, longest)
    assert length <= padded <= max(length, longest)
    assert padded <= max(batch_invariance.SHORTEST, 1.5 * length)
    assert padded in (length, longest) or padded % 8 == 0


def test_what_was_asked_before_changes_no_cut():
    """Trials cover padded and full texts, so that the shapes of a batch do not depend on earlier batches."""

    def made(buckets):  # whole texts alone want 16 rows
        return torch.full((len(buckets),), float(len(buckets) < 16 and all(bucket[1] for bucket in buckets)))

    for first in ((16, False), (16, True)):
        cutter, model = Cutter(2048), nn.Linear(1, 1)
        list(cutter.cut(model, [first], made))
        assert [len(filled) for _, filled, _ in cutter.cut(model, [(16, False)] * 3, made)] == [16]
