"""The figure with a line for each of many methods: what stands under one heading, and in which order."""

from __future__ import annotations

import pytest

from dpzero.report import MOST_IN_LEGEND, figure_names, have_many_methods, style, training
from dpzero.report.accuracy_by_method import accuracy_by_method
from dpzero.report.records import to_frame


@pytest.fixture
def on_head(record):
    """on_head(method, epsilon, accuracy, **settings): a record of a run that trains the head."""

    def build(method: str, epsilon: str, accuracy: float, seed: int = 0, **settings) -> dict:
        one = record(method, epsilon, seed, accuracy=accuracy)
        one["cell"]["settings"] |= {"tune": "head", **settings}
        return one

    return build


def labels(figure) -> list[str]:
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_methods_stand_under_what_they_train_promise_and_read_the_best_first(on_head):
    records = [
        on_head("dpzero", "2", 0.7),
        on_head("dp_sgd", "2", 0.8),
        on_head("adamw", "inf", 0.9),
        on_head("users", "2", 0.6, unit="user"),
        on_head("pazo", "2", 0.65, public_examples=64),
        on_head("adapters", "2", 0.75, tune="lora"),
    ]
    with style.settings():
        words = labels(accuracy_by_method(to_frame(records)))
    assert words == [
        *("head, not private", "AdamW"),
        *("head, ε = 2", "DP-SGD", "DPZero"),
        *("head, ε = 2 per user", "Users"),
        *("head, ε = 2, reads public rows", "Pazo"),
        *("through the body, ε = 2", "Adapters"),
    ]


def test_a_line_has_the_seeds_the_interval_and_the_forward_passes(on_head):
    records = [on_head("dpzero", "2", score, seed) for seed, score in enumerate((0.6, 0.7, 0.8))]
    with style.settings():
        (axis,) = accuracy_by_method(to_frame(records)).axes
    drawn = [list(line.get_xdata()) for line in axis.lines]
    assert [pytest.approx(70)] in drawn and pytest.approx([60, 70, 80]) in drawn
    assert any(len(container) for container in axis.containers)
    assert "4.8 k" in [text.get_text() for text in axis.texts]  # 150 steps of 16 examples, twice each


def test_a_method_that_failed_says_why_and_stands_last(record, on_head):
    failed = record("dpzero", "2", status="oom")
    failed["cell"]["settings"]["tune"] = "head"
    with style.settings():
        figure = accuracy_by_method(to_frame([failed, on_head("dp_sgd", "2", 0.5)]))
        assert labels(figure) == ["head, ε = 2", "DP-SGD", "DPZero"]
    assert "OOM" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("methods", "epsilons", "drawn"), [(13, "2", True), (12, "2", False), (13, "26", False)]
)
def test_it_is_drawn_for_more_methods_than_a_legend_holds_at_one_epsilon(record, methods, epsilons, drawn):
    assert MOST_IN_LEGEND == 12
    records = [record(f"m{place}", epsilon) for place in range(methods) for epsilon in epsilons]
    runs = [one["run"] for one in records]
    further = ["r8/minilm/zero_shot/eps-0/seed-0", "r8/minilm/m0@clip1/eps-4/seed-100"]
    assert have_many_methods(runs + further[1:]) == drawn
    assert ("accuracy_by_method" in figure_names("language", runs)) == drawn
    with style.settings():
        assert ("accuracy_by_method" in training.figures(to_frame(records))) == drawn
