"""A builder of valid records: made-up numbers, the real shape. The tables and figures read nothing else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

METHODS = {
    "zero_shot": ("Zero-shot", False, None),
    "in_context": ("In-context learning", False, None),
    "adamw": ("AdamW", False, 1),
    "sgd": ("SGD", False, 1),
    "mezo": ("MeZO", False, 0),
    "dpzero": ("DPZero", True, 0),
    "dp_zo_gaussian": ("DP-ZO (Gaussian)", True, 0),
    "dp_zo_laplace": ("DP-ZO (Laplace)", True, 0),
    "dp_zo_laplace_pure": ("DP-ZO (Laplace, pure eps)", True, 0),
    "dp_sgd": ("DP-SGD", True, 1),
    "dp_adam": ("DP-Adam", True, 1),
}
ZEROTH_ORDER_MEMORY, FIRST_ORDER_MEMORY = 1.02, 4.5
MIB = 2**20


def build_record(
    method: str = "dpzero",
    epsilon: str = "2",
    seed: int = 0,
    task: str = "r8",
    model: str = "minilm",
    status: str = "ok",
    accuracy: float | None = None,
) -> dict:
    """One valid record; equal arguments give equal records."""
    title, private, order = METHODS.get(method, (method.title(), epsilon not in ("0", "inf"), 0))
    draw = random.Random(f"{task} {model} {method} {epsilon} {seed}")
    ceiling = {None: 0.61, 1: 0.93, 0: 0.88}[order] - (0.12 / float(epsilon) ** 0.5 if private else 0)
    score = accuracy if accuracy is not None else round(ceiling + draw.gauss(0, 0.01), 6)
    steps = {None: 0, 0: 150, 1: 60}[order]
    seconds = steps * {None: 0.0, 0: 0.16, 1: 0.3}[order] * draw.uniform(0.9, 1.1) * (1.2 if private else 1)
    marks = range(0, steps + 1, max(steps // 6, 1))
    curve = [
        {
            "step": step,
            "train_seconds": seconds * step / max(steps, 1),
            "dev_accuracy": 0.61 + (score - 0.61) * (step / max(steps, 1)) ** 0.5 + draw.gauss(0, 0.01),
            "train_loss": None,
        }
        for step in marks
    ]
    times = {None: 1.0, 0: ZEROTH_ORDER_MEMORY, 1: FIRST_ORDER_MEMORY * (2 if private else 1)}[order]
    record = {
        "version": 1,
        "run": f"{task}/{model}/{method}/eps-{epsilon}/seed-{seed}",
        "status": status,
        "error": None,
        "cell": {
            "task": task,
            "model": model,
            "method": method,
            "epsilon": epsilon,
            "seed": seed,
            "settings": {"tune": "bias", "batch_size": 16, "steps": steps, "learning_rate": 0.001},
        },
        "method": {"title": title, "private": private, "order": order},
        "metrics": {
            "accuracy": score,
            "split": "test",
            "examples": 2189,
            "loss": 0.9,
            "selection": "last iterate",
            "start_accuracy": 0.61,
        },
        "curve": curve,
        "privacy": {
            "unit": "example",
            "adjacency": "add_remove",
            "sampling": "poisson",
            "mechanism": "laplace" if "laplace" in method else "gaussian",
            "dataset_size": 4937,
            "batch_size": 16,
            "steps": steps,
            "clip": 1.0,
            "noise_scale": 1.66 / float(epsilon),
            "delta": 0.0 if "pure" in method else 1e-5,
            "epsilon_target": float(epsilon),
            "epsilon_spent": float(epsilon) * 0.995,
            "epsilon_spent_rdp": None if "laplace" in method else float(epsilon) * 1.1,
            "gdp_mu": None if "laplace" in method else float(epsilon) / 4,
            "accountant": "dp-accounting 0.6.0 PLD, discretisation 1e-4",
            "noise_arithmetic": "float",
            "noise_key": "published",
            "valid_release": False,
        }
        if private
        else None,
        "memory": {
            "weights_bytes": 87 * MIB,
            "inference_peak_bytes": (87 + 6) * MIB,
            "peak_allocated_bytes": int((87 + 6 * times) * MIB) + seed,
            "peak_reserved_bytes": None,
            "peak_resident_bytes": int(draw.uniform(700, 900) * MIB),
            "how": "live storage tracker, CPU, 16 x 32 tokens",
        },
        "time": {
            "wall_seconds": seconds + 15,
            "train_seconds": seconds,
            "steps_per_second": steps / seconds if seconds else None,
            "step_seconds": seconds / steps if steps else None,
            "two_forward_seconds": 0.15,
        },
        "provenance": {
            "git": "abc1234def5678",
            "dirty": False,
            "code": "c0de" * 16,
            "method_code": f"source of {method}",
            "device": "Example CPU @ 2.0 GHz",
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
            "threads": 1,
            "model": {"name": model, "sha256": "a1" * 32},
            "data": {"name": task, "sha256": "b2" * 32},
        },
    }
    if status != "ok":
        record |= {"error": f"{status}: as the builder was told", "metrics": None}
    if status == "oom":
        record |= {"memory": None, "time": None, "curve": []}
    return record


def build_sweep(
    seeds: int = 3, epsilons: tuple[str, ...] = ("2", "6"), tasks: tuple[str, ...] = ("r8",)
) -> list[dict]:
    """Every method, epsilon and seed."""
    return [
        build_record(method, epsilon, seed, task)
        for task in tasks
        for method, (_, private, order) in METHODS.items()
        for epsilon in (epsilons if private else ["0" if order is None else "inf"])
        for seed in range(seeds)
    ]


def write_records(records: list[dict], folder: Path) -> list[Path]:
    """The files of these records, in their order."""
    paths = []
    for record in records:
        path = folder / f"{record['run']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def record() -> Callable[..., dict]:
    return build_record


@pytest.fixture(scope="session")
def sweep() -> Callable[..., list[dict]]:
    built: dict[tuple, list[dict]] = {}

    def build(**arguments) -> list[dict]:
        key = tuple(sorted(arguments.items()))
        return copy.deepcopy(built.setdefault(key, build_sweep(**arguments)))

    return build


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict]], list[Path]]:
    """Writes records into a fresh folder and returns their files."""
    return lambda records: write_records(records, tmp_path_factory.mktemp("records"))


@pytest.fixture
def study_provenance() -> dict:
    """Of the result of a study that is no sweep."""
    code = {"git": "0123456789", "dirty": False, "code": "abc"}
    return {**code, "device": "a processor", "python": "3.11.7", "packages": {"torch": "2.13.0"}}
