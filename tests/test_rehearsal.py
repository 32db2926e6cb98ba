"""Papers' sweeps rehearsed as a user commands it: every stage, on real rows, with stand-ins for the models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas
import pytest

from dpzero.language.models import stand_ins
from dpzero.plan import sweep
from tests.project_copy import ROOT, ProjectCopy

ROWS = Path(os.environ.get("DPZERO_DATA_DIR") or ROOT.parent / "shared" / "data")  # where there are any
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROWS / "sst2" / "validation.jsonl").is_file(), reason=f"no task rows in {ROWS}"),
]
LIMITS = {"steps": 4, "train_examples": 32, "test_examples": 16}


@pytest.fixture
def project(tmp_path) -> ProjectCopy:
    return ProjectCopy.build(tmp_path / "project", tmp_path / "cache")


@pytest.mark.parametrize("name, model", [("paper-roberta", "roberta-large"), ("paper-opt", "opt-1.3b")])
def test_a_papers_sweep_goes_through_every_stage_and_says_that_it_is_a_rehearsal(project, name, model):
    stand_ins.write(model, project.folder / "stand-ins" / model)
    config = [f"sweep={name}", *(f"{limit}={number}" for limit, number in LIMITS.items())]
    config += ["tasks=[sst2]", f"models=[{model}]", "methods=[dpzero]", "epsilons=[2]", "seeds=[0]"]
    done = project.snakemake(config=[*config, "model_dir=stand-ins", f"data_dir={ROWS}"])
    assert done.returncode == 0, done.stderr
    results, figures = (project.folder / kind / f"{name}-rehearsal" for kind in ("results", "figures"))
    assert {path.name for path in (project.folder / "results").iterdir()} == {results.name}
    (record,) = (json.loads(path.read_text()) for path in results.glob("runs/**/*.json"))
    private = record["privacy"]
    assert record["status"] == "ok" and record["cell"]["rehearsal"] == LIMITS
    assert (private["steps"], private["dataset_size"]) == (4, 32) and 1.9 < private["epsilon_spent"] <= 2
    published = pandas.read_csv(results / "tables" / "published.csv")
    assert len(published) and set(published["verdict"]) == {"not compared: a rehearsal"}
    assert len(list(figures.glob("*.png"))) == 5
    assert f"Sweep {name}-rehearsal" in (results / "pages" / "landing.rst").read_text()
    assert done.stdout.lstrip().startswith(
        "**REHEARSAL with at most 4 steps, 32 training rows, 16 scored rows"
    )


def test_a_large_models_layers_are_spread_over_the_devices_that_the_command_names(project):
    """Over the CPU twice, which stands for two GPUs: the same releases and answers as on one."""
    stand_ins.write("opt-66b", project.folder / "stand-ins" / "opt-66b")
    project.environment |= {"DPZERO_MODEL_DIR": "stand-ins", "DPZERO_DATA_DIR": str(ROWS)}
    assert sweep.read("paper-mezo-large")["gpus"] == 4
    cells = project.call(
        "-c",
        "import json; from dpzero.plan import sweep; print(json.dumps(list(sweep.load('paper-mezo-large', tasks='sst2', "
        f"models='opt-66b', methods='mezo', **{LIMITS}).values())))",
    )
    (cell,) = json.loads(cells.stdout)
    found = []
    for device in ("cpu", "cpu,cpu"):
        options = ["--out", f"{device}.json", "--device", device, "--threads", 1, "--gpus", 4]
        done = project.call("-m", "dpzero", "run", "--spec", json.dumps(cell), *options)
        assert done.returncode == 0, done.stderr
        record = json.loads((project.folder / f"{device}.json").read_text())
        assert record["status"] == "ok"
        found.append((record["metrics"], record["transcript"]["weights_sha256"]))
    assert found[0] == found[1]
