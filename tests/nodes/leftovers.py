"""What a cluster of namespaces leaves in the kernel, found and removed by its tag.

A cluster holds a lock on /run/dmx-nodes/TAG for as long as its process lives, however it dies; a tag whose lock is free
belongs to a dead one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

REGISTER = Path("/run/dmx-nodes")


def ip(*words: str) -> str:
    """The output of one command of iproute2."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def claim(tag: str) -> int:
    """Enter a tag into the register; returns the descriptor whose lock says that its owner lives."""
    REGISTER.mkdir(exist_ok=True)
    # Descriptors of Python are not inherited by the services that a cluster starts, so the lock ends with this process.
    descriptor = os.open(REGISTER / tag, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def remove(tag: str, descriptor: int) -> None:
    """End what runs in the namespaces of `tag`, by pid, and remove them; their mounts and cables go with them."""
    for namespace in namespaces(tag):
        _end_all(namespace)
        ip("netns", "delete", namespace)
    (REGISTER / tag).unlink()
    os.close(descriptor)
    if not any(REGISTER.iterdir()):
        REGISTER.rmdir()


def remove_dead() -> list[str]:
    """Remove what clusters have left whose process was killed; returns their tags."""
    found = []
    for entry in sorted(REGISTER.iterdir()) if REGISTER.is_dir() else []:
        descriptor = os.open(entry, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)  # its owner lives
            continue
        remove(entry.name, descriptor)
        found.append(entry.name)
    return found


def namespaces(tag: str) -> list[str]:
    """Names of the network namespaces of a cluster."""
    names = [line.split()[0] for line in ip("netns", "list").splitlines() if line.strip()]
    return [name for name in names if name.startswith(f"{tag}-")]


def processes(namespace: str) -> list[int]:
    """Processes that run in a network namespace."""
    return [int(pid) for pid in ip("netns", "pids", namespace).split()]


def _end_all(namespace: str, seconds: float = 30.0) -> None:
    """A process may start another while it is being ended, so this looks again until there is none."""
    deadline = time.monotonic() + seconds
    while (found := processes(namespace)) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
