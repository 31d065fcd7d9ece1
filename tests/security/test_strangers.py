"""The port of the peer monitor gives strangers nothing, and no stranger delays the ranks of the job."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from dist_metaxlm.parallel import peer_monitor
from dist_metaxlm.parallel.peer_monitor import PeerMonitor, listening_socket
from dist_metaxlm.parallel.topology import Topology


def topology(rank: int, size: int = 2, nodes: int = 1) -> Topology:
    return Topology(rank, size, rank, size, "environment", tuple(n % nodes for n in range(size)))


class Job:
    """The first rank's monitor, and a greeting with the right token."""

    def __init__(self) -> None:
        self.ended = queue.Queue[str]()
        store = dist.HashStore()
        self.monitor = PeerMonitor(topology(0, 3), store, end=self.ended.put)
        port, self.token = store.get("peer_monitor").decode().split()
        self.port = int(port)

    def connect(self, words: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(words)
        return connection

    def loses(self, rank: int) -> str:
        """Let a real rank join and die; the name that the monitor reports."""
        self.connect(f"{self.token} {rank} node{rank}\n".encode()).close()
        return self.ended.get(timeout=20)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    job = Job()
    yield job
    job.monitor.shutdown()
    assert not job.monitor._thread.is_alive()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\n",
        b"\xff" * 100_000,
        b"00000000000000000000000000000000 1 node1\n",
        b"TOKEN 0 node0\n",
        b"TOKEN 3 node3\n",
        b"TOKEN -1 node\n",
        b"TOKEN \xd9\xa1 node\n",
        b"TOKEN 1\n",
        b"\n",
    ],
)
def test_a_stranger_gets_no_byte_and_ends_nothing(job: Job, words: bytes) -> None:
    stranger = job.connect()
    try:
        stranger.sendall(words.replace(b"TOKEN", job.token.encode()))
        assert stranger.recv(1) == b""
    except ConnectionError:
        pass  # closed while there was still something to read
    stranger.close()
    assert job.loses(1) == "rank 1 on node1"  # the first and only report


def test_silent_and_slow_strangers_delay_nobody(job: Job) -> None:
    strangers = [job.connect(words) for words in (b"", b"", job.token[:5].encode(), b"")]
    begun = time.monotonic()
    assert job.loses(2) == "rank 2 on node2"
    assert time.monotonic() - begun < 2, "the death of a rank is reported at once"
    for stranger in strangers:
        stranger.close()


def test_a_stranger_is_closed_after_a_time(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    monkeypatch.setattr(peer_monitor, "HELLO_SECONDS", 0.2)
    assert job.connect(b"slow").recv(1) == b""


def test_many_strangers_do_not_keep_a_rank_out(job: Job) -> None:
    strangers = [job.connect() for _ in range(100)]
    assert strangers[0].recv(1) == b""  # given up for the later ones
    assert job.loses(1) == "rank 1 on node1"
    for stranger in strangers:
        stranger.close()


def test_a_greeting_in_pieces_is_read(job: Job) -> None:
    connection = job.connect(job.token[:7].encode())
    time.sleep(0.05)
    connection.sendall(f"{job.token[7:]} 1 node1\n".encode())
    connection.close()
    assert job.ended.get(timeout=20) == "rank 1 on node1"


@pytest.mark.parametrize(
    ("master", "nodes", "address"),
    [
        ("127.0.0.1", 1, "127.0.0.1"),
        ("127.0.0.1", 2, "127.0.0.1"),
        ("localhost", 1, "127.0.0.1"),
        ("localhost", 2, "0.0.0.0"),
    ],
)
def test_it_listens_on_the_address_of_the_job_only(master: str, nodes: int, address: str) -> None:
    with listening_socket(topology(0, 2, nodes), master) as server:
        assert server.getsockname()[0] in (address, "::1" if address.startswith("127") else "::")


def test_a_forwarded_address_falls_back_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening_socket(topology(0), "192.0.2.1") as server:  # an address of documentation (RFC 5737), not of a machine
        assert server.getsockname()[0] == "0.0.0.0"
