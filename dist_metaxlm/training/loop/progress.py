"""Progress of a phase: everything that a resumed run needs besides weights and optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.parallel.process_group import all_reduce
from dist_metaxlm.recipe.schema import Objective, PhaseConfig
from dist_metaxlm.training.checkpointing.checkpoint import Checkpoint
from dist_metaxlm.training.checkpointing.manifest import Facts


class Progress:
    """Step, tokens, seconds, samples per language, and which tokens the model has seen so far.

    The data cursor is not here: it follows from the step (data/steps.py).
    """

    def __init__(
        self, phase: str, tokenizer_hash: str, vocab_size: int, device: torch.device, schedule_offset: int = 0
    ) -> None:
        """`schedule_offset`: steps of the learning-rate schedule before the phase begins."""
        self.phase, self.tokenizer_hash = phase, tokenizer_hash
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.schedule_offset = schedule_offset
        self.counts: dict[str, torch.Tensor] = {}  # of training/loop/metrics.py
        self.guards: dict[str, Any] = {}  # of training/loop/guards.py
        self.scaling: dict[str, float] = {}  # of deepspeed_adapter/loss_scaling.py
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)

    def see(self, batch: PackedBatch) -> None:
        """Remember the tokens that were input or target: only these get gradients of their own."""
        self.seen[batch.tokens] = True
        self.seen[batch.target_tokens] = True

    def advance(self, phase: PhaseConfig, objectives: Sequence[tuple[Objective, float, int]]) -> None:
        """Count one optimiser step. Tokens count the masked-LM objectives; pairs of sentences have no fixed number."""
        self.step += 1
        self.tokens += sum(objective.tokens_per_step for objective, *_ in objectives)

    def facts(self) -> Facts:
        """Fields for the manifest of a checkpoint."""
        return {
            "phase": self.phase,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokenizer": self.tokenizer_hash,
            "vocab_size": self.seen.numel(),
            "loss_scaling": self.scaling,
            "guards": self.guards,
            "schedule_offset": self.schedule_offset,
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors for progress.safetensors (collective)."""
        seen = all_reduce(self.seen.to(torch.uint8), "max")
        return {"seen": seen.cpu(), **self.counts}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint's progress."""
        tensors = checkpoint.tensors("progress")
        self.step, self.tokens = checkpoint.step, int(checkpoint.facts["tokens"])
        self.seconds = float(checkpoint.facts["seconds"])
        # A meta phase that was lengthened since must not change it; older checkpoints lack it.
        self.schedule_offset = int(checkpoint.facts.get("schedule_offset", self.schedule_offset))
        self.guards = dict(checkpoint.facts.get("guards", {}))
        self.counts = {name: tensors[name] for name in ("realised", "interval") if name in tensors}
        self.seen |= tensors["seen"].bool().to(self.seen.device)
