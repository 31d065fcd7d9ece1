"""Machines for tests: network namespaces joined by a bridge, each with an address, a host name, its own hosts file and sshd.

Needs root and Debian's iproute2, openssh-server and pdsh. Only addresses of these namespaces are contacted. Everything that
is started is ended by its pid, everything that is created is removed: at the end, on SIGTERM and Ctrl-C, and what a killed
run left behind when the next one starts (`leftovers.py`).
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
from types import FrameType

from leftovers import claim, ip, remove, remove_dead

PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh"}
SLURM_PACKAGES = {"srun": "slurm-wlm", "slurmd": "slurm-wlm", "munged": "munge"}
SSHD_SECONDS = 120
_NUMBERS = itertools.count()
_SBIN = "/usr/sbin:/sbin"
_SSHD_FOLDER = Path("/run/sshd")
# HOSTNAME NUMBER (SOURCE TARGET)... COMMAND...: files of a node's own lie over those of this machine, for it alone.
_START = (
    'hostname "$1" && n=$2 && shift 2 && while [ "$n" -gt 0 ]; do mount --bind "$1" "$2" || exit 1; shift 2; '
    'n=$((n - 1)); done; exec "$@"'
)


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Not SystemExit, which pytest takes for the failure of one test.
    raise KeyboardInterrupt(f"signal {number}")


@dataclass
class Cluster:
    """`count` machines called node1, node2, ...; the bridge is between them, not to this machine's networks."""

    folder: Path
    count: int
    node_environment: dict[str, dict[str, str]] = field(default_factory=dict)
    """Variables that sshd sets on single nodes, to make them differ."""
    node_files: dict[str, dict[Path, Path]] = field(default_factory=dict)
    """For single nodes, which file lies over which (existing) one."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tag = f"dmx{os.getpid()}x{next(_NUMBERS)}"
        self.nodes = [f"node{number}" for number in range(1, self.count + 1)]
        self.net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.keys, self.hosts, self.ssh_log = self.folder / "ssh", self.folder / "hosts", self.folder / "ssh.log"
        self._owns_sshd_folder = False

    def __enter__(self) -> Cluster:
        self._before = signal.signal(signal.SIGTERM, _interrupt)
        remove_dead()
        self._claim = claim(self.tag)
        try:
            self._network()
            self._ssh()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *ignored: object) -> None:
        # Cleaning up must not be interrupted half way.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            for process in reversed(self.processes):
                process.send_signal(signal.SIGTERM)
            for process in self.processes:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            remove(self.tag, self._claim)
            if self._owns_sshd_folder:
                _SSHD_FOLDER.rmdir()
        finally:
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, self._before)

    def namespace(self, node: str) -> str:
        """Name of a node's network namespace."""
        return f"{self.tag}-{node}"

    @property
    def switch(self) -> str:
        """Name of the namespace that holds the bridge, so that this machine's own network is not touched."""
        return f"{self.tag}-switch"

    def address(self, node: str) -> str:
        """IPv4 address of a node."""
        return f"{self.net}.{self.nodes.index(node) + 1}"

    def _network(self) -> None:
        lines = ["127.0.0.1 localhost"]
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for node in self.nodes:
            namespace, port = self.namespace(node), f"port{node[4:]}"
            ip("netns", "add", namespace)
            ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
            ip("-n", namespace, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            ip("-n", namespace, "link", "set", "lo", "up")
            lines.append(f"{self.address(node)} {node}")
        self.hosts.write_text("\n".join(lines) + "\n", encoding="ascii")

    def cut(self, node: str, up: bool = False) -> None:
        """Take a node's cable out, or put it back."""
        ip("-n", self.switch, "link", "set", f"port{node[4:]}", "up" if up else "down")

    def shape(self, megabits: float | None, *nodes: str) -> None:
        """Let the cables of these nodes (default: all) carry `megabits` a second each way; None takes that away."""
        for node in nodes or self.nodes:
            for namespace, device in ((self.namespace(node), "eth0"), (self.switch, f"port{node[4:]}")):
                words = ["tc", "-n", namespace, "qdisc"]
                subprocess.run([*words, "del", "dev", device, "root"], capture_output=True, check=False)
                if megabits is not None:
                    # The burst is what may pass at once: a packet, or what the kernel's clock lets through in 1 ms.
                    burst = max(64_000, round(megabits * 1e6 / 8 / 1000))
                    subprocess.run(
                        [
                            *words,
                            "add",
                            "dev",
                            device,
                            "root",
                            "tbf",
                            "rate",
                            f"{megabits:g}mbit",
                            "burst",
                            str(burst),
                            "latency",
                            "400ms",
                        ],
                        capture_output=True,
                        check=True,
                    )

    def _ssh(self) -> None:
        self.keys.mkdir(mode=0o700)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.keys / name)], check=True)
        (self.keys / "authorized").write_text((self.keys / "user.pub").read_text())
        (self.keys / "config").write_text(
            f"Host *\n  IdentityFile {self.keys / 'user'}\n  UserKnownHostsFile {self.keys / 'known'}\n"
            "  StrictHostKeyChecking no\n  LogLevel ERROR\n"
        )
        # ssh, pdsh and mpirun all find this one first: it names our own configuration and nothing of the user's.
        wrapper = self.folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(
            f'#!/bin/sh\necho "$@" >> {self.ssh_log}\nexec {shutil.which("ssh")} -F {self.keys / "config"} "$@"\n'
        )
        wrapper.chmod(0o755)
        if not _SSHD_FOLDER.exists():
            _SSHD_FOLDER.mkdir()
            self._owns_sshd_folder = True
        for node in self.nodes:
            settings = " ".join(f'"{k}={v}"' for k, v in self.node_environment.get(node, {}).items())
            config = self.keys / f"sshd_{node}"
            config.write_text(
                f"HostKey {self.keys / 'host'}\nAuthorizedKeysFile {self.keys / 'authorized'}\nListenAddress 0.0.0.0\n"
                f"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPrintMotd no\n"
                f"MaxStartups 100\nLoginGraceTime {SSHD_SECONDS}\n" + (f"SetEnv {settings}\n" if settings else "")
            )
            self.start(node, "/usr/sbin/sshd", "-D", "-e", "-f", str(config))
        for node in self.nodes:
            self._wait_for(node)

    def _wait_for(self, node: str) -> None:
        deadline = time.monotonic() + SSHD_SECONDS
        while time.monotonic() < deadline:
            if self.run(node, "ssh", "-o", "ConnectTimeout=10", node, "true").returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError(f"sshd of {node} does not answer; see {self.folder}")

    def inside(self, node: str, command: Sequence[str]) -> list[str]:
        """The words that run `command` as if on `node`: its network, its host name, its hosts file."""
        files = {Path("/etc/hosts"): self.hosts, **self.node_files.get(node, {})}
        pairs = [str(path) for target, source in files.items() for path in (source, target)]
        return [
            "ip",
            "netns",
            "exec",
            self.namespace(node),
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-c",
            _START,
            "sh",
            node,
            str(len(files)),
            *pairs,
            *command,
        ]

    def environment(self) -> dict[str, str]:
        """Of commands on the nodes."""
        keep = ("HOME", "LANG", "USER")
        return {
            **{name: os.environ[name] for name in keep if name in os.environ},
            "OMP_NUM_THREADS": "1",
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin:{_SBIN}",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def start(self, node: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a service on a node; it ends with the cluster."""
        with (self.folder / f"{node}-{Path(command[0]).name}.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    self.inside(node, command), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment()
                )
            )
        return self.processes[-1]

    def run(
        self, node: str, *command: str, timeout: float = 900, cwd: Path | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end."""
        return subprocess.run(
            self.inside(node, command),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**self.environment(), **more},
            stdin=subprocess.DEVNULL,
            cwd=cwd,
        )
