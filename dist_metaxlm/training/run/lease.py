"""One job writes a phase: its first rank holds a lease, a file in the run's folder that it keeps renewing.

`.lease-PHASE-EPOCH` is created exclusively, which is atomic on network file systems too; no file lock is needed. The holder
is the job with the highest epoch. A second job is refused while the first is alive. It takes over, with the next epoch, if
the first was on this machine and its process has ended, or if its file has not been renewed for `STALE_SECONDS`. A holder
that was suspended that long notices it: its file is gone, and it may not commit another checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.training.checkpointing.commit import withdraw_unfinished

RENEW_SECONDS, STALE_SECONDS = 5.0, 30.0


def check_free(run_dir: Path, phase: str) -> None:
    """Refuse a phase that a living job holds, without taking it or writing anything.

    Raises:
        UserError: as `Lease`.
    """
    lease = object.__new__(Lease)
    lease._folder, lease._phase = run_dir, phase
    for _, path in lease._files():
        lease._refuse_if_held(path)


class Lease:
    """The lease of a phase; use it in a `with` block on the first rank, whose end gives it back."""

    def __init__(self, run_dir: Path, phase: str, checkpoints: Path | None = None) -> None:
        """Take the lease; waits up to `STALE_SECONDS` if the job that holds it may be dead on another machine.

        The unfinished folders in `checkpoints` are removed then: the job before can no longer rename one of them, even if it
        was suspended between its check of the lease and the renaming.

        Raises:
            UserError: naming host, process and age of the job that holds it.
        """
        self._folder, self._phase, self._token = run_dir, phase, secrets.token_hex(16)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._take()
        if checkpoints is not None:
            withdraw_unfinished(checkpoints)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """Call it before anything is committed.

        Raises:
            UserError: if another job has taken over.
        """
        if _read(self._path).get("token") != self._token or any(epoch > self._epoch for epoch, _ in self._files()):
            raise UserError(
                f"another job has taken over phase {self._phase} of {self._folder}, because this one did not respond for "
                f"{STALE_SECONDS:.0f} s; nothing more is saved here, let the other job continue"
            )

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        if _read(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _take(self) -> Path:
        while True:
            files = self._files()
            self._epoch = 1 + max((epoch for epoch, _ in files), default=0)
            for _, path in files:
                self._refuse_if_held(path)
            mine = self._folder / f".lease-{self._phase}-{self._epoch}"
            try:
                with mine.open("x", encoding="utf-8") as file:
                    file.write(json.dumps({**_process(), "token": self._token, "start": time.time()}))
            except FileExistsError:
                continue  # another job was faster; the next round refuses this one
            for _, path in files:
                path.unlink(missing_ok=True)
            return mine

    def _refuse_if_held(self, path: Path) -> None:
        holder, renewed = _read(path), _renewed(path)
        if _has_ended(holder):
            return
        # Clocks of machines differ: what counts is whether the file is renewed while this job looks at it.
        begun = time.monotonic()
        alive = _is_here(holder)
        while not alive and time.monotonic() - begun < STALE_SECONDS:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            now = _renewed(path)
            if now is None:
                return  # given back, or taken over
            alive = now != renewed
        if alive:
            age = max(0.0, time.time() - float(holder.get("start", time.time())))
            raise UserError(
                f"phase {self._phase} of {self._folder} is being written by process {holder.get('pid', 'unknown')} on "
                f"{holder.get('host', 'an unknown host')}, started {age:.0f} s ago; wait for it or stop it, or give "
                "another --run_dir"
            )

    def _files(self) -> list[tuple[int, Path]]:
        prefix = f".lease-{self._phase}-"
        numbered = [(path.name.removeprefix(prefix), path) for path in self._folder.glob(f"{prefix}*")]
        return sorted((int(number), path) for number, path in numbered if number.isdecimal())

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            try:
                os.utime(self._path)
            except OSError:
                continue  # gone, or the disk fails for a while: `check` decides


def _process() -> dict[str, Any]:
    """This process: host, number, and what tells it from another of the same number."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "begun": _begun(os.getpid()), "place": _place()}


def _place() -> str:
    """The running system and its process numbers: containers may share a host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _begun(pid: int) -> str | None:
    """Start time of a process in clock ticks since the system started; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _is_here(holder: dict[str, Any]) -> bool:
    """Whether the holder is on this machine, where its process can be seen."""
    return bool(holder.get("place")) and holder["place"] == _place()


def _has_ended(holder: dict[str, Any]) -> bool:
    return _is_here(holder) and _begun(int(holder["pid"])) != holder["begun"]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _renewed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
