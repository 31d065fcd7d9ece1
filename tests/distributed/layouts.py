"""Jobs for worker_layouts.py: which layouts there are, how they are started, and how far a run is from another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from plain_optimizers import plain_optimizer

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import load_recipe

LEARNING_RATE = 2e-3
FAMILIES = {"xlmr": [], "modern": ["model.family=modern", "model.norm=pre"]}
# 383 ids: neither 2 nor 4 divide them. Four heads, so that four tensor ranks have one each.
MODEL = ["model.heads=4", "model.vocab_size=383"]
# Muon needs a block on each pipeline stage, and there are layouts of four.
OPTIMIZERS = {
    "adamw": ["optimizer.name=adamw"],
    "muon": ["optimizer.name=muon", "model.layers=4"],
    "stable_adamw": ["optimizer.name=stable_adamw"],
}
Run = Callable[..., str]


def table_name(layout: Layout, ranks: int) -> str:
    """A layout on so many ranks, for tables and messages."""
    words = [f"TP{layout.tensor}", f"PP{layout.pipeline}", f"DP{layout.on(ranks).data}", f"ZeRO-{layout.zero_stage}"]
    words += ["sequence"] if layout.sequence else []
    return " ".join(words + ([f"micro-batch {layout.micro_batch_tokens}"] if layout.micro_batch_tokens else []))


@dataclass
class Case:
    """A layout and what is done in it besides training."""

    layout: Layout
    resume: bool = False
    """Begin with the newest checkpoint that an earlier case saved, and first save a copy of what was loaded."""
    save: bool = False
    probe: bool = False
    """Take a probe after every step."""
    steps: int | None = None
    """Steps of this case, where they are not those of all."""
    family: str = "xlmr"
    extra: list[str] = field(default_factory=list)
    """More overrides of the recipe."""
    folder: str = ""
    """Beginning of the name of the folder for checkpoints; cases with different ones do not see each other's."""

    @property
    def overrides(self) -> list[str]:
        """The recipe's fields that ask for it."""
        return [*MODEL, *FAMILIES[self.family], *self.layout.overrides(), *self.extra]


# Steps whose objectives do not reach every parameter: DeepSpeed keeps gradients from step to step
# (dist_metaxlm/deepspeed_adapter/gradients.py).
_MLM, _TLM = "{name: mlm, batch_tokens: 256}", "{name: tlm, batch_tokens: 128, weight: 0.5}"
_CONTRAST = "{name: contrast, pairs: 16, group: 16, layer: 1, max_tokens: 24}"  # without the upper block and the head
ORDERS = {
    "first objective misses layers": [f"phases.joint.objectives=[{_CONTRAST}, {_MLM}, {_TLM}]"],
    "one drawn a step": ["phases.joint.mixing=draw"],
    "drawn ones miss layers": ["phases.joint.mixing=draw", f"phases.joint.objectives=[{_MLM}, {_CONTRAST}]"],
}
WHOLE = Layout(zero_stage=0, micro_batch_tokens=64)
SHARDED = {
    "ZeRO-1": Layout(zero_stage=1, micro_batch_tokens=64),
    "ZeRO-2": Layout(zero_stage=2, micro_batch_tokens=64),
    "ZeRO-3": Layout(zero_stage=3, micro_batch_tokens=64),
    "pipeline": Layout(pipeline=2, zero_stage=1, micro_batch_tokens=64),
}


def order_fields(order: str, sharding: str, precision: str) -> list[str]:
    """Overrides of a case besides its layout; of those that are the same with and without offload.

    ZeRO-1 in bf16 has an optimiser of its own in DeepSpeed, and another one with offload, whose norms differ in the last
    bit. That turns the rounding of some weights where gradients are clipped, so there they are not.
    """
    own_optimizer = precision == "bf16" and sharding in ("ZeRO-1", "pipeline")
    return [*ORDERS[order], f"training.precision={precision}", *(["optimizer.clip_norm=0"] if own_optimizer else [])]


def order_case(order: str, sharding: str, precision: str, offload: bool) -> Case:
    """One run; `sharding` is a key of SHARDED, or `ZeRO-0`."""
    layout = SHARDED.get(sharding, WHOLE)
    extra = [f"parallel.offload_optimizer={str(offload).lower()}"]
    return Case(layout, extra=[*order_fields(order, sharding, precision), *extra])


def run_cases(
    run_ranks: Run,
    recipe: Path,
    output: Path,
    ranks: int,
    cases: Sequence[Case],
    steps: int,
    worker: str = "worker_layouts.py",
    **more: Any,
) -> list[dict[str, Any]]:
    """Train `steps` steps under every case in one start of `ranks` processes of `worker`, whose job has `more`."""
    job = {
        **more,
        "recipe": str(recipe),
        "steps": steps,
        "output": str(output),
        "learning_rate": LEARNING_RATE,
        "cases": [
            {
                "name": table_name(case.layout, ranks),
                "resume": case.resume,
                "save": case.save,
                "probe": case.probe,
                "steps": case.steps or steps,
                "folder": case.folder,
                "overrides": case.overrides,
            }
            for case in cases
        ],
    }
    job_file = output.with_suffix(".job.json")
    job_file.write_text(json.dumps(job))
    run_ranks(ranks, Path(__file__).with_name(worker), job_file)
    return json.loads(output.read_text())


def deviation(ours: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative difference of two equally long series."""
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, reference, strict=True))


def single_process(recipe_path: Path, family: str, steps: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """The reference: the same steps in this process, with torch alone (no process group, no DeepSpeed)."""
    recipe = load_recipe(recipe_path, Case(Layout(zero_stage=0), family=family, extra=list(extra)).overrides)
    phase, config = recipe.phases["joint"], recipe.optimizer
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
    plan = StepPlan(phase, "joint", recipe.seed, 0, 1, None)
    model = PretrainingModel(Encoder(recipe.model, recipe.seed), phase.objectives)
    named = {name.removeprefix("encoder."): p for name, p in model.named_parameters()}
    result: dict[str, Any] = {"initial": digest({name: p.detach() for name, p in named.items()}), "losses": [], "norms": []}
    optimizer = plain_optimizer(model, recipe, LEARNING_RATE)
    for step in range(steps):
        total = 0.0
        for micro in plan.at(step):
            loss, own, _ = model(data.batch(micro.objective, micro.first, micro.count, micro.stage), micro.objective, step)
            (loss * micro.factor).backward()
            total += micro.factor * float(own.double().sum())
        for parameter in model.parameters():
            if parameter.grad is None:  # an objective that does not reach it; torch's AdamW would pass it over
                parameter.grad = torch.zeros_like(parameter)
        result["losses"].append(total)
        result["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)))
        optimizer.step()
        optimizer.zero_grad()
    result["weights"] = {name: float(p.detach().double().norm()) for name, p in named.items()}
    return result


def digest(weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over all bits of all weights."""
    value = hashlib.sha256()
    for name in sorted(weights):
        value.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return value.hexdigest()
