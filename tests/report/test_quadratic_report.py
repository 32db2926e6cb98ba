"""The tables and figures of the sweep `quadratic`, from records with made-up numbers."""

from __future__ import annotations

import csv
import io

import pytest
from PIL import Image

from dpzero.report import figure_files, quadratic, table_files
from dpzero.report.records import read_records, to_frame
from dpzero.report.writing import write_figures, write_tables

TITLES = {"dpzero": ("DPZero", 0), "dpgd_0th": ("DPGD-0th", 0), "dp_sgd": ("DP-SGD", 1), "mezo": ("MeZO", 0)}
STEPS, RATES, CLIPS = [10, 20, 40], [0.1, 0.3, 1.0], [1.0, 3.0, 10.0]


def quadratic_record(method="dpzero", rank="rank_log_d", dimension=20, seed=0, norm=0.1, test=None) -> dict:
    """A record whose best setting is the middle of the grid, but for a lucky seed 0 at its first corner."""
    private = method != "mezo"
    clips = CLIPS if private else [None]
    grid = [[[9.0 for _ in clips] for _ in RATES] for _ in STEPS]
    grid[1][1][1 % len(clips)] = norm
    if private:
        grid[0][0][0] = norm / 2 if seed == 0 else 5.0
    epsilon = "2" if private else "inf"
    settings = {"dataset_size": 10_000, "dimension": dimension, "decay": 1.0, "informative": 0, "version": 1}
    settings |= {"steps": STEPS, "learning_rates": RATES} | ({"clips": CLIPS} if private else {})
    cell = {"task": rank, "model": f"d-{dimension}", "method": method, "epsilon": epsilon, "seed": seed}
    title, order = TITLES[method]
    return {
        "version": 1,
        "run": f"{rank}/d-{dimension}/{method}/eps-{epsilon}/seed-{seed}",
        "cell": cell | {"settings": settings, "experiment": "quadratic"},
        "method": {"title": title, "private": private, "order": order},
        "status": "ok",
        "error": None,
        "metrics": {"gradient_norm": norm},
        "quadratic": {"start": 5.0, "effective_rank": 3.6, "train": grid, "test": test or grid},
        "time": {"wall_seconds": 1.0},
        "provenance": {"git": "abc1234", "dirty": False, "device": "A CPU", "packages": {"numpy": "2.4.6"}},
    }


def all_records(dimensions=(20, 200, 2000), seeds=(0, 1, 2)) -> list[dict]:
    """DPZero: exponent 1 at O(d) and 0.25 at O(log d); DPGD-0th: 0.75; MeZO converged."""
    powers = {("dpzero", "rank_d"): 1.0, ("dpzero", "rank_log_d"): 0.25, ("dpgd_0th", "rank_log_d"): 0.75}
    records = [
        quadratic_record(method, rank, d, seed, 0.01 * (1 + 0.1 * seed) * (d / 20) ** power)
        for (method, rank), power in powers.items()
        for d in dimensions
        for seed in seeds
    ]
    return records + [
        quadratic_record("mezo", "rank_log_d", d, seed, 1e-15) for d in dimensions for seed in seeds
    ]


def best_of(paths) -> dict:
    """The best setting of records of one method, rank law and dimension."""
    (best,) = quadratic.best(to_frame(read_records(paths))).to_dict("records")
    return best


def test_the_setting_is_chosen_by_its_mean_over_the_seeds(written):
    best = best_of(written([quadratic_record(seed=seed, norm=0.1 + 0.01 * seed) for seed in range(3)]))
    # seed 0 alone would have chosen the corner
    assert best["setting"] == {"steps": 20, "learning_rates": 0.3, "clips": 3.0} and best["at_edge"] == []
    assert best["train"] == pytest.approx([0.1, 0.11, 0.12])
    assert best["by_steps"] == pytest.approx({10: (0.05 + 5 + 5) / 3, 20: 0.11, 40: 9.0})


def test_one_seed_has_its_own_best_setting_and_the_edge_of_the_grid_is_marked(written):
    paths = written([quadratic_record(norm=0.1)])
    best = best_of(paths)
    assert best["train"] == [0.05] and best["at_edge"] == ["steps", "learning_rates", "clips"]
    (row,) = quadratic.tables(to_frame(read_records(paths)))["norms"].rows
    assert (row["_train"], row["_steps"], row["_clips"]) == ("0.05", "10*", "1*")


def test_test_norms_have_their_own_best_setting_and_diverged_runs_none(written):
    grid = [[[None for _ in CLIPS] for _ in RATES] for _ in STEPS]
    grid[2][0][1] = 0.7
    assert best_of(written([quadratic_record(norm=0.1, test=grid)]))["test"] == [0.7]


def test_the_tables_say_best_of_grid_seeds_and_the_verdict(written, tmp_path):
    text = write_tables("quadratic", written(all_records()), tmp_path / "tables", "quadratic")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(table_files("quadratic"))
    heading = text.splitlines()[2]
    assert "exponent, best of grid" in heading and "seeds" in heading and "published" in heading
    assert "falls with the effective rank: yes (from 1.00" in text
    assert "lies below DPGD-0th's: yes (0.25" in text and "nearly independent of d" in text
    assert "best of grid" in (tmp_path / "tables" / "norms.md").read_text().splitlines()[2]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "exponents.csv").read_text())))
    exponents = {(row["task"], row["method"]): row["train_exponent"] for row in rows}
    assert float(exponents["rank_log_d", "dpzero"]) == pytest.approx(0.25)
    assert exponents["rank_log_d", "mezo"] == ""  # what is left of it is rounding


def test_a_partial_sweep_has_tables_and_figures(written, tmp_path):
    paths = written(
        [quadratic_record(), quadratic_record("mezo", norm=0.2), quadratic_record("dp_sgd", "rank_d", 50)]
    )
    expected = [record["run"] for record in all_records()]
    assert "partial" in write_tables("quadratic", paths, tmp_path, "quadratic", expected)
    assert len(write_figures("quadratic", paths, tmp_path, "quadratic", expected)) == 6


def test_the_figures_are_drawn(written, tmp_path):
    files = write_figures("quadratic", written(all_records()), tmp_path, "quadratic")
    assert sorted(path.name for path in files) == sorted(figure_files("quadratic"))
    for path in files:
        if path.suffix == ".png":
            assert len(set(Image.open(path).convert("L").tobytes())) > 20
