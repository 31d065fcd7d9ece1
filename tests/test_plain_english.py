"""The words of code and pages are the field's own: none of `banned_words.BANNED` (docs/glossary.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "architecture"))

import banned_words

ROOT = Path(__file__).resolve().parents[1]
EXEMPT = ("tests/architecture/banned_words.py", "tests/test_plain_english.py", "docs/results/")
"""The list itself, its test, and files that runs have written."""
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".sbatch", ".cu", ".cuh", ".h", "Makefile")


def texts() -> list[Path]:
    """Every text file of the repository: names, docstrings, comments, messages and pages alike."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.splitlines() if name.endswith(SUFFIXES) and not name.startswith(EXEMPT)]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_no_banned_word() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {words!r}" for path in texts() for number, words in banned_words.offences(path)
    ]
    files = {line.split(":")[0] for line in lines}
    assert not lines, f"{len(lines)} banned words in {len(files)} files:\n" + "\n".join(lines)


def test_no_catch_all_name() -> None:
    code = [path for path in texts() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {name}" for path in code for number, name in banned_words.catch_all_names(path)
    ]
    assert not lines, f"{len(lines)} names that say nothing:\n" + "\n".join(lines)


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("A Lifeline.\nThe ranks meet at port 1.\nA room per task\nRooms on the disk, headroom, flooring.\n")
    assert [number for number, _ in banned_words.offences(path)] == [1, 2, 3]
    code = tmp_path / "a.py"
    code.write_text("if (found := 1):\n    found, other = found.parts\nresult = found\n")
    assert [number for number, _ in banned_words.catch_all_names(code)] == [1, 2]
