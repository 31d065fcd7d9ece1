"""What commit ef87fa4 wrote is still read, and the same recipe still gives the same losses (tests/golden/expected.json).

The folder holds a corpus of two made-up languages, the data that that commit prepared from it, and the checkpoint of step 4
of its `cross` phase. Losses are compared to 1e-5, because processors round differently; files are compared byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent
ROOT = GOLDEN.parents[1]
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


def command(script: str, *arguments: str, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, ROOT / "launch" / script, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(phase_folder: Path) -> list[dict[str, Any]]:
    lines = (phase_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_curve(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["step"] for row in actual] == [row["step"] for row in expected]
    for row, known in zip(actual, expected, strict=True):
        assert row["loss"] == pytest.approx(known["loss"], rel=1e-5)
        assert row["losses"] == pytest.approx(known["losses"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(known["grad_norm"], rel=1e-4)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".idx")}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the folder to work in: prepared data, the recipe, and the run that stopped at step 4 of `cross`."""
    for name in ("corpus", "data", "run"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    shutil.copy(GOLDEN / "recipe.yaml", tmp_path)
    return tmp_path


def test_the_same_text_gives_the_same_store(place: Path) -> None:
    shutil.move(place / "data" / "tokenizer.model", place / "tokenizer.model")
    shutil.rmtree(place / "data")
    command("prepare.py", "--recipe", "recipe.yaml", "data.tokenizer.path=tokenizer.model", cwd=place)
    assert files(place / "data" / "store") == files(GOLDEN / "data" / "store")


def test_both_phases_give_the_same_losses(place: Path) -> None:
    for phase in ("meta", "cross"):
        command("pretrain.py", "--phase", phase, "--recipe", "recipe.yaml", "--run_dir", "fresh", cwd=place)
        assert_same_curve(rows(place / "fresh" / phase), EXPECTED[phase])


def test_its_checkpoint_resumes_to_the_same_losses(place: Path) -> None:
    output = command("pretrain.py", "--phase", "cross", "--recipe", "recipe.yaml", "--run_dir", "run", cwd=place)
    assert "resuming after step 4" in output
    assert_same_curve(rows(place / "run" / "cross"), EXPECTED["cross"])


def test_its_checkpoint_is_exported_to_the_same_bytes(place: Path) -> None:
    command("convert.py", "export", "--run_dir", "run", "--phase", "cross", "--output", "export", cwd=place)
    digests = {name: hashlib.sha256((place / "export" / name).read_bytes()).hexdigest() for name in EXPECTED["export"]}
    assert digests == EXPECTED["export"]
