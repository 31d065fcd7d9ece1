"""Stops all ranks soon after one of them dies: each holds a connection to the first rank, which notifies the others.

A collective detects a dead peer only while it communicates with it. A rank that waits in the store for the peer's address
(gloo while a group is formed), or uses RDMA, waits for the collective's whole timeout, and pdsh does not end the other
nodes. The kernel closes the connections of a dead process, whatever the cause. TCP keepalive detects an unreachable host.
A suspended or slow process keeps its connection.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable

import torch.distributed as dist

from dist_metaxlm.errors import EXIT_BUG, UserError
from dist_metaxlm.parallel.topology import Topology

_KEY = "peer_monitor"
_GOODBYE = b"."
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""An unreachable host counts as failed after 90 s."""
HELLO_SECONDS = 5.0
"""After this time a connection without a complete greeting is closed."""
_MORE = 32
"""Connections beyond the ranks of the job that may wait at the same time; the oldest is closed for the next."""
_MESSAGE_BYTES = 400
_LAST_SECONDS = 0.5
"""How long the first rank reads greetings when it shuts down; those of all ranks have arrived long before."""
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
        self._thread.join(HELLO_SECONDS)
        self._own.close()

    def _host(self, store: dist.Store) -> Callable[[], None]:
        server = listening_socket(self._topology, os.environ["MASTER_ADDR"])
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
        """On the first rank: admit connections, read goodbye messages, and detect disconnects without one."""
        others: dict[socket.socket, str] = {}
        newcomers = Admission(token, self._topology.world_size)
        with server, inner, selectors.DefaultSelector() as waiting:
            waiting.register(server, selectors.EVENT_READ)
            waiting.register(inner, selectors.EVENT_READ)
            while not self._left.is_set():
                ready = [key.fileobj for key, _ in waiting.select(1.0 if newcomers else None)]
                for connection in (file for file in ready if isinstance(file, socket.socket)):
                    if connection in others:
                        waiting.unregister(connection)
                        name = others.pop(connection)
                        if not _read(connection).startswith(_GOODBYE):
                            _tell(others, name.encode())
                            self._end(name)
                            return
                        connection.close()
                    elif connection is not inner:
                        _admit(connection, server, newcomers, others, waiting)
                for late in newcomers.overdue():
                    waiting.unregister(late)
                    newcomers.drop(late)
            # Connections that are not admitted yet get the message too: a disconnect without it counts as a failure.
            until = time.monotonic() + _LAST_SECONDS
            _admit(server, server, newcomers, others, waiting)
            while newcomers and time.monotonic() < until:
                for key, _ in waiting.select(_LAST_SECONDS / 10):
                    if isinstance(key.fileobj, socket.socket) and key.fileobj in newcomers:
                        _admit(key.fileobj, server, newcomers, others, waiting)
            _tell(others, _GOODBYE)

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


class Admission:
    """Reads the greetings `TOKEN RANK HOST` of new connections, without blocking: without the token they get no answer.

    A stranger who sends nothing, garbage or one byte a minute delays nobody.
    """

    def __init__(self, token: str, ranks: int) -> None:
        """`ranks`: of the job; the others are 1 to `ranks` - 1."""
        self._token, self._ranks = token.encode(), ranks
        self._known: set[str] = set()
        self._waiting: dict[socket.socket, tuple[float, bytes]] = {}

    def __contains__(self, connection: socket.socket) -> bool:
        return connection in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: socket.socket) -> socket.socket | None:
        """Wait for the greeting of a new connection; returns one that had to be given up for it."""
        connection.setblocking(False)
        self._waiting[connection] = (time.monotonic() + HELLO_SECONDS, b"")
        return next(iter(self._waiting)) if len(self._waiting) > self._ranks + _MORE else None

    def overdue(self) -> list[socket.socket]:
        """Connections whose time is over."""
        return [connection for connection, (until, _) in self._waiting.items() if time.monotonic() > until]

    def drop(self, connection: socket.socket) -> None:
        """Close a connection without an answer."""
        del self._waiting[connection]
        connection.close()

    def read(self, connection: socket.socket) -> str | None:
        """`rank N on HOST` when the greeting is complete and right; then the connection no longer waits and blocks again.

        None while more is to come, and after a wrong greeting, which drops the connection.
        """
        until, before = self._waiting[connection]
        try:
            # Only the greeting: what follows may be a goodbye, which `_watch_all` reads.
            coming = connection.recv(_MESSAGE_BYTES, socket.MSG_PEEK)
            received = connection.recv((coming.find(b"\n") + 1 or len(coming)) or 1)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        content = before + received
        if received and b"\n" not in content and len(content) < _MESSAGE_BYTES:
            self._waiting[connection] = (until, content)
            return None
        words = content.split()
        right = b"\n" in content and len(words) == 3 and secrets.compare_digest(words[0], self._token)
        rank, host = (words[1].decode("ascii", "replace"), words[2].decode(errors="replace")) if right else ("", "")
        # Two jobs on one port share a store. A rank of the second job reads our token from it; its exit must not end ours.
        if not (rank.isdecimal() and 0 < int(rank) < self._ranks) or rank in self._known:
            self.drop(connection)
            return None
        self._known.add(rank)
        del self._waiting[connection]
        connection.settimeout(None)
        return f"rank {rank} on {host}"


def listening_socket(topology: Topology, master: str) -> socket.socket:
    """A listening socket on a free port of the address by which the other ranks reach this process.

    All addresses only if the name `master` may mean another address on other nodes, or is not an address of this machine.
    """
    family, *_, address = socket.getaddrinfo(master, None, type=socket.SOCK_STREAM)[0]
    if topology.nodes == 1 or _is_address(master):
        try:
            return socket.create_server((str(address[0]), 0), family=family, backlog=4096)
        except OSError:
            pass  # such as the address of a service that forwards to this machine
    return socket.create_server(("", 0), family=family, backlog=4096)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _admit(
    ready: socket.socket,
    server: socket.socket,
    newcomers: Admission,
    others: dict[socket.socket, str],
    waiting: selectors.BaseSelector,
) -> None:
    """Accept the pending connections, if `ready` is `server`, or read the greeting of the newcomer `ready`."""
    if ready is not server:
        if ready not in newcomers:
            return  # given up in this round
        name = newcomers.read(ready)
        if name is not None:
            _probe(ready)
            others[ready] = name
        elif ready not in newcomers:
            waiting.unregister(ready)
        return
    while (connection := _next_of(server)) is not None:
        waiting.register(connection, selectors.EVENT_READ)
        given_up = newcomers.add(connection)
        if given_up is not None:
            waiting.unregister(given_up)
            newcomers.drop(given_up)


def _next_of(server: socket.socket) -> socket.socket | None:
    """The next pending connection, None if there is none."""
    try:
        return server.accept()[0]
    except BlockingIOError:
        return None
    except OSError:
        time.sleep(0.1)  # such as no free file descriptor: the connection stays pending
        return None


def _read(connection: socket.socket) -> bytes:
    """The next message; empty if the other side has closed."""
    try:
        return connection.recv(_MESSAGE_BYTES)
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
