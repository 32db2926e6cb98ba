"""The workflow as a user meets it: a copy of the project, in which sweeps are run, narrowed, edited, killed and resumed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpzero.report import FIGURES, figure_files, page_sources, table_files, title_of
from tests.browser import opened
from tests.project_copy import (
    BROKEN,
    DPZERO,
    MEZO,
    NARROW,
    PREFIX,
    ROOT,
    ZERO_SHOT,
    ProjectCopy,
    cluster_commands,
)

RTE = "rte/roberta-large/dp_aggzo/eps-6/seed-0"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, cache) -> ProjectCopy:
    """The project before anything was run; there are spaces in its path."""
    return ProjectCopy.build(tmp_path_factory.mktemp("a project"), cache)


@pytest.fixture(scope="module")
def first(untouched, tmp_path_factory, cache) -> tuple[ProjectCopy, subprocess.CompletedProcess]:
    """The project after one whole sweep, and its output; there are spaces in the paths of project and interpreter."""
    folder = tmp_path_factory.mktemp("finished") / "my project"
    shutil.copytree(untouched.folder, folder)
    project = ProjectCopy(folder, cache)
    (folder.parent / "my environment").symlink_to(sys.prefix)
    project.python = str(folder.parent / "my environment" / "bin" / "python")
    return project, project.snakemake()


@pytest.fixture
def project(first, tmp_path, cache) -> ProjectCopy:
    """A copy of the finished project, to do with as one likes."""
    shutil.copytree(first[0].folder, tmp_path / "project")
    return ProjectCopy(tmp_path / "project", cache)


# --- a whole sweep


def test_a_dry_run_makes_nothing_and_loads_nothing_heavy(untouched):
    done = untouched.call(
        "-X", "importtime", "-m", "snakemake", "--cores", 2, "--dry-run", "--config", *NARROW
    )
    assert done.returncode == 0 and DPZERO in done.stdout + done.stderr
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"snakemake", "dpzero"} <= loaded
    assert not {"torch", "transformers", "opacus", "dp_accounting", "matplotlib"} & loaded
    assert not untouched.contents("results", "figures")


def test_one_command_makes_every_record_table_and_figure(first):
    project, done = first
    assert done.returncode == 0, done.stderr
    assert project.runs() == {ZERO_SHOT, MEZO, DPZERO}
    assert {Path(name).name for name in project.contents("results/smoke/tables")} == set(
        table_files("language")
    )
    assert {Path(name).name for name in project.contents("figures/smoke")} == set(figure_files("language"))
    assert all(len(content) > 100 for content in project.contents("results/smoke/tables", "figures").values())
    assert not project.contents("results/smoke/checkpoints")


def test_the_last_output_is_the_accuracies_and_the_figures(first):
    project, done = first
    output = done.stdout + done.stderr
    table = (project.folder / "results" / "smoke" / "tables" / "accuracy.md").read_text()
    assert table in output and all(title in table for title in ("Zero-shot", "MeZO", "DPZero"))
    for figure in FIGURES:
        assert f"Figure:  figures/smoke/{figure}.png" in output


def test_the_terminal_has_a_line_a_run_with_the_time_left_and_the_logs_have_the_rest(first):
    project, done = first
    lines = done.stderr.splitlines()
    for run in (ZERO_SHOT, MEZO, DPZERO):
        (line,) = [line for line in lines if run in line]
        assert re.fullmatch(
            rf"{run}: accuracy \d+\.\d %, \d+ s \(\d of 3 runs(, about \d\d:\d\d left)?\)", line
        )
    assert "smoke: 3 runs, 0 exist, 3 to be run" in lines and len(lines) < 15, done.stderr
    (log,) = project.folder.glob(".snakemake/log/*.log")
    assert "Finished jobid" in log.read_text()


@pytest.mark.slow
def test_who_asks_snakemake_for_its_lines_has_them(project):
    project.record(MEZO).unlink()
    done = project.snakemake("--printshellcmds")
    assert "Finished jobid" in done.stderr and "-m dpzero run --spec" in done.stderr
    project.record(MEZO).unlink()
    assert "accuracy" not in project.snakemake("--quiet", "all").stderr


@pytest.mark.slow
def test_a_dry_run_of_the_verb_is_one_line(project):
    project.record(MEZO).unlink()
    names = ("zero_shot", "mezo", "dpzero")
    for methods, words in (
        (names, "3 runs, 2 exist, 1 to be run"),
        (names[:1], "1 runs, 1 exist, 0 to be run"),
    ):
        done = project.call(
            "-m", "dpzero", "sweep", "smoke", "--methods", *methods, "--epsilons", "2", "--dry-run"
        )
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"smoke: {words}") and not done.stderr
    assert not project.record(MEZO).exists()


def test_a_record_is_what_the_cell_asked_for(first):
    project, _ = first
    record = json.loads(project.record(DPZERO).read_text())
    assert record["run"] == DPZERO and record["status"] == "ok"
    assert record["privacy"]["epsilon_target"] == 2 >= record["privacy"]["epsilon_spent"] > 1.99
    assert (
        "evaluating on 120 test examples"
        in (project.folder / "results" / "smoke" / "logs" / f"{DPZERO}.log").read_text()
    )


@pytest.mark.slow
def test_the_code_beside_the_snakefile_runs_from_another_folder(untouched, tmp_path):
    """And `data_dir` is meant from where the command was typed, whatever -d says."""
    for name in ("dpzero", "baselines"):  # of another checkout, say
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('another checkout')")
    (tmp_path / "rows").mkdir()
    environment = {**untouched.environment, "PYTHONPATH": str(tmp_path)}
    command = [
        untouched.python,
        "-P",
        "-m",
        "snakemake",
        "-s",
        untouched.folder / "Snakefile",
        "-d",
        tmp_path / "out",
    ]
    command += ["--cores", "1", "results/smoke/cells.txt", "--config", *NARROW, "data_dir=rows"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = tmp_path / "out" / "results" / "smoke" / "cells.txt"
    assert set(cells.read_text().split()) == {ZERO_SHOT, MEZO, DPZERO}


def test_lint_finds_nothing(untouched):
    done = untouched.call("-m", "snakemake", "--lint")
    assert done.returncode == 0 and "good condition" in done.stdout + done.stderr, done.stderr


# --- again


def test_a_second_command_does_nothing(project):
    before = project.contents("results", "figures")
    done = project.snakemake()
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert project.contents("results", "figures") == before


@pytest.mark.slow
def test_copied_results_are_not_made_again(project):
    shutil.rmtree(project.folder / ".snakemake")
    assert project.planned() == set()


@pytest.mark.slow
def test_another_seed_starts_only_the_new_runs(project):
    before = {run: project.record(run).stat().st_mtime_ns for run in project.runs()}
    new = {DPZERO.replace("seed-0", "seed-1")}
    narrowed = ["sweep=smoke", "methods=[zero_shot, dpzero]", "epsilons=[2]", "seeds=[0, 1]"]
    assert project.planned(*narrowed) == new
    assert project.snakemake(config=narrowed).returncode == 0
    assert project.runs() == before.keys() | new
    assert {run: project.record(run).stat().st_mtime_ns for run in before} == before
    table = (project.folder / "results" / "smoke" / "tables" / "runs.csv").read_text()
    assert table.count("\n") == 4 and MEZO not in table  # a line a run of the plan, and the heading


@pytest.mark.slow
@pytest.mark.parametrize(
    "old, new",
    [("clip: 5}", "clip: 6}"), ("clip: 5}", "clip: 5, version: 2}")],
    ids=["a setting", "the version"],
)
def test_an_edit_of_one_method_runs_that_method_again_and_no_other(project, old, new):
    project.edit(
        project.sweeps / "smoke.yaml",
        f"dpzero: {{learning_rate: 1.0e-3, smoothing: 1.0e-2, {old}",
        f"dpzero: {{learning_rate: 1.0e-3, smoothing: 1.0e-2, {new}",
    )
    assert project.planned() == {DPZERO}
    assert "smoke: 3 runs, 2 exist, 1 to be run" in project.output


@pytest.mark.slow
def test_a_comment_in_the_source_runs_nothing_again(project):
    for path in ("dpzero/algorithm.py", "dpzero/sweeps/smoke.yaml", "baselines/mezo.py"):
        with (project.folder / path).open("a") as file:
            file.write("\n# a comment\n")
    assert project.planned() == set()


@pytest.mark.slow
def test_tables_and_figures_are_the_same_bytes_again(project):
    before = project.contents("results/smoke/tables", "figures")
    shutil.rmtree(project.folder / "results" / "smoke" / "tables")
    shutil.rmtree(project.folder / "figures")
    done = project.snakemake()
    assert done.returncode == 0 and project.planned() == set()
    assert project.contents("results/smoke/tables", "figures") == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.html", "report.zip"])
def test_the_report_opens_in_a_browser_with_question_tables_figures_and_statement(project, name):
    done = project.snakemake("--report", name)
    assert done.returncode == 0, done.stderr
    file = project.folder / name
    if file.suffix == ".zip":
        shutil.unpack_archive(file, project.folder / "unpacked")
        file = project.folder / "unpacked" / "report" / "report.html"
    with opened(file) as (page, errors):
        landing = page.locator(".prose")
        landing.wait_for()
        said = landing.inner_text()
        assert "Every method on a generated toy task" in said and "Settings fixed beforehand" in said
        assert all(word in said for word in ("toy", "tiny-encoder", "Zero-shot, MeZO, DPZero"))
        assert loaded(landing.locator("img"))
        rows = landing.locator("tbody tr").count()
        assert rows == 4  # the majority class is one
        landing.get_by_role("link", name="Accuracy", exact=True).click()
        table = page.frame_locator("iframe")
        table.locator("th button >> nth=2").click()
        methods = table.locator("tbody td:nth-child(3)").all_inner_texts()
        assert methods == ["DPZero", "Majority class", "MeZO", "Zero-shot"]
        page.get_by_text("Privacy and provenance").click()
        for title, words in (("Privacy statement", "Threat model"), ("Provenance", "devices")):
            page.locator("tr", has_text=title).locator("a >> nth=0").click()
            page.frame_locator("iframe").get_by_text(words).first.wait_for()
        page.locator("nav").get_by_text("Results").click()
        page.locator("nav").get_by_text("Figures").click()
        for figure in FIGURES:
            row = page.locator("tr", has_text=title_of(figure))
            assert "toy" in row.inner_text()
            row.locator("a >> nth=0").click()
            assert loaded(page.locator("div.p-3 > img"))
        row.locator("a >> nth=1").click()
        page.get_by_text("on the development examples").first.wait_for()  # the caption
        assert errors == []


def loaded(picture) -> bool:
    """Whether a picture of a page has its pixels."""
    return picture.evaluate("async image => { await image.decode(); return image.naturalWidth > 300 }")


# --- another kind of experiment


@pytest.mark.slow
def test_a_sweep_of_another_kind_has_its_own_tables_and_figures_and_needs_no_assets(
    untouched, tmp_path, cache
):
    shutil.copytree(untouched.folder, tmp_path / "project")
    project = ProjectCopy(tmp_path / "project", cache)
    narrowed = ["sweep=guarantees", "methods=[dp_aggzo]", "tasks=[rte]", "epsilons=[6]"]
    assert project.planned(*narrowed) == {RTE}
    done = project.snakemake(config=narrowed)
    assert done.returncode == 0, done.stderr
    paths = {Path(name) for name in project.contents("results", "figures")}
    assert {path.name for path in paths if path.suffix != ".log"} == {
        *table_files("guarantees"),
        *figure_files("guarantees"),
        *("landing.rst", *(f"{name}.html" for name in page_sources("guarantees"))),
        *("cells.txt", "seed-0.json"),
    }
    output = done.stdout + done.stderr
    assert (project.folder / "results" / "guarantees" / "tables" / "guarantees.md").read_text() in output
    assert "Figure:  figures/guarantees/guarantees.png" in output
    assert project.planned(*narrowed) == set()


# --- the README, from the laptop to the cluster


def test_the_commands_of_the_profiles_readme():
    """The first two run below, the last two in tests/cli/test_cluster.py, for the sweep smoke; .ci/run installs so."""
    estimate, shared, install, slurm, array = cluster_commands()
    assert estimate[:4] == ["python", "-m", "dpzero", "estimate"] and shared[0] == "snakemake"
    assert " ".join(install[2:]) in (ROOT / ".ci" / "run").read_text().replace("-q ", "").replace("'", "")
    assert slurm[0] == array[0] == "snakemake" and slurm[1] == array[1] == "--workflow-profile"


@pytest.mark.slow
def test_the_shared_gpu_and_the_estimate_of_the_readme(project):
    estimate, shared, *_ = cluster_commands()
    project.record(MEZO).unlink()
    done = project.call("-m", *["sweep=smoke" if w == "sweep=quick" else w for w in shared], *NARROW[1:])
    assert done.returncode == 0 and project.record(MEZO).exists(), done.stderr
    done = project.call(*["smoke" if word == "biases-tasks" else word for word in estimate[1:]])
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["price_an_hour"] == 2, (
        done.stderr
    )


# --- failures


@pytest.mark.slow
def test_a_failed_run_costs_no_other_and_shows_as_missing(project, tmp_path):
    """A method with a bug, and a task whose rows are on a hub that is not asked."""
    project.environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    (project.folder / "baselines" / "broken.py").write_text(BROKEN)
    project.edit(
        project.sweeps / "smoke.yaml", "  zero_shot: {}\n", "  zero_shot: {}\n  broken: {learning_rate: 1}\n"
    )
    project.record(ZERO_SHOT).unlink()
    config = ["sweep=smoke", "methods=[broken, zero_shot, mezo]"]
    done = project.snakemake(config=[*config, "tasks=[sst2, toy]"])
    assert done.returncode == 1 and "logs: results/smoke/logs)" in done.stdout + done.stderr
    assert (
        "cannot read data set nyu-mll/glue (" in done.stderr
        and "is not asked (HF_HUB_OFFLINE)" in done.stderr
    )
    broken = f"{PREFIX}/broken/eps-inf/seed-0"
    failure = done.stderr.split(f"FAILED   {broken}\n")[1].splitlines()
    assert "RuntimeError: a bug in the fourth step" in failure[2]
    assert failure[3] == f"    log: results/smoke/logs/{broken}.log"
    assert done.stderr.count("FAILED") == 2 and done.stderr.count(f"{ZERO_SHOT}: accuracy") == 1
    assert project.runs() == {ZERO_SHOT, MEZO, DPZERO}  # nothing of the broken one, no half record
    assert "a bug in the fourth step" in "".join(
        path.read_text() for path in project.folder.glob("results/smoke/logs/**/broken/**/*.log")
    )
    partial = project.snakemake("partial", config=config)
    assert partial.returncode == 0, partial.stderr
    tables = project.folder / "results" / "smoke" / "tables"
    rows = [line for line in (tables / "accuracy.md").read_text().splitlines() if line.startswith("|")]
    (missing,) = [row for row in rows if "broken" in row.lower()]
    assert "missing" in missing and len(rows) == 2 + 4  # the majority class is one
    assert "broken" not in (tables / "runs.csv").read_text()  # which holds the runs that there are
    assert project.planned(*config) == {f"{PREFIX}/broken/eps-inf/seed-0"}


@pytest.mark.parametrize(
    "config, words",
    [
        (["sweep=smok"], "unknown sweep 'smok': did you mean 'smoke'?"),
        pytest.param(
            ["sweep=smoke", "methods=[dpzreo]"],
            "unknown method 'dpzreo': did you mean 'dpzero'?",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["sweep=smoke", "method=[dpzero]"],
            "unknown axis or limit 'method': did you mean 'methods'?",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["sweep=smoke", "epsilons=[inf]"],
            "epsilon 'inf' is not a positive number",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_unknown_name_ends_the_command_before_anything_runs(untouched, config, words):
    done = untouched.snakemake(config=config)
    assert done.returncode == 2 and words in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("dpzero:")] == [
        done.stderr.splitlines()[-1]
    ]
    assert not untouched.contents("results", "figures")


@pytest.mark.slow
def test_a_killed_run_resumes(project):
    """kill -9, as the kernel does when memory is short: no record; then the same metrics as without."""
    project.edit(project.folder / "dpzero" / "run" / "checkpoint.py", "SECONDS = 15 ", "SECONDS = 0.5 ")
    cell = {"task": "toy", "model": "tiny-encoder", "method": "dpzero", "epsilon": "2", "seed": 0}
    settings = {"steps": 300, "learning_rate": 1e-3, "smoothing": 1e-2, "clip": 5, "max_length": 16}
    settings |= {"batch_size": 8, "mechanism": "laplace", "delta": 0, "evaluate_every": 100}
    spec = json.dumps(cell | {"settings": settings})
    command = ["-m", "dpzero", "run", "--spec", spec, "--threads", "1", "--device", "cpu", "--out"]

    victim = subprocess.Popen(
        [sys.executable, *command, "cut.json"],
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
    )
    state = project.folder / "cut.checkpoint" / "state.pt"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert victim.poll() is None and time.monotonic() < deadline, (
            "the run ended before its first checkpoint"
        )
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not (project.folder / "cut.json").exists()

    resumed, uninterrupted = (project.call(*command, out) for out in ("cut.json", "whole.json"))
    assert resumed.returncode == uninterrupted.returncode == 0
    assert re.search(r"resumed at step \d+ of 300", resumed.stderr) and "resumed" not in uninterrupted.stderr
    cut, uncut = (json.loads((project.folder / f"{name}.json").read_text()) for name in ("cut", "whole"))
    assert cut["metrics"] == uncut["metrics"] and cut["privacy"] == uncut["privacy"]
    assert [p["dev_accuracy"] for p in cut["curve"]] == [p["dev_accuracy"] for p in uncut["curve"]]
    assert not (project.folder / "cut.checkpoint").exists()
