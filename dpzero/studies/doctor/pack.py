"""A folder with all that `doctor` reads on a machine without a package index: runs, rows, weights, and noise scales as numbers.

The folder is a cache: weights in half precision, the rows of one task, and the accountant's answers for these runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import load_file, save_file

from ...errors import UsageError
from ...files import write_whole
from ...language.data import assets
from ...plan import sweep
from ...privacy.accounting import ACCOUNTANT, Setting
from ...run.setup import Setup

SWEEP, TASK, MODEL = "body", "r8", "minilm"
METHODS = ("zero_shot", "mezo", "dpzero", "dp_votezo")
KEPT = {"minilm": ("*",), "reuters": ("reuters-r8-*", "README.txt")}
LARGEST_BYTES = 60_000_000


def pack(folder: Path, log: Callable[[str], object]) -> dict:
    """Fill a folder, which must be empty or absent; returns its files' sizes in bytes.

    Raises UsageError if the folder holds anything, or would be larger than `LARGEST_BYTES`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: give a new folder")
    assets.ensure(KEPT, log)
    cache = folder / "cache"
    for name, patterns in KEPT.items():
        _copy_asset(name, patterns, cache)
    runs = cells()
    log(f"calibrating the noise of {len(runs)} runs")
    with patch.dict(os.environ, {"DPZERO_CACHE": str(cache)}):
        for cell in runs:
            _calibrate(cell, log)
    shutil.rmtree(cache / "tokens", ignore_errors=True)  # tokenized again there, in a second
    write_whole(folder / "runs.json", json.dumps(runs, indent=1) + "\n")
    write_whole(folder / "accountant.txt", version("dp-accounting") + "\n")
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    if sum(sizes.values()) > LARGEST_BYTES:
        raise UsageError(
            f"{folder} has {sum(sizes.values()) / 1e6:.0f} MB: at most {LARGEST_BYTES / 1e6:.0f} may travel"
        )
    return sizes


def cells() -> list[dict]:
    """The runs of `learning`, the most telling first."""
    found = sweep.load(SWEEP, tasks=[TASK], models=[MODEL], methods=list(METHODS), seeds=[42]).values()
    return sorted(found, key=lambda cell: METHODS.index(cell["method"]))


def environment(folder: Path) -> dict[str, str]:
    """Environment variables of a process that reads a packed folder."""
    accountant = (folder / "accountant.txt").read_text("utf-8").strip()
    return {"DPZERO_CACHE": str((folder / "cache").absolute()), ACCOUNTANT: accountant}


def _copy_asset(name: str, patterns: tuple[str, ...], cache: Path) -> None:
    """The chosen files of an asset with a manifest of what they are now."""
    source = assets.folder(name)
    target = cache / source.name
    target.mkdir(parents=True)
    for path in sorted(path for pattern in patterns for path in source.glob(pattern)):
        if path.name == "model.safetensors":
            halves = {
                key: tensor.half() if tensor.is_floating_point() else tensor
                for key, tensor in load_file(path).items()
            }
            save_file(halves, target / path.name, {"format": "pt"})
        else:
            shutil.copyfile(path, target / path.name)
    manifest = json.loads((source / "manifest.json").read_text("utf-8"))
    kept = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(target.iterdir())}
    kept.pop("manifest.json", None)
    write_whole(target / "manifest.json", json.dumps(manifest | {"files": kept}, indent=1) + "\n")


def _calibrate(cell: dict, log: Callable[[str], object]) -> None:
    """Put the noise scale of a run, and what its record says of its privacy, into the cache."""
    budget = Setup(cell, log, "cpu").budget(None)
    if budget is not None and budget.cached_costs is not None:
        for measure in (Setting.epsilon, Setting.epsilon_rdp, Setting.gdp_mu):
            budget.setting.cached_cost(measure, budget.noise_scale, budget.cached_costs)
