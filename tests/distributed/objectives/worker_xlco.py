"""Three jobs of 1, 2 and 4 data-parallel ranks in one start of four: steps of xlco with plain gradient descent.

usage: worker_xlco.py RECIPE OUTPUT; for every number of ranks, rank 0 writes OUTPUT.RANKS (see test_xlco.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel import groups
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe

STEPS, RATE = 4, 0.3
MICRO_BATCH_TOKENS = {1: 10**9, 2: 1, 4: 64}
"""By number of ranks: all at once, one example a pass, two."""


def steps_of(recipe: Recipe, place: groups.Groups, micro_batch_tokens: int) -> dict[str, torch.Tensor]:
    """Loss and gradients of every step, and what the momentum encoder and the queue are at the end."""
    groups._formed = place
    phase = recipe.phases["joint"]
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
    plan = StepPlan(phase, "joint", recipe.seed, place.data_rank, place.data_size, micro_batch_tokens)
    # fp64: what is compared is the formula, not how a CPU's matrix products round.
    model, found = PretrainingModel(Encoder(recipe.model, recipe.seed), phase.objectives).double(), {}
    for step in range(STEPS):
        total = torch.zeros(1, dtype=torch.float64)
        model.zero_grad()
        for micro in plan.at(step):
            loss, own, languages = model(data.batch(micro.objective, micro.first, micro.count), micro.objective, step)
            assert own.shape == languages.shape
            (loss * micro.factor).backward()
            total += micro.factor * own.sum()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for tensor in (total, *gradients.values()):
            if place.data_size > 1:
                dist.all_reduce(tensor, group=place.data)
        found |= {f"{step}.{name.removeprefix('encoder.')}": value.clone() for name, value in gradients.items()}
        found[f"{step}.loss"] = total
        with torch.no_grad():
            for name, gradient in gradients.items():
                model.get_parameter(name).sub_(RATE * gradient)
        model.after_step()
    return found | {f"momentum.{name}": value for name, value in model.memory.large().items()}


def main(recipe_path: str, output: str) -> None:
    dist.init_process_group("gloo")
    me, recipe = dist.get_rank(), load_recipe(recipe_path)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    places = {
        1: groups.Groups(0, 1, 0, 1),
        2: groups.Groups(0, 1, me % 2, 2, data=pairs[me // 2]),
        4: groups.Groups(0, 1, me, 4, data=dist.new_group(list(range(4)))),
    }
    for ranks, place in places.items():
        found = steps_of(recipe, place, MICRO_BATCH_TOKENS[ranks])
        if me == 0:
            save_file(found, f"{output}.{ranks}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], str(Path(sys.argv[2])))
