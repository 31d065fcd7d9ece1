"""Train a few steps under each layout of a job file, over the ranks started; rank 0 writes what came out.

See test_layouts.py. One start serves many layouts: the groups are formed and forgotten for each of them.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from layouts import digest
from torch.distributed import distributed_c10d

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss, read_sample
from dist_metaxlm.evaluation.measures.bits import bits_per_byte, piece_bytes
from dist_metaxlm.evaluation.measures.perplexity import masked_perplexity
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.sharding import gather_whole, partition_axis
from dist_metaxlm.parallel.groups import forget_groups, form_groups, groups
from dist_metaxlm.parallel.process_group import barrier, process_group, rank, sum_over_batch
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.checkpointing.checkpoint import newest_checkpoint, restore, save_checkpoint
from dist_metaxlm.training.engine.engine import build_engine
from dist_metaxlm.training.engine.execution import execution
from dist_metaxlm.training.engine.model import build_model
from dist_metaxlm.training.loop.batches import batches
from dist_metaxlm.training.loop.heldout import HeldoutMeter
from dist_metaxlm.training.loop.probing import Probing

CPU = torch.device("cpu")


def whole_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All weights, on rank 0."""
    found, encoder = {}, engine.module.encoder
    for name, param in optimizer_state.named_parameters(engine):
        full = safe_get_full_fp32_param(param)
        part = (param if full is None else full).detach()
        value = gather_whole(name, part, encoder.shard, encoder.config.vocab_size, groups().stage_ranks[0])
        if value is not None:
            found[name] = value
    if groups().stages == 1:
        return found
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, found)
    names = [name for part in everything for name in part]
    assert len(names) == len(set(names)), "a parameter is on two stages"
    return {name: value for part in everything for name, value in part.items()} if rank() == 0 else {}


def train(
    engine: Any,
    recipe: Recipe,
    first: int,
    last: int,
    learning_rate: float,
    probing: Probing | None = None,
    meter: HeldoutMeter | None = None,
) -> tuple[list[float], list[float], list[float]]:
    """Losses, gradient norms and, with `probing`, retrieval of the joint phase's steps."""
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    phase = recipe.phases["joint"]
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
    place = groups()
    plan = StepPlan(phase, "joint", recipe.seed, place.data_rank, place.data_size, recipe.parallel.micro_batch_tokens)
    losses, norms, probes = [], [], []
    total = torch.zeros(1, dtype=torch.float64)
    factors: dict[str, float] = {}

    def count(objective: Any, batch: Any, own: torch.Tensor, languages: torch.Tensor) -> None:
        total.add_(factors[objective.name] * own.double().sum())

    steps = execution(engine, plan, batches(plan, data, first, last, CPU), lambda batch: None, count)
    for step in range(first, last):
        factors.update({micro.objective.name: micro.factor for micro in plan.at(step)})
        steps.run(step, learning_rate)
        losses.append(float(sum_over_batch(total)))
        total.zero_()
        norms.append(float(engine.get_global_grad_norm()))
        if probing:
            probes.append(probing.at(step + 1, False)["probe"]["retrieval"])
        if meter:
            meter.at(step + 1, False)
    return losses, norms, probes


def check_ranks(engine: Any, recipe: Recipe) -> None:
    """What several ranks hold is bit-equal, and the vocabulary's padding is still zero."""
    shard, place = engine.module.encoder.shard, groups()
    for name, param in optimizer_state.named_parameters(engine):
        full = safe_get_full_fp32_param(param)
        mine = (param if full is None else full).detach().contiguous()
        cut = partition_axis(name) is not None and place.tensor_size > 1
        for group in (place.data, *(() if cut else (place.tensor,))):
            if group is None and place.stages > 1:
                continue
            copies = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
            dist.all_gather(copies, mine, group=group)
            assert all(torch.equal(copy, mine) for copy in copies), f"{name} differs between ranks"
        if name == "embedding.tokens.weight":
            own = shard.own_vocabulary(recipe.model.vocab_size)
            assert not mine[len(own) :].any(), "the vocabulary's padding was trained"


def check_tied(engine: Any) -> None:
    """The head's matrix on the last pipeline stage is the first stage's token embedding, bit by bit."""
    for comm in getattr(engine.module, "tied_comms", {}).values():
        copies = [torch.empty_like(comm["module"].weight) for _ in comm["ranks"]]
        dist.all_gather(copies, comm["module"].weight.detach(), group=comm["group"])
        assert torch.equal(*copies), "embedding and head differ"


def run_case(case: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    recipe = load_recipe(job["recipe"], case["overrides"])
    form_groups(recipe.parallel.tensor, recipe.parallel.pipeline, CPU)
    engine = build_engine(build_model(recipe, recipe.phases["joint"]), recipe, CPU, groups().data_size)
    initial = digest(whole_weights(engine))
    first, folder = 0, Path(job["output"]).with_suffix(f".{case.get('folder', '')}checkpoints")
    copied = True
    if case.get("resume"):
        checkpoint = newest_checkpoint(folder)
        assert checkpoint is not None
        restore(engine, checkpoint)
        first = checkpoint.step
    if case.get("save"):
        # Saved before any step: what came out of one layout must go into the next bit by bit.
        facts = {"step": first, "phase": "joint"}
        if case.get("resume"):
            save_checkpoint(folder.with_name("copy"), engine, facts, {"none": torch.zeros(1)}, 9)
            other = newest_checkpoint(folder.with_name("copy"), first)
            assert other is not None
            for kind in ("weights", "moments"):
                ours, theirs = other.tensors(kind), checkpoint.tensors(kind)
                copied &= set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
            copied &= other.facts["adam_step"] == checkpoint.facts["adam_step"] == first
    last = first + case["steps"]
    updates: list[float] = []
    weight = next(iter(optimizer_state.named_parameters(engine)))[1]
    before = optimizer_state.own_piece(engine, weight, "exp_avg")[1].clone()
    hook = optimizer_state.before_each_update(
        engine, lambda: updates.append(float((optimizer_state.own_piece(engine, weight, "exp_avg")[1] - before).abs().sum()))
    )
    probing = Probing(engine, 1, HeldoutProbe(recipe)) if case.get("probe") else None
    random_state = torch.get_rng_state()
    meter = HeldoutMeter(engine, 1, HeldoutLoss(recipe, "joint")) if case.get("probe") else None
    losses, norms, probes = train(engine, recipe, first, last, job["learning_rate"], probing, meter)
    heldout = meter.at(last, True)["heldout"]["languages"] if meter else {}
    kept = torch.equal(random_state, torch.get_rng_state())
    # Saving in the background rests on it: nothing changes before the first call, and there is one before each update.
    assert len(updates) >= case["steps"], updates
    assert updates[0] == 0.0, "moments changed before the hook was called"
    hook.remove()
    check_ranks(engine, recipe)
    check_tied(engine)
    assert not any(timer.event_timers for timer in engine.timers.get_timers().values()), "timers keep a record a step"
    if case.get("save"):
        save_checkpoint(folder, engine, {"step": last, "phase": "joint"}, {"none": torch.zeros(1)}, 9)
    result = {
        "name": case["name"],
        "initial": initial,
        "losses": losses,
        "norms": norms,
        "copied": copied,
        "first": first,
        "retrieval": probes,
        "random_state_kept": kept,
    }
    weights = whole_weights(engine)
    if rank() == 0:
        result["final"] = digest(weights)
        result["heldout"], result["heldout_alone"] = heldout, heldout_alone(recipe, weights) if heldout else {}
        result["weights"] = {name: float(value.double().norm()) for name, value in weights.items()}
    engine.destroy()
    close_subgroups()
    return result


def heldout_alone(recipe: Recipe, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """Bits per byte by language from whole weights, by one process and another function."""
    encoder = Encoder(recipe.model)
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    folder = Path(recipe.data.directory)
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    figures = {}
    for code, sentences in read_sample(folder / "heldout", tokenizer, 32, recipe.training.heldout_tokens).items():
        hidden = [sentence.ids[place] for sentence in sentences for place in sentence.hidden]
        perplexity = masked_perplexity(encoder, sentences, tokenizer.mask_id, 32)
        assert perplexity is not None
        figures[code] = bits_per_byte(math.log(perplexity) * len(hidden), int(piece_bytes(tokenizer)[hidden].sum()))
    return figures


def keep_collections_short() -> None:
    """Leave what the imported libraries hold out of later garbage collections: a million objects, two seconds each time."""
    gc.collect()
    gc.freeze()


def close_subgroups() -> None:
    """End every group but the one of all ranks (collective).

    A gloo group keeps its threads and connections for as long as it exists. Without this, a process that has gone through 28
    layouts has a thousand threads, and two thirds of the time goes into the system.
    """
    gc.collect()  # engines that refer to the groups
    barrier()
    forget_groups()
    for group in [group for group in distributed_c10d._world.pg_map if group is not dist.group.WORLD]:
        deepspeed.comm.destroy_process_group(group)
    barrier()


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    topology = detect_topology()
    keep_collections_short()
    with process_group(topology, CPU):
        results = [run_case(case, job) for case in job["cases"]]
        if topology.is_first:
            Path(job["output"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
