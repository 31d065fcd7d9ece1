"""One phase of pretraining, from the command line's options to the finished phase."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.deepspeed_adapter.loss_scaling import check_fp16, restore_scaler
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import read_import
from dist_metaxlm.kernels import registry
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.sharding import tensor_shard
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.parallel.affinity import bind_cores, threads
from dist_metaxlm.parallel.environment import complete_environment, shown
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.launchers import check_world_size
from dist_metaxlm.parallel.placement import check_placement, placement_lines
from dist_metaxlm.parallel.process_group import check_devices, pick_device, process_group
from dist_metaxlm.parallel.shared_facts import facts_to_share
from dist_metaxlm.parallel.topology import Topology, detect_topology, locate_ranks
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.planning.stages import model_stages
from dist_metaxlm.preparation import prepare
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.phases import phase_difference
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.text import counted
from dist_metaxlm.training.checkpointing.checkpoint import checkpoint_to_resume, restore
from dist_metaxlm.training.checkpointing.disk_space import check_room
from dist_metaxlm.training.checkpointing.manifest import list_steps, write_json
from dist_metaxlm.training.engine.engine import build_engine, resolve_precision
from dist_metaxlm.training.loop.loop import train
from dist_metaxlm.training.loop.probing import OpenProbe, Probe
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.carry_over import Carried, carry_optimizer, carry_over, carry_own, describe
from dist_metaxlm.training.run.initial_weights import check_initial_weights, load_initial_weights
from dist_metaxlm.training.run.layout import check_layout, layout_name
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.staleness import warn_of_stale_cross


@dataclass(frozen=True)
class Options:
    """The command line of `launch/pretrain.py`."""

    phase: str
    recipe: str = "quickstart"
    overrides: tuple[str, ...] = ()
    deepspeed_config: str | None = None
    run_dir: str | None = None
    resume: str = "auto"
    init_from: str | None = None
    expect_world_size: int | None = None
    dry_run: bool = False
    change: bool = False


def pretrain(options: Options, open_probe: OpenProbe) -> None:
    """Run, resume or recognise as finished one phase of a recipe, on all ranks of the job.

    `open_probe` is called where the recipe asks for probes.

    Raises:
        UserError: for whatever the user can mend, before anything is written where possible.
    """
    topology = detect_topology()
    check_world_size(topology, options.expect_world_size)
    recipe = follow_file(load_recipe(options.recipe, options.overrides), options.deepspeed_config)
    _check(recipe, options, topology)
    complete_environment(topology, torch.cuda.is_available(), recipe.parallel.tensor)
    if options.dry_run:
        _show_place(recipe, topology, always=True)
        return
    folder = PhaseFolder(options.run_dir or Path("runs") / recipe.name, options.phase)
    if folder.finished and options.resume == "auto" and not _goes_on(folder, recipe, options):
        folder.start(recipe) if topology.is_first else None
        steps, loss = counted(folder.finished["steps"], "step"), folder.finished["loss"]
        _say(
            topology,
            f"phase {options.phase} of {folder.run_dir} is finished: {steps}, loss {loss:.3f}; --resume never "
            "trains it anew",
        )
        warn_of_stale_cross(folder.run_dir, options.recipe, options.overrides) if topology.is_first else None
        return
    warning = check_room(folder.checkpoints, recipe, options.phase, anew=options.resume == "never")
    if warning and topology.is_first:
        print(f"warning: {warning}", file=sys.stderr)
    if options.phase == "cross" and options.init_from is None and PhaseFolder(folder.run_dir, "meta").finished is None:
        missing_meta(folder, options)
    if options.init_from is not None and (options.resume == "never" or not list_steps(folder.checkpoints)):
        check_initial_weights(recipe, options.init_from)
    prepare_data(recipe, topology)
    data = open_data(recipe, options.phase)  # refused here, nothing has been written and no phase set aside
    probe = open_probe(recipe) if recipe.training.probe_interval else None
    bind_cores(topology)
    device = pick_device(topology)
    with process_group(
        topology,
        device,
        recipe.parallel.tensor,
        recipe.parallel.pipeline,
        join_seconds=recipe.parallel.join_seconds,
        facts=facts_to_share(recipe),
    ):
        topology = locate_ranks(topology, device)
        _show_place(recipe, topology)
        if topology.is_first and options.resume != "never":
            asked = int(options.resume) if options.resume.isdecimal() else max([0, *list_steps(folder.checkpoints)])
            folder.check(recipe, asked, options.change)  # now: reading a checkpoint takes longer
        _run(recipe, options, topology, device, folder, data, probe)


def _goes_on(folder: PhaseFolder, recipe: Recipe, options: Options) -> bool:
    """Whether --change makes a finished phase longer."""
    assert folder.finished is not None
    steps, longer = folder.finished["steps"], recipe.phases[options.phase].total_steps  # type: ignore[index]
    if options.change and longer <= steps:
        raise UserError(
            f"phase {options.phase} of {folder.run_dir} is finished after {counted(steps, 'step')}, and the "
            f"recipe has {longer}: --change goes on with more of them, such as "
            f"phases.{options.phase}.steps={2 * steps}"
        )
    return options.change


def _begin(folder: PhaseFolder, recipe: Recipe, options: Options, topology: Topology, step: int) -> None:
    """Make the folder that of `recipe` from `step` on: when nothing can be refused any more, for it is not to be undone."""
    if options.resume == "never":
        folder.set_aside()
    for field, (before, now) in folder.start(recipe, step, options.change).items():
        _say(topology, f"changed from step {step} on: {field} was {before}, now {now}")
    if options.resume.isdecimal():
        for line in folder.go_back(step):
            _say(topology, line)


def open_data(recipe: Recipe, phase: str) -> tuple[Tokenizer, PhaseData]:
    """The prepared data as a phase reads them. Errors: UserError where it asks for what is not in them."""
    directory = Path(recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    store = TokenStore.open(directory / "store")
    return tokenizer, PhaseData(store, tokenizer, phase, recipe.phases[phase], recipe.seed)  # type: ignore[index]


def _run(
    recipe: Recipe,
    options: Options,
    topology: Topology,
    device: torch.device,
    folder: PhaseFolder,
    opened: tuple[Tokenizer, PhaseData],
    probe: Probe | None = None,
) -> None:
    phase = recipe.phases[options.phase]  # type: ignore[index]
    tokenizer, data = opened
    place = groups()
    plan = StepPlan(phase, options.phase, recipe.seed, place.data_rank, place.data_size, recipe.parallel.micro_batch_tokens)
    progress = Progress(
        options.phase, tokenizer.hash, recipe.model.vocab_size, device, schedule_offset(recipe, options, folder)
    )
    checkpoint = checkpoint_to_resume(folder.checkpoints, options.resume)
    if checkpoint is not None and checkpoint.facts["tokenizer"] != tokenizer.hash:
        raise UserError(
            f"{checkpoint.folder} was trained with tokenizer {checkpoint.facts['tokenizer'][:12]}, the data in "
            f"{recipe.data.directory} have {tokenizer.hash[:12]}; give the data.directory that it began with"
        )
    model = build_model(recipe, phase)
    encoder, carried = model.encoder, None
    exact: Mapping[str, torch.Tensor] = {}
    if checkpoint is None and options.init_from is not None:
        _say(topology, load_initial_weights(encoder, recipe, options.init_from, tokenizer.hash))
        exact = read_import(options.init_from)[1]
    elif checkpoint is None and options.phase == "cross":
        carried = carry_over(encoder, recipe, PhaseFolder(folder.run_dir, "meta"), tokenizer.hash)
        carry_own(model, carried)
        exact = carried.weights
    if checkpoint is not None:
        encoder.load_logical(checkpoint.tensors("weights"))
    if device.type == "cuda" or registry.forced() is not None:
        registry.tell(lambda line: _say(topology, line))
    engine = build_engine(model, recipe, device, place.data_size)
    if checkpoint is not None:
        restore(engine, checkpoint)
        progress.resume(checkpoint)
        restore_scaler(engine, checkpoint.facts.get("loss_scaling", {}))
    optimizer_state.set_exact_weights(engine, exact)
    if carried is not None and recipe.carry_over.optimizer == "carry":
        carry_optimizer(engine, carried)
    if topology.is_first:
        _begin(folder, recipe, options, topology, progress.step)
        folder.cut_metrics(progress.step)
        _announce(recipe, options, topology, device, folder, progress, carried)
    train(engine, recipe, folder, data, plan, progress, probe)
    if topology.is_first:
        finish(folder, progress, topology)
        warn_of_stale_cross(folder.run_dir, options.recipe, options.overrides)


def build_model(recipe: Recipe, phase: PhaseConfig) -> Any:
    """The module with this rank's part of the model in `encoder`, freshly initialised: the whole or a pipeline stage."""
    shard, layout = tensor_shard(recipe.parallel.sequence), recipe.parallel
    if layout.pipeline == 1:
        return PretrainingModel(Encoder(recipe.model, recipe.seed, shard), phase.objectives)
    from dist_metaxlm.training.engine.pipeline import PipelinedModel

    stages = model_stages(recipe.model, phase.sequence_length, phase.mask_rate, layout.pipeline)
    return PipelinedModel(recipe.model, recipe.seed, shard, stages, phase.sequence_length)


def schedule_offset(recipe: Recipe, options: Options, folder: PhaseFolder) -> int:
    """Steps that the learning-rate schedule of a phase has behind it when it begins: meta's, where it continues."""
    if options.phase != "cross" or options.init_from is not None or recipe.carry_over.schedule == "restart":
        return 0
    meta = PhaseFolder(folder.run_dir, "meta").finished
    return int(meta["steps"]) if meta else 0


def prepare_data(recipe: Recipe, topology: Topology, poll_seconds: float = 1.0) -> None:
    """Make what is missing of the prepared data, on the first rank of each node, outside any process group.

    Under a process group the other ranks would run into its timeout while a large corpus is tokenised.
    """
    if topology.local_rank == 0:
        prepare.prepare(recipe, lambda line: _say(topology, line))
    while not prepare.is_prepared(recipe):
        # If the preparing rank fails it exits, and the launcher ends those who wait here.
        time.sleep(poll_seconds)


def finish(folder: PhaseFolder, progress: Progress, topology: Topology) -> None:
    """Mark the phase as finished with its last logged loss."""
    import json

    last = json.loads(folder.metrics.read_text(encoding="utf-8").splitlines()[-1])
    folder.finish(
        {
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "loss": last["loss"],
            "losses": last["losses"],
            "ranks": topology.world_size,
        }
    )
    _say(
        topology,
        f"phase {folder.phase} finished: {counted(progress.step, 'step')}, {progress.tokens:,} tokens, "
        f"{progress.seconds:.0f} s, loss {last['loss']:.3f}; checkpoint in {folder.checkpoints}",
    )


def missing_meta(folder: PhaseFolder, options: Options) -> None:
    """Refuse `cross` before any data is prepared when its meta phase is not there."""
    state = "an unfinished one" if folder.path.with_name("meta").exists() else "none"
    recipe = "" if options.recipe == "quickstart" else f" --recipe {options.recipe}"
    raise UserError(
        f"--phase cross continues from a finished meta phase, and {folder.run_dir / 'meta'} holds {state}; run "
        f"`deepspeed launch/pretrain.py --phase meta{recipe} --run_dir {folder.run_dir}` first, or give "
        "--init_from an imported model"
    )


def _check(recipe: Recipe, options: Options, topology: Topology) -> None:
    if options.phase not in recipe.phases:
        raise UserError(f"recipe {recipe.name} has no phase {options.phase!r}; it has {', '.join(recipe.phases)}")
    if options.resume not in ("auto", "never") and not options.resume.isdecimal():
        raise UserError(f"--resume {options.resume!r} is neither auto, never nor the step of a checkpoint")
    check_layout(recipe, options.phase, topology)
    check_devices(topology)
    check_fp16(recipe.training.precision)
    registry.force(recipe.training.kernels)


def _announce(
    recipe: Recipe,
    options: Options,
    topology: Topology,
    device: torch.device,
    folder: PhaseFolder,
    progress: Progress,
    carried: Carried | None,
) -> None:
    """Say at start what runs, how the phases differ, and what was carried over."""
    phase = recipe.phases[options.phase]  # type: ignore[index]
    parameters, layout = count_parameters(recipe.model).total, layout_name(recipe.parallel, topology.world_size)
    _say(
        topology,
        f"{recipe.name}, phase {options.phase}: {parameters:,} parameters, "
        f"{counted(phase.total_steps, 'step')}, {counted(topology.world_size, 'rank')} on "
        f"{counted(topology.nodes, 'node')}, {device.type}, "
        f"{resolve_precision(recipe, device)}, {layout}, in {folder.path}",
    )
    if {"meta", "cross"} <= set(recipe.phases) and options.phase in ("meta", "cross"):
        _say(
            topology,
            "meta -> cross changes: "
            + "; ".join(
                f"{key} {_value(old)} -> {_value(new)}" for key, old, new in phase_difference(recipe, "meta", "cross")
            ),
        )
    if carried is not None:
        write_json(folder.path / "carry_over.json", carried.report)
        for line in describe(carried.report):
            _say(topology, line)
    if progress.step:
        _say(topology, f"resuming after step {progress.step}")
        if options.phase == "cross":
            warn_of_stale_cross(folder.run_dir, options.recipe, options.overrides)


def _show_place(recipe: Recipe, topology: Topology, always: bool = False) -> None:
    """Say which rank does what on which node, and what the collectives were told; refuse what the launcher did not show.

    One rank alone is only shown when asked for (`always`).

    Raises:
        UserError: when the ranks lie on other nodes than the launcher's variables said, and a tensor group crosses them.
    """
    layout = recipe.parallel
    placement = check_placement(topology, layout.tensor, layout.pipeline, layout.tensor_across_nodes)
    if topology.world_size > 1 or always:
        for line in [
            *placement_lines(placement),
            f"  {shown()}; {counted(threads(topology), 'thread')} a rank, started by {topology.launcher}",
        ]:
            _say(topology, line)


def _value(value: Any) -> str:
    return "unset" if value is None else str(value)


def _say(topology: Topology, line: str) -> None:
    if topology.is_first and not os.environ.get("DIST_METAXLM_QUIET"):
        print(line, flush=True)
