"""The manifest of a checkpoint: sizes and digests of its files, verified before any tensor is loaded.

torch.load, safetensors, DCP and DeepSpeed load a flipped bit silently, so this project adds digests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from dist_metaxlm.storage.atomic import sync, write_text
from dist_metaxlm.storage.digest import file_digest
from dist_metaxlm.storage.tensor_file import FinishedFile

FORMAT = 2
_WITHOUT_DIGEST = 1
"""The previous format, without `DIGEST`; if such a manifest has one anyway, it must match."""
MANIFEST = "manifest.json"
DIGEST = "sha256"
"""Manifest field with the SHA-256 of all other fields, which detects a flipped digit of a step or a digest."""


class FileEntry(TypedDict):
    """A file of a checkpoint."""

    bytes: int
    sha256: str


class HeldoutFact(TypedDict):
    """The held-out loss at a checkpoint."""

    bits_per_byte: float
    sample: str
    """Names the text."""


class Facts(TypedDict, total=False):
    """Fields of a manifest. Older checkpoints lack some."""

    format: int
    phase: str
    step: int
    """Optimiser steps done."""
    tokens: int
    seconds: float
    tokenizer: str
    """SHA-256 of the tokenizer."""
    vocab_size: int
    loss_scaling: dict[str, float]
    """Of deepspeed_adapter/loss_scaling.py."""
    schedule_offset: int
    adam_step: int
    """Updates that Adam has made."""
    ranks: int
    """Ranks that wrote it."""
    optimizer: str
    """`optimizer.name`; absent for AdamW."""
    guards: dict[str, Any]
    """Of training/loop/guards.py."""
    heldout: HeldoutFact
    average: list[str]
    """Names of the checkpoints that it is the average of; absent for trained ones."""
    files: dict[str, FileEntry]
    sha256: str
    """`DIGEST`."""


class DamagedCheckpoint(Exception):
    """A checkpoint that must not be loaded; the text says which file and why."""


def write_json(path: Path, value: object) -> None:
    """Write JSON durably, see `write_text`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_manifest(folder: Path, facts: Facts, sealed: Mapping[str, FinishedFile]) -> None:
    """Write the manifest of a folder whose files are on the disk: their names, sizes and digests, and `facts`. It is written
    last and marks completeness.
    """
    present = {path.name for path in folder.iterdir()}
    assert present == set(sealed), f"{folder} holds {sorted(present)} instead of {sorted(sealed)}"
    files = {name: {"bytes": sealed[name].bytes, "sha256": sealed[name].sha256} for name in sorted(sealed)}
    manifest = {"format": FORMAT, **facts, "files": files}
    write_json(folder / MANIFEST, {**manifest, DIGEST: _own_digest(manifest)})
    sync(folder)


def read_facts(folder: Path) -> Facts | None:
    """The manifest of a checkpoint folder, without a check of its files; None if it is missing or damaged."""
    try:
        return _read(folder)
    except DamagedCheckpoint:
        return None


def weights_digest(folder: Path) -> str | None:
    """One digest of a checkpoint's weights from its manifest, without reading them; None without a manifest."""
    try:
        files = _read(folder)["files"]
    except DamagedCheckpoint:
        return None
    named = sorted((name, file["sha256"]) for name, file in files.items() if name.startswith("weights-"))
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _own_digest(manifest: Mapping[str, object]) -> str:
    """SHA-256 of a manifest without its `DIGEST`, in canonical JSON, independent of the file's formatting."""
    rest = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def step_folder(root: Path, step: int) -> Path:
    """The checkpoint folder of a step."""
    return root / f"step-{step:08d}"


def list_steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending."""
    if not root.is_dir():
        return []
    names = [path.name.removeprefix("step-") for path in root.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def best_step(root: Path, until: int | None = None) -> tuple[int, float] | None:
    """(step, bits per byte) of the checkpoint with the lowest held-out loss, the earlier of equal ones; None without any.

    Only checkpoints of the newest held-out sample are compared; those after step `until` do not count.
    """
    known = []
    for step in list_steps(root):
        try:
            facts = _read(step_folder(root, step)).get("heldout")
        except DamagedCheckpoint:
            continue
        if facts is not None and math.isfinite(facts["bits_per_byte"]) and (until is None or step <= until):
            known.append((step, float(facts["bits_per_byte"]), facts["sample"]))
    same = [(value, step) for step, value, sample in known if sample == known[-1][2]]
    return min(same)[::-1] if same else None


def verify_manifest(folder: Path, part: int = 0, parts: int = 1) -> Facts:
    """Check every file of a finished folder against its manifest and return the manifest.

    Names and sizes are always checked. Digests, which need the files' content, are checked for share `part` of `parts` only:
    the ranks of a node divide them, and no rank may load anything before all have verified their share.

    Raises:
        DamagedCheckpoint: naming the first file that is missing, unknown, or has another size or content.
    """
    manifest = _read(folder)
    names = set(manifest["files"])
    for name, expected in manifest["files"].items():
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing or not a plain file of this folder")
        if path.stat().st_size != expected["bytes"]:
            raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}")
    strangers = {path.name for path in folder.iterdir()} - names - {MANIFEST}
    if strangers:
        raise DamagedCheckpoint(f"{folder} holds {sorted(strangers)[0]}, which its manifest does not list")
    by_size = sorted(names, key=lambda name: (-manifest["files"][name]["bytes"], name))
    for name in by_size[part::parts]:
        if file_digest(folder / name) != manifest["files"][name]["sha256"]:
            raise DamagedCheckpoint(f"{folder / name} does not match the SHA-256 in its manifest")
    return manifest


def _read(folder: Path) -> Facts:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] not in (FORMAT, _WITHOUT_DIGEST):
            raise DamagedCheckpoint(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
        if DIGEST not in manifest and manifest["format"] == FORMAT:
            raise DamagedCheckpoint(f"{path} lacks the SHA-256 of its own content")
        if manifest.get(DIGEST, _own_digest(manifest)) != _own_digest(manifest):
            raise DamagedCheckpoint(f"{path} does not match the SHA-256 of its own content")
        files = manifest["files"]
        if not isinstance(files, dict) or not all(
            isinstance(file["bytes"], int) and isinstance(file["sha256"], str) for file in files.values()
        ):
            raise TypeError
    except FileNotFoundError:
        why = f"has no {MANIFEST}: it was never finished" if folder.is_dir() else "does not exist"
        raise DamagedCheckpoint(f"{folder} {why}") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is not a checkpoint manifest") from None
    return cast(Facts, manifest)
