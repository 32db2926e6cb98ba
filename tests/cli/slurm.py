"""A Slurm of this machine alone: loopback, private paths, two pretended GPUs, no database. Needs root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch")
# slurmd and srun look here: Snakemake's job steps take SLURM_CONF out of the environment
ETC = Path("/etc/slurm")
NULL = (1, 3)  # device number of /dev/null

CONTROL = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=300
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=32000 Gres=gpu:fake:2 State=UNKNOWN
PartitionName=gpu Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def obstacle() -> str | None:
    """Why there can be no Slurm here; None where there can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"no {', '.join(absent)}: install slurmctld slurmd slurm-client munge"
    if find_spec("snakemake_executor_plugin_slurm") is None:
        return "no Slurm plugin for Snakemake: pip install -e '.[cluster]'"
    if os.getuid():
        return "a Slurm of one machine is started by root alone"
    if (ETC / "slurm.conf").exists():
        return "this machine has its own Slurm"
    return None


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Started when it yields, stopped and its links removed afterwards; its logs stay in `folder`."""
    _configure(folder)
    started = []
    try:
        paths = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        paths |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        started.append("munged")
        call("munged", "--force", *(f"--{name}={folder / file}" for name, file in paths.items()))
        for name, *options in (("slurmctld", "-c"), ("slurmd", "-N", "localhost")):
            started.append(name)
            call(name, *options)
        wait_for(lambda: call("sinfo", "-h", "-o", "%T") == "idle", 60)
        yield
    finally:
        for name in reversed(started):
            _stop(folder / f"{name}.pid", name)
        for link in (ETC / "slurm.conf", ETC / "gres.conf"):
            link.unlink(missing_ok=True)


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds} s"
        time.sleep(0.3)


def _configure(folder: Path) -> None:
    folder.chmod(0o711)  # munge refuses a socket whose folder others may not enter
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONTROL.format(folder=folder))
    # device nodes with numbers: for plain files Slurm sets no CUDA_VISIBLE_DEVICES, which counts as their names do
    for number in range(2):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(*NULL))
    (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu Type=fake File={folder}/gpu[0-1]\n")
    ETC.mkdir(exist_ok=True)
    for name in ("slurm.conf", "gres.conf"):
        (ETC / name).symlink_to(folder / name)


def _stop(pid_file: Path, name: str) -> None:
    """By the recorded process id, if that process is still what it was. An uncollected one is gone, too."""

    def alive() -> bool:
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and f"({name})" in stat.read_text() and ") Z " not in stat.read_text()

    if pid_file.exists():
        pid = int(pid_file.read_text())
        if alive():
            os.kill(pid, 15)
            wait_for(lambda: not alive(), 30)
