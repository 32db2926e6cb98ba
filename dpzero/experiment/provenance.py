"""Where a number comes from: commit, code, versions, device."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .methods import ROOT

SOURCE = (
    "dpzero/algorithm.py",
    "dpzero/zeroth_order",
    "dpzero/privacy",
    "dpzero/language",
    "dpzero/experiment/run.py",
    "baselines/*.py",
)
PACKAGES = ("torch", "transformers", "numpy", "opacus", "peft", "dp-accounting")


def provenance(method_file: str, device: str) -> dict:
    """Of a run that uses the given method file. Slow parts: one git call, reading the source."""
    return {
        **commit(),
        "code": core_digest(),
        "method_code": method_digest(method_file),
        "device": device_name(device),
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
    }


def commit() -> dict:
    """The last git commit of the source that decides a run's numbers, and whether the tree differs from it.

    Commits of results, reports or documents leave it as it is, so that committed tables stay equal to those of a rerun.
    Outside a checkout "unknown".
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *SOURCE)
    return {
        "git": git("log", "-1", "--format=%H", "--", *SOURCE) or "unknown",
        "dirty": changed is None or changed != "",
    }


def core_digest() -> str:
    """SHA-256 of the source that every run shares: not the methods', nor reports or sweeps."""
    package = ROOT / "dpzero"
    files = [package / "experiment" / "run.py"]
    for folder in ("zeroth_order", "privacy", "language"):
        files += sorted((package / folder).glob("*.py")) + sorted((package / folder).glob("*.yaml"))
    return _digest(files)


def method_digest(name: str) -> str:
    """SHA-256 of a method's own file and of those beside it that it imports."""
    home = ROOT / ("dpzero/algorithm.py" if name == "dpzero" else f"baselines/{name}.py")
    text = home.read_text()
    return _digest(
        [home, *(f for f in sorted((ROOT / "baselines").glob("*.py")) if f"from baselines.{f.stem} " in text)]
    )


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return ", ".join(map(torch.cuda.get_device_name, device.split(",")))
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
