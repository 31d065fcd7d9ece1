"""The two-phase study: every arm is a run of `metaxlm pretrain` in its own process, measured at several checkpoints.

The folder of a study holds `plan.json` (the settings), `data/` (prepared once for all arms), `arms/NAME/` (a run folder
with `study-recipe.yaml`, `log.txt` and, once it is measured, `result.json`), `study.json`, `report.html` and `report.md`.
When started again it skips finished arms and resumes the interrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.run import load_state, window_of
from dist_metaxlm.evaluation.tasks.run import TaskOptions, check_tasks, evaluate_run_tasks
from dist_metaxlm.interop.configs import check_exportable
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.preparation import prepare
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.reporting.metrics import read_json, read_metrics, write_json
from dist_metaxlm.reporting.results import ArmResult, CheckpointFigures, CurvePoint, LossPoint, Measured, Study, TaskResult
from dist_metaxlm.reporting.study import write_study_report
from dist_metaxlm.study.arms import MEANING, SIZES, Arm, study_arms
from dist_metaxlm.study.measures import MEASURES, measure
from dist_metaxlm.study.training import PRETRAIN, Workers
from dist_metaxlm.study.verdict import summarise
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.checkpointing.manifest import list_steps
from dist_metaxlm.training.run.environment import environment
from dist_metaxlm.training.run.layout import check_layout

Log = Callable[[str], None]


@dataclass(frozen=True)
class StudyOptions:
    """The command line of `metaxlm study two-phase`."""

    output: Path
    """Folder of the study."""
    size: str = "tiny"
    """Name in SIZES: model and N."""
    recipe: str = "quickstart"
    """Recipe with data, phases and optimiser."""
    overrides: tuple[str, ...] = ()
    """Recipe fields as key=value, applied after those of the size."""
    tokens: int | None = None
    """N; None: that of the size."""
    ratios: tuple[float, ...] = (0.25, 0.5)
    """n1/N."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of an arm."""
    kinds: tuple[str, ...] = tuple(MEANING)
    """Kinds of arms to run."""
    ranks: int = 1
    """Processes that train an arm."""
    jobs: int = 1
    """Number of arms trained at once, each on its share of cores and CUDA devices."""
    points: int = 5
    """Number of checkpoints measured per phase."""
    curve_strings: int = 150
    """Held-out strings read at each checkpoint; the last one of an arm reads all."""
    tasks: tuple[str, ...] = ()
    """Tasks for finished arms."""
    task_options: TaskOptions = field(default_factory=lambda: TaskOptions(Path("data/xtreme")))
    """Their files and settings."""


def two_phase_study(options: StudyOptions, log: Log, script: Sequence[str] = PRETRAIN) -> Study:
    """Run the missing arms of a study, write its report and return the contents of study.json.

    Args:
        options: settings of the study.
        log: receives progress lines.
        script: arguments of Python that run a phase of an arm.

    Errors: UserError for invalid settings, another study in the folder, or a failed arm; GracefulStop after SIGTERM, when
    finished work is saved.
    """
    workers = Workers(options.jobs, options.ranks, script)
    base = base_recipe(options)
    begun = (options.output / "plan.json").is_file()
    if not begun:
        _check_tasks(options, base)
    arms = _plan(options, base, log)
    results = {arm.name: _finished(options.output / "arms" / arm.name, arm) for arm in arms}
    missing = [arm for arm in arms if results[arm.name] is None]
    began, fresh = time.monotonic(), 0
    if missing:
        if begun:  # the report of a finished study does not need the tasks' files
            _check_tasks(options, base)
        log(
            f"training {len(missing)} of {pluralize(len(arms), 'arm')}, {options.jobs} at once; the first is "
            f"{missing[0].label}, seed {missing[0].seed}, with its lines in "
            f"{options.output / 'arms' / missing[0].name / 'log.txt'}"
        )

    def write() -> Study:
        return _write(options, arms, [result for arm in arms if (result := results[arm.name]) is not None])

    def work(arm: Arm) -> ArmResult:
        folder = options.output / "arms" / arm.name
        workers.train(arm, folder)
        return _measure(arm, folder, options, workers.device)

    def finished(arm: Arm, result: ArmResult) -> None:
        nonlocal fresh
        write_json(options.output / "arms" / arm.name / "result.json", result)
        results[arm.name], fresh = result, fresh + 1
        left = (time.monotonic() - began) / fresh * (len(missing) - fresh) / 60
        log(
            f"arm {len(arms) - len(missing) + fresh} of {len(arms)}, {arm.label}, seed {arm.seed}: {_course(result)}; about "
            f"{pluralize(round(left), 'minute')} left"
        )
        write()

    with workers:
        workers.run(missing, work, finished)
    return write()


def base_recipe(options: StudyOptions) -> Recipe:
    """The base recipe of all arms: the named one with the model shape of the size and a data folder inside the study."""
    if options.size not in SIZES:
        raise UserError(f"--size {options.size!r} is none of {', '.join(SIZES)}")
    shape = [f"{key}={value}" for key, value in SIZES[options.size][1].items()]
    return load_recipe(options.recipe, [*shape, f"data.directory={options.output / 'data'}", *options.overrides])


def _check_tasks(options: StudyOptions, base: Recipe) -> None:
    """Refuse tasks that could not run on a trained arm, before any training."""
    if not options.tasks:
        return
    try:
        check_exportable(base.model)
    except UserError as error:
        raise UserError(f"--tasks open every arm with transformers, and {error}") from None
    check_tasks(options.tasks, options.task_options)


def _plan(options: StudyOptions, base: Recipe, log: Log) -> list[Arm]:
    """The arms, after preparing the data; a later call may add seeds and ratios but change nothing else."""
    unknown = [kind for kind in options.kinds if kind not in MEANING]
    if unknown or not options.kinds:
        raise UserError(f"--arms {unknown[0] if unknown else ''!r} is none of {', '.join(map(repr, MEANING))}")
    tokens = options.tokens or SIZES[options.size][0]
    plan = {
        "size": options.size,
        "tokens": tokens,
        "points": options.points,
        "curve_strings": options.curve_strings,
        "tasks": list(options.tasks),
        "recipe": base.model_dump(mode="json"),
    }
    # refuse recipes that cannot be trained before any data is prepared
    for arm in study_arms(base, tokens, options.ratios, options.seeds, 0.5, options.points):
        for phase in arm.phases:
            check_layout(arm.recipe, phase, Topology(0, options.ranks, 0, options.ranks, "study"))
    before = read_json(options.output / "plan.json")
    changed = [key for key in plan if before is not None and before.get(key) != plan[key]]
    if changed:
        raise UserError(
            f"{options.output} holds a study with another {', '.join(changed)}; give another --output, or the "
            "settings of its plan.json"
        )
    prepare.prepare(base, log)
    write_json(options.output / "plan.json", plan)
    arms = study_arms(base, tokens, options.ratios, options.seeds, english_of_cross(base), options.points)
    return [arm for arm in arms if arm.kind in options.kinds]


def english_of_cross(base: Recipe) -> float:
    """Target English share of the cross phase's text windows, over its whole length."""
    directory = Path(base.data.directory)
    on_text = [objective for objective in base.phase("cross").objectives if objective.reads == "text"]
    phase = PhaseConfig.model_validate(dict(base.phase("cross")) | {"objectives": on_text})
    data = PhaseData(
        TokenStore.open(directory / "store"), Tokenizer.load(directory / "tokenizer.model"), "cross", phase, base.seed
    )
    windows = phase.total_steps * phase.tokens_per_step // phase.sequence_length
    return data.asked_so_far(on_text[0].name, windows).get("en", 0.0)


def _finished(folder: Path, arm: Arm) -> ArmResult | None:
    result = read_json(folder / "result.json")
    return result if result is not None and result.get("recipe") == arm.recipe.model_dump(mode="json") else None


def _measure(arm: Arm, folder: Path, options: StudyOptions, device: torch.device) -> ArmResult:
    """The arm's result: its curve over all phases, its last checkpoint in full, its tasks."""
    directory = Path(arm.recipe.data.directory)
    tokenizer = Tokenizer.load(directory / "tokenizer.model")

    def figures(phase: str, step: int | None, most: int | None) -> CheckpointFigures:
        recipe, state = load_state(folder, phase, step)
        encoder = Encoder(recipe.model, recipe.seed)
        encoder.load_state_dict(state)
        return measure(encoder.to(device), tokenizer, directory / "heldout", window_of(recipe), most)

    curve: list[CurvePoint] = []
    loss: list[LossPoint] = []
    before = 0
    for phase in arm.phases:
        each = arm.recipe.phase(phase).tokens_per_step
        for step in list_steps(folder / phase / "checkpoints"):
            point = figures(phase, step, options.curve_strings)
            curve.append({"phase": phase, "tokens": before + step * each, **_measures(point)})
        records = read_metrics(folder / phase / "metrics.jsonl")
        loss += [
            {"phase": phase, "tokens": before + record["step"] * each, "losses": record["losses"]} for record in records
        ]
        before += arm.recipe.phase(phase).total_steps * each
    last = figures(arm.phases[-1], None, None)
    tasks = evaluate_run_tasks(folder, arm.phases[-1], options.tasks, options.task_options) if options.tasks else {}
    return {
        "label": arm.label,
        "kind": arm.kind,
        "ratio": arm.ratio,
        "seed": arm.seed,
        "tokens": arm.tokens,
        "english_share": _english_share(arm, folder),
        "final": last,
        "curve": curve,
        "loss": loss,
        "tasks": tasks,
        "figures": _figures(last) | _task_figures(tasks),
        "seconds": sum(read_metrics(folder / phase / "metrics.jsonl")[-1]["seconds"] for phase in arm.phases),
        "recipe": arm.recipe.model_dump(mode="json"),
    }


def _figures(last: Measured) -> dict[str, float | None]:
    return {
        "english_nll": last["english_nll"],
        "others_nll": last["others_nll"],
        "retrieval": last["retrieval"],
        "retrieval_csls": last["retrieval_csls"],
        "cka": last["cka"],
        "margin": last["margin"],
    }


def _measures(figures: Measured) -> Measured:
    return {
        "english_nll": figures["english_nll"],
        "others_nll": figures["others_nll"],
        "retrieval": figures["retrieval"],
        "retrieval_csls": figures["retrieval_csls"],
        "cka": figures["cka"],
        "margin": figures["margin"],
    }


def _english_share(arm: Arm, folder: Path) -> float | None:
    """Actual English share of the text windows of all phases."""
    english = total = 0
    for phase in arm.phases:
        realised = read_metrics(folder / phase / "metrics.jsonl")[-1]["realised"]
        for objective in arm.recipe.phases[phase].objectives:
            counts = realised.get(objective.name, {}) if objective.reads == "text" else {}
            english, total = english + counts.get("en", 0), total + sum(counts.values())
    return english / total if total else None


def _task_figures(tasks: Mapping[str, TaskResult]) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for name, result in tasks.items():
        if result.get("kind") in ("retrieval", "alignment"):
            of = "cosine" if result["kind"] == "retrieval" else "f1"
            figures[f"{name}:others"] = result["per_layer"][of][result["layer"]]
        elif "table" in result:
            table = result["table"]
            for what, interval in (("English", table["source"]), ("others", table["others"]), ("gap", table["gap"])):
                if interval:
                    figures[f"{name}:{what}"] = interval["mean"]
    return figures


def _course(result: ArmResult) -> str:
    figures = result["figures"]
    return ", ".join(
        f"{name} {figures[name]:.3f}" for name in ("english_nll", "others_nll", "retrieval") if figures[name] is not None
    )


def _write(options: StudyOptions, arms: Sequence[Arm], results: Sequence[ArmResult]) -> Study:
    """Write study.json and the report of the arms finished so far."""
    measures = dict(MEASURES)
    for name in dict.fromkeys(name for result in results for name in result["figures"]):
        if name not in measures:
            task, _, what = name.partition(":")
            measures[name] = (f"{task}, {what}", what != "gap")
    study: Study = {
        "size": options.size,
        "parameters": _parameters(arms[0].recipe),
        "tokens": options.tokens or SIZES[options.size][0],
        "ratios": list(options.ratios),
        "seeds": list(options.seeds),
        "finished": len(results),
        "asked": len(arms),
        "measures": {name: {"meaning": meaning, "higher_is_better": higher} for name, (meaning, higher) in measures.items()},
        **summarise(results, measures),
        "results": list(results),
        "environment": environment(),
    }
    write_json(options.output / "study.json", study)
    write_study_report(options.output, study)
    return study


def _parameters(recipe: Recipe) -> int:
    from dist_metaxlm.planning.parameters import count_parameters

    return count_parameters(recipe.model).total
