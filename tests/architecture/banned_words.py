"""Words that this project does not use, because the field has standard ones (docs/glossary.md)."""

from __future__ import annotations

import ast
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
    r"of which": "two sentences; or 'with', 'including'",
    r"is not to be \w+ed": "cannot be, must not be",
    r"thereof|therein|whence|hitherto": "of it, in it, from, until now",
}
"""Pattern (of whole words, any case) -> what to write instead."""
PATTERN = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(BANNED)})(?![A-Za-z])", re.IGNORECASE)


CATCH_ALL_NAMES = ("found",)
"""Names that say how a value came, not what it is."""


def offences(path: Path) -> list[tuple[int, str]]:
    """(line, words) of every banned word in a text file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(number, match.group()) for number, line in enumerate(lines, 1) for match in PATTERN.finditer(line)]


def catch_all_names(path: Path) -> list[tuple[int, str]]:
    """(line, name) of every assignment to one of `CATCH_ALL_NAMES` in a Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return sorted((node.lineno, node.id) for node in names if node.id in CATCH_ALL_NAMES)


def count(paths: Iterable[Path]) -> int:
    """How many banned words the files have."""
    return sum(len(offences(path)) for path in paths)
