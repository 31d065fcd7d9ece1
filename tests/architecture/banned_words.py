"""Words that this project does not use, because the field has standard ones (docs/glossary.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

BANNED = {
    r"lifelines?": "peer monitor, connection to the first rank",
    r"farewells?": "goodbye message, shutdown",
    r"roll[ -]calls?|calls? (?:the|its) roll|_call_roll": "waits for all ranks",
    r"travel(?:l?ing|s)?": "sent, stage inputs, shipped",
    r"who sits where": "rank placement",
    r"whoever": "whatever, the one that",
    r"anew": "again, from scratch",
    r"(?:ranks?|hosts?|nodes?) (?:meet|meets|believe|believes)": "connect, rendezvous; assume",
    r"a room (?:of|per|imports)|rooms by|every room|the rooms": "package",
    r"the floors?|floor plan|test of floors|which floor": "layer",
    r"the house": "architecture",
    r"in good order": "gracefully",
    r"(?:is|are) not missed": "is not reported as failed",
    r"knows nothing of": "does not import, does not depend on",
    r"go(?:es)? round": "wraps around",
    r"by the name of": "named",
    r"to be had": "available",
    r"is it not|be it ": "plain statement",
    r"lies? beside|stands? beside": "next to, in the same folder",
    r"the like": "and similar",
    r"thereof|therein|whence|hence|thus|hitherto": "so, from, until now",
}
"""Pattern (of whole words, any case) -> what to write instead."""
PATTERN = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(BANNED)})(?![A-Za-z])", re.IGNORECASE)


def offences(path: Path) -> list[tuple[int, str]]:
    """(line, words) of every banned word in a text file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(number, match.group()) for number, line in enumerate(lines, 1) for match in PATTERN.finditer(line)]


def count(paths: Iterable[Path]) -> int:
    """How many banned words the files have."""
    return sum(len(offences(path)) for path in paths)
