from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.affinity import bind_cores, slice_of, threads
from dist_metaxlm.parallel.rendezvous import rendezvous
from dist_metaxlm.parallel.topology import Topology, free_port


@pytest.fixture(autouse=True)
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    number = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    for name in ("DIST_METAXLM_JOB", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return number


def topology(rank: int, size: int) -> Topology:
    return Topology(rank, size, 0, 1, "environment", tuple(range(size)), tuple(f"node{n + 1}" for n in range(size)))


def outcomes(*places: Topology, seconds: float = 20.0, facts: Sequence[dict[str, str]] = ()) -> list[object]:
    """What `meet` gives or says to each, met in threads."""
    found: list[object] = [None] * len(places)

    def run(index: int) -> None:
        try:
            found[index] = rendezvous(places[index], seconds, facts[index] if facts else None)
        except UserError as error:
            found[index] = str(error)

    workers = [threading.Thread(target=run, args=(index,)) for index in range(len(places))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def test_all_come() -> None:
    first, second = outcomes(topology(0, 2), topology(1, 2))
    first.set("word", "given")  # type: ignore[attr-defined]
    assert second.get("word") == b"given"  # type: ignore[attr-defined]


def test_who_does_not_come_is_named_to_all_who_did() -> None:
    started = time.monotonic()
    first, second = outcomes(topology(0, 4), topology(2, 4), seconds=2.0)
    assert time.monotonic() - started < 2.0 + 2.0
    assert str(first).startswith("2 of 4 ranks did not join within 2 s: node2, node4 (rank 1, 3)")
    assert second == first


def test_ranks_of_another_hostfile_are_refused() -> None:
    first, second = outcomes(topology(0, 2), topology(1, 3))
    assert "was started for 3 ranks, rank 0 for 2" in str(first)
    assert second == first


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("recipe", "copy the recipe file to all nodes"),
        ("data", "copy data.directory to all nodes"),
        ("deepspeed", "install the same version on all nodes"),
    ],
)
def test_ranks_that_differ_in_what_they_train_on_are_refused(name: str, remedy: str) -> None:
    alike = {"recipe": "aa", "data": "bb", "deepspeed": "1.0"}
    found = outcomes(*(topology(rank, 3) for rank in range(3)), facts=[alike, alike, {**alike, name: "other"}])
    host = socket.gethostname()
    assert set(map(str, found)) == {f"{name} is other on {host} (rank 2) and {alike[name]} on {host} (rank 0); {remedy}"}
    assert not any(isinstance(store, str) for store in outcomes(topology(0, 2), topology(1, 2), facts=[alike, alike]))


def test_a_taken_port_is_named_with_its_holder(port: int) -> None:
    with socket.socket() as listener:
        listener.bind(("", port))
        listener.listen()
        with pytest.raises(UserError, match=rf"port {port} of .* is taken by process {os.getpid()} \("):
            rendezvous(topology(0, 2), 5.0)


def test_jobs_on_one_port_do_not_join_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIST_METAXLM_JOB", "first")
    found: list[object] = []
    worker = threading.Thread(target=lambda: found.extend(outcomes(topology(0, 2), seconds=4.0)))
    worker.start()
    time.sleep(0.5)
    monkeypatch.setenv("DIST_METAXLM_JOB", "second")
    stranger = outcomes(topology(1, 2), seconds=1.0)[0]
    assert "did not answer within 1 s" in str(stranger)
    worker.join()
    assert "1 of 2 ranks did not join" in str(found[0])


def test_a_port_that_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "70000")
    with pytest.raises(UserError, match="MASTER_PORT='70000' is not a port"):
        rendezvous(topology(0, 2), 1.0)


def test_slices_of_cores_follow_memory_and_do_not_overlap() -> None:
    ordered = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    slices = [slice_of(Topology(r, 4, r, 4, "single"), set(range(16)), ordered) for r in range(4)]
    assert slices == [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7], [12, 13, 14, 15]]
    assert slice_of(Topology(1, 2, 1, 2, "single"), {2, 3, 4, 5}, []) == [4, 5]


def test_a_binding_by_the_launcher_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: bound.append(cores))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    place = Topology(2, 4, 2, 4, "slurm")
    assert bind_cores(place) == (4, 5)
    assert threads(place) == 2
    assert not bound
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert bind_cores(Topology(1, 2, 1, 2, "single")) == tuple(bound[0]) == (4, 5, 6, 7)  # type: ignore[arg-type]
    assert threads(place) == 2
    assert bind_cores(Topology(1, 8, 1, 8, "single")) == tuple(range(8)), "a slice of one core is not bound"


def test_threads_follow_the_user_and_not_the_default_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    alone, one_of_two = Topology(0, 1, 0, 1, "single"), Topology(0, 2, 0, 2, "torchrun")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert (threads(alone), threads(one_of_two)) == (8, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (threads(alone), threads(one_of_two)) == (1, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (threads(alone), threads(one_of_two)) == (3, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads(alone) == 8, "a list is for nested regions, which torch has not"


def test_a_first_rank_that_its_own_address_does_not_lead_to_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setattr("dist_metaxlm.parallel.rendezvous._OWN_STORE_SECONDS", 1.0)
    with pytest.raises(UserError, match="set MASTER_ADDR to an address of this machine; RANK=0 and WORLD_SIZE=2 announce 2"):
        rendezvous(topology(0, 2), 300.0)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match=r"no torchrun answers .* unset RANK, WORLD_SIZE and TORCHELASTIC_\*"):
        rendezvous(topology(1, 2), 300.0)


def test_a_rank_that_nobody_joins_or_answers_names_its_variables() -> None:
    (alone,) = outcomes(topology(0, 2), seconds=1.0)
    assert "RANK=0 and WORLD_SIZE=2 announce 2 ranks: if no launcher set them, " in str(alone)
    (second,) = outcomes(topology(1, 2), seconds=1.0)
    assert "unset RANK and WORLD_SIZE" in str(second)
    two = outcomes(topology(0, 3), topology(1, 3), seconds=2.0)
    assert "unset RANK" not in str(two[0]), "others have joined, so a launcher started them"


def test_a_single_rank_needs_no_address_of_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    rendezvous(topology(0, 1), 300.0).set("word", "given")
