"""The cost of a sweep follows the step times that were measured, and nothing else."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.plan import sweep
from dpzero.plan.estimate import RECORD_BYTES, TRANSCRIPT_BYTES, estimate

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"tune": "lora", "compute": "float32", "batch_size": 16, "max_length": 64, "steps": 1000}


def cell(method: str = "dpzero", model: str = "minilm", **settings: object) -> dict:
    return {"method": method, "use": method, "model": model, "settings": SETTINGS | settings}


@pytest.fixture
def table(tmp_path) -> Callable[..., Path]:
    """table(device, step_seconds) -> a results folder with one measured run: 10 s beside its steps, 90 MB of weights."""

    def write(device: str = "NVIDIA H100 80GB HBM3", step_seconds: float = 0.5, **settings: object) -> Path:
        run = {"run": "r8/minilm/dpzero/eps-2/seed-0", "model": "minilm", "method": "dpzero"}
        run |= {"memory.weights_bytes": 90_000_000}
        run |= {f"settings.{name}": value for name, value in (SETTINGS | settings).items()}
        times = {"run": run["run"], "status": "ok", "time.wall_seconds": 60, "time.train_seconds": 50}
        times |= {"time.step_seconds": step_seconds, "provenance.device": device}
        folder = tmp_path / device.replace(" ", "-") / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        for name, row in (("runs", run), ("times", times)):
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                writer.writerow(row)
        return tmp_path

    return write


def test_a_cell_that_was_measured_costs_its_steps_and_what_is_beside_them(table):
    found = estimate([cell(), cell(steps=3000)], table(), "h100", price=3)
    hours = (4000 * 0.5 + 2 * 10) / 3600
    assert found["hours"] == pytest.approx(hours, abs=0.005)
    assert found["money"] == pytest.approx(3 * found["hours"], abs=0.005)
    assert found["cells"] == {"measured": 2, "scaled": 0, "unmeasured": 0}
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert found["results_bytes"] == 2 * RECORD_BYTES + 4000 * TRANSCRIPT_BYTES
    assert found["checkpoint_bytes_a_running_cell"] == 90_000_000


@pytest.mark.parametrize("change", [{"batch_size": 32}, {"max_length": 128}, {"directions": 2}])
def test_twice_the_tokens_of_a_step_take_twice_its_time_and_count_as_scaled(table, change):
    found = estimate([cell(**change)], table(), None, price=0)
    assert found["hours"] == pytest.approx((1000 * 0.5 * 2 + 10) / 3600, abs=0.005)
    assert found["cells"]["scaled"] == 1


@pytest.mark.parametrize(
    "other", [cell("mezo"), cell(model="smollm2-135m"), cell(tune="full"), cell(compute="bfloat16")]
)
def test_what_was_not_measured_is_counted_and_not_guessed(table, other):
    alone = estimate([cell()], table(), None, price=1)
    both = estimate([cell(), other], table(device="other"), "H100", price=1)
    assert both["cells"]["unmeasured"] == 1 and both["hours"] == alone["hours"]
    with pytest.raises(UsageError, match="no step time was measured for these cells"):
        estimate([other], table(device="a third"), "H100", price=1)


def test_a_device_that_nobody_measured_is_refused_with_those_that_were(table, tmp_path):
    with pytest.raises(UsageError, match=r"measured for A100 \(NVIDIA H100"):
        estimate([cell()], table(), "A100", price=1)
    with pytest.raises(UsageError, match="nothing was"):
        estimate([cell()], tmp_path / "empty", "A100", price=1)


def test_step_times_of_different_devices_are_not_mixed(table):
    table("slow CPU", 50)
    results = table()
    fast, slow = (estimate([cell()], results, name, price=0)["hours"] for name in ("H100", "slow"))
    assert slow > 50 * fast > 0


def test_a_benchmark_stands_in_for_full_training_of_its_model(tmp_path):
    row = {"name": "dpzero", "status": "ok", "step_seconds_median": 2.0, "weights_bytes": 5}
    row["two_forward_seconds_median"] = 1.9
    made = {"model": "opt-1.3b", "compute_dtype": "float32", "padded_tokens": 1024, "rows": [row]}
    made["provenance"] = {"device": "H100"}
    (tmp_path / "benchmark" / "tables").mkdir(parents=True)
    (tmp_path / "benchmark" / "tables" / "made.json").write_text(json.dumps(made))
    found = estimate([cell(model="opt-1.3b", tune="full")], tmp_path, None, price=0)
    assert found["cells"]["scaled"] == 1 and found["hours"] == pytest.approx(2000 / 3600, abs=0.005)


def test_the_sweep_that_the_repository_holds_is_estimated_at_what_it_took():
    found = estimate(sweep.load("quick").values(), ROOT / "results", None, price=0)
    with (ROOT / "results" / "quick" / "tables" / "times.csv").open() as file:
        took = sum(float(row["time.wall_seconds"]) for row in csv.DictReader(file))
    assert found["cells"]["unmeasured"] == found["cells"]["scaled"] == 0
    assert found["hours"] == pytest.approx(took / 3600, rel=0.2)
