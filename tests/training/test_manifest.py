from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_metaxlm.training.manifest import MANIFEST, DamagedCheckpoint, verify_manifest, write_manifest
from dist_metaxlm.training.tensor_file import HashedFile


@pytest.fixture()
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000010"
    folder.mkdir()
    contents = {"weights-00000.safetensors": bytes(range(256)) * 40, "moments-00000.safetensors": b"moments"}
    sealed = {}
    for name, content in contents.items():
        file = HashedFile(folder / name)
        file.write(content)
        sealed[name] = file.seal()
    write_manifest(folder, {"step": 10}, sealed)
    return folder


def test_intact_folder_verifies(sealed: Path) -> None:
    assert verify_manifest(sealed)["step"] == 10


@pytest.mark.parametrize("bit", range(0, 256 * 40 * 8, 9973))
def test_any_flipped_bit_is_found(sealed: Path, bit: int) -> None:
    path = sealed / "weights-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"weights-00000.*SHA-256"):
        verify_manifest(sealed)


def test_truncation_absence_and_strangers_are_found(sealed: Path) -> None:
    path = sealed / "moments-00000.safetensors"
    path.write_bytes(b"moment")
    with pytest.raises(DamagedCheckpoint, match="6 bytes instead of 7"):
        verify_manifest(sealed)
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match="missing"):
        verify_manifest(sealed)
    path.write_bytes(b"moments")
    (sealed / "stranger").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="does not know"):
        verify_manifest(sealed)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../weights-00000.safetensors"])
def test_paths_out_of_the_folder_are_refused(sealed: Path, name: str) -> None:
    manifest = json.loads((sealed / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (sealed / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match="not a plain file of this folder"):
        verify_manifest(sealed)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99, "files": {}}', "not json"])
def test_a_broken_manifest_is_refused(sealed: Path, content: str) -> None:
    (sealed / MANIFEST).write_text(content)
    with pytest.raises(DamagedCheckpoint, match="manifest"):
        verify_manifest(sealed)


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match="never finished"):
        verify_manifest(tmp_path)
