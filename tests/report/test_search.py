"""The table and the curve of a search."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest

from dpzero.report import search, style
from dpzero.report.records import to_frame
from dpzero.report.search import expected_best


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_expected_best_is_the_mean_over_all_choices_of_tries(k):
    values = [0.3, 0.9, 0.5, 0.7, 0.5]
    expected = fmean(max(chosen) for chosen in combinations(values, k))
    assert expected_best(values, k) == pytest.approx(expected)


def test_a_failed_try_counts_as_no_right_answer():
    assert expected_best([0.8, -math.inf], 1) == pytest.approx(0.4)
    assert expected_best([0.8, -math.inf], 2) == pytest.approx(0.8)


def test_a_try_that_has_not_run_yet_is_no_try(record):
    tries = [record(f"dpzero@clip{clip}", "2", 100, accuracy=0.8) for clip in (1, 3)]
    expected = [f"r8/minilm/dpzero@clip{clip}/eps-2/seed-100" for clip in (1, 3, 10)]
    frames = to_frame([record("dpzero", "2", 0)]), to_frame(tries, expected)
    assert list(frames[1]["status"]).count("missing") == 1
    with style.settings():
        (axis,) = search.figure(*frames).axes
    assert [list(line.get_ydata()) for line in axis.lines if len(line.get_xdata())] == [[80, 80]]
    assert "| 2 " in search.table(*frames).markdown()


def test_one_seed_of_a_search_is_no_mean_and_a_panel_ends_where_failed_tries_would_hide_the_rest(record):
    reported = [record("dpzero", "2", seed) for seed in (0, 1)]
    scores = {"clip1": 0.05, "clip3": 0.82, "clip10": 0.05}
    tries = [record(f"dpzero@{point}", "2", 100, accuracy=score) for point, score in scores.items()]
    frames = to_frame(reported), to_frame(tries)
    assert search.table(*frames).title == "Scores of the tries on dev in per cent, one seed"
    more = to_frame(tries + [record(f"dpzero@{point}", "2", 101, accuracy=0.8) for point in scores])
    assert search.table(frames[0], more).title.endswith("mean over 2 seeds of the search")
    with style.settings():
        (axis,) = search.figure(*frames).axes
    (line,) = [line for line in axis.lines if len(line.get_xdata()) == 3]
    assert line.get_ydata()[-1] == pytest.approx(82) and axis.get_ylim()[0] == pytest.approx(
        82 - search.DEEPEST
    )
