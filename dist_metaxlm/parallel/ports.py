"""Finds the process that listens on a TCP port of this machine, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_LISTENING = "0A"


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
