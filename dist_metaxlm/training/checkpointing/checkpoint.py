"""Layout-independent checkpoints: safetensors by logical parameter name, committed by rename, verified before use.

A checkpoint is a folder `step-00000200` with `weights-RRRRR.safetensors` (fp32), `moments-RRRRR.safetensors` (Adam's
moments as `exp_avg.NAME`, `exp_avg_sq.NAME`), `progress-00000.safetensors` and a manifest; if an objective has weights
of its own, `objectives-RRRRR.safetensors`, and with xlco its momentum weights and queue, `momentum-RRRRR.safetensors`.
Each tensor is whole in the file of one rank RRRRR, without the vocabulary's padding (`saving` writes them). So
the ranks share the writing, and any number of ranks in any layout can read it, one tensor at a time.
"""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.errors import UserError
from dist_metaxlm.modeling.sharding import is_block_matrix
from dist_metaxlm.parallel.process_group import all_reduce, rank, world_size
from dist_metaxlm.storage.tensor_file import TensorsOnDisk
from dist_metaxlm.training.checkpointing.manifest import DamagedCheckpoint, Facts, list_steps, step_folder, verify_manifest
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    folder: Path
    facts: Facts
    """From the manifest: step, phase, tokenizer hash, Adam's step count."""

    @property
    def step(self) -> int:
        """Optimiser steps done when it was saved."""
        return int(self.facts["step"])

    def tensors(self, *kinds: str) -> Mapping[str, torch.Tensor]:
        """The tensors of the files `KIND-*.safetensors` (weights, objectives, moments, momentum, progress), each read on
        access."""
        return TensorsOnDisk([self.folder / name for name in sorted(self.facts["files"]) if name.split("-")[0] in kinds])


def save_checkpoint(root: Path, engine: Engine, facts: Facts, progress: dict[str, torch.Tensor], keep: int) -> None:
    """Write one checkpoint and wait for it (collective); see `CheckpointSaver.save`."""
    with CheckpointSaver(root, engine, keep, background=False) as saver:
        saver.save(facts, progress)


def newest_checkpoint(root: Path, step: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies (or the one of `step`), the same on all ranks (collective).

    Damaged ones are skipped with a line on standard error.
    """
    steps = (list_steps(root) if step is None else [step]) if rank() == 0 else []
    while (candidate := _agreed(steps.pop() if steps else -1, "max")) >= 0:
        facts = _verified(step_folder(root, candidate))
        if facts is not None:
            return Checkpoint(step_folder(root, candidate), facts)
    return None


def checkpoint_to_resume(root: Path, resume: str) -> Checkpoint | None:
    """The checkpoint that --resume selects (`auto`, `never` or a step); None to start from scratch (collective).

    Raises:
        UserError: if the given step has no intact checkpoint.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return newest_checkpoint(root)
    checkpoint = newest_checkpoint(root, int(resume))
    if checkpoint is None:
        steps = ", ".join(map(str, list_steps(root))) or "none"
        raise UserError(
            f"--resume {resume}: no intact {step_folder(root, int(resume))}; give an existing step "
            f"({steps}), or --resume auto"
        )
    return checkpoint


def _verified(folder: Path) -> Facts | None:
    """The manifest of an intact folder; None on all ranks if one of them detected damage, which it logs.

    The ranks of a node share the reading. Every node reads all files, because it may have its own disk, and then has them
    in its page cache for loading.
    """
    facts, damage = None, ""
    try:
        facts = verify_manifest(folder, *_share_of_node(platform.node()))
    except DamagedCheckpoint as error:
        damage = str(error)
    first = _agreed(rank() if damage else world_size(), "min")
    if first == rank():
        logger.warning("checkpoint skipped: %s", damage)
    return facts if first == world_size() else None


def _share_of_node(node: str) -> tuple[int, int]:
    """Number of this rank among the ranks of its node, and how many these are (collective).

    Counted here instead of using the launcher's LOCAL_RANK: with a wrong value some files would not be verified.
    """
    names = torch.zeros(world_size(), dtype=torch.int64)
    names[rank()] = int.from_bytes(hashlib.sha256(node.encode()).digest()[:7], "big")
    names = all_reduce(names.to(_device()), "max").cpu()
    same = (names == names[rank()]).nonzero().flatten().tolist()
    return same.index(rank()), len(same)


def _agreed(value: int, op: str) -> int:
    """The largest ("max") or smallest ("min") of the ranks' values (collective)."""
    return int(all_reduce(torch.tensor([value], device=_device()), op))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() and world_size() > 1 else "cpu"


def optimizer_of(checkpoint: Checkpoint) -> str:
    """The optimiser (`optimizer.name`) that a checkpoint was saved with."""
    return str(checkpoint.facts.get("optimizer", "adamw"))


def same_moments(before: str, now: str) -> bool:
    """Whether two optimisers store the same moments: AdamW and StableAdamW do, Muon has its own for the blocks' matrices."""
    return before == now or "muon" not in (before, now)


def saved_moments(engine: Engine, checkpoint: Checkpoint) -> Callable[[str, str], torch.Tensor | None]:
    """(parameter, moment) -> what `engine` continues from, whole; None where the checkpoint has no such parameter.

    Between optimisers the moments of the blocks' matrices mean different things: after a change they start at zero.
    """
    tensors = checkpoint.tensors("moments")
    changed = not same_moments(optimizer_of(checkpoint), optimizer_state.optimizer_name(engine))

    def moment_of(name: str, moment: str) -> torch.Tensor | None:
        value = tensors.get(f"{moment}.{name}")
        if value is not None and changed and is_block_matrix(name, value.shape):
            return torch.zeros_like(value)
        return value

    return moment_of


def restore_moments(engine: Engine, checkpoint: Checkpoint) -> None:
    """The optimiser's moments of a checkpoint into an engine, in any layout (collective); see `saved_moments`."""
    moment_of = saved_moments(engine, checkpoint)
    for name, param in optimizer_state.named_parameters(engine):
        for moment in optimizer_state.MOMENTS:
            value = moment_of(name, moment)
            assert value is not None, f"{checkpoint.folder} has no {moment} of {name}"
            optimizer_state.set_full_moment(engine, name, param, moment, value)


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Load a checkpoint's weights, optimizer state and objective memory into an engine of any layout (collective)."""
    weights = checkpoint.tensors("weights", "objectives")
    optimizer_state.set_adam_step(engine, int(checkpoint.facts["adam_step"]))
    for name, param in optimizer_state.named_parameters(engine):
        optimizer_state.set_full_weight(engine, name, param, weights[name])
    restore_moments(engine, checkpoint)
    memory = getattr(engine.module, "memory", None)
    if memory is not None:
        memory.restore(checkpoint.tensors("momentum"), checkpoint.tensors("progress"))
