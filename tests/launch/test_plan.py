"""launch/plan.py as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/plan.py"), *arguments], capture_output=True, text=True, check=False
    )


def test_json_is_one_object_with_every_layout():
    done = run("--recipe", "xlmr-large", "--cluster", "16x8xH100", "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert facts["recipe"] == "xlmr-large"
    assert facts["cluster"]["nodes"] == 16
    assert facts["phases"]["meta"]["tokens"] == 62500 * 4194304
    assert len(facts["layouts"]) > 20
    assert facts["layouts"][0]["fits"] is True
    assert "parallel.zero_stage=1" in facts["layouts"][0]["overrides"]


def test_the_table_and_an_override():
    done = run("--recipe", "xlmr-base", "--cluster", "8xA100-40GB", "--top", "3", "phases.joint.steps=10")
    assert done.returncode == 0
    assert "278.3 M parameters" in done.stdout
    assert "joint: 10 steps" in done.stdout
    assert "parallel.zero_stage=1" in done.stdout


def test_mistakes_are_one_sentence_and_exit_2():
    for arguments, said in (
        (("--recipe", "xlmr-base", "--cluster", "8"), "16x8xH100"),
        (("--recipe", "xlmr-bose", "--cluster", "8xH100"), "xlmr-base"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
