"""Jobs for worker_layouts.py: which layouts there are, how they are started, and how far a run is from another."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker_layouts.py")
FAMILIES = {"xlmr": [], "modern": ["model.family=modern", "model.norm=pre"]}
# 383 ids: neither 2 nor 4 divide them. Four heads, so that four tensor ranks have one each.
MODEL = ["model.heads=4", "model.vocab_size=383"]
Run = Callable[..., str]


@dataclass(frozen=True)
class Layout:
    """One layout; data-parallel ranks follow from the ranks that it is started on."""

    tensor: int = 1
    zero_stage: int = 0
    sequence: bool = False
    micro_batch_tokens: int | None = None

    @property
    def overrides(self) -> list[str]:
        """The recipe's fields that ask for it."""
        fields = [f"parallel.tensor={self.tensor}", f"parallel.zero_stage={self.zero_stage}",
                  f"parallel.sequence={str(self.sequence).lower()}"]
        return fields + ([f"parallel.micro_batch_tokens={self.micro_batch_tokens}"] if self.micro_batch_tokens else [])

    def name(self, ranks: int) -> str:
        """For tables and messages."""
        words = [f"TP{self.tensor}", f"DP{ranks // self.tensor}", f"ZeRO-{self.zero_stage}"]
        words += ["sequence"] if self.sequence else []
        return " ".join(words + ([f"micro-batch {self.micro_batch_tokens}"] if self.micro_batch_tokens else []))


@dataclass
class Case:
    """A layout and what is done in it besides training."""

    layout: Layout
    resume: bool = False
    """Begin with the newest checkpoint that an earlier case saved, and first save a copy of what was loaded."""
    save: bool = False
    extra: list[str] = field(default_factory=list)
    """More overrides of the recipe."""


def run_cases(run_ranks: Run, recipe: Path, output: Path, ranks: int, family: str, cases: Sequence[Case],
              steps: int) -> list[dict[str, Any]]:
    """Train `steps` steps under every case in one start of `ranks` processes."""
    job = {"recipe": str(recipe), "overrides": [*MODEL, *FAMILIES[family]], "steps": steps, "output": str(output),
           "cases": [{"name": case.layout.name(ranks), "resume": case.resume, "save": case.save,
                      "overrides": [*case.layout.overrides, *case.extra]} for case in cases]}
    job_file = output.with_suffix(".job.json")
    job_file.write_text(json.dumps(job))
    run_ranks(ranks, WORKER, job_file)
    return json.loads(output.read_text())


def deviation(ours: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative difference of two equally long series."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, reference, strict=True))
