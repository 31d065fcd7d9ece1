"""Starts a job on several nodes: checks the request, then replaces this process by the launcher."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.errors import EXIT_DONE, UserError
from dist_metaxlm.invocation import as_typed, command_of
from dist_metaxlm.launching.arguments import pretrain_parser
from dist_metaxlm.launching.commands import (
    Job,
    deepspeed_command,
    environment_lines,
    line_of_this_host,
    make_job,
    mpirun_command,
    node_lines,
    srun_command,
    torchrun_commands,
)
from dist_metaxlm.launching.hostfile import Host, read_hostfile, reorder
from dist_metaxlm.launching.preflight.remote import unreachable
from dist_metaxlm.launching.supervised_run import SupervisedRun, local_command, resuming
from dist_metaxlm.launching.supervisor import Command, Supervisor
from dist_metaxlm.parallel.placement import check_placement, placement_lines
from dist_metaxlm.parallel.topology import Topology, filled_nodes
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.run.layout import check_layout


@dataclass(frozen=True)
class Request:
    """The command line of `metaxlm launch`."""

    hostfile: str
    launcher: str
    topology: str | None
    master_port: int
    dry_run: bool
    script: tuple[str, ...]


def start(request: Request, say: Callable[[str], None] = print) -> None:
    """Check hostfile, recipe, layout and arguments, print what will run where, and become the launcher.

    Raises:
        UserError: if the request is wrong; no host has been contacted at that point.
    """
    planned = plan(request, _hosts(request), say, os.environ)
    if planned is None:
        return
    command, environment = planned
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def supervise(request: Request, say: Callable[[str], None] = print) -> int:
    """Run the command, and start it again after an abnormal end (launching/supervisor.py); returns the exit code.

    Without a hostfile the script is a whole command line of this machine, such as `deepspeed ...`.

    Raises:
        UserError: if the request is wrong.
    """
    if request.hostfile and request.launcher == "torchrun" and len(_hosts(request)) > 1:
        raise UserError(
            "--supervise with --launcher torchrun: every node would restart on its own; use --launcher deepspeed, mpirun or "
            "srun, which start all nodes together"
        )
    run, name = SupervisedRun(request.script), secrets.token_hex(8)

    def build(attempt: int) -> Command:
        environment = {**os.environ, "DIST_METAXLM_JOB": f"{name}-{attempt}"}
        script = tuple(resuming(request.script) if attempt else request.script)
        if not request.hostfile:
            return local_command(script, sys.executable, attempt), environment
        again = replace(request, script=script, master_port=request.master_port + attempt)
        hosts = _hosts(again)
        if attempt and request.launcher in ("deepspeed", "mpirun"):
            hosts = _reached(again, hosts, say)
        planned = plan(again, hosts, say, environment)
        assert planned is not None
        return planned

    if not request.dry_run:
        return Supervisor(run, build, lambda line: print(as_typed(line), file=sys.stderr, flush=True)).run()
    if request.hostfile:
        plan(request, _hosts(request), say, os.environ)
    else:
        say(f"command: {shlex.join(local_command(request.script, sys.executable, 0))}")
    return EXIT_DONE


def _hosts(request: Request) -> tuple[Host, ...]:
    hosts = read_hostfile(request.hostfile)
    if request.topology is not None:
        if request.launcher == "srun":
            raise UserError(
                "--topology with --launcher srun: Slurm orders the nodes of a job itself; describe racks and "
                "switches in its topology.conf, or use another launcher"
            )
        hosts = reorder(hosts, request.topology)
    return hosts


def _reached(request: Request, hosts: tuple[Host, ...], say: Callable[[str], None]) -> tuple[Host, ...]:
    """The hosts that ssh reaches, if the recipe can be trained on them alone; else all."""
    failures = unreachable([host.name for host in hosts])
    fewer = tuple(host for host in hosts if host.name not in failures)
    if not failures or not fewer:
        return hosts
    try:
        job = make_job(fewer, request.script, request.master_port, os.environ)
        _placement(job, fewer)
    except UserError as error:
        say(f"{', '.join(failures)} not reached, and the run cannot go on without: {error}")
        return hosts
    say(f"going on without {', '.join(failures)}, which ssh does not reach")
    return fewer


def plan(
    request: Request, hosts: tuple[Host, ...], say: Callable[[str], None], variables: Mapping[str, str]
) -> tuple[list[str], dict[str, str]] | None:
    """Check the request and print what will run where; (command, environment) on this machine, None for a dry run.

    Raises:
        UserError: if the request is wrong, or a host is not reached.
    """
    if not 1024 <= request.master_port <= 65535:
        raise UserError(f"--master_port {request.master_port} is not from 1024 to 65535")
    job = make_job(hosts, request.script, request.master_port, variables, request.launcher != "torchrun")
    size = f"{pluralize(job.ranks, 'rank')} on {pluralize(len(hosts), 'node')}"
    for line in [
        f"{size}, meeting at {job.master}:{job.port}",
        *node_lines(job),
        *_placement(job, hosts),
        "environment: " + " ".join(f"{k}={v}" for k, v in job.environment.items()),
    ]:
        say(line)
    command, environment = _command(job, request)
    if request.launcher == "torchrun" and request.dry_run:
        for host, words in torchrun_commands(job).items():
            say(f"on {host}: {shlex.join(words)}")
        return None
    say(f"command: {shlex.join(command)}")
    if request.dry_run:
        return None
    if request.launcher in ("deepspeed", "mpirun"):
        _check_reachable(hosts)
    return command, environment


def _check_reachable(hosts: tuple[Host, ...]) -> None:
    """Refuse if ssh does not reach a node, before anything runs: launchers would wait, or start without it."""
    failures = unreachable([host.name for host in hosts])
    if failures:
        host, reason = next(iter(failures.items()))
        others = f" (and {', '.join(list(failures)[1:6])})" if len(failures) > 1 else ""
        raise UserError(
            f"ssh does not reach {host}{others}: {reason}; make `ssh -o BatchMode=yes {host} true` work, or "
            "leave it out of the hostfile"
        )


def _command(job: Job, request: Request) -> tuple[list[str], dict[str, str]]:
    """The command that replaces this process, and its environment."""
    environment = {**os.environ, **job.environment}
    if request.launcher == "mpirun":
        return mpirun_command(job), environment
    if request.launcher == "srun":
        return srun_command(job), {**environment, "MASTER_PORT": str(job.port)}
    if request.launcher == "torchrun":
        lines = torchrun_commands(job)
        return (next(iter(lines.values())) if request.dry_run else line_of_this_host(lines)), environment
    if request.dry_run:
        return deepspeed_command(job, request.hostfile, "FILE")
    hostfile = "".join(f"{host.name} slots={host.slots}\n" for host in job.hosts)
    return deepspeed_command(job, _kept_open("hostfile", hostfile), _kept_open("environment", environment_lines(job)))


def _kept_open(name: str, text: str) -> str:
    """Path of an in-memory file that stays open across exec, so that the launcher reads exactly the checked text."""
    descriptor = os.memfd_create(name, 0)
    os.write(descriptor, text.encode())
    os.set_inheritable(descriptor, True)
    return f"/proc/self/fd/{descriptor}"


def _placement(job: Job, hosts: tuple[Host, ...]) -> list[str]:
    """Check arguments and layout of a training job on these hosts; returns its placement, empty for other scripts."""
    command, words = command_of(job.script)
    if command != "pretrain":
        return []
    prog = "metaxlm pretrain" if job.script[0] == "-m" else Path(job.script[0]).name
    known = pretrain_parser(prog=prog).parse_intermixed_args(job.script[words:])
    recipe = follow_file(load_recipe(known.recipe, known.overrides, layout_later=True), known.deepspeed_config)
    recipe.phase(known.phase)
    if known.expect_world_size is not None and known.expect_world_size != job.ranks:
        raise UserError(
            f"--expect_world_size {known.expect_world_size}, but the hostfile has {pluralize(job.ranks, 'slot')}; change one"
        )
    slots = [host.slots for host in hosts]
    topology = Topology(0, job.ranks, 0, slots[0], "start", filled_nodes(slots), tuple(host.name for host in hosts))
    check_layout(recipe, known.phase, topology)
    layout = recipe.parallel
    return placement_lines(check_placement(topology, layout.tensor, layout.pipeline, layout.tensor_across_nodes))
