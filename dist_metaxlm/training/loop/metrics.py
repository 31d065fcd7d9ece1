"""Metrics of a run: sums on the device, read once per log interval, written to JSON lines and trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.parallel.process_group import all_reduce, rank, sum_over_batch
from dist_metaxlm.recipe.phases import flatten
from dist_metaxlm.recipe.schema import Objective, PhaseConfig
from dist_metaxlm.reporting.records import Counted, Record
from dist_metaxlm.tracking.log import TrackerLog
from dist_metaxlm.tracking.tracker import TrackedPhase
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.context import RunContext
from dist_metaxlm.training.run.environment import environment

Batch = TypeVar("Batch")


class LossMeter:
    """Sum and count of losses per objective and language since the last reading, and counts since the phase began.

    Everything stays on the device: `add` never waits for it, `read` makes the interval's one device-to-host copy.
    """

    def __init__(self, phase: PhaseConfig, data: PhaseData, device: torch.device) -> None:
        self.names: dict[str, list[str]] = {objective.name: data.names(objective.name) for objective in phase.objectives}
        self._offsets: dict[str, int] = {}
        rows = 0
        for name, languages in self.names.items():
            self._offsets[name] = rows
            rows += len(languages)
        # Rows: (objective, language). Columns: sum of losses, items, windows or pairs seen.
        self._sums = torch.zeros(rows, 3, dtype=torch.float64, device=device)
        self._before = torch.zeros(rows, 3, dtype=torch.float64)  # counts of this interval from before a stop
        self._step_before = torch.zeros_like(self._sums)
        self._seen_total = torch.zeros(rows, dtype=torch.float64)
        self._ones = torch.ones(1, dtype=torch.float64, device=device)

    def add(self, objective: Objective, batch: PackedBatch, losses: torch.Tensor, languages: torch.Tensor) -> None:
        """Count losses [N] of `languages` [N], and the samples of their batch (windows or translation pairs)."""
        offset = self._offsets[objective.name]
        rows = languages + offset
        self._sums[:, 0].index_add_(0, rows, losses.double())
        self._sums[:, 1].index_add_(0, rows, self._ones.expand(rows.numel()))
        samples = batch.sample_languages + offset
        self._sums[:, 2].index_add_(0, samples, self._ones.expand(samples.numel()))

    def begin_step(self) -> None:
        """Remember the sums before a step, for `drop_step`."""
        self._step_before.copy_(self._sums)

    def drop_step(self) -> None:
        """Forget what was added since `begin_step`."""
        self._sums.copy_(self._step_before)

    def is_finite(self) -> bool:
        """Whether all losses since the last reading are finite, on all ranks (collective; waits for the device)."""
        finite = torch.isfinite(self._sums).all().to(torch.uint8)
        return bool(all_reduce(finite, "min"))

    def read(self) -> Counted:
        """Mean loss per objective and language over data-parallel ranks, realised counts; the interval ends (collective)."""
        table = self._counted()
        self._before.zero_()
        self._seen_total += table[:, 2]
        losses: dict[str, float] = {}
        per_language: dict[str, dict[str, float]] = {}
        realised: dict[str, dict[str, int]] = {}
        for name, languages in self.names.items():
            part = table[self._offsets[name] : self._offsets[name] + len(languages)]
            if part[:, 1].sum() > 0:
                losses[name] = float(part[:, 0].sum() / part[:, 1].sum())
            per_language[name] = {
                language: float(row[0] / row[1]) for language, row in zip(languages, part, strict=True) if row[1] > 0
            }
            seen = self._seen_total[self._offsets[name] : self._offsets[name] + len(languages)]
            realised[name] = {language: int(count) for language, count in zip(languages, seen, strict=True)}
        return {"losses": losses, "language_losses": per_language, "realised": realised}

    def _counted(self) -> torch.Tensor:
        """[rows, 3] on the host: the sums of all ranks since the last reading; resets them (collective)."""
        table = self._before + sum_over_batch(self._sums).cpu()
        self._sums.zero_()
        return table

    def counts(self) -> dict[str, torch.Tensor]:
        """Counts for a checkpoint, which a resumed run continues: samples seen up to the last reading [rows], and the sums
        of an interval in which the run stops [rows, 3] (collective)."""
        self._before = self._counted()
        return {"realised": self._seen_total.clone(), "interval": self._before.clone()}

    def restore(self, counts: dict[str, torch.Tensor]) -> None:
        """Continue from the result of `counts`; from zero if it is empty."""
        self._seen_total = counts.get("realised", self._seen_total).clone()
        self._before = counts.get("interval", self._before).clone()


class MetricsWriter:
    """Rank 0's metrics.jsonl, and the trackers that get the same figures. Other ranks make none."""

    def __init__(self, folder: Path, trackers: TrackerLog) -> None:
        """`trackers`: started for the phase in `folder`; they are finished with this writer."""
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, record: Record) -> None:
        """Append one record and make it visible to readers at once."""
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._lines.flush()
        self._trackers.write(record)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lines.close()
        self._trackers.close(completed=error is None)


def metrics_writer(context: RunContext, progress: Progress) -> AbstractContextManager[MetricsWriter | None]:
    """The phase's metrics file and its started trackers; None but on the first rank.

    Raises:
        UserError: if a tracker cannot start.
    """
    if rank():
        return nullcontext()
    recipe, folder = context.recipe, context.folder
    tracked = TrackedPhase(
        run=recipe.name,
        phase=folder.phase,
        folder=folder.path,
        step=progress.step,
        settings=flatten(recipe.model_dump(mode="json")),
        environment=environment(),
    )
    return MetricsWriter(folder.path, TrackerLog(recipe.training.trackers, tracked))


class Clock:
    """Tokens per second since the last reading and seconds of the phase, including its earlier runs."""

    def __init__(self, seconds_before: float) -> None:
        self._before, self._start = seconds_before, time.monotonic()
        self._last, self._waited = self._start, 0.0

    def waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is ready counts as waiting for data."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def read(self, tokens: int) -> tuple[float, float, float, float]:
        """(tokens per second over the interval in which `tokens` were trained on, seconds of the phase so far, share of
        the interval's time that went into waiting for data, seconds of the interval)."""
        now = time.monotonic()
        interval, self._last = max(1e-9, now - self._last), now
        waited, self._waited = self._waited, 0.0
        return tokens / interval, self.seconds(), waited / interval, interval

    def seconds(self) -> float:
        """Seconds of the phase so far."""
        return self._before + time.monotonic() - self._start


def weighted_loss(losses: dict[str, float], phase: PhaseConfig) -> float | None:
    """The step's loss as trained: each objective's mean times its weight (with `draw`: the mean of what was drawn); None
    without losses, if all steps were skipped."""
    if not losses:
        return None
    weights: dict[str, float] = {objective.name: objective.weight for objective in phase.objectives}
    total = sum(weights[name] * value for name, value in losses.items())
    return total if phase.mixing == "sum" else total / max(1e-9, sum(weights[name] for name in losses))


def asked_shares(phase: PhaseConfig, data: PhaseData, tokens: int) -> dict[str, dict[str, float]]:
    """Target shares of languages and language pairs at this point of the phase."""
    return {objective.name: data.asked(objective.name, tokens) for objective in phase.objectives}


def asked_so_far(data: PhaseData, realised: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """The target shares averaged over the `realised` samples, for comparison with their actual mix."""
    return {name: data.asked_so_far(name, sum(counts.values())) for name, counts in realised.items()}
