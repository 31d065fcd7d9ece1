"""A layout as a value, and its conflicts with the recipe on any number of ranks.

`planning/legality.py` adds the checks that depend on the given ranks and nodes; it is the complete check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dist_metaxlm.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Distribution of the model and its training over ranks: ranks = tensor * pipeline * data."""

    tensor: int = 1
    """Tensor-parallel ranks."""
    pipeline: int = 1
    """Pipeline stages."""
    data: int = 1
    """Copies of the model; 1 if the number of ranks is not known yet."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage over the copies."""
    sequence: bool = False
    """Sequence parallelism over the tensor-parallel ranks."""
    offload_optimizer: bool = False
    """Whether fp32 weights, Adam's moments and its update are on the CPU."""
    micro_batch_tokens: int | None = None
    """Tokens of a rank's micro-batch; None: its whole share of a step."""
    recompute: Literal["none", "selective", "blocks"] = "none"
    """Activations computed again in the backward pass."""
    recompute_every: int = 1
    """With recompute `blocks`: only blocks 0, k, 2k, ..."""
    tensor_across_nodes: bool = False
    """Whether a tensor group may span more than one node."""

    def on(self, ranks: int) -> Layout:
        """The same layout with as many copies of the model as `ranks` ranks hold (0 if they are too few for one)."""
        return replace(self, data=ranks // (self.tensor * self.pipeline))

    def overrides(self) -> list[str]:
        """The recipe's fields for this use of the ranks, as `key=value`; without recomputation and offload."""
        names = ["tensor", "pipeline", "sequence", "zero_stage"]
        names += [] if self.micro_batch_tokens is None else ["micro_batch_tokens"]
        return [assignment(name, getattr(self, name)) for name in names]

    def name(self) -> str:
        """The layout in a few words for the log, such as `tensor 2 (sequence) x data 4, ZeRO-1`."""
        if self.tensor * self.pipeline * self.data == 1:
            return "nothing sharded"
        words = [f"tensor {self.tensor}{' (sequence)' if self.sequence else ''}"] if self.tensor > 1 else []
        words += [f"pipeline {self.pipeline}"] if self.pipeline > 1 else []
        return f"{' x '.join([*words, f'data {self.data}'])}, ZeRO-{self.zero_stage}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a layout is not legal."""

    field: str
    """The recipe's field at fault, such as `parallel.tensor`."""
    value: Any
    """Its value."""
    reason: str
    """The problem, with field and value."""
    remedy: str
    """The remedy, as an instruction."""
    change: Mapping[str, Any]
    """Fields of the layout with the values that solve it; empty if the remedy is not in the layout."""

    @property
    def message(self) -> str:
        """Reason and remedy."""
        return f"{self.reason}; {self.remedy}"


def assignment(name: str, value: object) -> str:
    """A field of a layout as it is set on a command line, such as `parallel.sequence=true`."""
    return f"parallel.{name}={str(value).lower() if isinstance(value, bool) else value}"


def contradictions(recipe: Recipe, layout: Layout, precision: str | None = None) -> list[Problem]:
    """The problems of `layout` on any number of ranks.

    precision: value of `training.precision: auto` on the given devices; None if not known.
    """
    problems = [*clashing_methods(layout), *_whole_models(recipe, layout)]
    asked = recipe.training.precision
    half = half_precision_problem(layout, precision if asked == "auto" else asked)
    return [*problems, *([half] if half else [])]


def half_precision_problem(layout: Layout, precision: str | None) -> Problem | None:
    """The problem of ZeRO-0 with bf16 or fp16: DeepSpeed's fp16 optimiser without ZeRO runs an empty Adam step first."""
    if layout.zero_stage != 0 or precision in (None, "fp32"):
        return None
    return Problem(
        field="parallel.zero_stage",
        value=0,
        reason=f"parallel.zero_stage=0 with {precision} has no fp32 master weights in DeepSpeed",
        remedy="set parallel.zero_stage=1 (on one rank it is the same) or training.precision=fp32",
        change={"zero_stage": 1},
    )


def clashing_methods(layout: Layout) -> Iterator[Problem]:
    """Methods that are incompatible in any recipe."""
    if layout.sequence and layout.tensor == 1:
        yield Problem(
            field="parallel.sequence",
            value=True,
            reason="parallel.sequence=true cuts windows over tensor-parallel ranks, and parallel.tensor=1 has none",
            remedy="set parallel.sequence=false",
            change={"sequence": False},
        )
    if layout.pipeline > 1 and layout.zero_stage > 1:
        yield Problem(
            field="parallel.zero_stage",
            value=layout.zero_stage,
            reason=f"parallel.zero_stage={layout.zero_stage} does not work with parallel.pipeline={layout.pipeline}, which "
            "takes ZeRO-0 or 1",
            remedy="set parallel.zero_stage=1",
            change={"zero_stage": 1},
        )
    if layout.offload_optimizer and layout.zero_stage == 0:
        yield Problem(
            field="parallel.offload_optimizer",
            value=True,
            reason="parallel.offload_optimizer=true is part of ZeRO, and parallel.zero_stage=0 goes without",
            remedy="set parallel.zero_stage=1 or parallel.offload_optimizer=false",
            change={"zero_stage": 1},
        )
    if layout.recompute_every > 1 and layout.recompute != "blocks":
        yield Problem(
            field="parallel.recompute_every",
            value=layout.recompute_every,
            reason=f"parallel.recompute_every={layout.recompute_every} chooses among the blocks that "
            f"parallel.recompute=blocks takes, and parallel.recompute={layout.recompute}",
            remedy="set parallel.recompute=blocks or parallel.recompute_every=1",
            change={"recompute_every": 1},
        )


def _whole_models(recipe: Recipe, layout: Layout) -> Iterator[Problem]:
    """Layout settings that are incompatible with an objective that needs the whole weights on every rank."""
    for name, phase in recipe.phases.items():
        for objective in phase.objectives:
            if not objective.needs_whole_model:
                continue
            for part in ("tensor", "pipeline", "zero_stage"):
                value = getattr(layout, part)
                if value > 1:
                    change = {part: 1, **({"sequence": False} if part == "tensor" and layout.sequence else {})}
                    settings = " and ".join(assignment(*setting) for setting in change.items())
                    yield Problem(
                        field=f"parallel.{part}",
                        value=value,
                        reason=f"parallel.{part}={value} does not go with {objective.name} in phases.{name}, which needs "
                        "the whole model on every rank",
                        remedy=f"set {settings}, or leave the objective out",
                        change=change,
                    )
