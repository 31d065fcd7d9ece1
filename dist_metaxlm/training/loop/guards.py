"""Guards of optimiser steps: bad steps are skipped and counted, and several in a row send the phase back to a checkpoint.

A step is bad if its loss or gradient is not finite, or if its gradient norm is a spike and the recipe skips spikes. Norms
are those that DeepSpeed computes and reads in each step anyway, equal on all ranks, so no decision needs a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dist_metaxlm import failpoints
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.loss_scaling import scales_dynamically
from dist_metaxlm.parallel.process_group import rank
from dist_metaxlm.recipe.guards import GuardConfig
from dist_metaxlm.training.loop.guard_log import GuardLog, RollBack
from dist_metaxlm.training.loop.metrics import LossMeter
from dist_metaxlm.training.loop.norm_history import NormHistory

logger = logging.getLogger(__name__)
Objectives = list[Any]
"""The result of `StepPlan.objectives_at`."""


class StepGuards:
    """Runs the optimiser steps of a phase and judges each of them, on all ranks alike."""

    def __init__(
        self,
        config: GuardConfig,
        engine: Engine,
        plan: StepPlan,
        meter: LossMeter,
        log: GuardLog,
        step: int,
        state: dict[str, Any],
    ) -> None:
        """`state`: the result of `state()` after `step` steps, from where training continues; empty at the beginning."""
        self._config, self._engine, self._plan, self._meter, self._log = config, engine, plan, meter, log
        self._histories = {name: NormHistory(*values) for name, values in state.get("histories", {}).items()}
        # After a return to a checkpoint the row begins again.
        self._bad: list[int] = [] if log.stepped_over(step) else list(state.get("in_a_row", []))
        self._skipped, self._spikes = int(state.get("skipped", 0)), int(state.get("spikes", 0))
        self._history, self._spike = NormHistory(), 0.0
        engine.accept_norm = self._accept

    def run(self, step: int, objectives: Objectives, update: Callable[[], None]) -> None:
        """Do step number `step` (from 0) with `update`; a bad one leaves weights, optimiser and metrics unchanged."""
        failpoints.reach("step", step + 1)
        self._history = self._histories.setdefault("+".join(objective.name for objective, *_ in objectives), NormHistory())
        self._spike, skipped_before = 0.0, self._engine.skipped_steps
        self._meter.begin_step()
        update()
        skipped = self._engine.skipped_steps > skipped_before
        if self._spike:
            self._spikes += 1
        if not skipped:
            if self._spike:
                self._note(step, objectives, "spike")
            self._bad = []
        elif not self._was_loss_scaling():
            self._meter.drop_step()
            self._skipped += 1
            self._bad.append(step + 1)
            self._note(step, objectives, "skipped")

    def step_over(self) -> None:
        """Count a step whose samples are not trained on."""
        self._skipped += 1

    def check(self, step: int) -> None:
        """Call it after a step, with the number of completed steps.

        Raises:
            RollBack: on all ranks, if the last `bad_steps` steps made no update.
        """
        if len(self._bad) < self._config.bad_steps:
            return
        each = [self._plan.samples(self._plan.objectives_at(bad - 1)) for bad in self._bad]
        names = {name: None for samples in each for name in samples}
        samples = {
            name: [min(s[name][0] for s in each if name in s), max(s[name][1] for s in each if name in s)] for name in names
        }
        raise RollBack(
            f"steps {', '.join(map(str, self._bad))} made no update, because their loss or gradient was not finite or "
            "their gradient too large",
            step,
            self._bad,
            samples,
        )

    def state(self) -> dict[str, Any]:
        """State for the manifest of a checkpoint."""
        return {
            "histories": {name: history.state() for name, history in self._histories.items()},
            "in_a_row": list(self._bad),
            "skipped": self._skipped,
            "spikes": self._spikes,
            "rollbacks": list(self._log.rollbacks),
        }

    def figures(self) -> dict[str, int]:
        """For the metrics: since the phase began, steps without an update, spikes, and returns to a checkpoint."""
        return {"skipped": self._skipped, "spikes": self._spikes, "rollbacks": len(self._log.rollbacks)}

    def _accept(self, norm: float) -> bool:
        """Whether a gradient of finite `norm` may update the weights; called once in each update."""
        sigma = self._config.sigma
        spike = norm > self._history.limit(sigma)
        if norm > 0:  # 0: no objective of the step reached a trained parameter
            self._history.add(norm, self._config.history, sigma)
        self._spike = norm if spike else 0.0
        return not spike or self._config.spikes == "clip"

    def _was_loss_scaling(self) -> bool:
        """Whether fp16's loss scale was too large, which it corrects itself (collective, after a skipped step only)."""
        return scales_dynamically(self._engine) and not self._spike and self._meter.is_finite()

    def _note(self, step: int, objectives: Objectives, kind: str) -> None:
        if rank() != 0:
            return
        samples = self._plan.samples(objectives)
        reason = f"the gradient norm {self._spike:.3g} is a spike" if self._spike else "the loss or gradient is not finite"
        self._log.note({"kind": kind, "step": step + 1, "samples": samples, "reason": reason})
        shown = ", ".join(f"{name} {first} to {last}" for name, (first, last) in samples.items())
        logger.warning(f"step {step + 1}{' skipped' if kind == 'skipped' else ''}: {reason}; samples: {shown}")
