"""Ranks end soon after one of them dies: each holds a connection to the first rank, which tells the others.

A collective notices a dead peer only where it is talking to it. Whoever waits in the store for its address (gloo while a
group is formed), or hears nothing of it (RDMA), waits for the whole time limit of a collective, and pdsh does not end the
other nodes. The kernel closes a dead process's connections whatever it died of; a machine that falls silent is noticed by
TCP's own probes. A process that is merely stopped or slow keeps its connection.
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

_KEY = "lifeline"
_FAREWELL = b"."
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A silent machine is given up after 90 s."""
_HELLO_SECONDS, _HELLO_BYTES = 5.0, 400
GRACE_SECONDS = 10.0
"""How long the others may go on: to fail by themselves with a better reason, or to end in good order."""


class PeerMonitor:
    """This rank's connection to the first one, or the first one's to all, until `leave`."""

    def __init__(
        self, topology: Topology, store: dist.Store, seconds: float = 60.0, end: Callable[[str], None] | None = None
    ) -> None:
        """`seconds` is how long connecting may take; `end` is called with who died, else the process ends.

        Raises:
            UserError: when the first node cannot be reached.
        """
        self._topology, self._end, self._left = topology, end or self._end_process, threading.Event()
        watch = self._host(store) if topology.rank == 0 else self._join(store, seconds)
        self._thread = threading.Thread(target=watch, daemon=True, name="lifeline")
        self._thread.start()

    def leave(self) -> None:
        """Say farewell: from here on this rank's end means nothing to the others, nor theirs to it."""
        self._left.set()
        try:
            self._own.sendall(_FAREWELL)
            self._own.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side has gone, which no longer matters
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
        """What a rank hears from the first: a farewell, who has died, or nothing any more."""
        said = _read(self._own)
        if said.startswith(_FAREWELL) or self._left.is_set():
            return
        self._end(said.decode(errors="replace").strip() or f"rank 0 on {self._topology.host(0)}")

    def _watch_all(self, server: socket.socket, inner: socket.socket, token: str) -> None:
        """What the first rank hears: newcomers, farewells, and the connections of the dead, which end without one."""
        others: dict[socket.socket, str] = {}
        known: set[str] = set()
        with server, inner, selectors.DefaultSelector() as waiting:
            waiting.register(server, selectors.EVENT_READ)
            waiting.register(inner, selectors.EVENT_READ)
            while not self._left.is_set():
                ready = [key.fileobj for key, _ in waiting.select()]
                for connection in (found for found in ready if isinstance(found, socket.socket)):
                    if connection is server:
                        for newcomer, name in _admit(server, token, known):
                            others[newcomer] = name
                            waiting.register(newcomer, selectors.EVENT_READ)
                    elif connection in others:
                        waiting.unregister(connection)
                        name = others.pop(connection)
                        if not _read(connection).startswith(_FAREWELL):
                            _tell(others, name.encode())
                            self._end(name)
                            return
                        connection.close()
            # Who came after the last look is told as well: to it, a connection that just ends is a death.
            _tell([*others, *(newcomer for newcomer, _ in _admit(server, token, known))], _FAREWELL)

    def _end_process(self, who: str) -> None:
        """End this process, unless it ends by itself or leaves in good order within the grace."""
        if self._left.wait(GRACE_SECONDS):
            return
        # One line a job, or one a node where the first rank is the dead one.
        if self._topology.is_first or (who.startswith("rank 0 ") and self._topology.local_rank == 0):
            # Not to the log: another thread may hold its lock for as long as nobody reads standard output.
            print(
                f"error: {who} has died and the other ranks wait for it, so they end; its own output says why (nothing "
                "there: look for the kernel's out-of-memory killer); the same command goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_BUG)


def _admit(server: socket.socket, token: str, known: set[str]) -> Iterator[tuple[socket.socket, str]]:
    """All new connections with `rank N on HOST`, but those that do not know the job's token, or are a rank that came before.

    Two jobs on one port meet in one store: a rank of the second reads our token there, and its end must not be ours.
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
    """The next connection that waits to be taken; None where none does."""
    try:
        return server.accept()[0]
    except (BlockingIOError, ConnectionAbortedError):
        return None


def _read(connection: socket.socket) -> bytes:
    """The next words; nothing where the other side has gone."""
    try:
        return connection.recv(_HELLO_BYTES)
    except OSError:
        return b""


def _tell(connections: Iterable[socket.socket], words: bytes) -> None:
    for connection in connections:
        try:
            connection.sendall(words)
        except OSError:
            continue  # it has gone, too


def _probe(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
