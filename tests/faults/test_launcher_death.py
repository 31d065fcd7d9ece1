"""No rank outlives its launcher, and a stop that is asked of the launcher saves first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dist_metaxlm.launcher_watch import GRACE_SECONDS
from dist_metaxlm.parallel.topology import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", "PORT"],
    "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", "PORT"],
}


def begin(launcher: str, recipe: Path, run: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A launcher in a process group of its own whose two ranks train, and these ranks."""
    command = [str(free_port()) if word == "PORT" else word for word in LAUNCHERS[launcher]]
    words = ["--phase", "meta", "--recipe", str(recipe), "--run_dir", str(run), "phases.meta.steps=1000000"]
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [*command, str(ROOT / "launch" / "pretrain.py"), *words, "training.checkpoint_interval=1000000"],
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=(run.parent / "stderr").open("wb"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )
    deadline = time.monotonic() + 300
    while not (run / "meta" / "metrics.jsonl").is_file() or not (run / "meta" / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline, "no step was made"
        assert process.poll() is None, (run.parent / "stderr").read_text(encoding="utf-8")[-2000:]
        time.sleep(0.2)
    every = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in every if "pretrain.py" in " ".join(child.cmdline()) and "LOCAL_RANK" in child.environ()]
    ranks = [child for child in ranks if child.environ().get("RANK") in ("0", "1")]
    assert len(ranks) == 2
    return process, ranks


def end(process: subprocess.Popen[bytes], ranks: list[psutil.Process]) -> None:
    for rank in ranks:
        if rank.is_running():
            rank.kill()
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_end_with_their_launcher(launcher: str, number: signal.Signals, tiny_recipe: Path, tmp_path: Path) -> None:
    process, ranks = begin(launcher, tiny_recipe, tmp_path / "run")
    try:
        process.send_signal(number)
        alive = psutil.wait_procs(ranks, timeout=GRACE_SECONDS + 2)[1]
        assert not alive, "ranks outlive their launcher by more than 10 s"
        assert list((tmp_path / "run" / "meta" / "checkpoints").glob("step-*")), "nothing was saved"
    finally:
        end(process, ranks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_whole_group_saves_and_stops(
    launcher: str, number: signal.Signals, tiny_recipe: Path, tmp_path: Path
) -> None:
    process, ranks = begin(launcher, tiny_recipe, tmp_path / "run")
    try:
        os.killpg(process.pid, number)
        alive = psutil.wait_procs(ranks, timeout=30)[1]
        assert not alive
        assert list((tmp_path / "run" / "meta" / "checkpoints").glob("step-*")), "nothing was saved"
    finally:
        end(process, ranks)
