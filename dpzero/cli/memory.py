"""The verbs about memory: predict-memory, measure-memory, fits. Each imports torch when it is called."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..plan.settings import TUNES
from .options import DEVICE, Options, option, verb

if TYPE_CHECKING:
    from ..memory.stand_in_step import Workload

GIB = 2**30
SIZES: Options = {
    "--batch-size": option("texts of a step", 8, type=int),
    "--sequence-length": option("tokens of each text", 512, type=int),
    "--dtype": option("type of the stored weights: float32, bfloat16, float16", "float32"),
    "--compute": option("type of matrix products; bfloat16 over float32 weights", "float32"),
    "--tune": option(f"trainable parameters: {', '.join(TUNES)} (default: the method's)", ""),
    "--token-budget": option("padded tokens of a micro-batch; 0: all", 0, type=int),
    "--tie-embeddings": option(
        "full fine-tuning trains one table as embeddings and output layer",
        True,
        action=argparse.BooleanOptionalAction,
    ),
    "--lora-head": option("a masked model's head with LoRA: frozen, trained", "frozen"),
    "--lora-a": option("the first matrix of LoRA's adapters: trained, frozen", "trained"),
}
SHORT: Options = {"--sequence-length": option("tokens of each text", 64, type=int)}
STEP: Options = {
    "--model": option("an architecture, or the path of a config.json", required=True),
    "--method": option("dpzero, adamw, dp_sgd_ghost, ... (a wrong one lists all)", required=True),
}


@verb(STEP | SIZES)
def predict_memory(options: argparse.Namespace) -> dict:
    """Predict the peak memory of a step without weights, data or GPU."""
    from ..memory.predict import predict

    return _print_peaks(predict(_workload(options)))


@verb(STEP | SIZES | SHORT | DEVICE, compiles=True)
def measure_memory(options: argparse.Namespace) -> dict:
    """Measure the peak memory of a step on this machine, with random weights."""
    from ..memory.measure import measure
    from ..run import gpu_lock

    gpu_lock.check(options.device or "cpu")
    return _print_peaks(measure(_workload(options), options.device))


def _workload(options: argparse.Namespace) -> Workload:
    from ..memory.stand_in_step import Workload
    from ..plan.method_variants import canonical

    return Workload(options.model, canonical(options.method), **_settings(options))


def _settings(options: argparse.Namespace) -> dict:
    return {name: getattr(options, name) for name in (flag[2:].replace("-", "_") for flag in SIZES)}


def _print_peaks(peaks: dict) -> dict:
    """Print a line for people; returns the peaks."""
    where = f" in {peaks['phase']}" if peaks["phase"] else ""
    print(
        f"{peaks['title']} on {peaks['model']}, {peaks['batch_size']} x {peaks['sequence_length']} tokens, "
        f"{peaks['dtype']} weights: {peaks['peak_bytes'] / GIB:.3f} GiB{where}; "
        f"inference {peaks['inference_peak_bytes'] / GIB:.3f}, weights {peaks['weights_bytes'] / GIB:.3f} "
        f"({peaks['how']})"
    )
    for note in peaks["notes"]:
        print(f"note: {note}")
    return peaks


@verb(
    SIZES,
    gpu_memory=option("24GiB, 80GB, 512MiB", required=True),
    model=option("find the largest batch of this model (default: the largest model for a batch)"),
    methods=option("methods to compare (default: the common ones)", nargs="+"),
    models=option("models to choose from (default: OPT)", nargs="+"),
    reserve=option("kept free for context, workspaces and fragments, which no prediction counts", "1GiB"),
)
def fits(options: argparse.Namespace) -> dict:
    """Find the largest model, or the largest batch, that fits into a GPU."""
    from ..memory import capacity
    from ..plan.method_variants import canonical

    memory, reserve = capacity.parse_size(options.gpu_memory), capacity.parse_size(options.reserve)
    methods = [canonical(name) for name in options.methods or capacity.METHODS]
    settings = _settings(options)
    if options.model:
        rows = capacity.largest_batches(options.model, memory - reserve, methods, settings, print)
    else:
        models = options.models or capacity.MODELS
        rows = capacity.largest_models(models, memory - reserve, methods, settings, print)
    return {"gpu_memory_bytes": memory, "reserve_bytes": reserve, **settings, "rows": rows}
