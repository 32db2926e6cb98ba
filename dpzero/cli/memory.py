"""The verbs of the command line that ask for memory: predict-memory, measure-memory, fits. torch is imported when one is asked."""

from __future__ import annotations

import argparse

from .options import device

GIB = 2**30


def add(verbs) -> None:
    """To the subparsers of the command line."""
    predict = verbs.add_parser("predict-memory", help="peak memory of a step, without weights, data or GPU")
    predict.add_argument("--model", required=True, help="a shape, or the path of a config.json")
    predict.add_argument(
        "--method", required=True, help="dpzero, adamw, dp_sgd_ghost, ... (a wrong one lists all)"
    )
    _sizes(predict, 8, 512, "float32")
    predict.set_defaults(verb=_predict)
    measure = verbs.add_parser("measure-memory", help="the same, measured: random weights, this machine")
    measure.add_argument("--model", required=True, help="a shape, or the path of a config.json")
    measure.add_argument("--method", required=True, help="as for predict-memory")
    _sizes(measure, 8, 64, "float32")
    measure.add_argument("--device", type=device, help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    measure.set_defaults(verb=_measure)
    fits = verbs.add_parser(
        "fits", help="what can be tuned in so much memory: the largest model, or the largest batch"
    )
    fits.add_argument("--gpu-memory", required=True, help="24GiB, 80GB, 512MiB")
    fits.add_argument(
        "--model", help="one model: the largest batch of each method (default: the largest model)"
    )
    fits.add_argument("--methods", nargs="+", help="which (default: the common ones)")
    fits.add_argument("--models", nargs="+", help="to choose from (default: OPT)")
    fits.add_argument(
        "--reserve", default="1GiB", help="for context, workspaces and fragments, which no prediction counts"
    )
    _sizes(fits, 8, 512, "float32")
    fits.set_defaults(verb=_fits)


def _sizes(parser: argparse.ArgumentParser, batch_size: int, length: int, dtype: str) -> None:
    parser.add_argument("--batch-size", type=int, default=batch_size, help="texts of a step")
    parser.add_argument("--sequence-length", type=int, default=length, help="tokens of each text")
    parser.add_argument("--dtype", default=dtype, help="of the stored weights: float32, bfloat16, float16")
    parser.add_argument("--compute", default="float32", help="bfloat16: products in it over float32 weights")
    parser.add_argument(
        "--tune", default="", help="full, bias, lora, prefix, head (default: what the method says)"
    )
    parser.add_argument("--token-budget", type=int, default=0, help="padded tokens of a micro-batch; 0: all")


def _settings(options: argparse.Namespace) -> dict:
    names = ("batch_size", "sequence_length", "dtype", "compute", "tune", "token_budget")
    return {name: getattr(options, name) for name in names}


def _workload(options: argparse.Namespace):
    from ..memory.workload import Workload
    from ..plan.method_variants import canonical

    return Workload(options.model, canonical(options.method), **_settings(options))


def _predict(options: argparse.Namespace) -> dict:
    from ..memory.predict import predict

    return _told(predict(_workload(options)))


def _measure(options: argparse.Namespace) -> dict:
    from ..memory.measure import measure
    from ..run import gpu_lock

    gpu_lock.check(options.device or "cpu")
    return _told(measure(_workload(options), options.device))


def _told(found: dict) -> dict:
    """The answer, after a line for people."""
    where = f" in {found['phase']}" if found["phase"] else ""
    print(
        f"{found['title']} on {found['model']}, {found['batch_size']} x {found['sequence_length']} tokens, {found['dtype']} weights: "
        f"{found['peak_bytes'] / GIB:.3f} GiB{where}; inference {found['inference_peak_bytes'] / GIB:.3f}, "
        f"weights {found['weights_bytes'] / GIB:.3f} ({found['how']})"
    )
    for note in found["notes"]:
        print(f"note: {note}")
    return found


def _fits(options: argparse.Namespace) -> dict:
    from ..memory import capacity
    from ..plan.method_variants import canonical

    memory, reserve = capacity.bytes_of(options.gpu_memory), capacity.bytes_of(options.reserve)
    methods = [canonical(name) for name in options.methods or capacity.METHODS]
    ask = (memory - reserve, methods, _settings(options))
    if options.model:
        rows = capacity.largest_batches(options.model, *ask, log=_say)
    else:
        rows = capacity.largest_models(options.models or capacity.MODELS, *ask, log=_say)
    return {"gpu_memory_bytes": memory, "reserve_bytes": reserve, **_settings(options), "rows": rows}


def _say(line: str) -> None:
    print(line, flush=True)
