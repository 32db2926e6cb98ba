"""Predicts the peak memory of a step without weights, data or GPU: the real code runs on fake tensors.

Counts live tensor storage, as `trackers.LiveStorage` does on real tensors. Not included are the workspaces of
kernels, the fragments of the allocator and the CUDA context: together 0.5 to 1 GiB of a GPU.
"""

from __future__ import annotations

import time
import warnings
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from ..errors import UsageError
from ..plan.method_variants import variant
from . import trackers
from .stand_in_step import Loaded, Workload, build_model, track

HOW = "predicted: live storage of fake tensors, attention kernels as on the CPU"
ANALYTIC = (
    "by formula: weights, their gradients' sum and a gradient for each example; not the activations of the "
    "backward pass"
)
aten = torch.ops.aten


class FakeStorage(trackers.LiveStorage):
    """Answers what needs data: a number is 1, a truth value true, and no text has a token twice.

    Opacus' norms of an embedding ask the last; it is the case that needs most memory.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1
        if func is aten.unique_dim.default:
            index = torch.arange(args[0].shape[args[1]])
            return args[0].clone(), index, torch.ones_like(index)
        return super().__torch_dispatch__(func, types, args, kwargs)


def predict(workload: Workload) -> dict:
    """Predict the peak of a step and of each of its phases, in bytes.

    Raises:
        UsageError: the method refuses the model, or the code does not run on fake tensors. `Unpredictable`,
            for DP-SGD, has a lower bound by formula.
    """
    started = time.perf_counter()
    try:
        peaks = _peaks(workload)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        if isinstance(error, UsageError) or variant(workload.method).method != "dp_sgd":
            raise
        raise Unpredictable(workload, error) from error
    return header(workload) | peaks | {"how": HOW, "seconds": round(time.perf_counter() - started, 2)}


class Unpredictable(UsageError):
    """A method that does not run on a model, or not on fake tensors. `analytic`: peaks by formula."""

    def __init__(self, workload: Workload, error: BaseException) -> None:
        self.reason = " ".join(str(error).split()) or type(error).__name__
        self.analytic = analytic(workload)
        size = self.analytic["peak_bytes"] / 2**30
        by_formula = f"by formula it takes at least {size:.2f} GiB" if size else "there is no formula for it"
        super().__init__(
            f"{workload.method} cannot be predicted for {workload.model} ({self.reason}): {by_formula}"
        )


def header(workload: Workload) -> dict:
    """What was predicted or measured."""
    return {
        "model": workload.model,
        "method": workload.method,
        "title": variant(workload.method).title,
        **{key: getattr(workload, key) for key in ("batch_size", "sequence_length", "dtype", "compute")},
        **{key: getattr(workload, key) for key in ("tie_embeddings", "lora_head", "lora_a")},
        "tune": workload.trained,
        "token_budget": workload.token_budget or workload.batch_size * workload.sequence_length,
        "notes": workload.notes,
    }


def _peaks(workload: Workload) -> dict:
    model = build_model(workload, "meta")
    # Opacus moves copies to `meta`, which is not needed: fake ones are empty, too
    stay = patch.object(nn.Module, "to", lambda module, *_, **__: module)
    # the tokens of a batch are real tensors, which are not counted in a measurement either
    with FakeTensorMode(allow_non_fake_inputs=True), stay, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _give_storage(model)
        loaded = Loaded(workload, model)
        return track(loaded, FakeStorage("forward"), FakeStorage(loaded.rest))


def _give_storage(model: nn.Module) -> None:
    """Replace tensors on `meta` by fake ones, into which PEFT could put no adapters; tied ones stay tied."""
    replaced: dict[int, torch.Tensor] = {}
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in replaced:
                        empty = torch.empty_like(tensor, device="cpu")
                        if tensors is module._parameters:
                            empty = nn.Parameter(empty, tensor.requires_grad)
                        replaced[id(tensor)] = empty
                    tensors[name] = replaced[id(tensor)]


def analytic(workload: Workload) -> dict:
    """A lower bound by formula: with per-sample gradients, inference and P (B + 1) for P parameters; else 0."""
    inference = predict(Workload(**{**vars(workload), "method": "inference", "tune": workload.trained}))
    peak = 0
    if variant(workload.method).settings.get("clipping") == "hooks":
        examples = max(1, min(workload.batch_size, inference["token_budget"] // workload.sequence_length))
        trained_bytes = (
            inference["trained_parameters"] * inference["weights_bytes"] // inference["parameters"]
        )
        peak = inference["inference_peak_bytes"] + trained_bytes * (examples + 1)
    same = ("parameters", "trained_parameters", "weights_bytes", "inference_peak_bytes")
    fields = {key: inference[key] for key in same} | {"peak_bytes": peak}
    return header(workload) | fields | {"how": ANALYTIC, "phases": {}, "phase": "", "operation": ""}
