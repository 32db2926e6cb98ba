"""The four faults of public code, planted one at a time: each makes a test of this suite fail that passes without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CAUGHT_BY = {
    "halved_noise": "test_p06_the_noise_of_a_mean_is_scale_times_clip_over_the_expected_batch_size",
    "noise_from_the_direction_seed": "test_p01_our_noise_is_known_to_nobody_without_the_key",
    "short_last_batch": "test_p05_there_is_no_short_last_batch",
    "shuffled_batches": "test_p03_batches_have_the_joint_law_of_poisson_sampling",
}


@pytest.mark.slow
@pytest.mark.parametrize("plant", [None, *CAUGHT_BY])
def test_each_planted_fault_is_caught(plant):
    tests = [CAUGHT_BY[plant]] if plant else CAUGHT_BY.values()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", " or ".join(tests)]
    command += ["-p", f"plants.{plant}"] if plant else []
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [*command, str(HERE / "test_pitfalls.py")],
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert found.returncode == (1 if plant else 0), found.stdout[-3000:] + found.stderr[-1000:]


def test_every_plant_is_on_the_list():
    assert {path.stem for path in (HERE / "plants").glob("*.py")} == set(CAUGHT_BY)
