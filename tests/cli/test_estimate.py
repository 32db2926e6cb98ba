"""What a sweep costs: by measured step times, else by tokens and parameters, which is always called an estimate."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpzero.cli.estimate import (
    PUBLISHED,
    RECORD_BYTES,
    TRANSCRIPT_BYTES,
    announcement,
    estimate,
    gpu_hours,
    host_megabytes,
    minutes,
    speed,
)
from dpzero.errors import UsageError
from dpzero.plan import sweep


def cells(name: str, **narrowed: object) -> list[dict]:
    return list(sweep.load(name, **narrowed).values())


def test_a_published_run_takes_its_published_time():
    """10,000 steps of 0.347 s: 0.96 hours, on the card on which they were taken."""
    run = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    assert gpu_hours("paper-roberta", run) == pytest.approx(10000 * 0.347 / 3600, rel=0.01)


def test_hours_grow_with_tokens_steps_batch_size_and_passes():
    hours = {
        method: gpu_hours(
            "paper-roberta", cells("paper-roberta", tasks="sst2", methods=method, seeds=42, epsilons=2)
        )
        for method in ("zero_shot", "mezo", "dpzero", "adamw", "dp_adamw", "dp_lora")
    }
    assert hours["zero_shot"] == 0 and hours["dpzero"] == hours["mezo"]
    # a tenth of the steps; three and, with ghost norms, four passes in place of two
    ratios = {"adamw": 0.15, "dp_lora": 0.15, "dp_adamw": 0.2}
    assert {m: hours[m] / hours["mezo"] for m in ratios} == pytest.approx(ratios)
    longer = gpu_hours("paper-roberta", cells("paper-roberta", tasks="rte", methods="mezo", seeds=42))
    assert longer / hours["mezo"] == pytest.approx(76 / 17)


def test_an_estimate_says_that_it_is_one():
    said = announcement("paper-opt", cells("paper-opt", tasks="sst2", models="opt-1.3b"), 2)
    assert (
        "GPU hours of training (an estimate from tokens and parameters" in said and "nothing measured" in said
    )


def bench(folder: Path, model: str, tokens_per_second: float, memory: str = "CUDA allocator", **how) -> None:
    row = {"name": "dpzero", "status": "ok", "tokens_per_second": tokens_per_second}
    made = {"model": model, "batch_size": 16, "compute_dtype": "float32", "memory": memory} | how
    made |= {"provenance": {"device": f"card of {model}"}, "rows": [row]}
    name = "-".join(map(str, (model, made["batch_size"], made["compute_dtype"], memory[:4])))
    (folder / f"{name}.json").write_text(json.dumps(made))


def test_the_benchmark_of_this_gpu_takes_the_place_of_the_published_step(tmp_path):
    """RoBERTa-large at 20,000 tokens a second, two passes counted: 10,000 steps of 64 x 17 tokens twice take 0.30 hours."""
    run = cells("paper-roberta", tasks="sst2", methods="dpzero", epsilons=2, seeds=42)
    assert speed(run, tmp_path) == PUBLISHED
    bench(tmp_path, "roberta-large", 5.0, "live tensor storage on the CPU")
    assert speed(run, tmp_path) == PUBLISHED
    bench(tmp_path, "roberta-large", 20_000.0)
    bench(tmp_path, "opt-6.7b", 3_000.0)
    pace = speed(run, tmp_path)
    assert "card of roberta-large in the benchmark roberta-large-16-float32-CUDA" in pace.source
    hours = 10000 * 2 * 64 * 17 / 20_000 / 3600
    assert gpu_hours("paper-roberta", run, pace) == pytest.approx(hours)
    large = cells("paper-opt", tasks="sst2", models="opt-6.7b", methods="dpzero", epsilons=2, seeds=0)
    assert "card of opt-6.7b" in speed(large, tmp_path).source
    bench(tmp_path, "roberta-large", 80_000.0, compute_dtype="bfloat16", batch_size=64)
    assert speed(run, tmp_path) == pace  # these cells are float32
    bench(tmp_path, "roberta-large", 30_000.0, batch_size=64)
    assert "roberta-large-64-float32" in speed(run, tmp_path).source
    (tmp_path / "half.json").write_text("{")  # of a benchmark that was killed
    assert "roberta-large-64-float32" in speed(run, tmp_path).source


def test_a_sweep_that_was_timed_on_a_cpu_says_minutes():
    assert announcement("quick", cells("quick"), 2) == ", about 17 minutes on 2 CPU cores"


@pytest.mark.parametrize("name, runs", [("smoke", None), ("paper-roberta", []), ("quick", [])])
def test_nothing_is_said_where_nothing_is_known_or_left(name, runs):
    assert announcement(name, cells(name) if runs is None else runs, 2) == ""


def test_a_model_of_unknown_size_has_no_estimate():
    assert gpu_hours("paper-roberta", cells("paper-roberta", models="tiny-masked")) == 0


# --- what rule `run` asks a batch system for


def test_a_small_run_asks_for_the_least():
    for cell in (*cells("smoke"), *cells("quadratic")[:3], *cells("guarantees")[:3], *cells("quick")[:3]):
        assert (minutes({}, cell), host_megabytes(cell)) == (60, 4000)


def test_a_large_model_asks_for_its_hours_and_bytes():
    """OPT-13B: 12.85 billion parameters, 6 bytes each while they are read; twice the hours that the estimate of the sweep says."""
    (cell,) = cells("paper-mezo-large", models="opt-13b", methods="mezo", tasks="sst2", seeds=0)
    assert host_megabytes(cell) == 4000 + 77_120
    hours = gpu_hours("paper-mezo-large", [cell])
    assert hours > 1 and minutes(sweep.tokens("paper-mezo-large"), cell) == pytest.approx(
        2 * 60 * hours, abs=1
    )


def test_where_no_length_of_prompts_is_known_each_is_as_long_as_may_be():
    (cell,) = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    known, unknown = (minutes(sweep.tokens(name), cell) for name in ("paper-roberta", "smoke"))
    assert unknown == pytest.approx(
        known * cell["settings"]["max_length"] / sweep.tokens("paper-roberta")["sst2"], rel=0.02
    )


# --- by measured times


ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"tune": "lora", "compute": "float32", "batch_size": 16, "max_length": 64, "steps": 1000}


def planned(method: str = "dpzero", model: str = "minilm", **settings: object) -> dict:
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
    found = estimate([planned(), planned(steps=3000)], table(), "h100", price=3)
    hours = (4000 * 0.5 + 2 * 10) / 3600
    assert found["hours"] == pytest.approx(hours, abs=0.005)
    assert found["money"] == pytest.approx(3 * found["hours"], abs=0.005)
    assert found["cells"] == {"measured": 2, "scaled": 0, "unmeasured": 0}
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert found["results_bytes"] == 2 * RECORD_BYTES + 4000 * TRANSCRIPT_BYTES
    assert found["checkpoint_bytes_a_running_cell"] == 90_000_000


@pytest.mark.parametrize("change", [{"batch_size": 32}, {"max_length": 128}, {"directions": 2}])
def test_twice_the_tokens_of_a_step_take_twice_its_time_and_count_as_scaled(table, change):
    found = estimate([planned(**change)], table(), None, price=0)
    assert found["hours"] == pytest.approx((1000 * 0.5 * 2 + 10) / 3600, abs=0.005)
    assert found["cells"]["scaled"] == 1


@pytest.mark.parametrize(
    "other",
    [planned("mezo"), planned(model="smollm2-135m"), planned(tune="full"), planned(compute="bfloat16")],
)
def test_what_was_not_measured_is_counted_and_not_guessed(table, other):
    alone = estimate([planned()], table(), None, price=1)
    both = estimate([planned(), other], table(device="other"), "H100", price=1)
    assert both["cells"]["unmeasured"] == 1 and both["hours"] == alone["hours"]
    with pytest.raises(UsageError, match="no step time was measured for these cells"):
        estimate([other], table(device="a third"), "H100", price=1)


def test_a_device_that_nobody_measured_is_refused_with_those_that_were(table, tmp_path):
    with pytest.raises(UsageError, match=r"measured for A100 \(NVIDIA H100"):
        estimate([planned()], table(), "A100", price=1)
    with pytest.raises(UsageError, match="nothing was"):
        estimate([planned()], tmp_path / "empty", "A100", price=1)


def test_step_times_of_different_devices_are_not_mixed(table):
    table("slow CPU", 50)
    results = table()
    fast, slow = (estimate([planned()], results, name, price=0)["hours"] for name in ("H100", "slow"))
    assert slow > 50 * fast > 0


def test_a_benchmark_stands_in_for_full_training_of_its_model(tmp_path):
    row = {"name": "dpzero", "status": "ok", "step_seconds_median": 2.0, "weights_bytes": 5}
    row["two_forward_seconds_median"] = 1.9
    made = {"model": "opt-1.3b", "compute_dtype": "float32", "padded_tokens": 1024, "rows": [row]}
    made["provenance"] = {"device": "H100"}
    (tmp_path / "benchmark" / "tables").mkdir(parents=True)
    (tmp_path / "benchmark" / "tables" / "made.json").write_text(json.dumps(made))
    found = estimate([planned(model="opt-1.3b", tune="full")], tmp_path, None, price=0)
    assert found["cells"]["scaled"] == 1 and found["hours"] == pytest.approx(2000 / 3600, abs=0.005)


def test_the_sweep_that_the_repository_holds_is_estimated_at_what_it_took():
    found = estimate(sweep.load("quick").values(), ROOT / "results", None, price=0)
    with (ROOT / "results" / "quick" / "tables" / "times.csv").open() as file:
        took = sum(float(row["time.wall_seconds"]) for row in csv.DictReader(file))
    assert found["cells"]["unmeasured"] == found["cells"]["scaled"] == 0
    assert found["hours"] == pytest.approx(took / 3600, rel=0.2)
