"""Machines for tests: network namespaces joined by a bridge, each with an address, a host name, its own hosts file and sshd.

Needs root and Debian's iproute2, openssh-server and pdsh. Only addresses of these namespaces are contacted. Everything that
is started is ended by its pid, everything that is created is removed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh"}
SLURM_PACKAGES = {"srun": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
_NUMBERS = itertools.count()
_SBIN = "/usr/sbin:/sbin"
_START = 'hostname "$1" && shift && mount --bind "$1" /etc/hosts && shift && exec "$@"'


def missing(packages: Mapping[str, str] = PACKAGES) -> str | None:
    """Why machines cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    absent = sorted({package for command, package in packages.items() if shutil.which(command, path=path) is None})
    if absent:
        return f"needs Debian's {' '.join(absent)} (make test-nodes installs them)"
    probe = subprocess.run(["ip", "netns", "add", f"dmxprobe{os.getpid()}"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"network namespaces are not allowed here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"dmxprobe{os.getpid()}"], check=False)
    return None


@dataclass
class Cluster:
    """`count` machines called node1, node2, ...; the bridge is between them, not to this machine's networks."""

    folder: Path
    count: int
    node_environment: dict[str, dict[str, str]] = field(default_factory=dict)
    """Variables that sshd sets on single nodes, to make them differ."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tag = f"dmx{os.getpid():x}{next(_NUMBERS)}"
        self.nodes = [f"node{number}" for number in range(1, self.count + 1)]
        self.net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.keys, self.hosts = self.folder / "ssh", self.folder / "hosts"

    def __enter__(self) -> Cluster:
        # A test run that is ended by a signal takes its machines down as well.
        signal.signal(signal.SIGTERM, lambda *ignored: sys.exit(1))
        try:
            self._network()
            self._ssh()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *ignored: object) -> None:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for node in self.nodes:
            namespace = self.namespace(node)
            pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():  # what the tests left running in our own namespaces
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            subprocess.run(["ip", "netns", "delete", namespace], check=False)
        subprocess.run(["ip", "netns", "delete", f"{self.tag}sw"], check=False)

    def namespace(self, node: str) -> str:
        """Name of a node's network namespace."""
        return f"{self.tag}{node}"

    def address(self, node: str) -> str:
        """IPv4 address of a node."""
        return f"{self.net}.{self.nodes.index(node) + 1}"

    def _network(self) -> None:
        """One more namespace holds the bridge, so that this machine's own network is not touched."""
        switch, lines = f"{self.tag}sw", ["127.0.0.1 localhost"]
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for node in self.nodes:
            namespace, port = self.namespace(node), f"port{node[4:]}"
            ip("netns", "add", namespace)
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", namespace, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            ip("-n", namespace, "link", "set", "lo", "up")
            lines.append(f"{self.address(node)} {node}")
        self.hosts.write_text("\n".join(lines) + "\n", encoding="ascii")

    def cut(self, node: str, up: bool = False) -> None:
        """Take a node's cable out, or put it back."""
        ip("-n", f"{self.tag}sw", "link", "set", f"port{node[4:]}", "up" if up else "down")

    def _ssh(self) -> None:
        self.keys.mkdir(mode=0o700)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.keys / name)], check=True)
        (self.keys / "authorized").write_text((self.keys / "user.pub").read_text())
        (self.keys / "config").write_text(
            f"Host *\n  IdentityFile {self.keys / 'user'}\n  UserKnownHostsFile {self.keys / 'known'}\n"
            "  StrictHostKeyChecking no\n  LogLevel ERROR\n")
        # ssh, pdsh and mpirun all find this one first: it names our own configuration and nothing of the user's.
        wrapper = self.folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\necho "$@" >> {self.folder / "ssh.log"}\nexec {shutil.which("ssh")} -F '
                           f'{self.keys / "config"} "$@"\n')
        wrapper.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        for node in self.nodes:
            settings = " ".join(f'"{k}={v}"' for k, v in self.node_environment.get(node, {}).items())
            config = self.keys / f"sshd_{node}"
            config.write_text(
                f"HostKey {self.keys / 'host'}\nAuthorizedKeysFile {self.keys / 'authorized'}\nListenAddress 0.0.0.0\n"
                f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPrintMotd no\n"
                + (f"SetEnv {settings}\n" if settings else ""))
            self.start(node, "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
        for node in self.nodes:
            self._wait_for(node)

    def _wait_for(self, node: str) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.run(node, "ssh", "-o", "ConnectTimeout=2", node, "true").returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError(f"sshd of {node} does not answer; see {self.folder}")

    def inside(self, node: str, command: Sequence[str]) -> list[str]:
        """The words that run `command` as if on `node`: its network, its host name, its hosts file."""
        return ["ip", "netns", "exec", self.namespace(node), "unshare", "--uts", "--mount", "sh", "-c", _START, "sh", node,
                str(self.hosts), *command]

    def environment(self) -> dict[str, str]:
        """Of commands on the nodes."""
        keep = ("HOME", "LANG", "USER")
        return {**{name: os.environ[name] for name in keep if name in os.environ}, "OMP_NUM_THREADS": "1",
                "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin:{_SBIN}",
                "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def start(self, node: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a service on a node; it ends with the cluster."""
        log = (self.folder / f"{node}-{Path(command[0]).name}.log").open("ab")
        self.processes.append(subprocess.Popen(self.inside(node, command), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                               env=self.environment()))
        return self.processes[-1]

    def run(self, node: str, *command: str, timeout: float = 400, cwd: Path | None = None,
            **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end."""
        return subprocess.run(self.inside(node, command), capture_output=True, text=True, timeout=timeout, check=False,
                              env={**self.environment(), **more}, stdin=subprocess.DEVNULL, cwd=cwd)


def ip(*words: str) -> None:
    """One command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True)
