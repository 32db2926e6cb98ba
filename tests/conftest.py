"""Sweeps written for one test, method files dropped into a copy of the tree, and cells of the smoke sweep."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the workers of pytest have the cores already

import copy
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dpzero.plan import registry, sweep
from dpzero.privacy import Setting

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _rows_of_the_hub(monkeypatch) -> None:
    """Where a folder of rows is given, planning wants those of every task."""
    monkeypatch.delenv("DPZERO_DATA_DIR", raising=False)


@pytest.fixture
def write(tmp_path, monkeypatch) -> Callable[[str, str], dict[str, dict]]:
    """write(name, yaml) -> the cells of a sweep of that name, which may extend those of the project."""
    folder = tmp_path / "sweeps"
    shutil.copytree(sweep.FOLDER, folder)
    monkeypatch.setattr(sweep, "FOLDER", folder)

    def make(name: str, text: str, **narrowed: object) -> dict[str, dict]:
        (folder / f"{name}.yaml").write_text(text)
        return sweep.load(name, **narrowed)

    return make


@pytest.fixture
def drop(tmp_path, monkeypatch) -> Iterator[Callable[[str, str], None]]:
    """drop(name, source) puts a file into a copy of baselines/; nothing else is told."""
    root = tmp_path / "house"
    shutil.copytree(ROOT / "baselines", root / "baselines")
    (root / "dpzero").mkdir()
    shutil.copy(ROOT / "dpzero" / "algorithm.py", root / "dpzero")
    monkeypatch.setattr(registry, "ROOT", root)

    def put(name: str, source: str) -> None:
        (root / "baselines" / f"{name}.py").write_text(source)
        registry._read_files.cache_clear()

    yield put
    registry._read_files.cache_clear()


@pytest.fixture(scope="session")
def _smoke() -> dict[str, dict]:
    return sweep.load("smoke")


@pytest.fixture
def smoke(_smoke) -> Callable[..., dict]:
    """smoke(method, **settings) -> a cell of the smoke sweep, 20 steps of 8 examples, changed where asked."""
    short = {
        "tune": "bias",
        "batch_size": 8,
        "steps": 20,
        "max_length": 16,
        "evaluate_every": 10,
        "delta": 1e-4,
    }

    def cell(method: str, **settings: object) -> dict:
        changed = copy.deepcopy(next(c for c in _smoke.values() if c["method"] == method))
        assert set(settings) <= set(changed["settings"])
        changed["settings"] |= {key: value for key, value in short.items() if changed["settings"].get(key)}
        changed["settings"] |= settings
        if settings.get("noise_key") == "secret" and registry.card(changed["use"]).order == 0:
            changed["settings"]["noise_arithmetic"] = settings.get(
                "noise_arithmetic", "exact"
            )  # as planning has it
        return changed

    return cell


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of tiny operations wait for each other far longer than they work where others use the cores, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Iterator[Path]:
    """A cache of the tests' own; the same question to the accountant, up to seconds each, is asked once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPZERO_CACHE", str(folder))
        for question in ("epsilon", "epsilon_rdp", "gdp_mu"):
            patch.setattr(Setting, question, functools.cache(getattr(Setting, question)))
        yield folder
