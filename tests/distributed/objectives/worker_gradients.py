"""One step's gradients of all objectives, averaged as the trainer does, written by rank 0 (see test_gradients.py)."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel.process_group import all_reduce, process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe


def main(recipe_path: str, output: str, micro_batch_tokens: int) -> None:
    recipe = load_recipe(recipe_path)
    topology = detect_topology()
    phase = recipe.phases["joint"]
    with process_group(topology, torch.device("cpu")):
        tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
        data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
        plan = StepPlan(phase, "joint", recipe.seed, topology.rank, topology.world_size, micro_batch_tokens)
        # fp64: what is compared is the sums and their denominators, not how a CPU's matrix products round.
        model = PretrainingModel(Encoder(recipe.model, seed=recipe.seed)).double()
        total = torch.zeros(1, dtype=torch.float64)
        for micro in plan.at(0):
            loss, own, _ = model(data.batch(micro.objective, micro.first, micro.count), micro.objective, 0)
            (loss * micro.factor).backward()
            total += micro.factor * own.double().sum()
        gradients = {name: all_reduce(p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
        gradients["loss"] = all_reduce(total)
        if topology.is_first:
            save_file(gradients, output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
