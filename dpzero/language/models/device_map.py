"""A model whose layers are spread over several devices, by accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


def dispatch(model: nn.Module, devices: Sequence[str]) -> Any:
    """Spread the layers over the devices; the first device has inputs and outputs.

    Directions, perturbations and updates are computed tensor by tensor, so a step needs nothing more.
    """
    from accelerate import dispatch_model

    device_map = {unit: devices[number] for unit, number in assign(model, len(devices)).items()}
    return dispatch_model(model, device_map, main_device=devices[0], force_hooks=True)


def assign(model: nn.Module, count: int) -> dict[str, int]:
    """{unit: number of its device}, in the model's order, with about as many bytes on each device.

    Tied parameters stay together.
    """
    sizes = {
        name: sum(p.numel() * p.element_size() for p in module.parameters()) for name, module in units(model)
    }
    devices: dict[str, int] = {}
    of_parameter: dict[int, int] = {}
    done, total = 0, max(1, sum(sizes.values()))
    for name, module in units(model):
        fair = min(count - 1, int(count * (done + sizes[name] / 2) / total))
        tied = [of_parameter[id(p)] for p in module.parameters() if id(p) in of_parameter]
        devices[name] = tied[0] if tied else fair
        of_parameter |= {id(p): devices[name] for p in module.parameters()}
        done += sizes[name]
    return devices


def units(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules that stay on one device: layers of a stack, and modules with tensors of their own."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    children = list(module.named_children())
    if own or not children:
        yield name, module
        return
    for key, child in children:
        path = f"{name}.{key}" if name else key
        yield from [(path, child)] if isinstance(module, nn.ModuleList) else units(child, path)
