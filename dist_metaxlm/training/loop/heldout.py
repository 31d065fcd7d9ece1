"""The held-out loss every few steps, and what checkpoints record of it; the caller supplies the text (`HeldoutMeasure`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.optimizer_state import whole_weight
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.records import HeldoutFigures, Record
from dist_metaxlm.training.checkpointing.manifest import Facts
from dist_metaxlm.training.loop.probing import undisturbed

ReadLosses = Callable[[PackedBatch, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""(batch, flat positions [M], ids [M]) -> negative log likelihoods [M] fp32; None on a stage that is not the last.
Collective."""
HeldoutMeasure = Callable[[ReadLosses, torch.device], HeldoutFigures]
"""Computes figures from the model's losses, equal on all ranks; `bits_per_byte` and `languages` are displayed."""
OpenHeldout = Callable[[Recipe, str], HeldoutMeasure]
"""Opens the held-out text of (recipe, phase) before training starts. Errors: UserError if there is none."""


class HeldoutMeter:
    """Measures held-out text every `interval` steps and at the end of a phase; never with interval 0."""

    def __init__(self, engine: Engine, interval: int, measure: HeldoutMeasure | None) -> None:
        assert measure is not None or not interval
        self._engine, self._interval, self._measure = engine, interval, measure
        self._step = -1
        self._figures: HeldoutFigures | None = None

    def at(self, step: int, last: bool) -> Record:
        """Metrics after `step` steps: {`heldout`: figures and the `seconds` they took}, or empty (collective).

        No gradient, no dropout, no random number: later steps are bitwise equal to those of a run without it.
        """
        if self._measure is None or not self._interval or (step % self._interval and not last):
            return {}
        with undisturbed(self._engine) as seconds:
            figures = self._measure(partial(masked_losses, self._engine), self._engine.device)
        self._step, self._figures = step, figures
        return {"heldout": {**figures, "seconds": seconds()}}

    def facts(self, step: int) -> Facts:
        """For the manifest of the checkpoint of `step`: {`heldout`: bits_per_byte, sample}; empty if not measured then."""
        if step != self._step or self._figures is None:
            return {}
        return {"heldout": {"bits_per_byte": self._figures["bits_per_byte"], "sample": self._figures["sample"]}}


def masked_losses(engine: Engine, batch: PackedBatch, places: torch.Tensor, answers: torch.Tensor) -> torch.Tensor | None:
    """Negative log likelihoods [M] of ids `answers` [M] at the flat positions `places` [M]; see `ReadLosses`."""
    states = engine.module.states_after(batch, None)
    if states is None:
        return None
    encoder = engine.module.encoder
    with whole_weight(encoder.embedding.tokens.weight):
        losses: torch.Tensor = encoder.masked_lm_loss(states, places, answers)
    return losses
