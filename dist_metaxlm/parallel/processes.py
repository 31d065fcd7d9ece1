"""Other processes of this machine, from /proc: the one that listens on a port, and those of the same job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_LISTENING = "0A"
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the kernel's first namespace of processes (`PROC_PID_INIT_INO`), in which all processes are visible."""


def holder(port: int, proc: Path = Path("/proc")) -> str:
    """`process PID (its command)` that listens on `port`, or a hint if it is not visible."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in proc.iterdir() if inodes else ():
        if folder.name.isdigit() and inodes & _open_files(folder / "fd"):
            return f"process {folder.name} ({_command(folder)})"
    return "a process of another user" if inodes else "a process that has just ended"


def _open_files(folder: Path) -> set[str]:
    files = set()
    try:
        for entry in folder.iterdir():
            files.add(os.readlink(entry))
    except OSError:
        pass  # the process has ended, or belongs to another user
    return files


def _command(folder: Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "unknown"
    return b" ".join(words).decode(errors="replace").strip()[:80] or "unknown"


def sees_all_processes(proc: Path = Path("/proc")) -> bool:
    """False in a container with process numbers of its own, where processes outside it are not visible."""
    try:
        return os.stat(proc / "self" / "ns" / "pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def started_with(names: Sequence[str], proc: Path = Path("/proc")) -> dict[str, str] | None:
    """The variables among `names` that this process was started with; None if that is not visible."""
    return _variables(proc / "self", names)


def has_peer(number: str, same: Sequence[str], proc: Path = Path("/proc")) -> bool:
    """Whether another process was started with another value of the variable `number` and our values of those in `same`."""
    names = (number, *same)
    own = started_with(names, proc) or {}
    others = (_variables(folder, names) for folder in proc.iterdir() if folder.name.isdigit())
    return any(
        other and other.get(number, own[number]) != own[number] and all(other.get(name) == own.get(name) for name in same)
        for other in others
        if number in own
    )


def _variables(folder: Path, names: Sequence[str]) -> dict[str, str] | None:
    try:
        lines = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None  # the process has ended, or belongs to another user
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name in names}
