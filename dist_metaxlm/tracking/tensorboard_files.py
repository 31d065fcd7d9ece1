"""TensorBoard event files in the phase's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dist_metaxlm.tracking.tracker import TrackedPhase

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes PHASE/tensorboard; see `Tracker`. Events that an earlier start wrote for later steps are dropped."""

    def __init__(self) -> None:
        self._board: SummaryWriter | None = None

    def start(self, phase: TrackedPhase) -> None:
        """See `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(phase.folder / "tensorboard"), purge_step=phase.step + 1)
        if phase.step == 0:
            rows = [f"| {name} | {value} |" for name, value in phase.settings.items()]
            self._board.add_text("recipe", "\n".join(["| field | value |", "|---|---|", *rows]), 0)
            facts = [f"| {name} | {value} |" for name, value in phase.environment.items()]
            self._board.add_text("environment", "\n".join(["| | |", "|---|---|", *facts]), 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        assert self._board is not None, "start comes before log"
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def finish(self, completed: bool) -> None:
        """See `Tracker`."""
        if self._board is not None:
            self._board.close()
