"""Slurm on the machines of a `Cluster`: munge, the controller on node1, a slurmd on every node."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cluster import Cluster

SECONDS = 300
_CONFIG = """ClusterName=dmx
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
MinJobAge=600
SchedulerParameters=sched_interval=2
MessageTimeout=100
TCPTimeout=60
BatchStartTimeout=300
SlurmdTimeout=600
UnkillableStepTimeout=600
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def start_slurm(cluster: Cluster) -> dict[str, str]:
    """Start the services; returns the variables that Slurm's commands need. They end with the cluster."""
    folder = cluster.folder / "slurm"
    for path in (folder, folder / "state", *(folder / f"spool-{node}" for node in cluster.nodes)):
        path.mkdir(mode=0o755)
    lines = [
        f"NodeName={node} NodeAddr={cluster.address(node)} CPUs=2 RealMemory=1000 State=UNKNOWN" for node in cluster.nodes
    ]
    (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder, nodes="\n".join(lines)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    cluster.start(
        "node1",
        "munged",
        "--foreground",
        "--force",
        f"--key-file={folder / 'munge.key'}",
        f"--socket={folder / 'munge.socket'}",
        f"--pid-file={folder / 'munge.pid'}",
        f"--log-file={folder / 'munge.log'}",
        f"--seed-file={folder / 'munge.seed'}",
    )
    _wait_for(folder / "munge.socket")
    cluster.start("node1", "env", f"SLURM_CONF={folder / 'slurm.conf'}", "slurmctld", "-D")
    for node in cluster.nodes:
        cluster.start(
            node,
            "env",
            f"SLURM_CONF={folder / 'slurm.conf'}",
            "sh",
            "-c",
            f"mount -t cgroup2 none /sys/fs/cgroup; exec slurmd -D -N {node}",
        )
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        states = cluster.run("node1", "sinfo", "-h", "-N", "-o", "%N %t", **variables).stdout.split("\n")
        if sum(line.endswith("idle") for line in states) == len(cluster.nodes):
            return variables
        time.sleep(0.3)
    raise RuntimeError(f"Slurm does not come up: {states}; see {folder}")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} does not appear")
        time.sleep(0.05)
