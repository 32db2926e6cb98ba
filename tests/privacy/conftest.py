"""The accountant answers each question once in a session; answers take up to seconds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest

from dpzero.privacy import Setting


@pytest.fixture(scope="session", autouse=True)
def _cached_accountant() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("epsilon", "epsilon_rdp", "gdp_mu", "noise_scale"):
            patch.setattr(Setting, name, lru_cache(maxsize=None, typed=True)(getattr(Setting, name)))
        yield
