"""The batch script in a real Slurm: both phases in one job, which saves and goes back into the queue when asked."""

from __future__ import annotations

import json
from pathlib import Path

from cluster import Cluster
from jobs import PYTHON, train, wait_for


def test_sbatch_runs_both_phases_and_goes_back_into_the_queue_when_asked(
    cluster: Cluster, tiny_recipe: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    def command(*words: str) -> str:
        return train(cluster, list(words), **slurm, PYTHON=PYTHON).stdout

    # The checkpoint interval is longer than the phase: only the signal makes one in the middle.
    steps = ("phases.meta.steps=200", "phases.cross.steps=6", "training.checkpoint_interval=1000")
    job = command(
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--ntasks-per-node=1",
        f"--output={tmp_path}/job.out",
        "launch/nodes/slurm.sbatch",
        "--recipe",
        str(tiny_recipe),
        "--run_dir",
        str(tmp_path / "run"),
        *steps,
    ).strip()
    metrics, log = tmp_path / "run" / "meta" / "metrics.jsonl", tmp_path / "job.out"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 1, log)
    command("scancel", "--signal=USR1", job)
    wait_for(lambda: "goes back into the queue" in log.read_text(), log)
    # Slurm lets a job wait for two minutes before it starts again; some seconds will do. At once would be too early: the
    # nodes still refuse what the first start was allowed, and Slurm ends a job that they refuse.
    wait_for(lambda: "Restarts=1" in command("scontrol", "show", "job", job), log)
    wait_for(lambda: "JobState=PENDING" in command("scontrol", "show", "job", job), log)
    command("scontrol", "update", f"JobId={job}", "StartTime=now+10")
    wait_for(lambda: (tmp_path / "run" / "cross" / "done.json").is_file(), log)
    text = log.read_text()
    assert text.count("resuming after step") == 1
    assert "phase meta finished: 200 steps" in text
    assert json.loads((tmp_path / "run" / "cross" / "done.json").read_text())["ranks"] == 2
