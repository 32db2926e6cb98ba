"""Stand-ins: small random models that are read in the place of published ones."""

from __future__ import annotations

import json

import pytest

from dpzero.__main__ import main
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import (
    encoding,
    model_catalogue,
    model_folder,
    random_models,
    stand_ins,
    text_classifier,
)
from dpzero.plan import sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stand-ins")


@pytest.fixture(autouse=True)
def _read_from_there(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path))


@pytest.mark.parametrize("name, model", [("paper-roberta", "roberta-large"), ("paper-opt", "opt-1.3b")])
def test_a_sweeps_models_are_written_as_model_dir_wants_them(name, model, folder, monkeypatch, capsys):
    assert main(["stand-ins", "--sweep", name, "--out", str(folder)]) == 0
    wanted = sorted({cell["model"] for cell in sweep.load(name).values()})
    assert json.loads(capsys.readouterr().out) == {"model_dir": str(folder), "models": wanted}
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(folder))
    place = model_catalogue.local_folder(model)
    assert not list(model_folder.faults(place))
    task = tasks.load("sst2")
    classifier = text_classifier.load(model, task, "full")
    (backbone,) = {classifier.backbone.config.model_type}
    assert backbone == random_models.catalogue()[model]["model_type"]
    longest = random_models.catalogue()[model]["max_position_embeddings"]
    assert classifier.backbone.config.max_position_embeddings == longest
    counted = model_folder.parameters(place)
    assert counted == sum(p.numel() for p in model_catalogue.load_pretrained(model).parameters()) < 200_000


def test_every_answer_is_one_token_as_it_is_for_the_papers_tokenizers(folder, monkeypatch):
    for name in ("roberta-large", "opt-13b"):
        stand_ins.write(name, folder / name)
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(folder))
    for name in tasks.names():
        task = tasks.load(name)
        if task.labels:
            assert len(set(encoding.answer_tokens("opt-13b", task))) == len(task.labels)
        if "masked" in task.stanza:
            assert len(set(encoding.answer_tokens("roberta-large", task))) == len(task.labels)
    text = "Naïve — yes.\n"
    info = encoding.tokenizer_info("opt-13b")
    assert info.decode(info.encode(text)) == text


def test_a_sweep_without_a_model_of_the_hub_and_a_model_without_a_shape_are_refused(folder, tmp_path):
    assert main(["stand-ins", "--sweep", "smoke", "--out", str(tmp_path)]) == 2
    with pytest.raises(UsageError, match="no shape of model llama is known, but of roberta-base"):
        stand_ins.write("llama", tmp_path)
