"""Strict hostfile parser: one `host slots=N` per line; anything else is refused before any host is contacted.

The `deepspeed` command only warns if the file is missing and runs on this machine alone, and it passes a host such as
`-oProxyCommand=...` to ssh as an option. Host names follow RFC 1123 (labels of letters, digits and hyphens).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_metaxlm.errors import UserError

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
LONGEST_NAME, MOST_SLOTS = 253, 1024
_EXAMPLE = "write one line per node, such as `node1 slots=8`"


@dataclass(frozen=True)
class Host:
    """One node of a job."""

    name: str
    """Host name or IPv4 address, as the launcher will contact it."""
    slots: int
    """Ranks on it."""


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """The hosts of a file, in its order.

    Raises:
        UserError: naming the file, the line and the remedy; also for a file that is missing or names no host.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UserError(f"hostfile {path} is a folder; give a file, {_EXAMPLE}") from None
    except FileNotFoundError:
        raise UserError(
            f"hostfile {path} does not exist; give the right path, or leave --hostfile out to run on this machine alone"
        ) from None
    return parse_hostfile(content, str(path))


def parse_hostfile(content: bytes, name: str) -> tuple[Host, ...]:
    """The hosts in the bytes of a hostfile called `name`; comments begin with `#`.

    Raises:
        UserError: at the first line that is wrong.
    """
    if content.startswith(b"\xef\xbb\xbf"):
        raise UserError(f"hostfile {name}, line 1: it begins with a byte-order mark; save it as plain ASCII text")
    hosts: dict[str, tuple[Host, int]] = {}
    for number, raw in enumerate(content.split(b"\n"), start=1):
        place = f"hostfile {name}, line {number}"
        host = _host(_text(raw, place), place)
        if host is None:
            continue
        known = hosts.setdefault(host.name.lower(), (host, number))
        if known[1] != number:
            raise UserError(
                f"{place}: {host.name} is listed twice (also in line {known[1]}); keep one line per node, with all its slots"
            )
    if not hosts:
        raise UserError(f"hostfile {name} names no host; {_EXAMPLE}")
    return tuple(host for host, _ in hosts.values())


def _text(raw: bytes, place: str) -> str:
    if raw.endswith(b"\r"):
        raise UserError(f"{place}: it ends in a carriage return (a file from Windows); convert it with `sed -i 's/\\r$//'`")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise UserError(f"{place}: {raw!r} is not plain ASCII text; {_EXAMPLE}") from None


def _host(line: str, place: str) -> Host | None:
    """The host of one line, None for a blank line or a comment."""
    words = line.split("#", 1)[0].split()
    if not words:
        return None
    if len(words) != 2 or not words[1].startswith("slots="):
        raise UserError(f"{place}: {line.strip()!r} is not `host slots=N`; {_EXAMPLE}")
    check_host_name(words[0], place)
    text = words[1].removeprefix("slots=")
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST_SLOTS:
        raise UserError(
            f"{place}: slots={text} is not a number from 1 to {MOST_SLOTS}; give the ranks that run on "
            f"{words[0]}, usually its devices"
        )
    return Host(words[0], int(text))


def check_host_name(name: str, place: str) -> None:
    """Refuse invalid host names: options (`-o...`), `user@host`, spaces, shell characters.

    Raises:
        UserError: beginning with `place`.
    """
    if len(name) <= LONGEST_NAME and HOST_NAME.fullmatch(name):
        return
    reason = (
        "it begins with a hyphen, which ssh reads as an option"
        if name.startswith("-")
        else ("set the user in ~/.ssh/config instead" if "@" in name else "allowed are letters, digits, hyphens and dots")
    )
    raise UserError(f"{place}: {name!r} is not a host name ({reason}); {_EXAMPLE}")


def reorder(hosts: Sequence[Host], topology_file: str | Path) -> tuple[Host, ...]:
    """The hosts ordered by rack and switch, so that neighbouring ranks have the fastest links.

    The file has a line `host rack` or `host rack/switch` for every host; racks come in the order of their first host.

    Raises:
        UserError: when a line is wrong, or a host has none.
    """
    try:
        lines = Path(topology_file).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"topology file {topology_file} cannot be read ({error}); write lines such as `node1 rack1/switch2`"
        ) from None
    places = dict(
        _place(line, f"topology file {topology_file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.split("#", 1)[0].strip()
    )
    missing = [host.name for host in hosts if host.name not in places]
    if missing:
        raise UserError(
            f"topology file {topology_file} does not list {', '.join(missing)}; add a line `{missing[0]} rack/switch`"
        )
    return tuple(sorted(hosts, key=_by_first_seen([places[host.name] for host in hosts], places)))


def _place(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    words = line.split("#", 1)[0].split()
    if len(words) != 2:
        raise UserError(f"{where}: {line.strip()!r} is not `host rack` or `host rack/switch`")
    check_host_name(words[0], where)
    return words[0], tuple(words[1].split("/"))


def _by_first_seen(seen: Iterable[tuple[str, ...]], places: dict[str, tuple[str, ...]]) -> Callable[[Host], tuple[int, ...]]:
    """A sort key that groups hosts by common prefixes of their place, in the order in which the prefixes first occur."""
    first: dict[tuple[str, ...], int] = {}
    for number, place in enumerate(seen):
        for depth in range(1, len(place) + 1):
            first.setdefault(place[:depth], number)
    return lambda host: tuple(first[places[host.name][:d]] for d in range(1, len(places[host.name]) + 1))
