"""A rank that dies is named to all others; one that shuts down gracefully is not reported as failed."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading

import pytest
import torch.distributed as dist

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel import peer_monitor
from dist_metaxlm.parallel.peer_monitor import PeerMonitor
from dist_metaxlm.parallel.topology import Topology, free_port

DIE = """
import os, socket, sys
port, token, rank = sys.argv[1:]
line = socket.create_connection(("127.0.0.1", int(port)))
line.sendall(f"{token} {rank} node7\\n".encode())
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def _first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def topology(rank: int, size: int = 3) -> Topology:
    return Topology(rank, size, 0, 1, "environment", tuple(range(size)), tuple(f"node{n + 1}" for n in range(size)))


def lines(size: int) -> tuple[list[PeerMonitor], queue.Queue[tuple[int, str]], dist.Store]:
    """The peer monitors of `size` ranks, and the queue in which each reports a failed rank."""
    store, heard = dist.HashStore(), queue.Queue[tuple[int, str]]()
    return (
        [PeerMonitor(topology(rank), store, end=lambda who, rank=rank: heard.put((rank, who))) for rank in range(size)],
        heard,
        store,
    )


def test_a_killed_process_is_named_to_all_others() -> None:
    ours, heard, store = lines(2)
    third = subprocess.Popen(
        [sys.executable, "-c", DIE, *store.get("peer_monitor").decode().split(), "2"], stdin=subprocess.PIPE, text=True
    )
    third.communicate("now\n")
    assert sorted(heard.get(timeout=60) for _ in ours) == [(0, "rank 2 on node7"), (1, "rank 2 on node7")]
    for line in ours:
        line.shutdown()


def test_the_end_of_another_jobs_rank_is_not_ours() -> None:
    ours, heard, store = lines(3)
    port, token = store.get("peer_monitor").decode().split()
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.sendall(f"{token} 2 node9\n".encode())
        assert stranger.recv(1) == b""  # turned away, since rank 2 is here
    with pytest.raises(queue.Empty):
        heard.get(timeout=0.3)
    for line in ours:
        line.shutdown()


def test_a_failure_of_the_first_rank_is_reported() -> None:
    store, heard = dist.HashStore(), queue.Queue[str]()
    with socket.create_server(("127.0.0.1", 0)) as first:
        store.set("peer_monitor", f"{first.getsockname()[1]} token")
        line = PeerMonitor(topology(1), store, end=heard.put)
        first.accept()[0].close()
        assert heard.get(timeout=60) == "rank 0 on node1"
    line.shutdown()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_graceful_shutdown_is_not_reported(order: tuple[int, ...]) -> None:
    ours, heard, _ = lines(3)
    for rank in order:
        ours[rank].shutdown()
    assert heard.empty()
    assert not any(line._thread.is_alive() for line in ours)


def test_the_first_rank_sends_goodbye_to_connections_it_has_not_accepted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that the processor keeps waiting accepts the others' connections only after its own rank has shut down."""
    watch, runs = PeerMonitor._watch_all, threading.Event()

    def late(*arguments: object) -> None:
        runs.wait()
        watch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PeerMonitor, "_watch_all", late)
    ours, heard, _ = lines(3)
    threading.Timer(0.2, runs.set).start()
    for line in ours:
        line.shutdown()
    assert heard.empty()


def test_strangers_do_not_end_a_job() -> None:
    ours, heard, store = lines(2)
    port = int(store.get("peer_monitor").decode().split()[0])
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 300, b"00 1 node2\n", b"\xff\xfe 1 node2\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    for line in ours:
        line.shutdown()
    assert heard.empty()


def test_a_first_node_that_lets_nobody_in_is_named() -> None:
    store = dist.HashStore()
    store.set("peer_monitor", f"{free_port()} token")
    with pytest.raises(UserError, match=r"cannot reach port .* of the first node, node1"):
        PeerMonitor(topology(1), store, 1.0)


def test_the_process_ends_only_if_it_has_not_left_by_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(peer_monitor, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(os, "_exit", codes.append)
    line = PeerMonitor(topology(0), dist.HashStore())
    line._end_process("rank 1 on node2")
    line.shutdown()
    threading.Thread(target=line._end_process, args=("rank 1 on node2",)).start()
    assert codes == [1]
    assert capsys.readouterr().err.count("error: rank 1 on node2 exited unexpectedly") == 1
