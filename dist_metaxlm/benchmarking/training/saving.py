"""Training stalls at a checkpoint: blocking against background saves, interleaved in one run.

Both write the same engine to the same disk with the same code; the first waits for the commit, the second trains on random
tokens meanwhile, so the slowdown of those steps is measured too. The copy to host memory is also timed separately: it is
the stall when no forward and backward pass hides it.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.sharding import tensor_shard
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import all_reduce, barrier, pick_device, process_group, rank
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import MaskedLM, Recipe
from dist_metaxlm.training.checkpointing.manifest import step_folder
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver
from dist_metaxlm.training.engine.engine import build_engine, set_learning_rate
from dist_metaxlm.training.run.environment import environment


def measure_saving(recipe_name: str, overrides: list[str], scratch: Path, repeats: int, tokens: int) -> dict[str, Any]:
    """Stalls of blocking and background saves of a recipe's model with AdamW's moments, on all ranks of the job.

    Args:
        recipe_name: shipped recipe or file; `overrides` as on the command line.
        scratch: folder on the disk to measure; files are removed afterwards.
        repeats: saves of either kind, after one of each as warm-up.
        tokens: tokens of a rank's training step.
    """
    recipe = load_recipe(recipe_name, overrides)
    topology = detect_topology()
    device = pick_device(topology)
    with process_group(topology, device, recipe.parallel.tensor):
        encoder = Encoder(recipe.model, recipe.seed, tensor_shard(recipe.parallel.sequence))
        parameters = sum(param.numel() for param in Encoder(recipe.model, recipe.seed).parameters())
        engine = build_engine(PretrainingModel(encoder), recipe, device, groups().data_size)
        folder = _shared_folder(scratch, device)
        rows = _alternate(engine, _training_step(engine, recipe, tokens, device), folder, repeats, device)
    stalls, copies = (
        [row[name] / row["blocking_seconds"] for row in rows] for name in ("background_stall_seconds", "copy_seconds")
    )
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    interval = recipe.training.checkpoint_interval * medians["step_seconds"]
    return {
        "model": recipe.name,
        "parameters": parameters,
        "ranks": topology.world_size,
        "device": device.type,
        "layout": recipe.parallel.model_dump(),
        "repeats": repeats,
        "tokens_per_rank": tokens,
        **medians,
        "stall_share_of_blocking": statistics.median(stalls),
        "stall_share_min": min(stalls),
        "stall_share_max": max(stalls),
        "copy_share_of_blocking": statistics.median(copies),
        "copy_share_min": min(copies),
        "copy_share_max": max(copies),
        "checkpoint_interval": recipe.training.checkpoint_interval,
        "stall_share_of_interval": medians["background_stall_seconds"] / interval,
        "blocking_share_of_interval": medians["blocking_seconds"] / interval,
        "rows": rows,
        "environment": environment(),
    }


def _alternate(
    engine: Engine, train: Callable[[], None], folder: Path, repeats: int, device: torch.device
) -> list[dict[str, float]]:
    """One row per repeat: a blocking save, steps alone, then a background save with concurrent steps."""
    rows = []
    try:
        with (
            CheckpointSaver(folder / "blocking", engine, 1, background=False) as blocking,
            CheckpointSaver(folder / "background", engine, 1, background=True) as background,
        ):
            for repeat in range(repeats + 1):
                row = {"blocking_seconds": _seconds(lambda: blocking.save({"step": repeat}, {}), device)}  # noqa: B023
                row["megabytes"] = (
                    sum(file.stat().st_size for file in step_folder(folder / "blocking", repeat).iterdir()) / 1e6
                )
                alone = [_seconds(train, device) for _ in range(3)]
                begun, stalled = time.perf_counter(), background.stalled
                background.save({"step": 2 * repeat}, {})
                beside = [_seconds(train, device)]
                while not background.finished(device):
                    beside.append(_seconds(train, device))
                row["slowed_seconds"] = sum(beside) - len(beside) * statistics.median(alone)
                background.wait()
                row["background_seconds"] = time.perf_counter() - begun
                row["background_stall_seconds"] = _slowest(background.stalled - stalled, device)
                stalled = background.stalled
                background.save({"step": 2 * repeat + 1}, {})
                background.wait_for_copy()
                row["copy_seconds"] = _slowest(background.stalled - stalled, device)
                background.wait()
                row["step_seconds"] = statistics.median(alone)
                row["step_seconds_beside_a_save"] = statistics.mean(beside)
                row["steps_beside_a_save"] = len(beside)
                rows.append(row)
    finally:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return rows[1:]


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    """Seconds of `action` on the slowest rank."""
    barrier()
    begun = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _slowest(time.perf_counter() - begun, device)


def _slowest(seconds: float, device: torch.device) -> float:
    """The longest of the ranks' times."""
    return float(all_reduce(torch.tensor([seconds], dtype=torch.float64, device=device), "max"))


def _training_step(engine: Engine, recipe: Recipe, tokens: int, device: torch.device) -> Callable[[], None]:
    """Forward, backward and update on random tokens in windows of 128."""
    window = min(128, recipe.model.max_positions, tokens)
    windows = max(1, tokens // window)
    generator = torch.Generator().manual_seed(groups().data_rank)
    ids = torch.randint(recipe.model.vocab_size, (windows * window,), generator=generator)
    targets = torch.arange(0, ids.numel(), 7)
    batch = PackedBatch(
        ids,
        torch.arange(window).repeat(windows),
        torch.arange(windows + 1, dtype=torch.int32) * window,
        window,
        torch.arange(windows),
        torch.zeros(windows, dtype=torch.int64),
        targets,
        ids[targets],
    ).to(device)
    objective = MaskedLM(batch_tokens=ids.numel())

    def step() -> None:
        engine.module.train()
        loss, _, _ = engine(batch, objective, 0)
        engine.backward(loss / targets.numel(), scale_wrt_gas=False)
        set_learning_rate(engine, 1e-5)
        engine.step()

    return step


def _shared_folder(scratch: Path, device: torch.device) -> Path:
    """A new folder under `scratch`, the same for all ranks."""
    stamp = torch.tensor([time.time_ns() if rank() == 0 else 0], device=device)
    folder = scratch / f"saving-{int(all_reduce(stamp, 'max'))}"
    if rank() == 0:
        folder.mkdir(parents=True)
    barrier()
    return folder
