"""Checkpoints that do not fit their model, as they occur in practice: each is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from dpzero.errors import UsageError
from dpzero.language.models import encoding, model_catalogue
from dpzero.plan import sweep
from dpzero.plan.settings import check_files

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64,
    "max_position_embeddings": 66,
}  # fmt: skip
MADE = {  # model: (what saves it, the type of its configuration, further sizes)
    "roberta-base": (AutoModelForMaskedLM, "roberta", {}),
    "opt-125m": (AutoModelForCausalLM, "opt", {"ffn_dim": 16, "word_embed_proj_dim": 16}),
    "llama-3.2-1b": (AutoModelForCausalLM, "llama", {"tie_word_embeddings": False}),
}
KEY = "roberta.encoder.layer.1.attention.self.key.bias"
QUERY = "roberta.encoder.layer.{}.attention.self.query.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name, (maker, kind, more) in MADE.items():
        place = folder / model_catalogue.stanza(name)["hub"].rpartition("/")[2]
        maker.from_config(AutoConfig.for_model(kind, **SIZES, **more)).save_pretrained(place)
    return folder


@pytest.fixture
def folder(saved, tmp_path, monkeypatch) -> Path:
    """A model_dir with a copy of each."""
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(saved, tmp_path / "models"))


def pretrained(name: str) -> torch.nn.Module:
    return model_catalogue.load_pretrained(name)


def refused(name: str) -> str:
    with pytest.raises(UsageError) as error:
        pretrained(name)
    assert "\n" not in str(error.value) and name in str(error.value)
    return str(error.value)


def edit(place: Path, change: Callable[[dict], dict]) -> None:
    file = place / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", MADE)
def test_a_saved_model_is_loaded_complete(folder, name):
    """Tied heads are in no file."""
    model = pretrained(name)
    for key, tensor in load_file(f"{model_catalogue.source(name)}/model.safetensors").items():
        assert torch.equal(model.get_parameter(key), tensor)


EDITS = [
    (lambda w: {f"base_model.model.{k}": t for k, t in w.items()}, "lack lm_head.bias, lm_head.decoder.bias, lm_head.decoder.weight and 41 more and hold tensors of an adapter or a quantised model (base_model.model.lm_head.bias, "),
    (lambda w: {k.replace("query.weight", "query.base_layer.weight"): t for k, t in w.items()}, f"lack {QUERY.format(0)}, {QUERY.format(1)} and hold tensors of an adapter or a quantised model (roberta.encoder.layer.0.attention.self.query.base_layer.weight, "),
    (lambda w: {**w, QUERY.format(1).replace("weight", "lora_A.default.weight"): torch.zeros(2, 16)}, "hold tensors of an adapter or a quantised model (roberta.encoder.layer.1.attention.self.query.lora_A.default.weight): merge it (merge_and_unload)"),
    (lambda w: {**w, QUERY.format(1): w[QUERY.format(1)].to(torch.int8), QUERY.format(1).replace("weight", "SCB"): torch.zeros(16)}, "hold tensors of an adapter or a quantised model (roberta.encoder.layer.1.attention.self.query.SCB): merge it (merge_and_unload) or give the weights in floats"),
    (lambda w: {k: t for k, t in w.items() if k != KEY}, f"lack {KEY}: give a checkpoint of the whole model"),
    (lambda w: {k: t for k, t in w.items() if "lm_head" not in k}, "lack lm_head.bias, lm_head.decoder.bias, lm_head.dense.bias and 3 more: give a checkpoint"),
    (lambda w: w | {KEY: torch.zeros(15)}, f"have {KEY} as (15,), but config.json makes it (16,): give the config.json"),
    (lambda w: w | {k.replace("layer.1", "layer.2"): t.clone() for k, t in w.items() if "layer.1" in k}, "hold roberta.encoder.layer.2.attention.output.LayerNorm.bias, roberta.encoder.layer.2.attention.output.LayerNorm.weight, roberta.encoder.layer.2.attention.output.dense.bias and 13 more, layers that config.json does not have"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", EDITS, ids=range(len(EDITS)))
def test_missing_and_unexpected_tensors_are_named(folder, change, words):
    place = folder / "roberta-base"
    edit(place, change)
    assert refused("roberta-base").startswith(f"the weights of model roberta-base in {place} {words}")


def test_poolers_and_other_heads_are_ignored(folder):
    edit(
        folder / "roberta-base",
        lambda w: w | {"roberta.pooler.dense.bias": torch.zeros(16), "classifier.bias": torch.zeros(2)},
    )
    pretrained("roberta-base")


def test_an_untied_head_is_required(folder):
    edit(folder / "Llama-3.2-1B", lambda w: {k: t for k, t in w.items() if k != "lm_head.weight"})
    assert "lack lm_head.weight: give a checkpoint of the whole model" in refused("llama-3.2-1b")


def test_an_encoder_loads_the_body_of_a_masked_model(folder, monkeypatch):
    """A missing head is no fault, a missing tensor of the body is."""
    monkeypatch.setitem(
        model_catalogue.CATALOGUE.built_in,
        "own",
        {"kind": "encoder", "hub": "x/roberta-base", "title": "own"},
    )
    assert isinstance(
        pretrained("own"), type(AutoModel.from_config(AutoConfig.for_model("roberta", **SIZES)))
    )
    edit(folder / "roberta-base", lambda w: {k: t for k, t in w.items() if k != KEY})
    assert f"lack {KEY.removeprefix('roberta.')}: give" in refused("own")


@pytest.mark.parametrize("kept", [0, 5, 100, -3])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_is_cut_short_is_refused(folder, file, kept):
    """A damaged file of safetensors is named."""
    place = folder / "roberta-base"
    if file.endswith("bin"):
        torch.save(load_file(place / "model.safetensors"), place / file)
        (place / "model.safetensors").unlink()
        pretrained("roberta-base")
    (place / file).write_bytes((place / file).read_bytes()[:kept])
    message = refused("roberta-base")
    fault = "cannot load model roberta-base ("
    if not file.endswith("bin"):
        fault = f"{place / file} is damaged or cut short ("
    assert message.startswith(fault) and message.endswith(
        f": put what save_pretrained wrote into {place} again"
    )


def test_damaged_weights_of_a_package_are_to_be_fetched_again(folder, monkeypatch):
    monkeypatch.setitem(
        model_catalogue.CATALOGUE.built_in, "own", {"kind": "encoder", "asset": "minilm", "title": "own"}
    )
    monkeypatch.setattr("dpzero.language.data.assets.folder", lambda name: folder / "roberta-base")
    file = folder / "roberta-base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError) as error:
        pretrained("own")
    assert str(error.value).startswith(f"{file} is damaged or cut short (")
    assert str(error.value).endswith(f": delete {file.parent}, and run `python -m dpzero assets minilm`")


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "nothing"}'),
        ("config.json", json.dumps({"model_type": "roberta", "quantization_config": {"quant_method": "gptq", "bits": 4}})),
        ("model.safetensors", None),
        ("model.safetensors.index.json", "{"),
    ],
)  # fmt: skip
def test_a_folder_without_a_model_is_refused_in_one_line(folder, file, content):
    place = folder / "roberta-base"
    (place / file).unlink(missing_ok=True)
    if content is not None:
        (place / file).write_text(content)
    if file.endswith("index.json"):
        (place / "model.safetensors").unlink()
    assert refused("roberta-base").startswith("cannot load model roberta-base (")


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(folder):
    with pytest.raises(UsageError) as error:
        encoding.tokenizer_info("roberta-base")
    assert str(error.value).startswith("cannot load model roberta-base (") and "\n" not in str(error.value)
    assert str(error.value).endswith(f": put what save_pretrained wrote into {folder / 'roberta-base'} again")


def test_a_folder_of_an_adapter_is_refused(folder):
    (folder / "roberta-base" / "adapter_config.json").write_text("{}")
    assert (
        "roberta-base holds an adapter: merge it into its model roberta-base (merge_and_unload)"
        in refused("roberta-base")
    )


# --- digests


def cell(**settings) -> dict:
    own = {"steps": 1, "learning_rate": 1e-3, "clip": 1.0, **settings}
    names = {"task": "toy", "model": "opt-125m", "method": "dpzero", "epsilon": "2", "seed": 0}
    return sweep.complete({**names, "settings": own})


def test_a_cell_of_other_weights_in_the_same_folder_is_another_cell(folder):
    first = cell()
    assert len(first["settings"]["weights"]) == 64 and sweep.complete(first) == first == cell()
    check_files(first)
    edit(folder / "opt-125m", lambda w: {k: t + 1 for k, t in w.items()})
    assert cell()["settings"]["weights"] != first["settings"]["weights"]
    with pytest.raises(
        UsageError, match=r"weights of model opt-125m are .* give the model_dir that it was made with"
    ):
        check_files(first)


def test_a_release_names_its_weights_which_are_public(folder):
    assert cell(noise_key="secret")["settings"]["weights"] == cell()["settings"]["weights"]
    check_files(cell(noise_key="secret"))


def test_weights_that_are_not_local_have_no_digest_in_the_cell(folder, monkeypatch):
    assert (
        "weights" not in next(iter(sweep.load("smoke").values()))["settings"]
    )  # they have a configuration alone
    monkeypatch.delenv("DPZERO_MODEL_DIR")
    assert model_catalogue.local_digest("opt-125m") is None and "weights" not in cell()["settings"]


def test_a_digest_is_of_contents_and_a_file_is_hashed_once(folder, tmp_path, monkeypatch):
    before, hashed = model_catalogue.local_digest("opt-125m"), []
    real = model_catalogue.hashlib.file_digest
    monkeypatch.setattr(model_catalogue.hashlib, "file_digest", lambda *a: hashed.append(a) or real(*a))
    model_catalogue._digest_at.cache_clear()  # as in another process
    assert model_catalogue.local_digest("opt-125m") == before and not hashed
    file = folder / "opt-125m" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    times = file.stat()
    file.write_bytes(content)
    model_catalogue.os.utime(
        file, ns=(times.st_atime_ns, times.st_mtime_ns)
    )  # same size, same time of writing
    assert model_catalogue.local_digest("opt-125m") != before and len(hashed) == 1
    content[-1] ^= 1
    file.write_bytes(content)
    assert model_catalogue.local_digest("opt-125m") == before
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(shutil.copytree(folder, tmp_path / "elsewhere")))
    assert model_catalogue.local_digest("opt-125m") == before
    monkeypatch.setenv("DPZERO_CACHE", "/proc/none")  # cannot be written
    model_catalogue._digest_at.cache_clear()
    assert model_catalogue.local_digest("opt-125m") == before


def test_weights_that_are_not_read_are_not_in_the_digest(folder):
    before = model_catalogue.local_digest("opt-125m")
    (folder / "opt-125m" / "training_args.bin").write_bytes(b"not read beside safetensors")
    assert model_catalogue.local_digest("opt-125m") == before == model_catalogue.digest("opt-125m")
    (folder / "opt-125m" / "merges.txt").write_text("read")
    assert model_catalogue.local_digest("opt-125m") != before
