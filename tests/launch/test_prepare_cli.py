"""launch/prepare.py as people call it: text, JSON, help, one clear sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).parents[2] / "launch" / "prepare.py"

MPIRUN = Path(sys.executable).with_name("mpirun")


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    words = ["year", "good", "river", "mountain", "summer", "window", "garden", "letter", "number", "question", "paper"]
    lines = (f"The {words[n % 11]} of {n} had a {words[n * 5 % 7]} near {words[n * 3 % 10]}." for n in range(300))
    (folder / "en.txt").write_text("\n\n".join(lines))
    recipe = {
        "name": "tiny",
        "model": {"layers": 1, "hidden": 8, "heads": 1, "ffn": 8, "vocab_size": 320},
        "data": {"directory": "data", "text": {"en": ["en.txt"]}},
        "phases": {
            "meta": {
                "steps": 1,
                "sequence_length": 16,
                "objectives": [{"name": "mlm", "batch_tokens": 16}],
                "learning_rate": {"peak": 0.001},
            }
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_two_at_once_build_once_and_the_result_verifies(folder: Path) -> None:
    both = [start(folder, "--recipe", "tiny.yaml", "--json") for _ in range(2)]
    outcomes = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    for out, _ in outcomes:
        found = json.loads(out)
        assert (found["languages"], found["documents"], found["command"]) == (1, 300, "store")
    assert sum("store ready" in said for _, said in outcomes) == 1
    checked = call(folder, "--recipe", "tiny.yaml", "data.directory=data", "verify")
    assert checked.returncode == 0, checked.stderr
    assert "verified_files: 6" in checked.stdout


def _mpi() -> bool:
    """Whether mpirun and an MPI library are there."""
    probe = "from mpi4py import MPI"
    return MPIRUN.exists() and not subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode


@pytest.mark.skipif(not _mpi(), reason="no MPI")
def test_two_mpi_ranks_write_what_one_process_writes(folder: Path) -> None:
    assert call(folder, "--recipe", "tiny.yaml", "--workers", "1").returncode == 0
    command = [
        str(MPIRUN),
        "-n",
        "2",
        sys.executable,
        str(SCRIPT),
        "store",
        "--recipe",
        "tiny.yaml",
        "--json",
        "data.directory=mpi",
    ]
    outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["documents"] == 300
    for path in (folder / "data" / "store").iterdir():
        assert (folder / "mpi" / "store" / path.name).read_bytes() == path.read_bytes()
    (folder / "bad.txt").write_bytes(b"bad \xff byte")
    command[-1:] = ["data.directory=mpi2", "data.text.de=[bad.txt]"]
    outcome = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert outcome.returncode == 2
    assert "bad.txt, line 1, byte 5 (0xFF) is not UTF-8" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_tokenizers_report_and_a_sample_are_printed(folder: Path) -> None:
    assert call(folder, "--recipe", "tiny.yaml").returncode == 0
    report = json.loads(call(folder, "tokenizer", "--recipe", "tiny.yaml", "--json").stdout)
    assert set(report["languages"]["en"]) == {
        "bytes",
        "tokens_per_word",
        "bytes_per_token",
        "unknown_rate",
        "byte_rate",
        "vocabulary_share",
    }
    plain = call(folder, "tokenizer", "--recipe", "tiny.yaml").stdout
    assert "  en: bytes " in plain
    shown = call(folder, "inspect", "--recipe", "tiny.yaml", "--phase", "meta", "--sample", "12345", "--json")
    found = json.loads(shown.stdout)
    assert (found["sample"], found["language"], found["tokens"], found["files"]) == (12345, "en", 16, ["en.txt"])
    outcome = call(folder, "inspect", "--recipe", "tiny.yaml", "--phase", "cross")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr == "error: recipe tiny has no phase 'cross'; it has meta\n"


def test_bad_input_is_one_sentence_and_exit_2(folder: Path) -> None:
    outcome = call(folder, "--recipe", "tiny.yaml", "data.directory=other", "data.text.en=[none.txt]")
    assert outcome.returncode == 2
    assert outcome.stderr == (
        "error: data.text.en: 'none.txt' names no file; correct the path or glob (it is relative to the working directory)\n"
    )
    assert not (folder / "other").exists()
    outcome = call(folder, "verfy", "--recipe", "tiny.yaml")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: unknown command 'verfy', did you mean verify?")


def test_help_has_examples(folder: Path) -> None:
    outcome = call(folder, "--help")
    assert outcome.returncode == 0
    assert "launch/prepare.py verify" in outcome.stdout
