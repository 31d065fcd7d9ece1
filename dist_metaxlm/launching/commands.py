"""The command that starts a job on the hosts of a hostfile, for each launcher; nothing is started here."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import MODULE, SCRIPTS, command_of
from dist_metaxlm.launching.hostfile import Host
from dist_metaxlm.parallel.environment import forwarded
from dist_metaxlm.parallel.launchers import HOSTS_VARIABLE
from dist_metaxlm.text import did_you_mean

LAUNCHERS = ("deepspeed", "mpirun", "srun", "torchrun")
DEFAULT_PORT = 29500
_DEEPSPEED_FORWARDS = ("MLFLOW", "PYTHON", "MV2", "UCX")
"""Prefixes of variables that the deepspeed command sends to other nodes by itself (its EXPORT_ENVS)."""


@dataclass(frozen=True)
class Job:
    """A job to start and its hosts."""

    hosts: tuple[Host, ...]
    script: tuple[str, ...]
    """Python's arguments: a script or `-m` and a module, and its arguments."""
    port: int
    environment: dict[str, str]
    """Variables of the starting shell for every rank, besides those that the launcher sets."""

    @property
    def ranks(self) -> int:
        """Ranks of the job."""
        return sum(host.slots for host in self.hosts)

    @property
    def master(self) -> str:
        """The first host, which all ranks connect to."""
        return self.hosts[0].name


def make_job(
    hosts: tuple[Host, ...], script: Sequence[str], port: int, environment: Mapping[str, str], named: bool = True
) -> Job:
    """A job with the expected number of ranks in its script and, with `named`, a unique name.

    With torchrun every node makes its own job, so a random name would prevent their rendezvous.

    Raises:
        UserError: when the script is missing, or an argument or variable cannot be sent to another node unchanged.
    """
    if not script:
        raise UserError("nothing to start; write the command behind --, such as `-- pretrain --phase meta`")
    if script[0] in SCRIPTS:
        script = ("-m", f"{MODULE}.{script[0]}", *script[1:])
    elif script[0] != "-m" and not Path(script[0]).is_file():
        raise UserError(
            f"{script[0]} is not a file{did_you_mean(script[0], SCRIPTS)} give its path from {Path.cwd()}, or one of "
            f"the commands {', '.join(SCRIPTS)}"
        )
    for word in script:
        if any(ord(letter) < 32 for letter in word):
            raise UserError(f"the argument {word!r} holds a control character; put the value into a recipe file")
    words = tuple(script)
    ranks = sum(host.slots for host in hosts)
    if command_of(words)[0] == "pretrain" and not any(w.split("=")[0] == "--expect_world_size" for w in words):
        words += ("--expect_world_size", str(ranks))
    shared = forwarded(environment)
    shared[HOSTS_VARIABLE] = ",".join(f"{host.name}:{host.slots}" for host in hosts)
    if named:
        shared["DIST_METAXLM_JOB"] = environment.get("DIST_METAXLM_JOB") or secrets.token_hex(8)
    return Job(hosts, words, port, shared)


def deepspeed_command(job: Job, hostfile: str, environment_file: str) -> tuple[list[str], dict[str, str]]:
    """The deepspeed command (it uses pdsh over ssh), and its environment variables."""
    # Without --force_multi a hostfile of one host would run on this machine, whatever its name.
    command = [
        beside_python("deepspeed"),
        "--hostfile",
        hostfile,
        "--launcher",
        "pdsh",
        "--force_multi",
        "--master_addr",
        job.master,
        "--master_port",
        str(job.port),
        *(["--module"] if job.script[0] == "-m" else []),
        *map(for_pdsh, job.script[1:] if job.script[0] == "-m" else job.script),
    ]
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_DEEPSPEED_FORWARDS) or name in job.environment
    }
    return command, {**own, "DS_ENV_FILE": environment_file}


def for_pdsh(word: str) -> str:
    """One argument as it must be given to `deepspeed`, which joins all into a line for the other node's shell.

    DeepSpeed puts a word with a space in double quotes and escapes quotes inside; this function escapes the rest.
    """
    word = word.replace("%", "%%")  # pdsh fills in %h, %n and %u
    if " " not in word:
        return shlex.quote(word)
    for letter in "\\$`":
        word = word.replace(letter, f"\\{letter}")
    return word


def environment_lines(job: Job) -> str:
    """Content of the file with variables that DeepSpeed sends to other nodes."""
    return "".join(f"{name}={value}\n" for name, value in job.environment.items())


def mpirun_command(job: Job) -> list[str]:
    """mpirun of MPICH or Intel MPI (hydra); hosts are filled one after another."""
    command = [
        beside_python("mpirun"),
        "-launcher",
        "ssh",
        "-hosts",
        ",".join(f"{host.name}:{host.slots}" for host in job.hosts),
        "-n",
        str(job.ranks),
    ]
    for name, value in {**job.environment, "MASTER_PORT": str(job.port)}.items():
        command += ["-genv", name, value]
    return [*command, sys.executable, "-u", *job.script]


def srun_command(job: Job) -> list[str]:
    """The srun command, inside an allocation or creating one; Slurm needs the same number of ranks on each node."""
    slots = {host.slots for host in job.hosts}
    if len(slots) > 1:
        raise UserError(
            f"srun starts the same number of ranks on each node, but the hostfile has {sorted(slots)} slots; give all "
            "hosts the same number, or use --launcher deepspeed"
        )
    # --wait: 30 s after the first rank ends, srun ends the others; --kill-on-bad-exit would interrupt a save.
    exported = ",".join(["PATH", "HOME", "USER", "MASTER_PORT", *job.environment])
    return [
        beside_python("srun"),
        f"--nodes={len(job.hosts)}",
        f"--ntasks={job.ranks}",
        f"--ntasks-per-node={slots.pop()}",
        f"--nodelist={','.join(host.name for host in job.hosts)}",
        "--distribution=block",
        "--wait=30",
        f"--export={exported}",
        sys.executable,
        "-u",
        *job.script,
    ]


def torchrun_commands(job: Job) -> dict[str, list[str]]:
    """The torchrun line of each host; its static rendezvous does not compare clocks."""
    return {
        host.name: [
            beside_python("torchrun"),
            "--nnodes",
            str(len(job.hosts)),
            "--node_rank",
            str(number),
            "--nproc_per_node",
            str(host.slots),
            "--master_addr",
            job.master,
            "--master_port",
            str(job.port),
            *job.script,
        ]
        for number, host in enumerate(job.hosts)
    }


def line_of_this_host(lines: Mapping[str, list[str]]) -> list[str]:
    """The torchrun line of the host that this process runs on.

    Raises:
        UserError: if the hostfile does not list it.
    """
    from dist_metaxlm.parallel.environment import interface_addresses

    name = socket.gethostname()
    own = {name, name.split(".")[0], socket.getfqdn(), *interface_addresses().values()}
    matching = [line for host, line in lines.items() if host in own or host.split(".")[0] == name.split(".")[0]]
    if not matching:
        raise UserError(
            f"this machine, {name}, is not in the hostfile ({', '.join(list(lines)[:8])}); run the same command "
            "on each of its hosts (torchrun starts nothing elsewhere), or use --launcher deepspeed"
        )
    return matching[0]


def beside_python(name: str) -> str:
    """Path of a command in this Python's folder, else on PATH.

    Raises:
        UserError: if there is none.
    """
    neighbour = Path(sys.executable).parent / name
    command = str(neighbour) if neighbour.is_file() else shutil.which(name)
    if command is None:
        raise UserError(
            f"{name} is not installed here; install it (docs/launching.md says from where), or use another "
            f"--launcher of {', '.join(LAUNCHERS)}"
        )
    return command


def node_lines(job: Job) -> list[str]:
    """The commands of each node, in a form comparable with the output of `ps`."""
    first, lines = 0, []
    for number, host in enumerate(job.hosts):
        last = first + host.slots - 1
        ranks = f"rank {first}" if first == last else f"ranks {first}-{last}"
        lines.append(f"  {host.name}: node {number}, {ranks}: {shlex.join([sys.executable, *job.script])}")
        first = last + 1
    return lines
