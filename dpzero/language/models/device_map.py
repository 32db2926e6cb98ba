"""A model on a device, or with its layers spread over several where one is too small: by accelerate, which moves what they hand on."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def place(model: nn.Module, device: str) -> nn.Module:
    """`device`: one (cuda:1), or several with commas between (cuda:0,cuda:1), the first of which has inputs and outputs.

    Directions, perturbations and updates are each tensor's own, so a step needs nothing more.
    """
    devices = device.split(",")
    if len(devices) == 1:
        return model.to(device)
    from accelerate import dispatch_model

    places = {unit: devices[number] for unit, number in cut(model, len(devices)).items()}
    return dispatch_model(model, places, main_device=devices[0], force_hooks=True)


def cut(model: nn.Module, count: int) -> dict[str, int]:
    """{unit: number of its device}, in the model's order with about as many bytes on each; tied parameters stay together."""
    sizes = {
        name: sum(p.numel() * p.element_size() for p in module.parameters()) for name, module in units(model)
    }
    places: dict[str, int] = {}
    of_parameter: dict[int, int] = {}
    done, total = 0, max(1, sum(sizes.values()))
    for name, module in units(model):
        fair = min(count - 1, int(count * (done + sizes[name] / 2) / total))
        tied = [of_parameter[id(p)] for p in module.parameters() if id(p) in of_parameter]
        places[name] = tied[0] if tied else fair
        of_parameter |= {id(p): places[name] for p in module.parameters()}
        done += sizes[name]
    return places


def units(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What is not cut: a layer of a stack, a module without parts, or with tensors of its own beside them."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    parts = list(module.named_children())
    if own or not parts:
        yield name, module
        return
    for part, child in parts:
        path = f"{name}.{part}" if name else part
        yield from [(path, child)] if isinstance(module, nn.ModuleList) else units(child, path)
