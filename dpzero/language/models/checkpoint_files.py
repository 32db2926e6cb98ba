"""Whether a checkpoint holds the weights of its architecture: transformers draws what is missing at random, without an error."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch
from torch import nn

from ...errors import UsageError
from . import weights

UNREAD = ("pooler",)  # layers of some architectures that no model here reads
FOREIGN = {  # whose tensors a checkpoint holds by parts of their names, and what to do
    "an adapter": (
        ("lora_", "base_layer", "modules_to_save", "prompt_encoder", "base_model.model."),
        "merge it (merge_and_unload) and save the whole model",
    ),
    "a quantised model": (
        (".SCB", "weight_format", "weight_scale", "absmax", "quant_map", "quant_state", "qweight", "qzeros"),
        "give the weights in floats",
    ),
}
SHOWN = 3  # names in an error


def load(name: str, maker, **options) -> nn.Module:
    """What `maker.from_pretrained` makes of a model's checkpoint, in float32.

    Raises UsageError, naming tensors or file, where the checkpoint lacks tensors or has them in another shape, where it holds an
    adapter's or more layers than its configuration, or where a file is damaged.
    """
    place = weights.place(name)
    with weights.refusals(name):
        try:
            model, told = maker.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except Exception as error:
            if damaged := _damaged(place):
                raise UsageError(
                    f"{damaged} is damaged or cut short ({error}): {weights.advice(name)}"
                ) from None
            raise
    if fault := _fault(model, told):
        raise UsageError(f"the weights of model {name} in {place} {fault}")
    return model


def _fault(model: nn.Module, told: dict) -> str | None:
    missing = sorted(key for key in told["missing_keys"] if not any(part in key for part in UNREAD))
    unexpected = sorted(told["unexpected_keys"])
    for what, (parts, advice) in FOREIGN.items():
        if foreign := [key for key in unexpected if any(part in key for part in parts)]:
            lack = f"lack {_named(missing)} and " if missing else ""
            return f"{lack}hold tensors of {what} ({_named(foreign)}): {advice}"
    if missing:
        return f"lack {_named(missing)}: give a checkpoint of the whole model"
    if shapes := sorted(told["mismatched_keys"]):
        key, found, wanted = shapes[0]
        others = f", and {len(shapes) - 1} more are of another shape" if len(shapes) > 1 else ""
        return f"have {key} as {tuple(found)}, where config.json makes it {tuple(wanted)}{others}: give the config.json that they were saved with"
    if more := _more_layers(model, unexpected):
        return f"hold {_named(more)}, layers that config.json does not have: give the config.json that they were saved with"
    return None


def _more_layers(model: nn.Module, unexpected: list[str]) -> list[str]:
    """Those that the model has under another number. (Heads and poolers of another use are no fault.)"""
    known = {_unnumbered(key, model.base_model_prefix) for key in model.state_dict()}
    return [key for key in unexpected if _unnumbered(key, model.base_model_prefix) in known]


def _unnumbered(key: str, prefix: str) -> str:
    return re.sub(r"\d+", "#", key.removeprefix(f"{prefix}."))


def _named(keys: list[str]) -> str:
    rest = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + rest


def _damaged(place: str) -> Path | None:
    """The first file of tensors in a folder that is not whole; of files in PyTorch's older format nothing is known."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(Path(place).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError:
            return path
    for path in sorted(Path(place).glob("*.bin")):
        with path.open("rb") as file:
            start = file.read(2)
        if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
            return path
    return None
