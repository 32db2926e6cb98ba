"""The models of models.yaml: where their weights come from, their digests, and loading them complete.

Imports no torch: planning asks for digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ... import imports
from ...errors import UsageError
from ...files import write_whole
from ..data import assets, hub
from ..data.catalogue import Catalogue, Keys, Schema, Stanza
from . import model_folder
from .model_folder import TENSORS, listed

MODEL_FOLDER = "DPZERO_MODEL_DIR"  # environment variable: a folder with a folder for each model of the hub
OTHERS = ("*.json", "*.txt", "*.model")
INSTEAD = "a folder of models as model_dir"  # of a model of the hub
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # a result of a run, not a fault of its weights
ROBERTA = ("roberta", "xlm-roberta", "camembert")  # their positions start after that of the padding token
UNUSED = ("pooler",)  # layers of some architectures that no model here uses
# parts of the names of an adapter's and of a quantised model's tensors
ADAPTER = ("lora_", "base_layer", "modules_to_save", "prompt_encoder", "base_model.model.")
QUANTISED = (".SCB", "absmax", "weight_format", "weight_scale", "quant_", "qweight", "qzeros")
FEATURE_SCALE = 10.0  # of a user's encoder that gives none


# kind -> (its class in transformers, optional keys of its stanza)
KINDS: dict[str, tuple[str, dict[str, Schema]]] = {
    "encoder": ("AutoModel", {"feature_scale": float}),
    "causal": ("AutoModelForCausalLM", {"first": [range(10**7)]}),
    "masked": ("AutoModelForMaskedLM", {}),
}


def _schema(stanza: Stanza) -> Schema:
    kind = stanza.get("kind")
    if kind not in tuple(KINDS):
        return Keys({"kind": tuple(KINDS)}, dict.fromkeys(stanza, object))
    sources = {"asset": str, "hub": str, "path": str, "config": _config_schema}
    return Keys({"kind": str, "title": str}, sources | KINDS[kind][1])


def _config_schema(value: object) -> Schema:
    """Of transformers: its other keys depend on the model type."""
    return Keys({"model_type": str}, dict.fromkeys(value if isinstance(value, dict) else (), object))


def _faults(stanza: Stanza) -> Iterator[str]:
    if sum(key in stanza for key in ("asset", "hub", "path", "config")) != 1:
        yield "says where its weights come from in one of the keys 'asset', 'hub', 'path' and 'config': give one"


def _complete(name: str, own: Stanza, folder: Path) -> Stanza:
    """A user's stanza with its defaults. A `path` that is no folder of the disk is a name on the hub."""
    lines = {"title": name, **own}
    if lines.get("kind") == "encoder":
        lines.setdefault("feature_scale", FEATURE_SCALE)
    if isinstance(path := lines.get("path"), str):
        place = folder / Path(path).expanduser()
        if place.is_dir() or path.startswith((".", "/", "~")):
            lines["path"] = str(place)
        else:
            lines["hub"] = lines.pop("path")
    return lines


CATALOGUE = Catalogue(Path(__file__).with_name("models.yaml"), _schema, _faults, _complete)


def names() -> list[str]:
    """The models of models.yaml, in its order."""
    return list(CATALOGUE.stanzas)


def stanza(name: str) -> Stanza:
    """What models.yaml says of a model. Raises UsageError for an unknown name, or a stanza that is wrong."""
    return CATALOGUE[name]


def source(name: str) -> str:
    """The folder that `from_pretrained` reads. Configuration and tokenizer of a model of the hub are downloaded, but no weights.

    Raises UsageError for an asset that is not in the cache, and for a model that cannot be had from the hub.
    """
    lines = stanza(name)
    if "asset" in lines:
        return str(assets.folder(lines["asset"]))
    if folder := local_folder(name):
        return str(folder)
    return str(hub.snapshot(lines["hub"], OTHERS, INSTEAD))


def local_folder(name: str) -> Path | None:
    """The folder that a model's `path` names, or its folder in the user's folder of models, if there is one.

    Raises UsageError if it holds no complete model.
    """
    models, lines = os.environ.get(MODEL_FOLDER), stanza(name)
    if "path" in lines:
        folder = Path(lines["path"])
    elif models and "hub" in lines:
        folder = Path(models).expanduser() / lines["hub"].rpartition("/")[2]
    else:
        return None
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"model {name} is not in {folder}: put what save_pretrained writes there,"
            + (" or correct its path" if "path" in lines else " or leave model_dir out to read the hub")
        )
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"{folder} holds an adapter: merge it into its model {name} (merge_and_unload)"
            " and put what save_pretrained writes there"
        )
    return folder


def config(name: str) -> Any:
    """The transformers configuration of a model. Raises UsageError for a model that cannot be read."""
    from transformers import AutoConfig

    if values := dict(stanza(name).get("config", {})):
        return AutoConfig.for_model(values.pop("model_type"), **values)
    with one_line_errors(name):
        return AutoConfig.from_pretrained(source(name))


def kind_of(place: str) -> str:
    """`causal` or `encoder`: how a folder or a name on the hub is read, by its configuration.

    Raises UsageError for a model that cannot be read.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if Path(place).is_file():
        raise UsageError(f"{place} is a file: give the folder that save_pretrained wrote")
    if place.startswith((".", "/", "~")) and not Path(place).is_dir():
        raise UsageError(f"there is no folder {place}: give one that save_pretrained wrote")
    saved = "a folder that save_pretrained wrote"
    folder = place if Path(place).is_dir() else hub.snapshot(place, OTHERS, saved)
    try:
        found = AutoConfig.from_pretrained(folder)
    except Exception as error:  # its type depends on the library and its version
        raise UsageError(
            f"cannot read model {place} ({hub.reason(error)}): give {saved}, or another name"
        ) from None
    causal = found.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "causal" if causal and found.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "encoder"


def positions(config: Any) -> int:
    """Tokens of the longest text that a model with this transformers configuration reads."""
    offset = config.pad_token_id + 1 if config.model_type in ROBERTA else 0
    return getattr(config, "max_position_embeddings", 2**31) - offset


# -- digests ------------------------------------------------------------------------------------------------


def digest(name: str) -> str:
    """SHA-256 of the weights; for a model of the hub, of its name and the commit in the local cache."""
    lines = stanza(name)
    if CATALOGUE.is_own(name) and "hub" not in lines:
        return str(local_digest(name))
    if "config" in lines:
        return hashlib.sha256(repr(sorted(lines["config"].items())).encode()).hexdigest()
    if "asset" in lines:
        return assets.digest(lines["asset"])
    if found := local_digest(name):
        return found
    commit = Path(source(name)).name
    return hashlib.sha256(f"{lines['hub']}@{commit}".encode()).hexdigest()


def local_digest(name: str) -> str | None:
    """SHA-256 over the files of the model's local folder; None for a model that comes from elsewhere.

    Planning asks for it, so a file is hashed once, and again only when its size or one of its times has
    changed.
    """
    folder, digest = local_folder(name), ""
    if folder:
        tensors = model_folder.tensor_files(folder)
        others = [path for pattern in OTHERS for path in folder.glob(pattern)]
        files = [f"{_file_digest(path)}  {path.name}\n" for path in sorted({*tensors, *others})]
        digest = hashlib.sha256("".join(files).encode()).hexdigest()
    if CATALOGUE.is_own(name):  # how it is read counts, too, because no commit of the package names it
        lines = {key: value for key, value in stanza(name).items() if key not in ("title", "path")}
        digest = hashlib.sha256(f"{json.dumps(lines, sort_keys=True)}\n{digest}".encode()).hexdigest()
    return digest or None


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _digest_at(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _digest_at(path: str, *size_and_times: int) -> str:
    """SHA-256 of a file, from a note in the cache if there is one for this size and these times."""
    key = json.dumps([path, *size_and_times])
    note = assets.cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError):
        if len(known := note.read_text("utf-8")) == 64:
            return known
    with Path(path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # without a writable cache each process hashes it
        write_whole(note, digest)
    return digest


# -- the hub ------------------------------------------------------------------------------------------------


def fetch(name: str) -> None:
    """Download the weights of a model of the hub if they are not here yet."""
    if "hub" in stanza(name):
        _with_weights(name)


def _with_weights(name: str) -> str:
    """`source`, with weights. If the hub has them in both formats, one of them is downloaded."""
    if "hub" not in stanza(name) or local_folder(name):
        return source(name)
    place = stanza(name)["hub"]
    for pattern in TENSORS:
        folder = hub.snapshot(place, (pattern, *OTHERS), INSTEAD)
        if any(folder.glob(pattern)):
            return str(folder)
    raise UsageError(f"the hub has no weights of model {name} ({place}): correct its `hub` in models.yaml")


# -- loading ------------------------------------------------------------------------------------------------


@imports.quickly()
def load_pretrained(name: str) -> Any:
    """The transformer in float32 with its pretrained output layer; an encoder without one.

    transformers draws weights that are missing at random, without an error. Here they are refused.

    Raises:
        UsageError: naming tensors or file, for a checkpoint that lacks tensors or has them in another shape,
            that holds an adapter, a quantised model or more layers than its configuration, or one of whose
            files is damaged.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = stanza(name)["kind"]
    auto_class = getattr(transformers, KINDS[kind][0])
    options: dict[str, Any] = {"add_pooling_layer": False} if kind == "encoder" else {}
    if "config" in stanza(name):
        model = auto_class.from_config(config(name), **options)
    else:
        options |= {"dtype": "float32", "output_loading_info": True, "ignore_mismatched_sizes": True}
        folder = _with_weights(name)
        with one_line_errors(name):
            try:
                model, report = auto_class.from_pretrained(folder, **options)
            except Exception as error:
                if damaged := model_folder.damaged_file(Path(folder)):
                    where = f"{damaged} is damaged or cut short ({error})"
                    raise UsageError(f"{where}: {_advice(name)}") from None
                raise
        if fault := _fault(model, report):
            raise UsageError(f"the weights of model {name} in {folder} {fault}")
    model.config.use_cache = False  # of keys and values: one pass over complete texts does not need it
    return model


def _fault(model: Any, report: dict[str, Any]) -> str | None:
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in UNUSED))
    unexpected = sorted(report["unexpected_keys"])
    if foreign := [key for key in unexpected if any(part in key for part in ADAPTER + QUANTISED)]:
        lack = f"lack {listed(missing)} and " if missing else ""
        remedy = "merge it (merge_and_unload) or give the weights in floats, and save the whole model"
        return f"{lack}hold tensors of an adapter or a quantised model ({listed(foreign)}): {remedy}"
    if missing:
        return f"lack {listed(missing)}: give a checkpoint of the whole model"
    config = "give the config.json that they were saved with"
    if shapes := sorted(report["mismatched_keys"]):
        key, ours, theirs = shapes[0]
        return f"have {key} as {tuple(ours)}, but config.json makes it {tuple(theirs)}: {config}"
    # the model has these layers under another number; heads and poolers of another use are no fault
    known = {_without_numbers(key, model) for key in model.state_dict()}
    if layers := [key for key in unexpected if _without_numbers(key, model) in known]:
        return f"hold {listed(layers)}, layers that config.json does not have: {config}"
    return None


def _without_numbers(key: str, model: Any) -> str:
    return re.sub(r"\d+", "#", key.removeprefix(f"{model.base_model_prefix}."))


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turns what a library raises for a model that is missing or damaged into a UsageError."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # its type depends on the library, its version and the file's format
        if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise UsageError(f"cannot load model {name} ({hub.reason(error)}): {_advice(name)}") from None


def _advice(name: str) -> str:
    """What to do about a model that cannot be loaded."""
    lines = stanza(name)
    if asset := lines.get("asset"):
        return f"delete {assets.folder(asset)}, and run `python -m dpzero assets {asset}`"
    if folder := local_folder(name):
        return f"put what save_pretrained wrote into {folder} again"
    return f"delete {Path(source(name)).parents[1]}, so that it is downloaded again, or give {INSTEAD}"
