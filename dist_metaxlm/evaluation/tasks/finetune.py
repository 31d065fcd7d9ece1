"""Fine-tuning on one language with transformers' Trainer and evaluation on all others.

The model is fine-tuned on the training language and scored on every test language. The best epoch is chosen on the training
language's development set, never on another language's. Defaults are XTREME's (google-research/xtreme, scripts/train_*.sh).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import torch
import yaml
from pydantic import Field, ValidationError

from dist_metaxlm import failpoints
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.locate import all_files_by_language, files_of
from dist_metaxlm.evaluation.files.predictions import write_rows
from dist_metaxlm.evaluation.measures.transfer import transfer_table, xtreme_score
from dist_metaxlm.evaluation.resume.parts import Parts, examples_digest
from dist_metaxlm.evaluation.tasks.encoders import check_encoder
from dist_metaxlm.evaluation.tasks.languages import dominant_script
from dist_metaxlm.evaluation.tasks.spec import TaskSpec
from dist_metaxlm.recipe.section import Section
from dist_metaxlm.recipe.yaml_text import read_yaml
from dist_metaxlm.reporting.results import TaskResult
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Example = TypeVar("Example")
Scores = dict[str, float]
Feature = dict[str, Any]
"""Inputs of the model for one example or a part of it, with labels; keys that begin with `_` are for scoring."""
Row = dict[str, Any]
"""An example and what was predicted, for a line of JSON."""
Collator = Callable[[list[Feature]], Mapping[str, torch.Tensor]]
"""Pads and stacks features."""


class Settings(Section):
    """How a task is learnt."""

    learning_rate: float = Field(2e-5, gt=0)
    """Peak of the linear schedule."""
    epochs: int = Field(5, ge=1)
    """Passes over the training examples."""
    batch_size: int = Field(32, ge=1)
    """Examples (for questions: windows) per step."""
    max_length: int = Field(128, ge=8)
    """Tokens of an input, special tokens included; the model's own limit if that is less."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    stride: int = Field(128, ge=1)
    """Questions: tokens from the beginning of a window of a paragraph to that of the next (fewer if windows are short)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of computation; bf16: autocast. Weights and optimizer are fp32 in both, also of encoders stored otherwise."""
    max_train: int | None = Field(None, ge=1)
    """Number of training examples, from the start of the file; empty: all."""
    max_test: int | None = Field(None, ge=1)
    """Number of examples of every development and test file, from its start; empty: all."""


XTREME = {
    "classification": Settings(),
    "tagging": Settings(epochs=10),
    "questions": Settings(learning_rate=3e-5, epochs=3, max_length=384, warmup_steps=500, weight_decay=1e-4),
}
"""Settings by kind of task, as in XTREME's scripts."""


def read_settings(kind: str, overrides: Sequence[str]) -> Settings:
    """XTREME's settings for a kind of task with `key=value` overrides. Errors: UserError naming the problem."""
    fields: dict[str, Any] = XTREME[kind].model_dump()
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or key not in fields:
            raise UserError(f"--finetune {override!r} is not key=value with a key of {', '.join(fields)}")
        try:
            fields[key] = read_yaml(value)
        except yaml.YAMLError:
            raise UserError(f"--finetune {override!r}: {value!r} is not a value; quote it") from None
    try:
        return Settings.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"--finetune {problem['loc'][0]}: {problem['msg']} (got {problem['input']!r})") from None


class Head(Protocol[Example]):
    """The part of fine-tuning that depends on the kind of task; one file per kind."""

    metric: str
    """Score that selects the epoch and fills the tables; higher is better."""

    def read(self, path: Path, language: str) -> list[Example]:
        """Examples of a file that are in this language."""

    def text(self, example: Example) -> str:
        """Text of an example, to determine its script."""

    def observe(self, train: list[Example]) -> None:
        """Receive all training examples before any other file is read, to refuse those that nothing can be learnt from."""

    def model(self, folder: str) -> PreTrainedModel:
        """The transformers model with a fresh head, from a folder."""

    def features(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> list[Feature]:
        """Inputs of the model, with labels; keys that begin with `_` are not passed to it."""

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads and stacks features."""

    def shrink(self, logits: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Reduce the logits to what scoring needs."""

    def scores(self, examples: Sequence[Example], features: Sequence[Feature], predictions: Any, language: str) -> Scores:
        """Scores of `predictions`, the results of `shrink` for all features."""

    def rows(self, examples: Sequence[Example], features: Sequence[Feature], predictions: Any, language: str) -> list[Row]:
        """Every example with its label (`gold`) and what was `predicted`, for `--save_predictions`."""


def model_inputs(encoded: Mapping[str, Any], row: int | None = None) -> Feature:
    """What a model reads of a tokenizer's output, of one row if there are several: ids, mask, and segments if it has any."""
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
    return {name: encoded[name] if row is None else encoded[name][row] for name in names}


class TaskData(Generic[Example]):
    """The examples of a task: training, development, and test by language."""

    def __init__(
        self,
        name: str,
        spec: TaskSpec,
        head: Head[Example],
        root: Path,
        settings: Settings,
        languages: list[str] | None = None,
    ) -> None:
        """Read all files before training. Errors: UserError naming the file and the problem."""
        where = f"task {name}"
        self.kind, self.source = spec.kind, spec.train_language
        paths = files_of(root, spec.train, self.source, where)
        train = _joined(head, paths, self.source)
        try:
            head.observe(train)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self.train = _cut(train, spec.train_rows, settings.max_train)
        dev = files_of(root, spec.dev, self.source, where)
        self.dev = _cut(_joined(head, dev, self.source), spec.dev_rows, settings.max_test)
        files = all_files_by_language(root, spec.test, where)
        wanted = set(files) if languages is None else {*languages, self.source}
        if not wanted & set(files):
            raise UserError(f"{where}: none of the languages {', '.join(languages or [])} is there, only {', '.join(files)}")
        self.test = {
            language: _cut(_joined(head, paths_of, language), spec.test_rows, settings.max_test)
            for language, (paths_of, _) in files.items()
            if language in wanted
        }
        self.files = {
            "train": [path.name for path in paths],
            "dev": [path.name for path in dev],
            "test": {language: [path.name for path in files[language][0]] for language in self.test},
        }
        if not self.train or not self.dev or not all(self.test.values()):
            raise UserError(f"{where}: a split has no examples; correct train_rows, dev_rows or test_rows in --tasks_file")
        self.scripts = {language: dominant_script(map(head.text, examples)) for language, examples in self.test.items()}

    def digest(self) -> str:
        """Digest of all examples."""
        return examples_digest(self.train, self.dev, self.test)


def _cut(examples: list[Example], rows: tuple[int, int] | None, most: int | None) -> list[Example]:
    chosen = examples if rows is None else examples[rows[0] : rows[1]]
    return chosen[:most]


def _joined(head: Head[Example], paths: Sequence[Path], language: str) -> list[Example]:
    """Examples of all files, one file after the other."""
    return [example for path in paths for example in head.read(path, language)]


@dataclass(frozen=True, kw_only=True)
class Work:
    """How and where fine-tuning runs, besides the data."""

    settings: Settings
    parts: Parts = field(default_factory=Parts)
    """Finished seeds and epochs."""
    predictions: Path | None = None
    """Folder for the predictions of every seed and language; None: they are not written."""
    log: Callable[[str], None] = lambda line: None


def finetune_task(
    folder: Path, name: str, data: TaskData[Example], head: Head[Example], seeds: Sequence[int], work: Work
) -> TaskResult:
    """Fine-tune an encoder on a task whose files `head` has read, once per seed, and score every language.

    Seeds that `work.parts` has are not run again; an interrupted one goes on after its last epoch.

    Returns:
        `metric`, `settings`, `seeds`, `scores` (one mapping language -> scores per seed), `dev` (best score per seed),
        `files` (names) and `table` (see transfer_table).
    """
    from dist_metaxlm.evaluation.resume.learning import learn_seed

    check_encoder(folder, [data.kind])
    scores, dev = [], []
    work.log(
        f"{name}: {pluralize(len(data.train), 'example', ',')} in {data.source!r} to learn, "
        f"{pluralize(work.settings.epochs, 'epoch')}, {pluralize(len(seeds), 'seed')}, "
        f"{pluralize(len(data.test), 'language')} to test"
    )
    for seed in seeds:
        kept = work.parts.read(f"seed-{seed}")
        what = f"{name}, seed {seed}"
        if kept is None:
            with work.parts.checkpoints(f"seed-{seed}") as checkpoints:
                best, by_language, rows = learn_seed(folder, data, head, seed, work, checkpoints, what)
                if work.predictions is not None:
                    for language, lines in rows.items():
                        write_rows(work.predictions / f"{name}-seed{seed}-{language}.jsonl", lines)
                kept = {"dev": best, "scores": by_language}
                work.parts.write(f"seed-{seed}", kept)
            failpoints.reach("evaluating.seed", seed)
            work.log(f"{what}: {head.metric} {best:.3f} on the development set")
        else:
            work.log(f"{what}: {head.metric} {kept['dev']:.3f} on the development set, finished before")
        dev.append(kept["dev"])
        scores.append(kept["scores"])
    main = [{language: of[head.metric] for language, of in row.items()} for row in scores]
    return {
        "metric": head.metric,
        "settings": work.settings.model_dump(),
        "seeds": list(seeds),
        "examples": {
            "train": len(data.train),
            "dev": len(data.dev),
            "test": {language: len(examples) for language, examples in data.test.items()},
        },
        "files": data.files,
        "dev": dev,
        "scores": scores,
        "xtreme": xtreme_score(scores, head.metric),
        "table": transfer_table(main, data.scripts, data.source),
    }


def require_libraries(kind: str, seeds: Sequence[int]) -> None:
    """Raise UserError if a library is missing that this kind of task needs for training, scoring or intervals."""
    needed = ["accelerate", *(["seqeval"] if kind == "tagging" else []), *(["scipy"] if len(seeds) > 1 else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{kind} tasks need {', '.join(missing)}, missing here; pip install 'dist-metaxlm[evaluation]'")
