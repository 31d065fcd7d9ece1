"""A situation with what must come of it, and helpers of the modules that list them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError

KINDS = {
    1: "text split where its format does not split it",
    2: "gettext: one format, two readers",
    3: "a corpus of many files is never perfect",
    4: "what transformers makes of XLM-R folders",
    5: "the DeepSpeed file is a recipe too",
    6: "comments of one format, labels of a declared set",
    7: "the right shape without the truth in it",
    8: "streams and their encodings",
    9: "normalisation in one place",
    10: "paths and formats as people have them",
    11: "the environment says what cannot be",
    12: "offload where an objective misses parameters",
}
"""Row of the table of faults -> its kind."""
BREAKS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""What Python takes for ends of lines beside \\n and \\r, and no format of ours does."""
WORDS = "the lamp in the harbour is green and the boat is small"


@dataclass(frozen=True)
class Case:
    """One situation."""

    row: int
    name: str
    run: Callable[[Path], Any]
    expected: Any

    def observe(self, folder: Path) -> Any:
        """What comes of it: a value, or of a UserError `refused` where its sentence has all expected words, else it."""
        try:
            return self.run(folder)
        except UserError as error:
            words = self.expected[1:] if isinstance(self.expected, tuple) and self.expected[:1] == ("refused",) else ()
            return self.expected if words and all(word in str(error) for word in words) else f"refused: {error}"


def refused(*words: str) -> tuple[str, ...]:
    """An expected UserError whose sentence has these words."""
    return ("refused", *words)


def put(path: Path, content: str | bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
