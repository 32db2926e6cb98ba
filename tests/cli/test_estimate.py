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
    Estimator,
    announcement,
    estimate,
    full_step,
    host_megabytes,
    minutes,
)
from dpzero.errors import UsageError
from dpzero.plan import sweep

ROOT = Path(__file__).resolve().parents[2]


def cells(name: str, **narrowed: object) -> list[dict]:
    return list(sweep.load(name, **narrowed).values())


def hours(name: str, results: Path = Path("none"), **narrowed: object) -> float:
    runs = cells(name, **narrowed)
    return Estimator.choose(name, runs, results).total(runs)[1] / 3600


# --- by tokens and parameters


def test_a_published_run_takes_its_published_time():
    """10,000 steps of 0.347 s: 0.96 hours, on the card on which they were taken."""
    took = hours("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    assert took == pytest.approx(10000 * 0.347 / 3600, rel=0.01)


def test_hours_grow_with_tokens_steps_batch_size_and_passes():
    methods = ("zero_shot", "mezo", "dpzero", "adamw", "dp_adamw", "dp_lora")
    took = {
        method: hours("paper-roberta", tasks="sst2", methods=method, seeds=42, epsilons=2)
        for method in methods
    }
    assert took["zero_shot"] == 0 and took["dpzero"] == took["mezo"]
    # a tenth of the steps; three and, with ghost norms, four passes in place of two
    ratios = {"adamw": 0.15, "dp_lora": 0.15, "dp_adamw": 0.2}
    assert {m: took[m] / took["mezo"] for m in ratios} == pytest.approx(ratios)
    longer = hours("paper-roberta", tasks="rte", methods="mezo", seeds=42)
    assert longer / took["mezo"] == pytest.approx(76 / 17)


def write_benchmark(folder: Path, model: str, step_seconds: float, **changes: object) -> None:
    """A benchmark of DPZero with 1,088 padded tokens, on a GPU unless the changes say otherwise."""
    row = {"name": "dpzero", "status": "ok", "step_seconds_median": step_seconds, "weights_bytes": 5}
    benchmark = {"model": model, "compute_dtype": "float32", "memory": "CUDA allocator"} | changes
    benchmark |= {"provenance": {"device": f"card of {model}"}, "padded_tokens": 64 * 17, "rows": [row]}
    tables = folder / "benchmark" / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    name = f"{model}-{benchmark['compute_dtype']}-{benchmark['memory'][:4]}"
    (tables / f"{name}.json").write_text(json.dumps(benchmark))


def test_a_benchmark_on_a_gpu_takes_the_place_of_the_published_step(tmp_path):
    roberta = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    write_benchmark(tmp_path, "roberta-large", 9.0, memory="live tensor storage on the CPU")
    assert Estimator.choose("paper-roberta", roberta, tmp_path).device == PUBLISHED.device
    write_benchmark(tmp_path, "opt-6.7b", 8.0)
    estimator = Estimator.choose("paper-roberta", roberta, tmp_path)
    assert estimator.device == "card of opt-6.7b"
    assert estimator.run(roberta[0]) == ("estimated", pytest.approx(10000 * 8 * 355.4 / 6658.5, rel=1e-3))
    (tmp_path / "benchmark" / "tables" / "half.json").write_text("{")  # of a benchmark that was killed
    assert Estimator.choose("paper-roberta", roberta, tmp_path).device == "card of opt-6.7b"


def test_the_step_nearest_in_size_and_of_its_precision_counts():
    def step(model: str, seconds: float, compute: str = "float32"):
        return PUBLISHED._replace(key=full_step(model, "dpzero", compute), seconds=seconds)

    times = [step("opt-6.7b", 90), step("roberta-large", 7, "bfloat16"), step("roberta-large", 0.3)]
    (cell,) = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    assert Estimator(times, {"sst2": 17}).run(cell) == ("estimated", pytest.approx(3000))


def test_an_announcement_names_the_source_of_its_hours():
    opt = cells("paper-opt", tasks="sst2", models="opt-1.3b")
    text = announcement("paper-opt", opt, 2)
    assert "hours on an RTX 3090 (published; nothing measured here)" in text
    assert text.endswith(f"({len(opt)} estimated)")
    assert "hours on 2 cores of a CPU (as the sweep says)" in announcement(
        "adapters-lm", cells("adapters-lm"), 2
    )


@pytest.mark.parametrize(
    "cores, place", [(2, "0.7 core hours, 0.4 hours on 2 cores of "), (None, "0.7 hours on ")]
)
def test_a_sweep_that_was_timed_on_a_cpu_shares_its_cores(monkeypatch, cores, place):
    monkeypatch.chdir(ROOT)
    text = announcement("biases", cells("biases"), cores)
    assert text.startswith(f", about {place}") and text.endswith("(46 measured)")


def test_runs_of_unknown_cost_are_not_announced():
    assert announcement("smoke", cells("smoke"), 2) == ""
    unknown = cells("paper-roberta", models="tiny-masked")
    assert Estimator.choose("paper-roberta", unknown).total(unknown) == ({"unknown": len(unknown)}, 0)


# --- what rule `run` asks a batch system for


def test_a_small_run_asks_for_the_least():
    of_minilm = 136  # 22.7 million parameters, 6 bytes each while they are read
    for name, weights in {"smoke": 0, "quadratic": 0, "guarantees": 0, "quick": of_minilm}.items():
        some = cells(name)[:3]
        estimator = Estimator.choose(name, some)
        assert {(minutes(estimator, cell), host_megabytes(cell)) for cell in some} == {(60, 4000 + weights)}


def test_a_large_model_asks_for_its_hours_and_bytes():
    """OPT-13B: 12.85 billion parameters, 6 bytes each while they are read; twice the estimated hours."""
    (cell,) = cells("paper-mezo-large", models="opt-13b", methods="mezo", tasks="sst2", seeds=0)
    assert host_megabytes(cell) == 4000 + 77_120
    estimator = Estimator.choose("paper-mezo-large", [cell], Path("none"))
    _, seconds = estimator.run(cell)
    assert seconds > 3600 and minutes(estimator, cell) == pytest.approx(2 * seconds / 60, abs=1)


def test_prompts_of_unknown_length_have_the_full_length():
    (cell,) = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    known, unknown = (Estimator([PUBLISHED], tokens).run(cell)[1] for tokens in ({"sst2": 17}, {}))
    assert unknown == pytest.approx(known * cell["settings"]["max_length"] / 17)


# --- by measured times


SETTINGS = {"tune": "lora", "compute": "float32", "batch_size": 16, "max_length": 64, "steps": 1000}


def planned(method: str = "dpzero", model: str = "minilm", **settings: object) -> dict:
    names = {"task": "r8", "method": method, "use": method, "model": model}
    return names | {"settings": SETTINGS | settings}


@pytest.fixture
def table(tmp_path) -> Callable[..., Path]:
    """table(device, step_seconds) -> a results folder with one measured run: 10 s besides its steps, 90 MB of weights."""

    def write(device: str = "NVIDIA H100 80GB HBM3", step_seconds: float = 0.5, **further: object) -> Path:
        run = {"run": "r8/minilm/dpzero/eps-2/seed-0", "model": "minilm", "method": "dpzero"}
        run |= {"memory.weights_bytes": 90_000_000, "memory.how": "CUDA allocator"}
        run |= {f"settings.{name}": value for name, value in SETTINGS.items()}
        taken = SETTINGS["steps"] * step_seconds
        times = {
            "run": run["run"],
            "status": "ok",
            "time.wall_seconds": taken + 10,
            "time.train_seconds": taken,
        }
        times |= {"time.step_seconds": step_seconds, "provenance.device": device}
        (times if any(key.startswith("time.") for key in further) else run).update(further)
        folder = tmp_path / device.replace(" ", "-") / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        for name, row in (("runs", run), ("times", times)):
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                writer.writerow(row)
        return tmp_path

    return write


def test_a_measured_cell_costs_its_steps_and_its_other_seconds(table):
    cost = estimate("quick", [planned(), planned(steps=3000)], table(), "h100", price=3)
    assert cost["hours"] == pytest.approx((4000 * 0.5 + 2 * 10) / 3600, abs=0.005)
    assert cost["money"] == pytest.approx(3 * cost["hours"], abs=0.005)
    assert cost["cells"] == {"measured": 2, "scaled": 0, "estimated": 0, "unknown": 0}
    assert cost["device"] == "NVIDIA H100 80GB HBM3"
    assert cost["results_bytes"] == 2 * RECORD_BYTES + 4000 * TRANSCRIPT_BYTES
    assert cost["checkpoint_bytes_a_running_cell"] == 90_000_000


@pytest.mark.parametrize("change", [{"batch_size": 32}, {"max_length": 128}, {"directions": 2}])
def test_twice_the_tokens_of_a_step_take_twice_its_time_and_count_as_scaled(table, change):
    cost = estimate("quick", [planned(**change)], table(), None, price=0)
    assert cost["hours"] == pytest.approx((1000 * 0.5 * 2 + 10) / 3600, abs=0.005)
    assert cost["cells"]["scaled"] == 1


@pytest.mark.parametrize(
    "other",
    [planned("mezo"), planned(model="smollm2-135m"), planned(tune="full"), planned(compute="bfloat16")],
)
def test_an_unmeasured_cell_on_a_measured_device_is_counted_and_not_guessed(table, other):
    alone = estimate("quick", [planned()], table(), None, price=1)
    both = estimate("quick", [planned(), other], table(device="other"), "H100", price=1)
    assert both["cells"]["unknown"] == 1 and both["hours"] == alone["hours"]
    with pytest.raises(UsageError, match="no step time was measured for sweep quick"):
        estimate("quick", [other], table(device="a third"), "H100", price=1)


def test_a_device_that_nobody_measured_is_refused_with_those_that_were(table, tmp_path):
    with pytest.raises(UsageError, match="measured for A100, but for NVIDIA H100"):
        estimate("quick", [planned()], table(), "A100", price=1)
    with pytest.raises(UsageError, match="measured for A100, but for an RTX 3090"):
        estimate("quick", [planned()], tmp_path / "empty", "A100", price=1)


def test_step_times_of_different_devices_are_not_mixed(table):
    table("slow CPU", 50)
    results = table()
    fast, slow = (estimate("quick", [planned()], results, name, 0)["hours"] for name in ("H100", "slow"))
    assert slow > 50 * fast > 0


def test_a_benchmark_stands_in_for_full_training_of_its_model(tmp_path):
    write_benchmark(tmp_path, "opt-1.3b", 2.125)
    cost = estimate("quick", [planned(model="opt-1.3b", tune="full")], tmp_path, None, price=0)
    assert cost["cells"]["scaled"] == 1 and cost["hours"] == pytest.approx(2000 / 3600, abs=0.005)


@pytest.mark.parametrize("name", ["biases", "quick"])
def test_a_sweep_that_the_repository_holds_is_estimated_at_what_it_took(name):
    """But for the start of the processes, where its records do not say it."""
    cost = estimate(name, cells(name), ROOT / "results", None, price=0)
    with (ROOT / "results" / name / "tables" / "times.csv").open() as file:
        took = sum(float(row["time.wall_seconds"]) for row in csv.DictReader(file))
    assert cost["cells"]["measured"] == len(cells(name))
    assert cost["hours"] == pytest.approx(took / 3600, rel=0.2)


# --- the start of a process, rehearsals and stand-ins


def test_every_run_takes_the_start_of_its_process_where_records_say_what_that_is(table):
    table("another device", **{"time.start_cpu_seconds": 4})
    before = estimate("quick", [planned(), planned()], table(), "h100", price=0)["hours"]
    results = table(**{"time.start_cpu_seconds": 3})
    cost = estimate("quick", [planned(), planned()], results, "h100", price=0)["hours"]
    assert before == pytest.approx(2 * (1000 * 0.5 + 10 + 4) / 3600, abs=0.005)  # as on other devices
    assert cost == pytest.approx(2 * (1000 * 0.5 + 10 + 3) / 3600, abs=0.005)
    (unknown,) = cells("paper-roberta", models="tiny-masked", methods="mezo", tasks="sst2", seeds=42)
    assert Estimator.choose("paper-roberta", [unknown], results).run(unknown) == ("unknown", 0)


def test_what_the_first_steps_take_in_addition_counts_once(table):
    """Of quick's runs that is a third: they step from cached features, and the first step tries shapes."""
    results = table(**{"time.wall_seconds": 530, "time.train_seconds": 520})
    cost = estimate("quick", [planned(), planned(steps=3000)], results, "h100", price=0)
    assert cost["hours"] == pytest.approx((4000 * 0.5 + 2 * 30) / 3600, abs=0.005)


def test_a_private_release_tells_no_times_and_its_tables_stop_no_dry_run(table):
    withheld = dict.fromkeys(("time.wall_seconds", "time.train_seconds", "time.step_seconds"), "")
    results = table(device="of a release", **withheld)
    assert Estimator.choose("quick", [planned()], results).device == PUBLISHED.device


def test_runs_of_a_rehearsal_serve_it_alone(table):
    results = table(step_seconds=0.01, **{"rehearsal.steps": 20})
    rehearsed = planned(steps=20) | {"rehearsal": {"steps": 20}}
    cost = estimate("quick", [rehearsed], results, "h100", price=0)
    assert cost["cells"]["measured"] == 1 and cost["hours"] == pytest.approx(10.2 / 3600, abs=0.005)
    with pytest.raises(UsageError, match="no step time was measured"):
        estimate("quick", [planned()], results, "h100", price=0)
    # but a rehearsal takes the step times of its sweep where it has none
    assert estimate("quick", [rehearsed], table(device="other"), "other", price=0)["cells"]["measured"] == 1


def test_times_of_other_weights_of_the_same_name_are_no_measurement(table):
    results = table(step_seconds=0.01, **{"settings.weights": "a" * 64})
    same = estimate("quick", [planned(weights="a" * 64)], results, "h100", price=0)
    assert same["cells"]["measured"] == 1
    with pytest.raises(UsageError, match="no step time was measured"):
        estimate("quick", [planned()], results, "h100", price=0)


def test_a_stand_in_costs_what_its_own_size_does(tmp_path, monkeypatch):
    from dpzero.language.models import stand_ins

    narrow = {"tasks": "sst2", "methods": "mezo", "seeds": 42}
    large = hours("paper-roberta", **narrow)
    stand_ins.write("roberta-large", tmp_path / "models" / "roberta-large")
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    small = hours("paper-roberta", **narrow)
    assert 0 < small < large / 1000
    assert {host_megabytes(cell) for cell in cells("paper-roberta", **narrow)} == {4000}


def test_a_sweeps_own_statement_of_its_cost_is_not_that_of_a_rehearsal():
    assert "as the sweep says" in announcement("adapters-lm", cells("adapters-lm"), 2)
    assert "as the sweep says" not in announcement("adapters-lm", cells("adapters-lm", steps=5), 2)
