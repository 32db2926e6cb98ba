"""A stand-in for kubectl: `create` keeps the manifest and starts the container's command on this machine, `get` says how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

JOBS = Path(os.environ["PRETENDED_CLUSTER"])


def create() -> None:
    manifest = yaml.safe_load(sys.stdin)
    name = f"{manifest['metadata']['generateName']}{len(list(JOBS.glob('*.yaml')))}"
    (JOBS / f"{name}.yaml").write_text(yaml.safe_dump(manifest))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    inside = {"PATH": os.environ["PATH"]} | {item["name"]: item["value"] for item in container["env"]}
    ended = f'"$@" > {JOBS}/{name}.log 2>&1; echo $? > {JOBS}/{name}.ended'
    subprocess.Popen(
        ["sh", "-c", ended, "sh", *container["command"]],
        cwd=container["workingDir"],
        env=inside,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"job.batch/{name}")


def get(job: str) -> None:
    ended = JOBS / f"{job.removeprefix('job.batch/')}.ended"
    status = ended.read_text().strip() if ended.exists() else ""
    print({"": "/", "0": "1/"}.get(status, "/1"))


if sys.argv[1] == "create":
    create()
else:
    get(sys.argv[2])
