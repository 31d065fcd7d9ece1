"""Run tasks on one encoder after the other: ours by run and phase, others by folder, all through the same code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import TASKS as HELDOUT
from dist_metaxlm.evaluation.resume.parts import RESULT, Parts, examples_digest, folder_digest, parts_of
from dist_metaxlm.evaluation.tasks.classification import Classification
from dist_metaxlm.evaluation.tasks.encoders import check_encoder, check_folder
from dist_metaxlm.evaluation.tasks.finetune import TaskData, Work, finetune_task, read_settings, require_libraries
from dist_metaxlm.evaluation.tasks.languages import canonical
from dist_metaxlm.evaluation.tasks.questions import Questions
from dist_metaxlm.evaluation.tasks.retrieval import Keeping, evaluate_parallel, read_parallel
from dist_metaxlm.evaluation.tasks.spec import BUILT_IN, TaskSpec, load_tasks
from dist_metaxlm.evaluation.tasks.tagging import Tagging
from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder, exported_phase
from dist_metaxlm.evaluation.tasks.word_alignment import evaluate_alignment, read_alignment
from dist_metaxlm.reporting.metrics import write_json
from dist_metaxlm.reporting.results import TaskResult
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.run.environment import environment

Log = Callable[[str], None]
HEADS: dict[str, Callable[[TaskSpec], Any]] = {"tagging": Tagging, "classification": Classification, "questions": Questions}


@dataclass(frozen=True)
class Opened:
    """A task with files read and settings checked."""

    run: Callable[[Path, Log, Parts], TaskResult]
    """(folder of an encoder, log, finished parts) -> result."""
    facts: Mapping[str, object]
    """What the figures of all its parts depend on, besides the encoder."""
    part: str = RESULT
    """Name of the part with the whole result, which also depends on seeds or languages."""


@dataclass(frozen=True)
class TaskOptions:
    """Task options of the command line."""

    data: Path
    """Folder of the tasks' files."""
    file: Path | None = None
    """YAML file that describes tasks."""
    languages: tuple[str, ...] = ()
    """Languages to test; empty: all that have files."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of fine-tuning."""
    settings: tuple[str, ...] = ()
    """Fine-tuning settings as key=value, for all tasks."""
    include_special: bool = True
    """Retrieval: pool over special tokens too."""
    max_pairs: int | None = None
    """Retrieval and alignment: number of pairs of every file, from its start."""
    keep_going: bool = False
    """Continue with the next task after a UserError."""
    data_directory: str | None = None
    """Folder of a run's prepared data; empty: the one in its recipe."""
    layer: int | None = None
    """Retrieval and alignment: layer of the tables; empty: two thirds of the depth."""
    train_language: str | None = None
    """Language that fine-tuned tasks learn in; empty: the task's own."""
    work: Path | None = None
    """Folder of finished parts, from which an interrupted evaluation goes on; empty: nothing is kept."""
    again: bool = False
    """Evaluate again what is finished."""
    predictions: Path | None = None
    """Folder for the predictions; empty: they are not written."""

    def __post_init__(self) -> None:
        """Errors: UserError for a seed given twice, which would count as an independent one."""
        twice = next((seed for seed in self.seeds if self.seeds.count(seed) > 1), None)
        if twice is not None:
            raise UserError(f"--seeds has {twice} more than once, which is no second measurement; give different seeds")


def evaluate_run_tasks(
    run_dir: str | Path,
    phase: str,
    names: Sequence[str],
    options: TaskOptions,
    log: Log = lambda line: None,
    opened: Mapping[str, Opened] | None = None,
) -> dict[str, TaskResult]:
    """Run tasks on a phase of a run; each result is also written to evaluation/PHASE-TASK.json of the run."""
    folder = Path(run_dir) / "evaluation"

    def finished(name: str, result: TaskResult) -> None:
        if "error" not in result:
            write_json(folder / f"{phase}-{name}.json", {"phase": phase, "task": name, **result})

    options = replace(options, work=folder / "parts" / phase)
    with exported_phase(run_dir, phase, data_directory=options.data_directory) as encoder:
        return evaluate_tasks(encoder, names, options, log, opened, finished)


def split_tasks(given: str | None, has_run: bool, file: str | None, keep_going: bool) -> tuple[list[str], list[str]]:
    """(tasks on a run's held-out text, tasks with files of their own) of a comma-separated list.

    Errors: UserError for an unknown task (with `keep_going` only that task fails, later), or one that needs a run.
    """
    if given is None and not has_run:
        raise UserError(f"--model needs --tasks; choose from {', '.join(BUILT_IN)}")
    names = list(HELDOUT) if given is None else [name.strip() for name in given.split(",")]
    others = [name for name in names if name not in HELDOUT]
    if "" in others:
        raise UserError(f"unknown task ''; choose from {', '.join((*HELDOUT, *BUILT_IN))}")
    if not keep_going:
        load_tasks(others, file)
    if len(others) < len(names) and not has_run:
        raise UserError(
            f"task {next(name for name in names if name in HELDOUT)} reads a run's held-out text; give "
            "--run_dir and --phase, or remove it from --tasks"
        )
    return [name for name in names if name in HELDOUT], others


def evaluate_encoders(
    run_dir: str | None,
    phases: Sequence[str],
    models: Sequence[str],
    names: Sequence[str],
    options: TaskOptions,
    output: str | None = None,
    log: Log = lambda line: None,
) -> dict[str, dict[str, TaskResult]]:
    """{encoder: {task: result}} of a run's phases and of Hugging Face folders, under names for tables.

    All results are also written to the JSON file `output`, if given, after every task. Errors: as `evaluate_tasks`.
    """
    opened: Mapping[str, Opened] = {}
    if not options.keep_going:
        kinds = [spec.kind for spec in load_tasks(list(names), options.file).values()]
        for model in models:
            check_encoder(Path(model), kinds)
        opened = check_tasks(names, options)
    under = _under if len(phases) + len(models) > 1 else lambda name, log: log
    results: dict[str, dict[str, TaskResult]] = {}

    def save(label: str, name: str, result: TaskResult) -> None:
        results.setdefault(label, {})[name] = result
        if output is not None:
            write_json(Path(output), {"encoders": results, "environment": environment()})

    for phase in phases:
        own = _with_predictions(options, phase)
        for name, result in evaluate_run_tasks(str(run_dir), phase, names, own, under(phase, log), opened).items():
            save(phase, name, result)
    for model in models:
        label = Path(model).name if [Path(other).name for other in models].count(Path(model).name) == 1 else model
        label = label if label not in phases else model
        own = _with_predictions(options, label)
        if own.work is not None:
            own = replace(own, work=own.work / _file_name(label))
        evaluate_tasks(model, names, own, under(label, log), opened, partial(save, label))
    return results


def _file_name(label: str) -> str:
    return label.strip("/.").replace("/", "-")


def _with_predictions(options: TaskOptions, label: str) -> TaskOptions:
    """The options with a folder of predictions of its own for an encoder."""
    if options.predictions is None:
        return options
    return replace(options, predictions=options.predictions / _file_name(label))


def _under(name: str, log: Log) -> Log:
    return lambda line: log(f"{name}: {line}")


def evaluate_tasks(
    folder: str | Path,
    names: Sequence[str],
    options: TaskOptions,
    log: Log = lambda line: None,
    opened: Mapping[str, Opened] | None = None,
    finished: Callable[[str, TaskResult], None] = lambda name, result: None,
) -> dict[str, TaskResult]:
    """{task: result} of an encoder in a folder; a task that failed under `keep_going` has {error: sentence}.

    Tasks that are not in `opened` are read here, one after the other. `finished` is called after every task.
    Errors: UserError for problems of the task's files, settings or the folder.
    """
    check_folder(Path(folder))
    digest = folder_digest(Path(folder)) if options.work is not None else ""
    results: dict[str, TaskResult] = {}
    for name in names:
        try:
            task = (opened or {}).get(name) or _opened(name, options)
            parts = parts_of(options.work, digest, name, task.facts)
            with parts.locked():
                results[name] = _result(name, task, Path(folder), options, log, parts)
            _say_missing(name, results[name], options.languages, log)
        except UserError as error:
            if not options.keep_going:
                raise
            results[name] = {"error": str(error)}
        finished(name, results[name])
    return results


def _result(name: str, task: Opened, folder: Path, options: TaskOptions, log: Log, parts: Parts) -> TaskResult:
    """The result of a task on an encoder: of an earlier evaluation if it was finished, else computed and kept."""
    if options.again:
        parts.clear()
    kept: TaskResult | None = parts.read(task.part)
    if kept is not None:
        log(f"{name}: finished before ({parts.folder}); --again evaluates it again")
        return kept
    began = time.perf_counter()
    result = task.run(folder, log, parts)
    result["seconds"] = round(time.perf_counter() - began, 1)
    parts.write(task.part, result)
    return result


def _say_missing(name: str, result: TaskResult, asked: Sequence[str], log: Log) -> None:
    """Log which requested languages have no file and are left out of the means."""
    tested = result["languages"] if result["kind"] in ("retrieval", "alignment") else result["table"]["languages"]
    missing = [language for language in asked if canonical(language, "--languages") not in tested]
    if missing:
        log(f"{name}: no test file for {', '.join(missing)}; the means are without")


def check_tasks(names: Sequence[str], options: TaskOptions) -> dict[str, Opened]:
    """Read everything that tasks need besides an encoder, so that nothing turns out to be missing after hours of training.

    Returns the contents of a single task; of several tasks nothing is kept, and each is read again later. Errors: UserError
    for the first problem of a task's files, settings or libraries.
    """
    for name in names:
        opened = _opened(name, options)
    return {names[0]: opened} if len(names) == 1 else {}


def _opened(name: str, options: TaskOptions) -> Opened:
    """The task, ready for any encoder."""
    spec = load_tasks([name], options.file)[name]
    languages = [canonical(language, "--languages") for language in options.languages] or None
    rows = None if options.predictions is None else str(options.predictions.absolute())
    if spec.kind == "retrieval":
        return _open_retrieval(name, spec, languages, options, rows)
    if spec.kind == "alignment":
        texts = read_alignment(name, spec, options.data, languages, options.max_pairs)
        return Opened(
            lambda folder, log, parts: evaluate_alignment(
                TextEncoder(folder), texts, spec.extraction, spec.words, layer=options.layer
            ),
            {"task": spec.model_dump(), "texts": examples_digest(texts), "layer": options.layer},
        )
    if options.train_language is not None:
        spec = spec.model_copy(update={"train_language": canonical(options.train_language, "--train_language")})
    settings = read_settings(spec.kind, options.settings)
    require_libraries(spec.kind, options.seeds)
    head = HEADS[spec.kind](spec)
    data = TaskData(name, spec, head, options.data, settings, languages)

    def learn(folder: Path, log: Log, parts: Parts) -> TaskResult:
        work = Work(settings=settings, parts=parts, predictions=options.predictions, log=log)
        with libraries_on_standard_error():
            return {"kind": spec.kind, **finetune_task(folder, name, data, head, options.seeds, work)}

    facts = {"settings": settings.model_dump(), "examples": data.digest(), "predictions": rows}
    return Opened(learn, {"task": spec.model_dump(), **facts}, f"{RESULT}-{'-'.join(map(str, options.seeds))}")


def _open_retrieval(
    name: str, spec: TaskSpec, languages: list[str] | None, options: TaskOptions, rows: str | None
) -> Opened:
    pairs = read_parallel(name, spec, options.data, languages)

    def retrieve(folder: Path, log: Log, parts: Parts) -> TaskResult:
        log(
            f"{name}: {pluralize(sum(len(rows[: options.max_pairs]) for rows in pairs.values()), 'pair')} in "
            f"{pluralize(len(pairs), 'language')}"
        )
        keeping = Keeping(
            parts=parts,
            predictions=None if options.predictions is None else options.predictions / name,
            log=lambda line: log(f"{name}: {line}"),
        )
        special, most, layer = options.include_special, options.max_pairs, options.layer
        return evaluate_parallel(TextEncoder(folder), pairs, special, most, layer=layer, keeping=keeping)

    facts = {"special": options.include_special, "predictions": rows and (rows, options.layer)}
    return Opened(
        retrieve,
        {"task": spec.model_dump(), **facts},
        f"{RESULT}-{examples_digest(pairs, options.max_pairs, options.layer)}",
    )


@contextmanager
def libraries_on_standard_error() -> Iterator[None]:
    """Redirect what libraries print to standard error: with --json standard output must hold exactly one object."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports DeepSpeed, which searches for one and warns
    output = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = output
