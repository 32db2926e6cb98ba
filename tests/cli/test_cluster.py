"""The cluster profiles, as they are, on a real Slurm of this machine with two pretended GPUs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from dpzero.run.gpu_lock import DEVICE_FILES
from tests.cli import slurm
from tests.project_copy import BROKEN, DPZERO, MEZO, PREFIX, ZERO_SHOT, ProjectCopy, cluster_commands

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm.obstacle() is not None, reason=str(slurm.obstacle())),
]
QUICKLY = ["--slurm-init-seconds-before-status-checks", 3, "--latency-wait", 10]  # here jobs take seconds


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[ProjectCopy]:
    """A project on a machine with Slurm."""
    with slurm.running(tmp_path_factory.mktemp("slurm")):
        folder = tmp_path_factory.mktemp("cluster")
        project = ProjectCopy.build(folder / "project", folder / "cache")
        (folder / "dev").mkdir()
        for number in range(2):  # as a driver would show them
            (folder / "dev" / f"nvidia{number}").touch()
        project.environment[DEVICE_FILES] = str(folder / "dev")
        project.edit(project.folder / "dpzero" / "run" / "checkpoint.py", "SECONDS = 15 ", "SECONDS = 0.5 ")
        (project.folder / "baselines" / "broken.py").write_text(BROKEN)
        project.edit(
            project.sweeps / "smoke.yaml",
            "  zero_shot: {}\n",
            "  zero_shot: {}\n  broken: {learning_rate: 1}\n"
            "  long: {use: dpzero, learning_rate: 1.0e-3, smoothing: 1.0e-2, clip: 5, steps: 600}\n",
        )
        yield project


def command(methods: str, *further: str, array: bool = False) -> list[object]:
    """The README's, but for the sweep."""
    (words,) = (
        words
        for words in cluster_commands()
        if "dpzero/profiles/slurm" in words and ("--slurm-array-jobs" in words) == array
    )
    config = ["sweep=smoke", f"methods=[{methods}]", "epsilons=[2]", *further]
    return ["-m", *words[: words.index("--config")], *QUICKLY, "--config", *config]


def log(project: ProjectCopy, run: str) -> str:
    return (project.folder / "results" / "smoke" / "logs" / f"{run}.log").read_text()


def gpus(project: ProjectCopy, run: str) -> list[str]:
    """The GPU that each attempt at a run had, as it says itself."""
    return re.findall(r"^on GPU (.*)$", log(project, run), re.MULTILINE)


def state(job: str) -> str:
    return next(one["JobState"] for one in jobs() if one["JobId"] == job)


def jobs() -> list[dict[str, str]]:
    """What Slurm knows of the jobs so far, in their order."""
    text = slurm.call("scontrol", "show", "job")
    return [dict(re.findall(r"(\S+?)=(\S*)", job)) for job in text.split("\n\n") if "JobId" in job]


def test_slurm_runs_have_one_gpu_each_and_a_failure_costs_no_other(cluster):
    done = cluster.call(*command("broken, zero_shot, mezo"))
    assert done.returncode == 1, done.stderr
    assert cluster.runs() == {ZERO_SHOT, MEZO}, done.stderr
    for run in (ZERO_SHOT, MEZO):
        (gpu,) = gpus(cluster, run)
        assert gpu in ("0", "1")
    assert "a bug in the fourth step" in log(cluster, f"{PREFIX}/broken/eps-inf/seed-0")
    asked = [(job["JobState"], job["TimeLimit"], job["MinMemoryNode"]) for job in jobs()]
    assert sorted(asked) == [
        *[("COMPLETED", "01:00:00", "4000M")] * 2,
        ("FAILED", "01:00:00", "4000M"),
        ("FAILED", "02:00:00", "8000M"),  # the second attempt asks for more
    ]
    assert {(job["TresPerJob"], job["NumCPUs"], job["Partition"]) for job in jobs()} == {
        ("gres:gpu:1", "1", "gpu")
    }


def test_one_array_holds_many_runs_and_tables_are_made_locally(cluster):
    before = len(jobs())
    done = cluster.call(*command("sgd, dpzero", array=True))
    assert done.returncode == 0, done.stderr
    new = jobs()[before:]
    assert len(new) == 2 and len({job["ArrayJobId"] for job in new}) == 1
    given = [*gpus(cluster, f"{PREFIX}/sgd/eps-inf/seed-0"), *gpus(cluster, DPZERO)]
    assert len(given) == 2 and set(given) <= {"0", "1"}
    table = (cluster.folder / "results" / "smoke" / "tables" / "accuracy.md").read_text()
    assert "DPZero" in table and table in done.stdout


def test_a_run_that_wants_two_gpus_has_both_of_them_on_one_node(cluster):
    before = len(jobs())
    done = cluster.call(*command("adamw", "gpus=2"))
    assert done.returncode == 0, done.stderr
    (job,) = jobs()[before:]
    assert (job["TresPerJob"], job["NumNodes"], job["ReqNodeList"]) == ("gres:gpu:2", "1", "(null)")
    assert gpus(cluster, f"{PREFIX}/adamw/eps-inf/seed-0") == ["0,1"]


def test_a_requeued_run_resumes(cluster):
    run = f"{PREFIX}/long/eps-2/seed-0"
    folder = cluster.folder / "results" / "smoke" / "checkpoints" / run
    snakemake = cluster.start(*command("long"))
    slurm.wait_for(lambda: (folder / "state.pt").exists() or snakemake.poll() is not None, 200)
    (job,) = (job["JobId"] for job in jobs() if job["JobState"] == "RUNNING")
    slurm.call("scontrol", "requeue", job)
    slurm.wait_for(lambda: state(job) == "PENDING", 60)
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")  # not after the usual two minutes
    output, _ = snakemake.communicate(timeout=250)
    assert snakemake.returncode == 0, output
    record = json.loads(cluster.record(run).read_text())
    assert re.search(r"resumed at step \d+ of 600", log(cluster, run))
    assert record["status"] == "ok" and record["privacy"]["steps"] == 600
    (finished,) = (j for j in jobs() if j["JobId"] == job)
    assert finished["JobState"] == "COMPLETED" and finished["Restarts"] == "1"
