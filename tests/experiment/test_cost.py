"""The estimate of hours: worked out by hand, and always called one."""

from __future__ import annotations

import pytest

from dpzero.experiment import cost, sweep


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
    # a tenth of the steps; three and, with ghost norms, five passes in place of two
    ratios = {"adamw": 0.15, "dp_lora": 0.15, "dp_adamw": 0.25}
    assert {m: hours[m] / hours["mezo"] for m in ratios} == pytest.approx(ratios)
    longer = cost.gpu_hours("paper-roberta", cells("paper-roberta", tasks="rte", methods="mezo", seeds=42))
    assert longer / hours["mezo"] == pytest.approx(76 / 17)


def test_an_estimate_says_that_it_is_one():
    said = cost.estimate("paper-opt", cells("paper-opt", tasks="sst2", models="opt-1.3b"), 2)
    assert (
        "GPU hours of training (an estimate from tokens and parameters" in said and "nothing measured" in said
    )


def test_a_sweep_that_was_timed_on_a_cpu_says_minutes():
    assert cost.estimate("quick", cells("quick"), 2) == ", about 17 minutes on 2 CPU cores"


@pytest.mark.parametrize("name, runs", [("smoke", None), ("paper-roberta", []), ("quick", [])])
def test_nothing_is_said_where_nothing_is_known_or_left(name, runs):
    assert cost.estimate(name, cells(name) if runs is None else runs, 2) == ""


def test_a_model_of_unknown_size_has_no_estimate():
    assert cost.gpu_hours("paper-roberta", cells("paper-roberta", models="tiny-masked")) == 0
