"""The verb that runs the contract suite on a method of one's own."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

from .. import include
from ..errors import UsageError
from ..plan import registry
from .options import INCLUDE, option, verb


@verb({"file": option("Python file of the method", type=Path)} | INCLUDE, compiles=True)
def check_method(options: argparse.Namespace) -> dict:
    """Check that a method keeps to what every method must: resuming, accounting, clipping, noise, memory."""
    file: Path = options.file
    if not file.is_file():
        raise UsageError(f"there is no file {file}: give the Python file of a method")
    include.add(file.parent)
    if file.stem not in registry.read_all():
        raise UsageError(f"{file} holds no method, which is a class with `title` and `private`: write one")
    method = registry.card(file.stem)  # refuses a fault in the file, in one line
    try:
        import pytest
    except ImportError:
        raise UsageError("check-method runs on pytest, which is not installed: pip install pytest") from None
    os.environ["DPZERO_CONTRACT_METHODS"] = file.stem  # before pytest imports the suite
    suite, counts = registry.ROOT / "dpzero" / "studies" / "method_contract.py", _Counts()
    arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "-o", "addopts=", str(suite)]
    pytest.main(arguments, plugins=[counts])
    passed, failed = counts["passed"], counts["failed"]
    return {"method": method.title, "passed": passed, "failed": failed, "match": passed > 0 and not failed}


class _Counts(Counter):
    """Counts the tests by their outcome; an error in a fixture is a failure."""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed:
            self[report.outcome] += 1
