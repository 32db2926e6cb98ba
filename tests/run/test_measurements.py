"""The figure that a record has of batch invariance, and the verb that measures it."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from dpzero.__main__ import main
from dpzero.language.data import tasks
from dpzero.language.models import caches, encoding, losses, text_classifier
from dpzero.language.models.losses import CrossEntropy
from dpzero.run import measurements


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_verb_says_that_nothing_moves(compute, capsys):
    arguments = ["invariance", "--model", "tiny-encoder", "--task", "toy", "--batch-size", "5"]
    assert main([*arguments, "--compute", compute, "--max-length", "24", "--leaving", "2"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["others_move_over_clip"] == answer["others_move_together_over_clip"] == 0
    assert answer["compute"] == compute


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--clip", "0"], "argument --clip: '0' is not a number, from 1e-12"),
        (["--smoothing", "nan"], "argument --smoothing: 'nan' is not a number"),
        (["--batch-size", "1"], "--batch-size is 1: give 2 to"),
    ],
)
def test_bad_numbers_are_one_sentence(change, message, capsys):
    try:
        status = main(["invariance", "--model", "tiny-encoder", "--task", "toy", *change])
    except SystemExit as ended:
        status = ended.code
    assert status == 2 and message in capsys.readouterr().err


def test_a_record_has_the_figure_of_a_run(monkeypatch):
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "head")
    texts = encoding.encode(tasks.load("toy"), "tiny-encoder", 24)["train"][np.arange(9)]
    loss = losses.make_loss(tasks.load("toy"), "tiny-encoder", 512)
    features, head = (
        caches.read_features("tiny-encoder", lambda: model, texts, 3, "cpu"),
        text_classifier.HeadAlone(model.head),
    )
    for like, part in ((texts, model), (features, head)):
        batch = measurements.stand_ins(like, part, 24)
        figure = measurements.measure_batch_invariance(loss, part, batch, clip=1.0, smoothing=1e-3)
        assert figure["others_move_over_clip"] == 0 and figure["compute"] == "float32"

    class Moved(CrossEntropy):
        def __call__(self, model, batch) -> torch.Tensor:
            losses = super().__call__(model, batch)
            return losses + losses.mean()

    batch = measurements.stand_ins(texts, model, 24)
    figure = measurements.measure_batch_invariance(Moved(512), model, batch, clip=1e6, smoothing=1e-3)
    assert figure["others_move_over_clip"] > 0
    assert not any(p.grad is not None for p in model.parameters())


def test_the_audit_says_what_the_others_move_for_each_architecture_and_type(tmp_path, capsys):
    config = {
        "model_type": "opt",
        "vocab_size": 64,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
    }
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 80}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["audit", "--transcripts", "50", "--steps", "2", "--models", str(tmp_path / "config.json")]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["others_move"]
    assert [row["compute"] for row in rows if row["others_move_over_clip"] == 0] == ["float32", "bfloat16"]


def test_the_start_of_each_process_of_a_run_counts_beside_its_wall_seconds():
    before = time.process_time()
    clock = measurements.Clock("cpu")
    start = clock.start_cpu_seconds
    assert 0 < before <= start <= time.process_time()
    resumed = measurements.Clock("cpu")
    own = resumed.start_cpu_seconds
    resumed.load_state_dict(clock.state_dict())
    assert resumed.start_cpu_seconds == own + start
    assert resumed.record()["start_cpu_seconds"] == own + start and resumed.record()["wall_seconds"] < 1
