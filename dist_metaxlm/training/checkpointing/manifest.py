"""The manifest of a checkpoint: what its files must be, verified before any tensor reaches the model.

Nothing below us notices a flipped bit (torch.load, safetensors, DCP and DeepSpeed load it silently): the digests are ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_metaxlm.reporting.metrics import write_text
from dist_metaxlm.storage.tensor_file import FinishedFile

FORMAT = 2
_WITHOUT_DIGEST = 1
"""The format before: the same without `DIGEST`; where such a manifest has one all the same, it must agree."""
MANIFEST = "manifest.json"
DIGEST = "sha256"
"""Field of a manifest for the SHA-256 of all the others: a flipped digit of a step or a digest is damage too."""


class DamagedCheckpoint(Exception):
    """A checkpoint that must not be loaded; the text says which file and why."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably, see `write_text`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def write_manifest(folder: Path, facts: dict[str, Any], sealed: Mapping[str, FinishedFile]) -> None:
    """Seal a folder whose files are on the disk: their names, sizes and digests, and `facts`. Written last, it marks
    completeness.
    """
    found = {path.name for path in folder.iterdir()}
    assert found == set(sealed), f"{folder} holds {sorted(found)} instead of {sorted(sealed)}"
    files = {name: {"bytes": sealed[name].bytes, "sha256": sealed[name].sha256} for name in sorted(sealed)}
    manifest = {"format": FORMAT, **facts, "files": files}
    write_json(folder / MANIFEST, {**manifest, DIGEST: _own_digest(manifest)})
    sync_folder(folder)


def weights_digest(folder: Path) -> str | None:
    """One digest of a checkpoint's weights by its manifest, without reading them; None where there is no manifest."""
    try:
        files = _read(folder)["files"]
    except DamagedCheckpoint:
        return None
    named = sorted((name, file["sha256"]) for name, file in files.items() if name.startswith("weights-"))
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _own_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its `DIGEST`, as JSON that is the same however the file is laid out."""
    rest = {key: value for key, value in manifest.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: without it a power cut may lose a file that was itself synchronised."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def list_steps(root: Path) -> list[int]:
    """Steps of which there is a checkpoint folder, ascending."""
    if not root.is_dir():
        return []
    names = [path.name.removeprefix("step-") for path in root.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def verify_manifest(folder: Path, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Check every file of a sealed folder against its manifest and return the manifest.

    Names and sizes are always checked; of the digests, which means reading the files, only share `part` of `parts`: the
    ranks of a node divide them, and none may load anything before all of them have found their share intact.

    Raises:
        DamagedCheckpoint: naming the first file that is missing, foreign, of another size or of another content.
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
        raise DamagedCheckpoint(f"{folder} holds {sorted(strangers)[0]}, which its manifest does not know")
    by_size = sorted(names, key=lambda name: (-manifest["files"][name]["bytes"], name))
    for name in by_size[part::parts]:
        if file_digest(folder / name) != manifest["files"][name]["sha256"]:
            raise DamagedCheckpoint(f"{folder / name} has another SHA-256 than its manifest says")
    return manifest


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] not in (FORMAT, _WITHOUT_DIGEST):
            raise DamagedCheckpoint(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
        if DIGEST not in manifest and manifest["format"] == FORMAT:
            raise DamagedCheckpoint(f"{path} has lost the SHA-256 of its own content")
        if manifest.get(DIGEST, _own_digest(manifest)) != _own_digest(manifest):
            raise DamagedCheckpoint(f"{path} has another content than its own SHA-256 says")
        files = manifest["files"]
        if not isinstance(files, dict) or not all(
            isinstance(file["bytes"], int) and isinstance(file["sha256"], str) for file in files.values()
        ):
            raise TypeError
    except FileNotFoundError:
        why = f"has no {MANIFEST}: it was never finished" if folder.is_dir() else "is not there"
        raise DamagedCheckpoint(f"{folder} {why}") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is not a checkpoint manifest") from None
    return manifest
