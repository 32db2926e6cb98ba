"""Every data set and model of the hub is read from a stand-in with the layout of the real one, and what it refuses is said in one sentence."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load

from dpzero.errors import UsageError
from dpzero.language import prefetch
from dpzero.language.data import datasets, hub, tasks
from dpzero.language.models import encoding, model_catalogue
from dpzero.plan import sweep
from dpzero.run.run import run_cell
from tests import stand_in_hub
from tests.stand_in_hub import BIN, BOTH, CONVERTED, SAFETENSORS, Repository, StandInHub

ROOT = Path(__file__).resolve().parents[2]
TASKS = [name for name, stanza in tasks.CATALOGUE.built_in.items() if "hub" in stanza]
MODELS = {name: lines["hub"] for name, lines in model_catalogue.CATALOGUE.built_in.items() if "hub" in lines}
CONFIGS = "cb, wsc.fixed, wic, multirc, copa, record"  # of SuperGLUE
SUPER_GLUE = {"name": "aps/super_glue", "train": "train", "test": "validation"}
SWEEP = """
tuning: fixed
tasks: [{tasks}]
models: [opt-125m]
epsilons: [2]
seeds: [0]
settings: {{max_length: 256}}
methods: {{zero_shot: {{}}}}
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory, cache) -> Iterator[StandInHub]:
    """The hub for this process, and caches of this module."""
    with (
        StandInHub(stand_in_hub.data_sets() | stand_in_hub.models()) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        stand_in_hub.redirect(patch, server.address, tmp_path_factory.mktemp("hub"))
        yield server
    stand_in_hub.forget()


@pytest.fixture
def here(stand_in, tmp_path, monkeypatch) -> Path:
    """The same hub with an empty cache, which is returned."""
    stand_in_hub.redirect(monkeypatch, stand_in.address, tmp_path / "here")
    yield tmp_path / "here"
    stand_in_hub.forget()


def refusal(call, *arguments) -> str:
    with pytest.raises(UsageError) as error:
        call(*arguments)
    return str(error.value)


# --- data sets


@pytest.fixture(scope="module")
def cells(stand_in, tmp_path_factory) -> dict[str, dict]:
    """Task -> a cell that scores its test rows."""
    file = tmp_path_factory.mktemp("sweep") / "all.yaml"
    file.write_text(SWEEP.format(tasks=", ".join(TASKS)), "utf-8")
    return {cell["task"]: cell for cell in sweep.load(str(file)).values()}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_read_from_the_hub_and_run(stand_in, cells, tmp_path, task):
    prepared = prefetch.prefetch([(task, "opt-125m", 256, datasets.ALL)], lambda line: None)
    ((_, counts),) = prepared["tokens"].items()
    record = run_cell(cells[task], tmp_path / "record.json", lambda line: None, "cpu")
    assert record["status"] == "ok" and record["metrics"]["examples"] == counts["test"]["examples"] > 10


@pytest.mark.parametrize("name", sorted({tasks.CATALOGUE.built_in[task]["hub"]["name"] for task in TASKS}))
def test_the_converted_branch_has_one_config(stand_in, name):
    """Of a data set with several, none can be read there."""
    sources = [tasks.CATALOGUE.built_in[task]["hub"] | {"revision": CONVERTED} for task in TASKS]
    for source in sources:
        if source["name"] != name:
            continue
        if config := source.get("config"):
            words = f"(it has the configs default, not {config}): correct its `hub` in tasks.yaml"
            assert words in refusal(hub.rows, source, "train")
        else:
            assert len(hub.rows(source, "train")) == 40


# --- models


@pytest.mark.parametrize(
    "name, formats",
    [(name, stand_in_hub.formats_of(name)) for name in MODELS]
    + [("roberta-base", BIN), ("roberta-large", SAFETENSORS), ("opt-1.3b", BOTH), ("opt-13b", BOTH)],
)
def test_of_a_model_one_format_of_weights_is_fetched_and_once(stand_in, here, monkeypatch, name, formats):
    files = stand_in_hub.model(name, formats)
    monkeypatch.setitem(stand_in.repositories, ("models", MODELS[name]), Repository({"main": files}))
    monkeypatch.setattr(stand_in, "requests", [])
    model_catalogue.fetch(name)
    words = encoding.tokenizer_info(name)
    ids = words.encode("great terrible")
    assert len(ids) == 2 and words.decode(ids) == "great terrible"
    parameters = model_catalogue.load_pretrained(name).state_dict()
    kept = ("model.safetensors",) if "safetensors" in formats else ("pytorch_model",)
    wanted = {file for file in files if file.startswith(kept) and not file.endswith("json")}
    wanted |= {file for file in files if file.endswith((".json", ".txt"))}
    assert stand_in.fetched(MODELS[name]) == {file: len(files[file]) for file in wanted}
    asked = {re.split("/(resolve|revision|tree)/", request.path)[0] for request in stand_in.requests}
    assert asked - {"/api/agent-harnesses"} == {"/", f"/{MODELS[name]}", f"/api/models/{MODELS[name]}"}
    saved = load(stand_in_hub.model(name, SAFETENSORS)["model.safetensors"])
    assert saved and all(torch.equal(parameters[key], tensor) for key, tensor in saved.items())


def test_a_model_without_weights_is_refused(stand_in, here, monkeypatch):
    files = dict(stand_in_hub.model("opt-125m", BIN))
    del files["pytorch_model.bin"]
    monkeypatch.setitem(stand_in.repositories, ("models", "facebook/opt-125m"), Repository({"main": files}))
    assert refusal(model_catalogue.fetch, "opt-125m").startswith(
        "the hub has no weights of model opt-125m (facebook/opt-125m)"
    )


def test_weights_that_are_damaged_in_the_hubs_cache_are_named_and_can_be_downloaded_again(stand_in, here):
    model_catalogue.fetch("roberta-base")
    place = here / "hub" / "models--FacebookAI--roberta-base"
    (file,) = place.glob("snapshots/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    words = refusal(model_catalogue.load_pretrained, "roberta-base")
    assert words.startswith(f"{file} is damaged or cut short (")
    assert words.endswith(
        f": delete {place}, so that it is downloaded again, or give a folder of models as model_dir"
    )
    shutil.rmtree(place)
    stand_in_hub.forget()
    model_catalogue.load_pretrained("roberta-base")


# --- what the hub refuses


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("token", ["", "hf_mine"])
def test_a_refusal_is_told_with_its_status_and_what_to_do(stand_in, here, monkeypatch, gated, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hidden = Repository({"main": {".gitattributes": b"", "README.md": b"", "config.json": b"{}"}}, gated)
    found = {(kind, "some/one"): hidden for kind in ("models", "datasets") if gated}
    monkeypatch.setattr(stand_in, "repositories", found)
    one = {"kind": "causal", "hub": "some/one", "title": "one"}
    monkeypatch.setitem(model_catalogue.CATALOGUE.built_in, "one", one)

    def words(page: str) -> str:
        answer = f"some/one ({stand_in.address} answers"
        login = "log in with `hf auth login`, or give a folder"
        if gated:
            terms = f"accept its terms on {stand_in.address}/{page} and {login}"
            return f"{answer} {403 if token else 401}: it is gated): {terms}"
        return f"{answer} {404 if token else 401}: it is not there, or private): correct its name, or {login}"

    model = f"cannot read model {words('some/one')}"
    for call in (model_catalogue.fetch, model_catalogue.config, model_catalogue.digest):
        assert refusal(call, "one") == f"{model} of models as model_dir"
    assert refusal(model_catalogue.kind_of, "some/one") == f"{model} that save_pretrained wrote"
    rows = refusal(hub.rows, {"name": "some/one", "train": "train"}, "train")
    assert rows == f"cannot read data set {words('datasets/some/one')} of JSON lines as data_dir"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"config": "wcs"}, f"(it has the configs {CONFIGS}, not wcs): correct its `hub` in tasks.yaml, or"),
        ({}, f"(it has the configs {CONFIGS}): correct its `hub` in tasks.yaml, or give a folder"),
        ({"config": "cb", "train": "all"}, "has no split all, but train, validation: correct its `hub`"),
        (
            {"config": "cb", "revision": "old"},
            "404: it has no revision old): correct its `hub` in tasks.yaml",
        ),
        ({"name": "CogComp/trec"}, "(Dataset scripts are no longer supported, but found trec.py): "),
    ],
)
def test_a_config_split_or_revision_that_is_not_there_is_told_with_those_that_are(
    stand_in, here, change, words
):
    assert words in refusal(hub.rows, SUPER_GLUE | change, "train")


def test_without_the_hub_its_cache_is_read_alone(stand_in, here, monkeypatch):
    """One question tells that it does not answer; what was read before is the same, down to its digest."""
    cb = SUPER_GLUE | {"config": "cb"}
    model_catalogue.fetch("opt-125m")
    known = datasets.hub_digest(cb), model_catalogue.digest("opt-125m")
    nowhere = "http://127.0.0.1:9"
    for offline in (False, True):
        stand_in_hub.redirect(monkeypatch, nowhere, here)
        silent = "does not answer"
        if offline:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            for module in ("huggingface_hub.constants", "datasets.config"):
                monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
            silent = "is not asked (HF_HUB_OFFLINE)"
        assert (datasets.hub_digest(cb), model_catalogue.digest("opt-125m")) == known
        model_catalogue.load_pretrained("opt-125m")
        words = f"({nowhere} {silent}, and its cache on this machine does not hold it): "
        for call, argument in ((model_catalogue.fetch, "opt-350m"), (model_catalogue.kind_of, "some/one")):
            assert words in refusal(call, argument)
        assert words in refusal(hub.rows, SUPER_GLUE | {"config": "wic"}, "train")
        assert words in refusal(hub.rows, SUPER_GLUE | {"name": "some/one"}, "train")


def test_a_fault_of_a_local_folder_is_not_said_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}', "utf-8")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = refusal(model_catalogue.kind_of, str(tmp_path))
    assert "unheard-of" in words and "does not hold it" not in words


@pytest.mark.parametrize(
    "words, first",
    [
        ("404 Client Error. (Request ID: 7)\n\nRepository Not Found", "404 Client Error"),
        (
            "x is not a valid model on 'the hub'\nIf this is private, log in.",
            "x is not a valid model on 'the hub'",
        ),
        ("Error(s) in loading:\n\tsize mismatch for a.b", "Error(s) in loading: size mismatch for a.b"),
        ("It needs version 1.5.2 of it. Update it.", "It needs version 1.5.2 of it"),
        ("", "ValueError"),
    ],
)
def test_of_a_long_error_its_first_sentence_is_told(words, first):
    assert hub.reason(ValueError(words)) == first


# --- the workflow

BRIEF = """
extends: paper-mezo
settings: {steps: 20, evaluate_every: 10, max_length: 256, curve_examples: 20}
"""


@pytest.mark.slow
def test_the_sweep_of_mezos_tables_reads_the_hub_and_ends_with_tables(stand_in, tmp_path, monkeypatch):
    """With fewer steps and shorter texts; its model is the stand-in's."""
    monkeypatch.setattr(stand_in, "requests", [])
    (tmp_path / "brief.yaml").write_text(BRIEF, "utf-8")
    here = {
        "HF_ENDPOINT": stand_in.address,
        "HF_HOME": str(tmp_path / "hub"),
        "DPZERO_CACHE": str(tmp_path / "cache"),
    }
    here |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | dict.fromkeys(
        ("DPZERO_DATA_DIR", "DPZERO_MODEL_DIR", "HF_HUB_OFFLINE"), ""
    )
    table = "results/brief/tables/accuracy.csv"
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", table]
    command += ["--config", "sweep=brief.yaml", "tasks=[rte, cb]", "methods=[mezo]"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / table).open(newline="") as file:
        found = {(row["task"], row["method"]) for row in csv.DictReader(file)}
    assert found >= {(task, method) for task in ("rte", "cb") for method in ("majority", "mezo")}
    for kind, name in (
        ("models", MODELS["opt-13b"]),
        ("datasets", "nyu-mll/glue"),
        ("datasets", "aps/super_glue"),
    ):
        files, sent = stand_in.repositories[kind, name].branches["main"], stand_in.fetched(name)
        large = {file: size for file, size in sent.items() if file.endswith((".bin", ".parquet"))}
        assert large and large == {file: len(files[file]) for file in large}  # each is fetched once
