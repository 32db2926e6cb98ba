"""The numbers of each law, kept: transcripts are replayed for ever, so a law that gives other numbers needs another version string.

golden/LAW.json has, for two addresses, a few values and the SHA-256 of a whole direction as little-endian float32. The file of a
law with a new version is written by `python -m tests.zeroth_order.test_golden LAW`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch

from dpzero.zeroth_order import dispatch
from dpzero.zeroth_order.directions import LAWS, make_law

FOLDER = Path(__file__).parent / "golden"
SHAPES = [(3,), (10_000,), (40, 250)]  # the tensors after the first have 10,000 elements
ADDRESSES = [(0, 0, 0), (7, 123_456, 2)]  # seed, step, direction
SHOWN = [0, 1, 16, 63, 64, 9_999]  # elements whose values are in the file


def drawn(name: str) -> dict:
    directions = []
    for seed, step, number in ADDRESSES:
        tensors = [torch.zeros(shape) for shape in SHAPES]
        law = make_law(name, seed, rank=2)
        law.add_(tensors, step, 1.0, number)
        for j, z in enumerate(tensors[1:], 1):
            directions.append(
                {
                    "address": {"seed": seed, "step": step, "tensor": j, "direction": number},
                    "values": {i: z.flatten()[i].item().hex() for i in SHOWN},
                    "sha256": hashlib.sha256(z.numpy().astype("<f4").tobytes()).hexdigest(),
                }
            )
    return json.loads(json.dumps({"version": law.law, "shapes": SHAPES, "directions": directions}))


@pytest.mark.parametrize("engine", ["compiled", "plain"])
@pytest.mark.parametrize("name", LAWS)
def test_the_law_is_the_one_that_its_version_names(name, engine, monkeypatch):
    if engine == "plain":
        monkeypatch.setattr(dispatch, "kernels_numba", None)
    kept, now = json.loads((FOLDER / f"{name}.json").read_text()), drawn(name)
    assert now["version"] == kept["version"], (
        "a new version: write its golden file, and keep the old law for old transcripts"
    )
    assert now == kept, "other numbers under the same version: give the law another version string"


def test_the_keys_are_those_of_the_seeds():
    """A hash of any integer."""
    assert make_law("gaussian", 0).key == (2316889879, 3912700329)
    assert len({make_law("gaussian", seed).key for seed in (0, 1, -1, 2**32, 2**64)}) == 5


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:]:
        (FOLDER / f"{name}.json").write_text(json.dumps(drawn(name), indent=1) + "\n")
