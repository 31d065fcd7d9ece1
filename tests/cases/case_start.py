"""Rows 5, 8 and 11: DeepSpeed's file, streams, and the environment of a launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from case import Case, put, refused

from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.parallel.process_group import compute_on_cpu
from dist_metaxlm.parallel.topology import detect_topology, forget_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run.announcement import warmup_warning

PREFIXES = ("SLURM_", "PMI_", "OMPI_", "MPI_", "MV2_", "PET_", "TORCHELASTIC_", "CROSS_", "LOCAL_", "MASTER_", "KUBERNETES_")
NAMES = ("RANK", "WORLD_SIZE", "JOB_COMPLETION_INDEX")


# Row 5: every field of DeepSpeed's file is read, recorded, or refused by name.
def deepspeed(config: Any) -> Callable[[Path], dict[str, Any]]:
    """What the recipe takes from a file: stage, offload, clipping, and the fields that only DeepSpeed reads."""

    def run(folder: Path) -> dict[str, Any]:
        file = put(folder / "ds.json", config if isinstance(config, str) else json.dumps(config))
        recipe = follow_file(load_recipe("quickstart"), str(file))
        layout = recipe.parallel
        found = {"stage": layout.zero_stage, "offload": layout.offload_optimizer, "clip": recipe.optimizer.clip_norm}
        return {**found, **(recipe.deepspeed or {})}

    return run


def zero(**fields: Any) -> Callable[[Path], dict[str, Any]]:
    return deepspeed({"zero_optimization": fields})


def taken(stage: int = 0, offload: bool = False, clip: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "offload": offload, "clip": clip, **more}


# Row 8: printing never undoes work.
def printed(encoding: str) -> Callable[[Path], str]:
    def run(folder: Path) -> str:
        code = "from dist_metaxlm.errors import run_command\nrun_command(lambda: print('\\u6c49 \\xe9 \\u2501'))"
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
        return f"{done.returncode} {done.stdout.decode('ascii', 'replace').strip()}"

    return run


# Row 11: the environment says what cannot be.
def start(**variables: str) -> Callable[[Path], str]:
    """Launcher, rank and ranks of a process with these variables of launchers and no others."""

    def run(folder: Path) -> str:
        before = dict(os.environ)
        for name in before:
            if name in NAMES or name.startswith(PREFIXES):
                del os.environ[name]
        os.environ.update(variables)
        try:
            found = detect_topology()
            return f"{found.launcher} {found.rank} of {found.world_size}"
        finally:
            forget_topology()
            os.environ.clear()
            os.environ.update(before)

    return run


def computed_on(accelerator: str) -> Callable[[Path], str]:
    """DS_ACCELERATOR of a rank without a CUDA device."""

    def run(folder: Path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DS_ACCELERATOR", accelerator)
            compute_on_cpu()
            return os.environ["DS_ACCELERATOR"]

    return run


def warned(steps: int, warmup: int) -> Callable[[Path], bool]:
    rate = load_recipe("quickstart").phases["meta"].learning_rate.model_copy(update={"warmup_steps": warmup})
    return lambda folder: "never reaches its peak" in (warmup_warning("meta", steps, rate) or "")


STEP = {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
CASES = [
    Case(5, "gradient_clipping", deepspeed({"gradient_clipping": 0.5}), taken(clip=0.5)),
    Case(5, "offload_optimizer", zero(stage=2, offload_optimizer={"device": "cpu"}), taken(2, True)),
    Case(5, "byte order mark", deepspeed('\ufeff{"gradient_clipping": 2}'), taken(clip=2.0)),
    Case(5, "unknown key", deepspeed({"zero_optimisation": {"stage": 3}}), refused("did you mean zero_optimization")),
    Case(5, "unknown key in a section", zero(stage=3, offload_optimiser={}), refused("did you mean offload_optimizer")),
    Case(5, "a key with dots", deepspeed({"zero_optimization.stage": 2}), refused("knows no dots", '"zero_optimization"')),
    Case(5, "an empty key", deepspeed({"": 1}), refused("empty key")),
    Case(5, "a key twice", deepspeed('{"gradient_clipping": 1, "gradient_clipping": 2}'), refused("clipping' twice")),
    Case(5, "old name", zero(stage=2, cpu_offload=True), refused("cpu_offload", '"offload_optimizer": {"device": "cpu"}')),
    Case(5, "a section that is a value", zero(offload_optimizer=True), refused("it is a section")),
    Case(5, "a stage in quotes", zero(stage="1"), refused("not an integer")),
    Case(5, "a huge number", deepspeed({"steps_per_print": 10**400}), refused("steps_per_print", "not an integer")),
    Case(5, "no number", deepspeed('{"gradient_clipping": NaN}'), refused("NaN is not a number")),
    Case(5, "a number of 5000 digits", deepspeed('{"a": ' + "9" * 5000 + "}"), refused("too large to read")),
    Case(5, "deep nesting", deepspeed("[" * 100_000), refused("too large to read")),
    Case(5, "fields of the recipe", deepspeed({"train_batch_size": 8, "optimizer": {"type": "A"}}), refused("optimizer")),
    Case(8, "ASCII", printed("ascii"), "0 \\u6c49 \\xe9 \\u2501"),
    Case(8, "Latin-1", printed("latin-1"), "0 \\u6c49 \ufffd \\u2501"),
    Case(11, "nothing set", start(), "single 0 of 1"),
    Case(
        11,
        "a batch script of several tasks",
        start(SLURM_PROCID="0", SLURM_NTASKS="4"),
        refused("no srun started this process", "env -u SLURM_PROCID"),
    ),
    Case(
        11,
        "a shell of one task among four",
        start(**STEP, SLURM_NTASKS="4", SLURM_STEP_NUM_TASKS="1"),
        refused("SLURM_STEP_NUM_TASKS=1"),
    ),
    Case(11, "a task that is no number", start(**{**STEP, "SLURM_PROCID": "x"}, SLURM_NTASKS="4"), refused("PROCID='x'")),
    Case(11, "tasks that are no number", start(**STEP, SLURM_NTASKS="four"), refused("SLURM_NTASKS='four'")),
    Case(11, "RANK and WORLD_SIZE left over", start(RANK="0", WORLD_SIZE="2"), refused("WORLD_SIZE=2", "unset RANK")),
    Case(11, "the only rank, left over", start(RANK="0", WORLD_SIZE="1"), "shell 0 of 1"),
    Case(11, "a rank beyond the ranks", start(RANK="1", WORLD_SIZE="1"), refused("RANK=1 does not fit")),
    Case(11, "empty variables", start(RANK="", WORLD_SIZE=""), "single 0 of 1"),
    Case(11, "ranks that are no number", start(RANK="0", WORLD_SIZE="x"), refused("WORLD_SIZE='x'")),
    *(
        Case(11, f"{name} is no number", start(**{name: "x"}), refused(f"{name}='x'"))
        for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE")
    ),
    Case(11, "a negative number of ranks", start(PMI_SIZE="-3"), refused("PMI_SIZE=-3")),
    Case(11, "a pod that is no number", start(PET_NNODES="2", PET_NODE_RANK="x"), refused("PET_NODE_RANK='x'")),
    Case(11, "pods that are no number", start(PET_NNODES="x", PET_NODE_RANK="0"), refused("PET_NNODES='x'")),
    Case(11, "an index without its number", start(JOB_COMPLETION_INDEX="0", MASTER_ADDR="m"), refused("WORLD_SIZE is not")),
    Case(11, "another accelerator", computed_on("cuda"), refused("DS_ACCELERATOR=cuda is set", "no CUDA device")),
    Case(11, "an empty accelerator", computed_on(""), "cpu"),
    Case(11, "warm-up as long as the phase", warned(8, 8), True),
    Case(11, "warm-up longer than the phase", warned(8, 2000), True),
    Case(11, "warm-up within the phase", warned(8, 7), False),
]
