"""Commands are named in the form in which this process was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dist_metaxlm.invocation import SCRIPTS, as_typed, command_of, own_command, program

ROOT = Path(__file__).resolve().parents[1]
SENTENCE = "run `metaxlm pretrain --phase meta --run_dir runs/x` first, then metaxlm prepare verify"


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (
            "launch/prepare.py",
            "run `deepspeed launch/pretrain.py --phase meta --run_dir runs/x` first, then python launch/prepare.py verify",
        ),
        (
            "launch/nodes/start.py",
            "run `deepspeed launch/pretrain.py --phase meta --run_dir runs/x` first, then python launch/prepare.py verify",
        ),
        ("/venv/bin/metaxlm", SENTENCE),
        ("/venv/lib/site-packages/dist_metaxlm/cli/prepare.py", SENTENCE),
        ("/venv/lib/site-packages/dist_metaxlm/cli/benchmark/__main__.py", SENTENCE),
        (
            "/venv/lib/site-packages/dist_metaxlm/cli/pretrain.py",
            "run `deepspeed --module dist_metaxlm.cli.pretrain --phase meta --run_dir runs/x` first, "
            "then metaxlm prepare verify",
        ),
        ("prepare.py", SENTENCE),  # a script of the same name in another folder
        ("", SENTENCE),
    ],
)
def test_a_sentence_names_commands_as_typed(started: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [started])
    assert as_typed(SENTENCE) == expected


def test_scripts_are_named_by_a_path_that_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, started, expected in (
        (ROOT / "launch", "prepare.py", "python prepare.py"),
        (ROOT, str(ROOT / "launch" / "plan.py"), "python launch/prepare.py"),
        (tmp_path, str(ROOT / "launch" / "plan.py"), f"python {ROOT}/launch/prepare.py"),
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [started])
        assert as_typed("metaxlm prepare") == expected
        assert program("prepare") == "prepare.py"


def test_examples_of_launchers_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["launch/pretrain.py"])
    assert as_typed("torchrun --nproc_per_node 2 -m dist_metaxlm.cli.pretrain --phase meta") == (
        "torchrun --nproc_per_node 2 launch/pretrain.py --phase meta"
    )
    assert as_typed("metaxlm launch --hostfile hosts -- pretrain --phase meta") == (
        "python launch/nodes/start.py --hostfile hosts -- launch/pretrain.py --phase meta"
    )


def test_what_a_job_starts_is_recognised() -> None:
    assert command_of(("launch/pretrain.py", "--phase", "meta")) == ("pretrain", 1)
    assert command_of(("-m", "dist_metaxlm.cli.pretrain", "--phase", "meta")) == ("pretrain", 2)
    assert command_of(("-m", "another.module")) == (None, 2)
    assert command_of(("mine.py",)) == (None, 1)


def test_every_command_has_a_script_and_a_module() -> None:
    for name, script in SCRIPTS.items():
        shim = (ROOT / "launch" / script).read_text(encoding="utf-8")
        assert f"from dist_metaxlm.cli.{name} import main" in shim
        assert len(shim.splitlines()) < 10
        assert own_command(name)[-1] == f"dist_metaxlm.cli.{name}"
