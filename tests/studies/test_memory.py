"""The sweep `memory`: its cells, and one of its runs, predicted and measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dpzero.errors import UsageError
from dpzero.language.models import random_models
from dpzero.plan import sweep
from dpzero.plan.method_variants import VARIANTS
from dpzero.report.records import read_records
from dpzero.studies.run import run_cell

ONE = """
experiment: memory
tuning: none
series:
  - {models: [tiny], methods: [dpzero, adamw], sizes: [4x16], measure: [tiny]}
  - {models: [tiny], methods: [dpzero], sizes: [4x16, 8x16]}
"""
TINY = {"model_type": "opt", "vocab_size": 500, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}


def test_its_cells_are_products_and_each_run_is_one(write):
    cells = write("one", ONE)
    assert list(cells) == [
        f"{t}/tiny/{m}/eps-0/seed-0" for m, t in (("dpzero", "4x16"), ("adamw", "4x16"), ("dpzero", "8x16"))
    ]
    committed = sweep.load("memory")
    assert {cell["method"] for cell in committed.values()} <= set(VARIANTS)
    assert {cell["model"] for cell in committed.values()} <= set(random_models.catalogue())
    narrowed = sweep.load("memory", models=["opt-13b"], methods=["dpzero"])
    assert list(narrowed) == ["8x512/opt-13b/dpzero/eps-0/seed-0"]


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("methods: [dpzero, adamw]", "methods: [dpzreo]", "did you mean 'dpzero'?"),
        ("sizes: [4x16]", "sizes: [4]", "write it as 8x512"),
        ("sizes: [4x16]", "sizes: []", "has no 'sizes'"),
        ("series:", "settings: {dtyp: float32}\nseries:", "unknown setting 'dtyp': did you mean 'dtype'?"),
        ("series:", "settings: {dtype: 32}\nseries:", "setting dtype is 32, but must be of type str"),
        ("series:", "serie:", "unknown key 'serie'"),
    ],
)
def test_a_fault_of_the_file_is_named(write, old, new, words):
    assert old in ONE
    with pytest.raises(UsageError) as error:
        write("one", ONE.replace(old, new, 1))
    assert words in str(error.value)


def test_a_run_keeps_predicted_and_measured_apart(write, tmp_path, monkeypatch):
    monkeypatch.setattr(random_models, "catalogue", lambda: {"tiny": TINY})
    cells = write("one", ONE)
    records = {}
    for run, cell in cells.items():
        out = tmp_path / f"{run}.json"
        run_cell(sweep.complete(cell), out, log=lambda line: None, device="cpu")
        (records[run],) = read_records([out])
        assert records[run] == json.loads(out.read_text()) and records[run]["status"] == "ok"
    both, adamw, predicted = (record["memory"] for record in records.values())
    assert both["measured_peak_bytes"] == pytest.approx(both["predicted_peak_bytes"], rel=0.02)
    assert adamw["predicted_peak_bytes"] > 3 * adamw["weights_bytes"]
    assert not any(key.startswith("measured") for key in predicted)
    assert both["predicted_how"].startswith("predicted") and both["measured_how"].startswith("measured")


def test_planning_it_loads_nothing_heavy():
    code = "from dpzero.plan import sweep; assert sweep.load('memory'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "transformers", "pandas"} & set(done.stdout.split())
