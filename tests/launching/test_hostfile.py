from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_metaxlm.errors import UserError
from dist_metaxlm.launching.hostfile import HOST_NAME, Host, parse_hostfile, read_hostfile, reorder


def test_hosts_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two nodes\nnode2 slots=8\n\nnode1.example.org   slots=4  # the old one\n10.0.0.7 slots=1\n")
    assert read_hostfile(path) == (Host("node2", 8), Host("node1.example.org", 4), Host("10.0.0.7", 1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "names no host"),
        (b"# nothing\n\n", "names no host"),
        (b"a slots=1\na slots=1\n", "line 2: a is listed twice (also in line 1)"),
        (b"a slots=1\nA slots=2\n", "line 2: A is listed twice"),
        (b"a slots=-1\n", "line 1: slots=-1"),
        (b"a slots=0\n", "slots=0"),
        (b"a slots=x\n", "slots=x"),
        (b"a slots=\n", "slots= is not"),
        (b"a slots=99999\n", "slots=99999"),
        (b"ok slots=1\na b slots=1\n", "line 2: 'a b slots=1' is not `host slots=N`"),
        (b"a\n", "line 1"),
        (b"a 4\n", "line 1"),
        (b"\xef\xbb\xbfa slots=1\n", "byte-order mark"),
        (b"a slots=1\r\n", "carriage return"),
        (b"-oProxyCommand=id slots=1\n", "ssh reads as an option"),
        (b"host;id slots=1\n", "'host;id' is not a host name"),
        (b"$(id) slots=1\n", "not a host name"),
        (b"root@a slots=1\n", "~/.ssh/config"),
        (b"a..b slots=1\n", "not a host name"),
        (b"a- slots=1\n", "not a host name"),
        (b"`id` slots=1\n", "not a host name"),
        (b"a,b slots=1\n", "not a host name"),
        (b"n\xc3\xb6de slots=1\n", "not plain ASCII"),
        (b"%h slots=1\n", "not a host name"),
        (b"[1-4] slots=1\n", "not a host name"),
        (b"a" * 300 + b" slots=1\n", "not a host name"),
        (b"a slots=1 slots=2\n", "line 1"),
    ],
)
def test_whatever_is_no_hostfile_is_refused_with_its_line(content: bytes, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_hostfile(content, "hosts")
    assert words in str(caught.value)
    assert "hostfile hosts" in str(caught.value)


def test_missing_files_and_folders_are_fatal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist; give the right path"):
        read_hostfile(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a folder"):
        read_hostfile(tmp_path)


@given(st.binary(max_size=60))
def test_any_bytes_are_hosts_or_one_sentence(content: bytes) -> None:
    try:
        hosts = parse_hostfile(content, "hosts")
    except UserError as error:
        hosts = ()
        message = str(error)
    else:
        message = "hosts"
    assert "hosts" in message
    assert all(HOST_NAME.fullmatch(host.name) and host.slots > 0 for host in hosts)


def test_hosts_of_one_rack_and_switch_become_neighbours(tmp_path: Path) -> None:
    hosts = [Host(name, 2) for name in ("a", "b", "c", "d", "e")]
    path = tmp_path / "topology"
    path.write_text("a r2/s1\nb r1/s1\nc r2/s2\nd r1/s1  # same switch as b\ne r2/s1\n")
    assert [host.name for host in reorder(hosts, path)] == ["a", "e", "c", "b", "d"]
    path.write_text("a r1\nb r1\n")
    with pytest.raises(UserError, match="does not list c, d, e"):
        reorder(hosts, path)
    path.write_text("a r1 s1\n")
    with pytest.raises(UserError, match="line 1"):
        reorder(hosts, path)
