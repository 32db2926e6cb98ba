"""Where the weights of a model come from: a package in the cache, a local folder, or the Hugging Face hub by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml

from ..errors import UsageError
from . import assets, catalogues

FILE = Path(__file__).with_name("models.yaml")
MODEL_FOLDER = "DPZERO_MODEL_DIR"  # environment variable: a folder with a folder for each model of the hub
WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")


@cache
def catalogue() -> dict[str, dict]:
    return yaml.safe_load(FILE.read_text())


def stanza(name: str) -> dict:
    return catalogues.entry("model", name, catalogue())


def place(name: str) -> str:
    """What `from_pretrained` is given: a folder, or a name on the hub. UsageError for an asset that is not in the cache."""
    lines = stanza(name)
    if "asset" in lines:
        return str(assets.folder(lines["asset"]))
    if folder := os.environ.get(MODEL_FOLDER):
        own = Path(folder) / lines["hub"].rpartition("/")[2]
        if not (own / "config.json").is_file():
            raise UsageError(
                f"model {name} is not in {own}: put what save_pretrained writes there, or leave model_dir out to read the hub"
            )
        return str(own)
    return lines["hub"]


def digest(name: str) -> str:
    """SHA-256 of what the weights are made of; of the hub's, of the name and the commit that is here."""
    lines = stanza(name)
    if "config" in lines:
        return hashlib.sha256(repr(sorted(lines["config"].items())).encode()).hexdigest()
    if "asset" in lines:
        return assets.digest(lines["asset"])
    where = place(name)
    return _folder_digest(where) if Path(where).is_dir() else _hub_digest(where)


@cache
def _folder_digest(folder: str) -> str:
    paths = sorted({path for pattern in WEIGHTS for path in Path(folder).glob(pattern)})
    lines = []
    for path in paths:
        with path.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _hub_digest(name: str) -> str:
    from transformers.utils import cached_file

    with refusals(name):
        file = Path(cached_file(name, "config.json"))
    return hashlib.sha256(
        f"{name}@{file.parent.name}".encode()
    ).hexdigest()  # .../snapshots/COMMIT/config.json


def fetch(name: str) -> None:
    """Download a hub's model, once: nothing where it is here already, or comes from elsewhere."""
    if "hub" not in stanza(name) or Path(place(name)).is_dir():
        return
    from huggingface_hub import snapshot_download

    with refusals(name):
        snapshot_download(place(name), allow_patterns=list(WEIGHTS))


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What a library raises where it finds no model, in one sentence."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"cannot load model {name} ({reason}): give a folder of models as model_dir, or a hub that answers"
        ) from None
