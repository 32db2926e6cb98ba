"""Peak memory of a step without weights, data or GPU: the code that runs, on fake tensors, which have shapes and no data.

Counts live tensor storage as `memory.LiveStorage` does on real tensors. Kernels' own workspaces, the allocator's fragments and the
CUDA context (together some 0.5 to 1 GiB of a GPU) are not in it.
"""

from __future__ import annotations

import time
import warnings
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from ..errors import UsageError
from ..plan.method_variants import variant
from . import trackers
from .workload import Loaded, Workload, counts, tuned_model

HOW = "predicted: live storage of fake tensors, attention kernels as on the CPU"
ANALYTIC = "by formula: weights, their gradients' sum and a gradient for each example; not the activations of the backward pass"
aten = torch.ops.aten


class FakeStorage(trackers.LiveStorage):
    """Answers for fake tensors what only data could: a number is one, a truth value true, and no text has a token twice.

    The last is what Opacus' norms of an embedding ask; it is the case that takes most.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1
        if func is aten.unique_dim.default:
            index = torch.arange(args[0].shape[args[1]])
            return args[0].clone(), index, torch.ones_like(index)
        return super().__torch_dispatch__(func, types, args, kwargs)


def predict(workload: Workload) -> dict:
    """Peaks in bytes, of the step and of its phases.

    Raises UsageError, with a figure by formula where there is one, if the method refuses the model or fake tensors cannot take it.
    """
    started = time.perf_counter()
    try:
        found = _peaks(workload)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        if isinstance(error, UsageError) or variant(workload.method).method != "dp_sgd":
            raise
        raise Unpredictable(workload, error) from error
    return header(workload) | found | {"how": HOW, "seconds": round(time.perf_counter() - started, 2)}


class Unpredictable(UsageError):
    """A method that does not run on a model, or not on fake tensors. `analytic`: what a formula says of it, as `predict`."""

    def __init__(self, workload: Workload, error: BaseException) -> None:
        self.reason = " ".join(str(error).split()) or type(error).__name__
        self.analytic = analytic(workload)
        size = self.analytic["peak_bytes"] / 2**30
        by_formula = f"by formula it takes at least {size:.2f} GiB" if size else "there is no formula for it"
        super().__init__(
            f"{workload.method} cannot be predicted for {workload.model} ({self.reason}): {by_formula}"
        )


def header(workload: Workload) -> dict:
    return {
        "model": workload.model,
        "method": workload.method,
        "title": variant(workload.method).title,
        **{key: getattr(workload, key) for key in ("batch_size", "sequence_length", "dtype", "compute")},
        "tune": workload.trained,
        "token_budget": workload.token_budget or workload.batch_size * workload.sequence_length,
        "notes": workload.notes,
    }


def _peaks(workload: Workload) -> dict:
    model = tuned_model(workload, "meta")
    # a batch's tokens are real: they count for nothing, as they do in a measurement
    # Opacus moves copies to `meta`: fake ones are as empty
    as_it_is = patch.object(nn.Module, "to", lambda module, *_, **__: module)
    with FakeTensorMode(allow_non_fake_inputs=True), as_it_is, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _give_storage(model)
        loaded = Loaded(workload, model)
        parameters, trained = counts(loaded.model)
        inference = FakeStorage("forward")
        inference.add_model(loaded.model)
        with inference:
            loaded.forward()
        tracker = FakeStorage(loaded.rest)
        tracker.add_model(loaded.model)
        with tracker:
            loaded.steps(tracker)
        weights = trackers.weights_bytes(loaded.model)
    return figures(weights, inference.peak, tracker) | {
        "parameters": parameters,
        "trained_parameters": trained,
    }


def _give_storage(model: nn.Module) -> None:
    """Fake tensors on the CPU for those on `meta`, tied ones once. (Made as fake ones at once, adapters could not be put in.)"""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        empty = torch.empty_like(tensor, device="cpu")
                        grad = tensor.requires_grad
                        made[id(tensor)] = (
                            nn.Parameter(empty, grad) if tensors is module._parameters else empty
                        )
                    tensors[name] = made[id(tensor)]


def figures(weights: int, inference: int, peaks: trackers.LiveStorage | trackers.AllocatorPeaks) -> dict:
    return {
        "weights_bytes": weights,
        "inference_peak_bytes": inference,
        "peak_bytes": peaks.peak,
        "peak_over_inference": round(peaks.peak / inference, 4),
        "phase": peaks.phase_of_peak,
        "operation": peaks.operation,
        "phases": dict(peaks.peaks),
    }


def analytic(workload: Workload) -> dict:
    """At least so much: for methods that keep each example's gradient, P (B + 1) beside the weights and what inference adds."""
    found = predict(Workload(**{**vars(workload), "method": "inference", "tune": workload.trained}))
    kept = 0
    if variant(workload.method).settings.get("clipping") == "hooks":
        examples = max(1, min(workload.batch_size, found["token_budget"] // workload.sequence_length))
        kept = found["trained_parameters"] * found["weights_bytes"] // found["parameters"] * (examples + 1)
    peak = {"peak_bytes": found["inference_peak_bytes"] + kept if kept else 0}
    same = {
        key: found[key]
        for key in ("parameters", "trained_parameters", "weights_bytes", "inference_peak_bytes")
    }
    return header(workload) | same | peak | {"how": ANALYTIC, "phases": {}, "phase": "", "operation": ""}
