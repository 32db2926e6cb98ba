"""Where a number comes from: commit, code, versions, device."""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__, include
from ..plan.registry import ROOT

# Rooms and files that change no number of a run. Every other file of the package does, a new one included
APART = (
    "report",  # reads records
    "cli",
    "sweeps",  # a record holds its whole cell
    "profiles",
    "__main__.py",
    "environment.yaml",
    "algorithm.py",  # a method's own: see method_digest
)
SUFFIXES = {".py", ".yaml", ".csv", ".json", ".txt"}
SOURCE = (
    "dpzero",
    "baselines/*.py",
    *(f":(exclude)dpzero/{path}" for path in APART if path != "algorithm.py"),
    ":(exclude)*.md",
)
PACKAGES = ("torch", "transformers", "numpy", "opacus", "peft", "dp-accounting")


def provenance(method_file: str, device: str) -> dict:
    """Code, device and packages of a run that uses this method file. Reads the source and asks git."""
    return {
        **commit(),
        "code": core_digest(),
        "method_code": method_digest(method_file),
        "device": device_name(device),
        "python": platform.python_version(),
        "packages": dict(_installed()),
    }


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # a method that needs none of it runs without
            yield name, version(name)


def commit() -> dict:
    """The last git commit of the source that can change a number, and whether the tree differs from it.

    Commits of results, reports or documents do not change it, so that committed tables stay equal to those of
    a rerun. For an installed package it is the version; the digests in the record identify its code.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *arguments], capture_output=True, encoding="utf-8", timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # an environment may lie in another project's checkout, which has no commit of these files
    if not (last := git("log", "-1", "--format=%H", "--", *SOURCE)):
        return {"git": f"dpzero-{__version__}", "dirty": False}
    return {"git": last, "dirty": git("status", "--porcelain", "--untracked-files=no", "--", *SOURCE) != ""}


def core_digest() -> str:
    """SHA-256 of the source that every run shares: the package without what is listed as apart."""
    package = ROOT / "dpzero"
    apart = {package / path for path in APART}
    files = (f for f in sorted(package.rglob("*")) if f.suffix in SUFFIXES and "__pycache__" not in f.parts)
    return _digest([file for file in files if not apart & {file, *file.parents}])


def method_digest(name: str) -> str:
    """SHA-256 of a method's own file and of the method files that it imports, directly or through others.

    Public code that is no method here has no file.
    """
    files: list[Path] = []
    wanted = [_method_file(name)]
    while wanted:
        file = wanted.pop()
        if file not in files and file.exists():
            files.append(file)
            wanted += map(_method_file, _imported(file))
    return _digest([*files[:1], *sorted(files[1:])])


def _method_file(name: str) -> Path:
    own = include.methods().get(name)
    return own or ROOT / ("dpzero/algorithm.py" if name == "dpzero" else f"baselines/{name}.py")


def _imported(file: Path) -> Iterator[str]:
    """Names of the method files that a file imports."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
        module = getattr(node, "module", None) or ""
        for name in (module, *names, *(f"{module}.{name}" for name in names)):
            first, _, rest = name.partition(".")
            if first == "baselines" and rest:
                yield rest.partition(".")[0]
            elif name == "dpzero.algorithm" or name == "dpzero.DPZero":
                yield "dpzero"


def _digest(files: list[Path]) -> str:
    names = (f.relative_to(ROOT).as_posix() if f.is_relative_to(ROOT) else f.name for f in files)
    parts = (f"{name} ".encode() + file.read_bytes() for name, file in zip(names, files, strict=True))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return ", ".join(map(torch.cuda.get_device_name, device.split(",")))
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
