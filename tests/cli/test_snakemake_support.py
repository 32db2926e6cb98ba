"""What the Snakefile hands on to its jobs, and says before them."""

from __future__ import annotations

import os
import sys
import tomllib

import pytest
import yaml

from dpzero.cli import snakemake_support
from dpzero.errors import UsageError
from dpzero.plan import sweep
from dpzero.run import gpu_lock
from tests.project_copy import ROOT


@pytest.fixture
def export(monkeypatch, tmp_path):
    """export(**config) -> the GPUs of a run; the environment is put back after the test."""
    for name in (
        "DPZERO_PYTHON",
        "PYTHONPATH",
        "DPZERO_DEVICE",
        "DPZERO_GPUS",
        "DPZERO_DATA_DIR",
        "DPZERO_MODEL_DIR",
        gpu_lock.SHARE,
    ):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    (tmp_path / "typed here" / "rows").mkdir(parents=True)
    (tmp_path / "home" / "weights").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def call(plan: dict | None = None, **config) -> int:
        plan = {"gpus": 1, "gpu_share": 1} | (plan or {})
        return snakemake_support.export(config, str(tmp_path / "code"), str(tmp_path / "typed here"), plan)

    return call


def test_folders_are_relative_to_the_folder_of_the_command(export, tmp_path):
    config = {"data_dir": "rows", "model_dir": "~/weights", "seeds": [0]}
    snakemake_support.export(config, "code", str(tmp_path / "typed here"), sweep.DEFAULTS)
    assert config == {"seeds": [0]}
    assert os.environ["DPZERO_DATA_DIR"] == str(tmp_path / "typed here" / "rows")
    assert os.environ["DPZERO_MODEL_DIR"] == str(tmp_path / "home" / "weights")


def test_a_job_in_another_folder_keeps_the_folders(export, monkeypatch, tmp_path):
    export(data_dir="rows")
    snakemake_support.export({"data_dir": "rows"}, "code", str(tmp_path), sweep.DEFAULTS)
    assert os.environ["DPZERO_DATA_DIR"] == str(tmp_path / "typed here" / "rows")


def test_jobs_run_this_interpreter_and_the_code_beside_the_snakefile(export, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "another")
    export({"gpu_share": 3})
    assert os.environ["DPZERO_PYTHON"] == sys.executable
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "code"), "another"]
    assert os.environ[gpu_lock.SHARE] == "3"


@pytest.mark.parametrize("named", ["cuda:0,cuda:1", ["cuda:0", "cuda:1"]])
def test_a_device_list_reaches_the_jobs_which_ask_for_as_many_gpus(export, named):
    assert export(device=named) == 2 and os.environ["DPZERO_DEVICE"] == "cuda:0,cuda:1"


def test_a_run_has_the_gpus_of_its_sweep_unless_the_command_says_otherwise(export):
    assert export({"gpus": 4}) == 4 and os.environ["DPZERO_GPUS"] == "4"
    assert export({"gpus": 4}, gpus=2) == 2 and os.environ["DPZERO_GPUS"] == "2"
    assert export({"gpus": 4}, device="cpu") == 0 and os.environ["DPZERO_DEVICE"] == "cpu"


@pytest.mark.parametrize(
    "config, words",
    [
        ({"data_dir": "nowhere"}, "data_dir: .*nowhere is no folder"),
        ({"device": "foo"}, "device: unknown device 'foo'"),
        ({"gpu_share": 0}, "gpu_share is '0'"),
        ({"gpus": 0}, "gpus: '0' is not a whole number, from 1 to 1000000000"),
    ],
)
def test_a_bad_value_is_named(export, config, words):
    with pytest.raises(UsageError, match=words):
        export(**config)


def test_axes_and_limits_become_options_of_the_verb_cells():
    words = snakemake_support.as_options({"methods": ["dpzero", "mezo"], "seeds": "0,1", "test_examples": 9})
    assert words == ["--methods", "dpzero", "mezo", "--seeds", "0,1", "--test-examples", "9"]


def test_the_environment_of_the_rules_is_the_projects():
    environment = yaml.safe_load((ROOT / "dpzero" / "environment.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert environment["dependencies"][-1]["pip"] == project["dependencies"]
