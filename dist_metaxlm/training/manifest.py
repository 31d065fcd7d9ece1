"""The manifest of a checkpoint: what its files must be, verified before any tensor reaches the model.

Nothing below us notices a flipped bit (torch.load, safetensors, DCP and DeepSpeed load it silently): the digests are ours.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedCheckpoint(Exception):
    """A checkpoint that must not be loaded; the text says which file and why."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON durably: to a temporary name, synchronised, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Seal a folder: names, sizes and digests of all its files, and `facts`. Written last, it marks completeness."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    write_json(folder / MANIFEST, {"format": FORMAT, **facts, "files": files})


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every file of a sealed folder against its manifest and return the manifest.

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
        if file_digest(path) != expected["sha256"]:
            raise DamagedCheckpoint(f"{path} has another SHA-256 than its manifest says")
    strangers = {path.name for path in folder.iterdir()} - names - {MANIFEST}
    if strangers:
        raise DamagedCheckpoint(f"{folder} holds {sorted(strangers)[0]}, which its manifest does not know")
    return manifest


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or not isinstance(manifest["files"], dict):
            raise DamagedCheckpoint(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{folder} has no {MANIFEST}: it was never finished") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is not a checkpoint manifest") from None
    return manifest
