"""Pages name only files, modules, recipe files and pages that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dist_metaxlm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = [
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if RESULTS not in path.parents or (path.parent == RESULTS and path.name == "README.md")
]
"""Written by people; the other results are of the commit that they name."""
BASES = (
    "",
    "dist_metaxlm",
    "kernels/attention",
    "kernels/head",
    "kernels/pointwise",
    "kernels/cuda",
    "dist_metaxlm/evaluation/tasks",
)
"""Folders that pages write paths relative to."""
OTHERS = {"criterions/xlco.py", "models/infoxlm.py", "data/xlco_dataset.py", "tools/preprocess_data.py"}
"""Files of other projects."""
ENTRY_POINTS = {"dist_metaxlm.trackers"}
"""Groups of entry points, which look like modules."""
FILE = re.compile(r"`(?:[\w./-]+ )?([\w-]+(?:/[\w.-]+)*\.(?:py|sh|sbatch|cuh?|yaml|json|md))(?::\w+)?`")
MODULE = re.compile(r"\bdist_metaxlm(?:\.[a-z_]\w*)+")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
GENERATED = ("reference/", "architecture.svg", "contributing.md", "security.md", "changelog.md")
"""Pages that only the built site has (tests/architecture/site_pages.py)."""


def is_file_of_code(name: str) -> bool:
    return any((ROOT / base / name).exists() for base in BASES)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_modules_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # A path with a folder is one of this repository; a bare name may be a file of a run or of a user.
    names = {name for name in FILE.findall(text) if name.endswith((".py", ".sh", ".sbatch", ".cuh")) and "/" in name}
    missing = sorted(name for name in names - OTHERS if not is_file_of_code(name))
    assert not missing, f"{page.name} names files that do not exist: {missing}"
    modules = {
        name
        for name in {*MODULE.findall(text)} - ENTRY_POINTS
        if not is_module(name) and name.split(".")[1] not in dist_metaxlm.__all__
    }
    assert not modules, f"{page.name} names modules that do not exist: {sorted(modules)}"


def is_module(name: str) -> bool:
    """Whether a dotted name begins with a module; at most its last two parts are names inside that module."""
    parts = name.split(".")[1:]
    folder = ROOT if parts[0] in ("kernels", "ds_configs") else ROOT / "dist_metaxlm"
    for end in range(len(parts), max(0, len(parts) - 3), -1):
        path = folder.joinpath(*parts[:end])
        inside = parts[end:]
        if path.with_suffix(".py").is_file():
            return (
                not inside or re.search(rf"\b{inside[0]}\b", path.with_suffix(".py").read_text(encoding="utf-8")) is not None
            )
        if path.is_dir():
            return not inside
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    """Seen in the repository; `make docs` checks the site."""
    missing = [
        link
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists() and not link.removeprefix("../").startswith(GENERATED)
    ]
    assert not missing, f"{page.name} has dead links: {missing}"
