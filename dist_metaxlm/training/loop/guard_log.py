"""guards.jsonl of a phase: steps that were skipped, spikes, and each return to a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.reporting.metrics import json_lines

NAME = "guards.jsonl"
Event = dict[str, Any]


class RollBack(Exception):
    """The phase must continue from its last checkpoint. All ranks raise it after the same step."""

    def __init__(self, reason: str, last: int, bad: list[int], samples: dict[str, list[int]] | None = None) -> None:
        """`last`: steps done so far. `bad`: the steps in a row that made no update, from 1, and their `samples`."""
        super().__init__(reason)
        self.last, self.bad, self.samples = last, bad, samples or {}


class GuardLog:
    """Events of a phase on the disk. A return to a checkpoint must be known after a crash, so it is written durably."""

    def __init__(self, folder: Path, known: list[Event]) -> None:
        """Read the returns to a checkpoint from `folder`; `known`: those that the checkpoint records."""
        self._path = folder / NAME
        written = [event for event in _events(self._path) if event.get("kind") == "rollback"]
        self.rollbacks = written + [event for event in known if event not in written]

    def note(self, event: Event) -> None:
        """Append an event and flush it to the disk. First rank only."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def stepped_over(self, step: int) -> frozenset[int]:
        """Steps (from 1) after `step` whose samples are not trained on.

        After one return these are the bad steps. If the phase had to return to the same checkpoint again, its weights or
        the samples before are suspected too: then they are all steps from the checkpoint to the last bad one.
        """
        later = [event for event in self.rollbacks if event["step"] > step]
        if len(later) > 1:
            return frozenset(range(step + 1, max(event["step"] for event in later) + 1))
        return frozenset(number for event in later for number in event["bad"] if number > step)

    def roll_back(self, error: RollBack, allowed: int, first: bool) -> None:
        """Record a return to the last checkpoint, on the first rank (`first`).

        Raises:
            UserError: if the phase has already returned `allowed` times.
        """
        if len(self.rollbacks) >= allowed:
            samples = ", ".join(f"{name} {ids[0]} to {ids[1]}" for name, ids in error.samples.items())
            raise UserError(
                f"{error}, and this phase has already returned to a checkpoint {len(self.rollbacks)} times "
                f"(training.guards.rollbacks){f'; samples of these steps: {samples}' if samples else ''}; lower "
                "phases.*.learning_rate.peak or raise warmup_steps and resume from an earlier checkpoint with --change "
                "--resume STEP, or allow more returns"
            )
        if first:
            event = {
                "kind": "rollback",
                "step": error.last,
                "bad": error.bad,
                "samples": error.samples,
                "reason": str(error),
            }
            self.note(event)


def _events(path: Path) -> list[Event]:
    events = []
    for line in json_lines(path) if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a line that a kill has truncated
        if isinstance(event, dict):
            events.append(event)
    return events
