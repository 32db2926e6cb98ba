"""The estimate of hours: worked out by hand, and always called one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpzero.plan import cost, sweep


def cells(name: str, **narrowed: object) -> list[dict]:
    return list(sweep.load(name, **narrowed).values())


def test_a_published_run_takes_its_published_time():
    """10,000 steps of 0.347 s: 0.96 hours, on the card on which they were taken."""
    run = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    assert cost.gpu_hours("paper-roberta", run) == pytest.approx(10000 * 0.347 / 3600, rel=0.01)


def test_hours_grow_with_tokens_steps_batch_size_and_passes():
    hours = {
        method: cost.gpu_hours(
            "paper-roberta", cells("paper-roberta", tasks="sst2", methods=method, seeds=42, epsilons=2)
        )
        for method in ("zero_shot", "mezo", "dpzero", "adamw", "dp_adamw", "dp_lora")
    }
    assert hours["zero_shot"] == 0 and hours["dpzero"] == hours["mezo"]
    # a tenth of the steps; three and, with ghost norms, four passes in place of two
    ratios = {"adamw": 0.15, "dp_lora": 0.15, "dp_adamw": 0.2}
    assert {m: hours[m] / hours["mezo"] for m in ratios} == pytest.approx(ratios)
    longer = cost.gpu_hours("paper-roberta", cells("paper-roberta", tasks="rte", methods="mezo", seeds=42))
    assert longer / hours["mezo"] == pytest.approx(76 / 17)


def test_an_estimate_says_that_it_is_one():
    said = cost.estimate("paper-opt", cells("paper-opt", tasks="sst2", models="opt-1.3b"), 2)
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
    assert cost.speed(run, tmp_path) == cost.PUBLISHED
    bench(tmp_path, "roberta-large", 5.0, "live tensor storage on the CPU")
    assert cost.speed(run, tmp_path) == cost.PUBLISHED
    bench(tmp_path, "roberta-large", 20_000.0)
    bench(tmp_path, "opt-6.7b", 3_000.0)
    pace = cost.speed(run, tmp_path)
    assert "card of roberta-large in the benchmark roberta-large-16-float32-CUDA" in pace.of
    hours = 10000 * 2 * 64 * 17 / 20_000 / 3600
    assert cost.gpu_hours("paper-roberta", run, pace) == pytest.approx(hours)
    large = cells("paper-opt", tasks="sst2", models="opt-6.7b", methods="dpzero", epsilons=2, seeds=0)
    assert "card of opt-6.7b" in cost.speed(large, tmp_path).of
    bench(tmp_path, "roberta-large", 80_000.0, compute_dtype="bfloat16", batch_size=64)
    assert cost.speed(run, tmp_path) == pace  # these cells are float32
    bench(tmp_path, "roberta-large", 30_000.0, batch_size=64)
    assert "roberta-large-64-float32" in cost.speed(run, tmp_path).of
    (tmp_path / "half.json").write_text("{")  # of a benchmark that was killed
    assert "roberta-large-64-float32" in cost.speed(run, tmp_path).of


def test_a_sweep_that_was_timed_on_a_cpu_says_minutes():
    assert cost.estimate("quick", cells("quick"), 2) == ", about 17 minutes on 2 CPU cores"


@pytest.mark.parametrize("name, runs", [("smoke", None), ("paper-roberta", []), ("quick", [])])
def test_nothing_is_said_where_nothing_is_known_or_left(name, runs):
    assert cost.estimate(name, cells(name) if runs is None else runs, 2) == ""


def test_a_model_of_unknown_size_has_no_estimate():
    assert cost.gpu_hours("paper-roberta", cells("paper-roberta", models="tiny-masked")) == 0


# --- what rule `run` asks a batch system for


def test_a_small_run_asks_for_the_least():
    for cell in (*cells("smoke"), *cells("quadratic")[:3], *cells("guarantees")[:3], *cells("quick")[:3]):
        assert (cost.minutes({}, cell), cost.host_megabytes(cell)) == (60, 4000)


def test_a_large_model_asks_for_its_hours_and_bytes():
    """OPT-13B: 12.85 billion parameters, 6 bytes each while they are read; twice the hours that the estimate of the sweep says."""
    (cell,) = cells("paper-mezo-large", models="opt-13b", methods="mezo", tasks="sst2", seeds=0)
    assert cost.host_megabytes(cell) == 4000 + 77_120
    hours = cost.gpu_hours("paper-mezo-large", [cell])
    assert hours > 1 and cost.minutes(sweep.tokens("paper-mezo-large"), cell) == pytest.approx(
        2 * 60 * hours, abs=1
    )


def test_where_no_length_of_prompts_is_known_each_is_as_long_as_may_be():
    (cell,) = cells("paper-roberta", tasks="sst2", methods="mezo", seeds=42)
    known, unknown = (cost.minutes(sweep.tokens(name), cell) for name in ("paper-roberta", "smoke"))
    assert unknown == pytest.approx(
        known * cell["settings"]["max_length"] / sweep.tokens("paper-roberta")["sst2"], rel=0.02
    )
