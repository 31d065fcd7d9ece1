"""Probes the model every few steps without changing it; the caller supplies the measurement (`Probe`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.records import ProbeFigures, Record

ReadStates = Callable[[PackedBatch, int | None], torch.Tensor | None]
"""(batch, layer) -> states [T, H] after that block, or with layer None the final ones; None on a pipeline stage that is not
the last. Collective."""
Probe = Callable[[ReadStates, torch.device], ProbeFigures]
"""Computes figures from the model's states, equal on all ranks; `retrieval` and `languages` are displayed."""
OpenProbe = Callable[[Recipe], Probe]
"""Opens a probe's data before training starts. Errors: UserError if there is too little data."""


class Probing:
    """Runs a probe every `interval` steps and at the end of a phase; never with interval 0."""

    def __init__(self, engine: Engine, interval: int, probe: Probe | None) -> None:
        assert probe is not None or not interval
        self._engine, self._interval, self._probe = engine, interval, probe

    def at(self, step: int, last: bool) -> Record:
        """Metrics after `step` steps: {`probe`: figures and the `seconds` it took}, or empty (collective).

        No gradient, no dropout, no random number: later steps are bitwise equal to those of a run without it.
        """
        if self._probe is None or not self._interval or (step % self._interval and not last):
            return {}
        with undisturbed(self._engine) as seconds:
            figures = self._probe(self._engine.module.states_after, self._engine.device)
        return {"probe": {**figures, "seconds": seconds()}}


@contextmanager
def undisturbed(engine: Engine) -> Iterator[Callable[[], float]]:
    """Measure the model without changing it: no gradient, no dropout. Yields a function for the seconds since the start."""
    module, device = engine.module, engine.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # exclude queued work of the steps from the measured time
    start = time.monotonic()
    training = module.training
    module.eval()
    try:
        # not inference_mode: a weight that ZeRO-3 gathers inside it could take part in no backward pass afterwards
        with torch.no_grad():
            yield lambda: time.monotonic() - start
    finally:
        module.train(training)
