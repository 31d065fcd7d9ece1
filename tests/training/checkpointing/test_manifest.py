from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_metaxlm.storage.tensor_file import HashedFile
from dist_metaxlm.training.checkpointing.manifest import DIGEST, MANIFEST, DamagedCheckpoint, verify_manifest, write_manifest

FACTS = {"phase": "meta", "step": 10, "seconds": 12.5, "tokenizer": "аб12", "loss_scaling": {}, "adam_step": 9}


@pytest.fixture()
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000010"
    folder.mkdir()
    contents = {"weights-00000.safetensors": bytes(range(256)) * 40, "moments-00000.safetensors": b"moments"}
    sealed = {}
    for name, content in contents.items():
        file = HashedFile(folder / name)
        file.write(content)
        sealed[name] = file.finalize()
    write_manifest(folder, FACTS, sealed)
    return folder


def write_older(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest` as the format before did, which has no digest of its own."""
    older = {key: value for key, value in manifest.items() if key != DIGEST} | {"format": 1}
    (folder / MANIFEST).write_text(json.dumps(older))


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
    with pytest.raises(DamagedCheckpoint, match="does not list"):
        verify_manifest(sealed)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../weights-00000.safetensors"])
def test_paths_out_of_the_folder_are_refused(sealed: Path, name: str) -> None:
    manifest = json.loads((sealed / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    write_older(sealed, manifest)
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


def outcome(folder: Path) -> dict[str, Any] | str:
    try:
        return verify_manifest(folder)
    except DamagedCheckpoint as error:
        return str(error)


def test_every_changed_byte_of_a_manifest_is_refused_or_says_the_same(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte with one of its bits flipped, with all of them, and as each of a few others, on a copy in memory."""
    path = sealed / MANIFEST
    intact, before = path.read_bytes(), json.loads(path.read_text())
    damaged = bytearray(intact)
    monkeypatch.setattr(Path, "read_text", lambda found, encoding: damaged.decode(encoding) if found == path else None)
    harmless = 0
    for place, byte in enumerate(intact):
        for other in {*(byte ^ 1 << bit for bit in range(8)), byte ^ 255, *b' 019af"{},'} - {byte}:
            damaged[place] = other
            found = outcome(sealed)
            if isinstance(found, str):
                assert str(path) in found
                assert "\n" not in found
            else:
                assert found == before
                harmless += 1
                assert chr(byte).isspace()
                assert chr(other).isspace()
        damaged[place] = byte
    assert 0 < harmless < len(intact)
    assert verify_manifest(sealed) == before


def test_every_truncated_manifest_is_refused(sealed: Path) -> None:
    path = sealed / MANIFEST
    intact = path.read_bytes()
    for length in (0, 1, len(intact) // 2, len(intact) - 2, len(intact) - 1):
        path.write_bytes(intact[:length])
        with pytest.raises(DamagedCheckpoint, match=r"manifest\.json is not a checkpoint manifest"):
            verify_manifest(sealed)


def test_an_older_manifest_loads_and_is_refused_in_a_sentence_where_it_is_damaged(sealed: Path) -> None:
    manifest = json.loads((sealed / MANIFEST).read_text())
    write_older(sealed, manifest)
    assert verify_manifest(sealed)["step"] == 10
    # One that is said to be older and has a digest must agree with it.
    (sealed / MANIFEST).write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(DamagedCheckpoint, match="does not match the SHA-256 of its own"):
        verify_manifest(sealed)
    for files in (
        [],
        {"weights-00000.safetensors": 7},
        {"weights-00000.safetensors": {"bytes": 10240}},
        {"weights-00000.safetensors": {"bytes": "10240", "sha256": "0"}},
    ):
        write_older(sealed, {**manifest, "files": files})
        with pytest.raises(DamagedCheckpoint, match="is not a checkpoint manifest"):
            verify_manifest(sealed)
