"""Checks that a checkpoint is complete: transformers draws missing weights at random, without an error."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from . import model_catalogue

UNUSED = ("pooler",)  # layers of some architectures that no model here uses
FOREIGN = {  # parts of the names of tensors that are not the model's, and what to do
    "an adapter": (
        ("lora_", "base_layer", "modules_to_save", "prompt_encoder", "base_model.model."),
        "merge it (merge_and_unload) and save the whole model",
    ),
    "a quantised model": (
        (".SCB", "weight_format", "weight_scale", "absmax", "quant_map", "quant_state", "qweight", "qzeros"),
        "give the weights in floats",
    ),
}
MAX_LISTED = 3  # names in an error


def load(name: str, auto_class: Any, **options: Any) -> nn.Module:
    """A pretrained model in float32.

    Args:
        name: of models.yaml.
        auto_class: of transformers, with `from_pretrained`.
        options: for `from_pretrained`.

    Raises:
        UsageError: naming tensors or file, for a checkpoint that lacks tensors or has them in another shape,
            that holds an adapter, a quantised model or more layers than its configuration, or one of whose
            files is damaged.
    """
    source = model_catalogue.source(name)
    with model_catalogue.one_line_errors(name):
        try:
            model, report = auto_class.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except Exception as error:
            if damaged := _damaged_file(source):
                raise UsageError(
                    f"{damaged} is damaged or cut short ({error}): {model_catalogue.advice(name)}"
                ) from None
            raise
    if fault := _fault(model, report):
        raise UsageError(f"the weights of model {name} in {source} {fault}")
    return model


def _fault(model: Any, report: dict[str, Any]) -> str | None:
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in UNUSED))
    unexpected = sorted(report["unexpected_keys"])
    for owner, (parts, remedy) in FOREIGN.items():
        if foreign := [key for key in unexpected if any(part in key for part in parts)]:
            lack = f"lack {_listed(missing)} and " if missing else ""
            return f"{lack}hold tensors of {owner} ({_listed(foreign)}): {remedy}"
    if missing:
        return f"lack {_listed(missing)}: give a checkpoint of the whole model"
    config = "give the config.json that they were saved with"
    if shapes := sorted(report["mismatched_keys"]):
        key, ours, theirs = shapes[0]
        others = f", and {len(shapes) - 1} more are of another shape" if len(shapes) > 1 else ""
        return f"have {key} as {tuple(ours)}, but config.json makes it {tuple(theirs)}{others}: {config}"
    # the model has these layers under another number; heads and poolers of another use are no fault
    known = {_without_numbers(key, model) for key in model.state_dict()}
    if layers := [key for key in unexpected if _without_numbers(key, model) in known]:
        return f"hold {_listed(layers)}, layers that config.json does not have: {config}"
    return None


def _without_numbers(key: str, model: Any) -> str:
    return re.sub(r"\d+", "#", key.removeprefix(f"{model.base_model_prefix}."))


def _listed(keys: list[str]) -> str:
    rest = f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else ""
    return ", ".join(keys[:MAX_LISTED]) + rest


def _damaged_file(folder: str) -> Path | None:
    """The first damaged file of tensors in a folder, as far as its format shows it."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            return path
    for path in sorted(
        Path(folder).glob("*.bin")
    ):  # PyTorch's older format, which is not a zip file, does not show it
        with path.open("rb") as file:
            start = file.read(2)
        if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
            return path
    return None
