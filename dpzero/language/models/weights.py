"""Where the weights of a model come from: a package in the cache, a local folder, or the Hugging Face hub by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ...errors import UsageError
from ...files import write_whole
from ..data import assets, catalogues

MODEL_FOLDER = "DPZERO_MODEL_DIR"  # environment variable: a folder with a folder for each model of the hub
TENSORS = ("*.safetensors", "*.bin")  # of the second no file is read where there is one of the first
OTHERS = ("*.json", "*.txt", "*.model")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # a result of a run, and no fault of its weights


def catalogue() -> dict[str, dict]:
    return catalogues.read("models")


def stanza(name: str) -> dict:
    return catalogues.entry("model", name, catalogue())


def assets_of(name: str) -> list[str]:
    """The assets that a model is read from (see `assets.ensure`). UsageError for an unknown model."""
    asset = stanza(name).get("asset")
    return [asset] if asset else []


def place(name: str) -> str:
    """What `from_pretrained` is given: a folder, or a name on the hub. UsageError for an asset that is not in the cache."""
    lines = stanza(name)
    if "asset" in lines:
        return str(assets.folder(lines["asset"]))
    return str(_local_folder(name) or lines["hub"])


def _local_folder(name: str) -> Path | None:
    """The model's folder in the user's folder of models, where there is one. UsageError where it holds no whole model."""
    folder, hub = os.environ.get(MODEL_FOLDER), stanza(name).get("hub")
    if not folder or not hub:
        return None
    own = Path(folder).expanduser() / hub.rpartition("/")[2]
    if not (own / "config.json").is_file():
        raise UsageError(
            f"model {name} is not in {own}: put what save_pretrained writes there, or leave model_dir out to read the hub"
        )
    if (own / "adapter_config.json").is_file():
        raise UsageError(
            f"{own} holds an adapter: merge it into its model {name} (merge_and_unload) and put what save_pretrained writes there"
        )
    return own


# -- digests -------------------------------------------------------------------------------------------------------------


def digest(name: str) -> str:
    """SHA-256 of what the weights are made of; of the hub's, of the name and the commit that is here."""
    lines = stanza(name)
    if "config" in lines:
        return hashlib.sha256(repr(sorted(lines["config"].items())).encode()).hexdigest()
    if "asset" in lines:
        return assets.digest(lines["asset"])
    return local_digest(name) or _hub_digest(lines["hub"])


def local_digest(name: str) -> str | None:
    """SHA-256 of the files of the model's local folder that are read; None for a model that comes from elsewhere.

    Planning asks for it: a file is hashed once, and again when its size or one of its times has changed.
    """
    folder = _local_folder(name)
    if folder is None:
        return None
    tensors = next(filter(None, (sorted(folder.glob(pattern)) for pattern in TENSORS)), [])
    others = [path for pattern in OTHERS for path in folder.glob(pattern)]
    lines = [f"{_file_digest(path)}  {path.name}\n" for path in sorted({*tensors, *others})]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _digest_at(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _digest_at(path: str, *size_and_times: int) -> str:
    """SHA-256 of a file, from a note in the cache where there is one of this size and these times."""
    key = json.dumps([path, *size_and_times])
    note = assets.cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError):
        if len(known := note.read_text("utf-8")) == 64:
            return known
    with Path(path).open("rb") as stream:
        made = hashlib.file_digest(stream, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # without a writable cache each process hashes it
        write_whole(note, made)
    return made


@cache
def _hub_digest(name: str) -> str:
    from transformers.utils import cached_file

    with refusals(name):
        file = Path(cached_file(name, "config.json"))
    return hashlib.sha256(
        f"{name}@{file.parent.name}".encode()
    ).hexdigest()  # .../snapshots/COMMIT/config.json


# -- the hub -------------------------------------------------------------------------------------------------------------


def fetch(name: str) -> None:
    """Download a hub's model, once: nothing where it is here already, or comes from elsewhere. Of weights that are there in both
    formats, one."""
    if "hub" not in stanza(name) or Path(place(name)).is_dir():
        return
    from huggingface_hub import snapshot_download

    for tensors in TENSORS:
        with refusals(name):
            here = snapshot_download(place(name), allow_patterns=[tensors, *OTHERS], ignore_patterns=["*/*"])
        if any(Path(here).glob(tensors)):
            return
    raise UsageError(
        f"the hub has no weights of model {name} ({place(name)}): correct its `hub` in models.yaml"
    )


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What a library raises where it finds no model, or a damaged one, in one sentence."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # which of them follows the library, its version and the file's format
        if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"cannot load model {name} ({reason}): {advice(name)}") from None


def advice(name: str) -> str:
    """What to do about a model that cannot be loaded."""
    asset = catalogue().get(name, {}).get("asset")
    if asset:
        return f"delete {assets.folder(asset)}, and run `python -m dpzero assets {asset}`"
    return "give a folder of models as model_dir, or a hub that answers"
