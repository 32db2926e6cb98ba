"""The built wheel alone, in an environment and a folder without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.own_model import write_model, write_rows

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DPZERO"))}
    words, settings = list(map(str, command)), clean | environment
    return subprocess.run(words, cwd=cwd, env=settings, capture_output=True, encoding="utf-8", timeout=1500)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment with the wheel and the packages that it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)  # the build writes into its folder
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    install = [*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel]
    installed = run(*install, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return python


@pytest.fixture
def call(python, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """call(*words) -> python -m dpzero, in a folder with another package of the name baselines."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").write_text("raise RuntimeError('not ours')\n", "utf-8")
    cache = str(tmp_path / "cache")
    return lambda *words: run(python, "-m", "dpzero", *words, cwd=tmp_path, DPZERO_CACHE=cache)


@pytest.mark.slow
def test_one_command_compares_methods_on_rows_and_a_model_of_ones_own(call, tmp_path):
    write_rows(tmp_path / "rows.csv")
    write_model(tmp_path / "model")
    narrow = ["--epsilon", "4", "--seeds", "0", "--steps", "60", "--cores", "2"]
    done = call("compare", "--data", "rows.csv", "--model", "model", "--out", "films", *narrow)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "settings best of 6 tries on dev for each method, task and ε" in done.stdout
    table = (tmp_path / "results" / "films" / "tables" / "accuracy.md").read_text("utf-8")
    assert all(f"| {title}" in table for title in ("Zero-shot", "DPZero", "DP-SGD"))
    assert (tmp_path / "figures" / "films" / "accuracy_vs_epsilon.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_wheel_runs_its_sweeps_and_knows_its_methods(call, tmp_path):
    done = call("sweep", "smoke", "--methods", "mezo", "dp_sgd", "--seeds", "0", "--cores", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    record = (
        tmp_path / "results" / "smoke" / "runs" / "toy" / "tiny-encoder" / "mezo" / "eps-inf" / "seed-0.json"
    )
    assert '"git": "dpzero-' in record.read_text("utf-8")
    listed = call("list", "methods")
    assert "dp_aggzo" in listed.stdout and listed.returncode == 0
