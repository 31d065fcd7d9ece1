"""Steps of a phase as in the training loop, without its files, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.training.engine.engine import build_engine
from dist_metaxlm.training.engine.execution import StepRunner, execution
from dist_metaxlm.training.engine.model import build_model
from dist_metaxlm.training.loop.batches import batches
from dist_metaxlm.training.loop.metrics import LossMeter

Watch = Callable[[Iterator[PackedBatch]], Iterator[PackedBatch]]


@dataclass(frozen=True)
class PhaseSteps:
    """Everything needed to take steps."""

    engine: Engine
    """DeepSpeed's."""
    steps: StepRunner
    plan: StepPlan
    meter: LossMeter


def phase_steps(
    recipe: Recipe,
    phase_name: str,
    device: torch.device,
    total: int,
    watch: Watch = lambda it: it,
    seen: Callable[[PackedBatch], None] = lambda _: None,
) -> PhaseSteps:
    """Engine and execution of the first `total` steps of a phase, inside a process group.

    `watch` wraps the stream of micro-batches, `seen` is called with each of them.

    Raises:
        UserError: the recipe has no token store.
    """
    place, phase = groups(), recipe.phase(phase_name)
    data = stored_phase(recipe, phase_name, phase)
    plan = StepPlan(phase, phase_name, recipe.seed, place.data_rank, place.data_size, recipe.parallel.micro_batch_tokens)
    engine = build_engine(build_model(recipe, phase), recipe, device, place.data_size)
    meter = LossMeter(phase, data, device)
    read = watch(batches(plan, data, 0, total, device))
    return PhaseSteps(engine, execution(engine, plan, read, seen, meter.add), plan, meter)


def stored_phase(recipe: Recipe, phase_name: str, phase: PhaseConfig) -> PhaseData:
    """The data of `phase` from the token store of `recipe`.

    Raises:
        UserError: the token store is missing.
    """
    directory = Path(recipe.data.directory)
    if not (directory / "store" / "manifest.json").is_file():
        raise UserError(f"no token store in {directory}; run `metaxlm prepare` first")
    return PhaseData(
        TokenStore.open(directory / "store"), Tokenizer.load(directory / "tokenizer.model"), phase_name, phase, recipe.seed
    )
