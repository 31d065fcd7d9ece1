from __future__ import annotations

import json
from pathlib import Path

import pytest

from dist_metaxlm.storage.digest import file_digest
from dist_metaxlm.storage.tensor_file import FinishedFile
from dist_metaxlm.training.checkpointing.manifest import step_folder, weights_digest, write_manifest
from dist_metaxlm.training.run.before import stale_phases


def save(root: Path, step: int, weights: bytes) -> Path:
    folder = step_folder(root, step)
    folder.mkdir(parents=True)
    for name, content in (("weights-00000.safetensors", weights), ("progress-00000.safetensors", str(root).encode())):
        (folder / name).write_bytes(content)
    write_manifest(
        folder,
        {"step": step, "seconds": len(str(root))},
        {path.name: FinishedFile(path.stat().st_size, file_digest(path)) for path in sorted(folder.iterdir())},
    )
    return folder


def test_cross_is_stale_when_meta_is_longer_or_has_other_weights(tmp_path: Path) -> None:
    assert stale_phases(tmp_path) == {}
    first = save(tmp_path / "meta" / "checkpoints", 8, b"weights")
    assert stale_phases(tmp_path) == {}, "there is no cross"
    (tmp_path / "cross").mkdir()
    report = tmp_path / "cross" / "carry_over.json"
    report.write_text(json.dumps({"step": 8, "weights_digest": weights_digest(first)}))
    assert stale_phases(tmp_path) == {}
    report.write_text(json.dumps({"step": 8, "weights_digest": weights_digest(save(tmp_path / "other", 8, b"others!"))}))
    assert "step 8, which has been trained again since and has other weights" in stale_phases(tmp_path)["cross"]
    report.write_text(json.dumps({"step": 8, "weights_digest": weights_digest(save(tmp_path / "same", 8, b"weights"))}))
    assert stale_phases(tmp_path) == {}, "what else a checkpoint holds does not matter"
    save(tmp_path / "meta" / "checkpoints", 12, b"more")
    assert stale_phases(tmp_path) == {"cross": f"cross of {tmp_path} began with meta's step 8, and meta is now at step 12"}
    facts = json.loads(report.read_text(encoding="utf-8"))
    report.write_text(json.dumps(facts | {"phase": "meta", "pinned": True}))
    assert stale_phases(tmp_path) == {}, "a certain checkpoint was asked for, and it has not changed"
    report.write_text(json.dumps(facts | {"phase": None}))
    assert stale_phases(tmp_path) == {}, "it began with another run"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "x"}', "\\udcff"])
def test_a_report_that_says_nothing_is_passed_over(tmp_path: Path, text: str) -> None:
    save(tmp_path / "meta" / "checkpoints", 8, b"weights")
    (tmp_path / "cross").mkdir()
    (tmp_path / "cross" / "carry_over.json").write_text(text)
    assert stale_phases(tmp_path) == {}
