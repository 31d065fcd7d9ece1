"""What a supervisor starts again, when it gives up, and how it stops; a small program takes the place of the training."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dist_metaxlm.errors import EXIT_AGAIN, EXIT_BUG, EXIT_DONE, EXIT_USER, UserError
from dist_metaxlm.launching import supervisor
from dist_metaxlm.launching.supervised_run import SupervisedRun, local_command, pretrain_words, resuming
from dist_metaxlm.launching.supervisor import Command, Supervisor

PROGRAM = """
import json, os, pathlib, signal, subprocess, sys, time
phase = pathlib.Path(sys.argv[1])
plan = json.loads((phase / "plan.json").read_text())
number = len(list(phase.glob("attempt-*")))
(phase / f"attempt-{number}").write_text(os.environ["ATTEMPT"])
for word in plan[number].split():
    if word.startswith("save="):
        (phase / "checkpoints" / f"step-{int(word[5:]):08d}").mkdir(parents=True)
    elif word == "hang":
        folder = phase / "hangs" / str(number)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"sentence": "rank 1 on node2 is suspended"}))
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "rank":  # in a session of its own, as torchrun starts it, and deaf to the end of its launcher
        command = [sys.executable, "-S", "-c", "import time; time.sleep(120)"]
        rank = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (phase / f"rank-{number}").write_text(str(rank.pid))
    elif word == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        (phase / "ready").touch()
        time.sleep(60)
    else:
        sys.exit(int(word))
"""


def supervise(folder: Path, *plan: str) -> tuple[int, list[str], int]:
    """(exit code, messages, attempts) of a supervisor whose command does what `plan` says in each attempt."""
    phase = folder / "run" / "meta"
    phase.mkdir(parents=True)
    (phase / "plan.json").write_text(json.dumps(plan))
    (phase / "metrics.jsonl").write_text('{"step": 20, "loss": 1.0, "losses": {}}\n')
    messages: list[str] = []

    def build(attempt: int) -> Command:
        return [sys.executable, "-S", "-c", PROGRAM, str(phase)], {**os.environ, "ATTEMPT": str(attempt)}

    run = SupervisedRun(
        ["launch/pretrain.py", "--phase", "meta", "--run_dir", str(folder / "run"), "training.log_interval=2"]
    )
    code = Supervisor(run, build, messages.append, back_off=(0.0,)).run()
    return code, messages, len(list(phase.glob("attempt-*")))


def test_deaths_with_a_new_checkpoint_in_between_do_not_count(tmp_path: Path) -> None:
    code, messages, attempts = supervise(tmp_path, "save=1 kill", "74", "save=2 1", "kill", "save=3 kill", "0")
    assert (code, attempts) == (EXIT_DONE, 6)
    assert "exit code 137 after step 20; going on from the checkpoint of step 1" in messages[0]


def test_three_deaths_without_a_checkpoint_end_with_steps_and_samples(tmp_path: Path) -> None:
    code, messages, attempts = supervise(tmp_path, "kill", "1", "hang 75", "0")
    assert (code, attempts) == (EXIT_BUG, 3)
    assert "3 attempts without a new checkpoint" in messages[-1]
    assert "(rank 1 on node2 is suspended); samples of steps 21 to 22: mlm " in messages[-1]


@pytest.mark.parametrize("code", [EXIT_DONE, EXIT_USER, EXIT_AGAIN])
def test_a_finished_refused_or_stopped_run_is_not_started_again(code: int, tmp_path: Path) -> None:
    assert supervise(tmp_path, str(code), "0") == (code, [], 1)


def test_a_hang_is_started_again_although_it_ends_with_75(tmp_path: Path) -> None:
    code, messages, attempts = supervise(tmp_path, "hang 75", "0")
    assert (code, attempts) == (EXIT_DONE, 2)
    assert "rank 1 on node2 is suspended" in messages[0]


def test_ranks_in_sessions_of_their_own_end_before_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.2)
    assert supervise(tmp_path, "rank kill", "rank kill", "0")[0] == EXIT_DONE
    pids = [int(path.read_text()) for path in (tmp_path / "run" / "meta").glob("rank-*")]
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    running = [path for path in states if path.exists() and path.read_text().rpartition(")")[2].split()[0] not in "ZX"]
    assert (len(pids), running) == (2, [])


def test_sigterm_is_passed_on_and_ends_the_supervisor(tmp_path: Path) -> None:
    def stop() -> None:
        deadline = time.monotonic() + 30
        while not (tmp_path / "run" / "meta" / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop, daemon=True).start()
    assert supervise(tmp_path, "wait", "0") == (EXIT_AGAIN, [], 1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_each_attempt_has_a_port_of_its_own() -> None:
    words = ["torchrun", "--nproc_per_node", "2", "--master_port=29600", "launch/pretrain.py"]
    assert local_command(words, "python", 2) == [*words[:3], "--master_port", "29602", "launch/pretrain.py"]
    first = local_command(["deepspeed", "launch/pretrain.py"], "python", 0)
    assert first[:2] == ["deepspeed", "--master_port"]
    assert first[3:] == ["launch/pretrain.py"]
    standalone = ["torchrun", "--standalone", "launch/pretrain.py"]
    assert local_command(standalone, "python", 1) == standalone
    with pytest.raises(UserError, match="x is not a port"):
        local_command(["torchrun", "--master_port", "x"], "python", 0)


@pytest.mark.parametrize(
    "command",
    [
        "pretrain --phase meta",
        "deepspeed --num_accelerators 2 --module dist_metaxlm.cli.pretrain --phase meta",
        "srun -n 2 python -u -m dist_metaxlm.cli.pretrain --phase meta",
        "torchrun launch/pretrain.py --phase meta",
    ],
)
def test_the_arguments_of_the_training_are_recognised(command: str) -> None:
    assert pretrain_words(command.split()) == ["--phase", "meta"]


def test_another_command_is_refused_and_resume_counts_once() -> None:
    with pytest.raises(UserError, match=r"restarts `metaxlm pretrain`, which is not in `deepspeed other\.py`"):
        pretrain_words(["deepspeed", "other.py"])
    assert resuming(["a", "--resume", "never", "b", "--resume=7", "c"]) == ["a", "b", "c"]
