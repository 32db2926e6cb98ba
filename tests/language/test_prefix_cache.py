"""Prefix cache: the shared prefix is computed once, and every score is that of the complete text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from dpzero.language.data import tasks
from dpzero.language.data.datasets import Draw
from dpzero.language.models import caches, encoding, losses, text_classifier
from dpzero.language.models.encoding import Examples

ROUNDING = 1e-5
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 256}
HEADS = {"num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 256}
BODIES = {
    "llama": SMALL | HEADS,
    "qwen3": SMALL | HEADS,
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    # one layer sees the last 16 tokens alone, fewer than the beginning has
    "gemma3_text": SMALL | HEADS | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


def texts_behind(beginning: int, rest: tuple[int, ...]) -> Examples:
    draw = np.random.default_rng(0)
    before = draw.integers(3, 256, beginning)
    return Examples.from_token_ids(
        [[*before, 100 + i, *draw.integers(3, 256, n)] for i, n in enumerate(rest)], [0] * len(rest)
    )


def of_kind(body: str) -> text_classifier.Classifier:
    torch.manual_seed(0)
    backbone = AutoModel.from_config(AutoConfig.for_model(body, **BODIES[body])).eval()
    backbone.config.use_cache = False
    return text_classifier.Classifier(backbone, nn.Linear(32, 3), "causal")


@pytest.mark.parametrize("body", BODIES)
def test_scores_with_a_prefix_cache_equal_those_of_complete_texts(body):
    model, texts = of_kind(body), texts_behind(80, (1, 9, 4, 0, 23))
    ids, mask, _ = texts.padded(torch.device("cpu"))
    with torch.no_grad():
        expected = model(ids, mask)
        with caches.reuse_prefix(model, texts):
            assert torch.allclose(model(ids, mask), expected, atol=ROUNDING)
            one = texts[np.array([4])]  # alone, and again after others
            assert torch.allclose(model(*one.padded(torch.device("cpu"))[:2]), expected[4:], atol=ROUNDING)
        assert torch.equal(model(ids, mask), expected)  # nothing stays behind


@pytest.mark.parametrize("task", ["toy", "copa"])
def test_in_context_learning_scores_the_same_without_the_cache(task, monkeypatch, tmp_path):
    if task == "copa":
        monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
        (tmp_path / "copa").mkdir()
        row = '{"premise": "It rained on %d.", "question": "effect", "choice1": "The street was wet.", "choice2": "No.", "label": %d}\n'
        for split, rows in (("train", 150), ("validation", 7)):
            lines = "".join(row % (i, i % 2) for i in range(rows))
            (tmp_path / "copa" / f"{split}.jsonl").write_text(lines)
    draw = Draw(seed=3, demonstrations=32)
    scored = encoding.encode(tasks.load(task, draw), "tiny-causal", 1024)["test"]
    model = text_classifier.load("tiny-causal", tasks.load(task, draw), "full")
    loss = losses.make_loss(tasks.load(task), "tiny-causal", 2048)
    read: list[int] = []
    watch = model.backbone.get_input_embeddings().register_forward_hook(
        lambda _, given, __: read.append(given[0].numel())
    )
    expected = loss.evaluate(model, scored)
    in_all, read[:] = sum(read), []
    monkeypatch.setattr(caches, "MIN_TOKENS", 10**9)
    assert loss.evaluate(model, scored) == pytest.approx(expected, abs=ROUNDING)
    watch.remove()
    assert in_all < sum(read) / 2


def test_a_shared_prefix_ends_before_the_tokens_whose_states_are_used():
    same = Examples.from_token_ids([[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8, 9]], [0, 0, 0])
    assert caches.shared_prefix(same).tolist() == [5, 6, 7]
    assert caches.shared_prefix(same, kept=3).tolist() == [5]
    assert caches.shared_prefix(same, kept=9).tolist() == []
    assert caches.shared_prefix(Examples.from_token_ids([[1, 2, 3], [1, 4, 3, 3]], [0, 0])).tolist() == [1]


def test_a_bidirectional_model_uses_no_prefix_cache(monkeypatch):
    monkeypatch.setattr(caches, "MIN_TOKENS", 8)
    texts, task = texts_behind(20, (3, 5)), tasks.load("toy")
    for name, reads_whole in (("tiny-encoder", True), ("tiny-causal", False)):
        model = text_classifier.load(name, task, "full")
        with caches.reuse_prefix(model, texts):
            assert bool(model.backbone._forward_pre_hooks) != reads_whole
