"""The cluster profiles without a cluster: what they ask for, jobs without a network, and what Kubernetes would be told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.project_copy import DPZERO, ROOT, ZERO_SHOT, ProjectCopy

PROFILES = ROOT / "dpzero" / "profiles"
NAMES = sorted(path.name for path in PROFILES.iterdir() if path.is_dir())
ABSENT = find_spec("snakemake_executor_plugin_cluster_generic") is None
NARROW = ["--config", "sweep=smoke", "methods=[zero_shot, dpzero]", "epsilons=[2]"]


@pytest.fixture
def project(tmp_path) -> ProjectCopy:
    return ProjectCopy.build(tmp_path / "project", tmp_path / "cache")


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_survives_failures_and_slow_file_systems(name):
    profile = yaml.safe_load((PROFILES / name / "profile.yaml").read_text())
    assert profile["keep-going"] and profile["rerun-incomplete"]
    assert profile["retries"] >= 1 and profile["latency-wait"] >= 60


SUBMIT = """#!/bin/sh
# A batch system whose compute nodes have no network: a job is a process in a network namespace of its own
setsid unshare --net --map-root-user sh "$1" > "$1.log" 2>&1 &
echo $!
"""


def can_unshare() -> bool:
    return (
        shutil.which("unshare")
        and subprocess.run(["unshare", "--net", "--map-root-user", "true"]).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(ABSENT, reason="needs pip install -e '.[cluster]'")
@pytest.mark.skipif(not can_unshare(), reason="may not make network namespaces")
def test_any_submit_command_works_without_a_network(project, tmp_path):
    submit = tmp_path / "submit"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    profile = project.folder / "dpzero" / "profiles" / "generic"
    options = ["--cluster-generic-submit-cmd", submit, "--latency-wait", 10, *NARROW]
    done = project.call("-m", "snakemake", "--workflow-profile", profile, *options)
    assert done.returncode == 0, done.stderr
    assert project.runs() == {ZERO_SHOT, DPZERO}
    assert (project.folder / "results" / "smoke" / "tables" / "accuracy.md").exists()


@pytest.mark.slow
@pytest.mark.skipif(ABSENT, reason="needs pip install -e '.[cluster]'")
def test_kubernetes_gets_one_gpu_a_run(project, tmp_path):
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("kubectl.py")} "$@"\n')
    kubectl.chmod(0o755)
    pretended = {"PATH": f"{kubectl.parent}:{os.environ['PATH']}", "PRETENDED_CLUSTER": str(tmp_path)}
    project.environment |= pretended
    profile = project.folder / "dpzero" / "profiles" / "kubernetes"
    done = project.call("-m", "snakemake", "--workflow-profile", profile, "--latency-wait", 10, *NARROW)
    assert done.returncode == 0, done.stderr
    assert project.runs() == {ZERO_SHOT, DPZERO}
    manifests = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("dpzero-*.yaml")]
    assert len(manifests) == 2
    for manifest in manifests:
        assert manifest["spec"]["activeDeadlineSeconds"] == 3600 and manifest["spec"]["backoffLimit"] == 0
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 1, "cpu": 1, "memory": "4000M"}
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "dpzero"}
