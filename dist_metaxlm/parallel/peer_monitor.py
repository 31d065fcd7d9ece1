"""Stops all ranks soon after one of them dies: each holds a connection to the first rank, which notifies the others.

A collective detects a dead peer only while it communicates with it. A rank that waits in the store for the peer's address
(gloo while a group is formed), or uses RDMA, waits for the collective's whole timeout, and pdsh does not end the other
nodes. The kernel closes the connections of a dead process, whatever the cause. TCP keepalive detects an unreachable host.
A suspended or slow process keeps its connection.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

import torch.distributed as dist

from dist_metaxlm.errors import EXIT_BUG, UserError
from dist_metaxlm.parallel.topology import Topology

_KEY = "peer_monitor"
_GOODBYE = b"."
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""An unreachable host counts as failed after 90 s."""
_HELLO_SECONDS, _HELLO_BYTES = 5.0, 400
GRACE_SECONDS = 10.0
"""Seconds until the other ranks are ended: they may fail with a more specific error, or shut down gracefully, before."""


class PeerMonitor:
    """This rank's connection to the first rank (on the first rank: to all ranks), until `shutdown`."""

    def __init__(
        self, topology: Topology, store: dist.Store, seconds: float = 60.0, end: Callable[[str], None] | None = None
    ) -> None:
        """`seconds`: timeout of the connection. `end` is called with the failed rank; by default the process ends.

        Raises:
            UserError: when the first node cannot be reached.
        """
        self._topology, self._end, self._left = topology, end or self._end_process, threading.Event()
        watch = self._host(store) if topology.rank == 0 else self._join(store, seconds)
        self._thread = threading.Thread(target=watch, daemon=True, name="peer monitor")
        self._thread.start()

    def shutdown(self) -> None:
        """Send the goodbye message: from now on peers ignore this rank's disconnect, and this rank ignores theirs."""
        self._left.set()
        try:
            self._own.sendall(_GOODBYE)
            self._own.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side has closed, which no longer matters
        self._thread.join(_HELLO_SECONDS)
        self._own.close()

    def _host(self, store: dist.Store) -> Callable[[], None]:
        family = socket.getaddrinfo(os.environ["MASTER_ADDR"], None, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server(("", 0), family=family, backlog=4096)
        server.setblocking(False)
        token = secrets.token_hex(16)
        store.set(_KEY, f"{server.getsockname()[1]} {token}")
        self._own, inner = socket.socketpair()
        return lambda: self._watch_all(server, inner, token)

    def _join(self, store: dist.Store, seconds: float) -> Callable[[], None]:
        port, token = store.get(_KEY).decode().split()
        try:
            self._own = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), timeout=seconds)
            self._own.sendall(f"{token} {self._topology.rank} {socket.gethostname()}\n".encode())
        except OSError as error:
            raise UserError(
                f"{socket.gethostname()} cannot reach port {port} of the first node, {self._topology.host(0)} "
                f"({error}); if its first rank still runs, let the nodes reach one another on all TCP ports"
            ) from None
        self._own.settimeout(None)
        _probe(self._own)
        return self._watch_first

    def _watch_first(self) -> None:
        """Wait for the first rank's message: goodbye, the name of a failed rank, or a disconnect."""
        message = _read(self._own)
        if message.startswith(_GOODBYE) or self._left.is_set():
            return
        self._end(message.decode(errors="replace").strip() or f"rank 0 on {self._topology.host(0)}")

    def _watch_all(self, server: socket.socket, inner: socket.socket, token: str) -> None:
        """On the first rank: accept connections, read goodbye messages, and detect disconnects without one."""
        others: dict[socket.socket, str] = {}
        known: set[str] = set()
        with server, inner, selectors.DefaultSelector() as waiting:
            waiting.register(server, selectors.EVENT_READ)
            waiting.register(inner, selectors.EVENT_READ)
            while not self._left.is_set():
                ready = [key.fileobj for key, _ in waiting.select()]
                for connection in (file for file in ready if isinstance(file, socket.socket)):
                    if connection is server:
                        for newcomer, name in _admit(server, token, known):
                            others[newcomer] = name
                            waiting.register(newcomer, selectors.EVENT_READ)
                    elif connection in others:
                        waiting.unregister(connection)
                        name = others.pop(connection)
                        if not _read(connection).startswith(_GOODBYE):
                            _tell(others, name.encode())
                            self._end(name)
                            return
                        connection.close()
            # Connections that are not accepted yet get the message too: a disconnect without it counts as a failure.
            _tell([*others, *(newcomer for newcomer, _ in _admit(server, token, known))], _GOODBYE)

    def _end_process(self, who: str) -> None:
        """End this process, unless it ends or shuts down gracefully within `GRACE_SECONDS`."""
        if self._left.wait(GRACE_SECONDS):
            return
        # One line per job, or one per node if the first rank has failed.
        if self._topology.is_first or (who.startswith("rank 0 ") and self._topology.local_rank == 0):
            # Not to the log: another thread may hold its lock while standard output is blocked.
            print(
                f"error: {who} exited unexpectedly; stopping all ranks; see its output for the reason (if empty, check "
                "dmesg for the out-of-memory killer); run the same command again to resume from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_BUG)


def _admit(server: socket.socket, token: str, known: set[str]) -> Iterator[tuple[socket.socket, str]]:
    """Accept new connections, each with `rank N on HOST`; reject those without the job's token and ranks already connected.

    Two jobs on one port share a store. A rank of the second job reads our token from it, and its exit must not end ours.
    """
    while (connection := _next_of(server)) is not None:
        connection.settimeout(_HELLO_SECONDS)
        words = _read(connection).decode(errors="replace").split()
        if len(words) != 3 or not secrets.compare_digest(words[0].encode(), token.encode()) or words[1] in known:
            connection.close()
            continue
        known.add(words[1])
        connection.settimeout(None)
        _probe(connection)
        yield connection, f"rank {words[1]} on {words[2]}"


def _next_of(server: socket.socket) -> socket.socket | None:
    """The next pending connection, None if there is none."""
    try:
        return server.accept()[0]
    except (BlockingIOError, ConnectionAbortedError):
        return None


def _read(connection: socket.socket) -> bytes:
    """The next message; empty if the other side has closed."""
    try:
        return connection.recv(_HELLO_BYTES)
    except OSError:
        return b""


def _tell(connections: Iterable[socket.socket], words: bytes) -> None:
    for connection in connections:
        try:
            connection.sendall(words)
        except OSError:
            continue  # it has closed, too


def _probe(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
