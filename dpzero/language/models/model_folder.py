"""What is wrong with a folder that should hold a model as save_pretrained writes it. Imports no torch: planning asks."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

# as save_pretrained names them; files of the second format are read only if there is none of the first
TENSORS = ("model*.safetensors", "pytorch_model*.bin")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model")  # one of them
MAX_LISTED = 3  # names in an error


def faults(folder: Path) -> Iterator[str]:
    """What is wrong, one clause each, as far as file headers show it: "lacks a tokenizer: save it there, too"."""
    yield from _config_faults(folder / "config.json")
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER):
        yield "lacks a tokenizer: save it there, too"
    files = tensor_files(folder)
    if not files:
        yield "lacks weights (model.safetensors): save the model there with save_pretrained"
    for file in files:
        if _is_damaged(file):
            yield f"has {file.name} damaged or cut short: copy it again"
    for index in folder.glob("*.index.json"):
        if missing := sorted({name for name in _parts(index) if not (folder / name).is_file()}):
            yield f"lacks {listed(missing)}, which {index.name} names: copy all files of the model"


def tensor_files(folder: Path) -> list[Path]:
    """The files of weights that are read."""
    return next(filter(None, (sorted(folder.glob(pattern)) for pattern in TENSORS)), [])


def parameters(folder: Path) -> int | None:
    """How many parameters the weights have, tied ones once; None for pickles, which must be loaded to be counted."""
    from safetensors import safe_open

    files = tensor_files(folder)
    if any(file.suffix != ".safetensors" for file in files):
        return None
    count = 0
    for file in files:
        with safe_open(file, "np") as tensors:
            names = tensors.keys()
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return count


def damaged_file(folder: Path) -> Path | None:
    """The first file of safetensors that is damaged or cut short."""
    return next(filter(_is_damaged, sorted(folder.glob(TENSORS[0]))), None)


def listed(names: list[str]) -> str:
    """The first names, and how many more."""
    rest = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + rest


def _config_faults(file: Path) -> Iterator[str]:
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        yield f"has a config.json that is no JSON ({error}): copy it again"
        return
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        yield "has a config.json without model_type: give the one that save_pretrained writes"


def _is_damaged(file: Path) -> bool:
    """Whether a file's header does not fit its length. A pickle of the oldest format has none."""
    if file.suffix != ".safetensors":
        with file.open("rb") as stream:
            start = stream.read(2)
        return not start or (start == b"PK" and not zipfile.is_zipfile(file))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            return False
    except (SafetensorError, OSError):
        return True


def _parts(index: Path) -> list[str]:
    try:
        return list(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return [index.name + " (unreadable)"]
