"""A copy of what the repository holds, in which a test runs the workflow as a user does."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "toy/tiny-encoder"
ZERO_SHOT, MEZO, DPZERO = (
    f"{PREFIX}/{run}/seed-0" for run in ("zero_shot/eps-0", "mezo/eps-inf", "dpzero/eps-2")
)
# a method of baselines/ that fails
BROKEN = """
from dpzero.zeroth_order import TwoPoint


class Broken(TwoPoint):
    title = "Broken"
    private = False

    def __init__(self, model, loss, batch_size: int, *, learning_rate: float, seed: int = 0) -> None:
        super().__init__(
            model, loss, batch_size=batch_size, learning_rate=learning_rate, smoothing=1e-3, seed=seed
        )

    def projected_gradient(self, difference):
        if self.steps_taken == 3:
            raise RuntimeError("a bug in the fourth step")
        return 0.0
"""
NARROW = ["sweep=smoke", "methods=[zero_shot, mezo, dpzero]", "epsilons=[2]"]


def cluster_commands() -> list[list[str]]:
    """The commands of the profiles' README, as words."""
    text = (ROOT / "dpzero" / "profiles" / "README.md").read_text()
    return [shlex.split(line, comments=True) for line in text.split("```")[1].splitlines()[1:]]


class ProjectCopy:
    """A copy of what the repository holds, and of what its runs made so far."""

    @classmethod
    def build(cls, folder: Path, cache: Path) -> ProjectCopy:
        """Before anything was run."""
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "Snakefile", folder)
        for name in ("dpzero", "baselines"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        return cls(folder, cache)

    def __init__(self, folder: Path, cache: Path) -> None:
        self.python = sys.executable
        self.output = ""  # by the last dry run
        self.folder, self.sweeps = folder, folder / "dpzero" / "sweeps"
        here = {"PYTHONPATH": str(folder), "DPZERO_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}
        here["PYTHONDONTWRITEBYTECODE"] = ""  # compiled once: a test starts many processes
        self.environment = {**os.environ, **here}

    def call(self, *command: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.python, *map(str, command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def start(self, *command: object) -> subprocess.Popen:
        """The same, while the test goes on."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def snakemake(self, *arguments: str, config=NARROW) -> subprocess.CompletedProcess:
        return self.call("-m", "snakemake", "--cores", 2, *arguments, "--config", *config)

    def planned(self, *changes: str) -> set[str]:
        """The runs that a dry run would start."""
        config = {c.split("=")[0]: c for c in (*NARROW, *changes)}.values()
        done = self.snakemake("--dry-run", config=config)
        assert done.returncode == 0, done.stderr
        self.output = done.stdout + done.stderr
        return set(re.findall(r"^Job \d+: (\S+/seed-\d+)$", self.output, re.MULTILINE))

    def edit(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def record(self, run: str) -> Path:
        return self.folder / "results" / "smoke" / "runs" / f"{run}.json"

    def contents(self, *folders: str) -> dict[str, bytes]:
        """name -> content of the files in these folders."""
        paths = [p for name in folders for p in sorted((self.folder / name).rglob("*")) if p.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}

    def runs(self) -> set[str]:
        folder = self.folder / "results" / "smoke" / "runs"
        return {
            str(path.relative_to(folder)).removesuffix(".json")
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".transcript"
        }
