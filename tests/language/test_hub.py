"""A hub that does not answer: asked once, and said in one sentence with what was asked, where, and what to do."""

from __future__ import annotations

import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from dpzero.errors import UsageError
from dpzero.language.data import datasets, hub
from dpzero.language.models import model_catalogue

SILENT = f"{constants.ENDPOINT} does not answer, and its cache on this machine does not hold it"


class Silent:
    """A session of HTTP whose server is never there."""

    asked = 0

    def head(self, url: str, timeout: float) -> None:
        Silent.asked += 1
        raise OSError("Name or service not known")


@pytest.fixture
def silent(monkeypatch, tmp_path) -> type[Silent]:
    monkeypatch.setattr(huggingface_hub, "get_session", Silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(Silent, "asked", 0)
    hub.read_cache_alone_if_silent.cache_clear()
    yield Silent
    hub.read_cache_alone_if_silent.cache_clear()


def test_a_model_or_data_set_of_a_silent_hub_is_refused_at_once(silent):
    start = time.process_time()
    with pytest.raises(UsageError) as error:
        model_catalogue.kind_of("someone/typo-model")
    assert str(error.value).startswith(f"cannot read the model someone/typo-model ({SILENT}): give a folder")
    with pytest.raises(UsageError) as error:
        datasets._load_hub_split("someone/typo-rows", None, "train", None)
    assert f"cannot load train of data set someone/typo-rows ({SILENT}): give a folder of JSON" in str(
        error.value
    )
    with pytest.raises(UsageError) as error:
        model_catalogue.fetch("roberta-base")
    assert str(error.value).startswith(
        f"cannot load model roberta-base ({SILENT}): give a folder of models as"
    )
    assert silent.asked == 1 and time.process_time() - start < 60


def test_a_fault_of_a_local_folder_is_not_said_of_the_hub(silent, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}', "utf-8")
    constants.HF_HUB_OFFLINE = True
    with pytest.raises(UsageError, match="unheard-of") as error:
        model_catalogue.kind_of(str(tmp_path))
    assert SILENT not in str(error.value)


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
