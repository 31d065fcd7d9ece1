"""Fine-tuning on one language with transformers' Trainer and evaluation on all others.

The model is fine-tuned on the training language and scored on every test language. The best epoch is chosen on the training
language's development set, never on another language's. Defaults are XTREME's (google-research/xtreme, scripts/train_*.sh).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from pydantic import Field

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.transfer import transfer_table
from dist_metaxlm.evaluation.tasks.languages import dominant_script
from dist_metaxlm.evaluation.tasks.spec import TaskSpec, file_of, files_by_language
from dist_metaxlm.evaluation.tasks.text_encoder import check_folder, longest_input, opening
from dist_metaxlm.recipe.section import Section
from dist_metaxlm.reporting.results import TaskResult
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

Example = TypeVar("Example")
Scores = dict[str, float]
Feature = dict[str, Any]
"""Inputs of the model for one example or a part of it, with labels; keys that begin with `_` are for scoring."""
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
    stride: int = Field(128, ge=0)
    """Questions: tokens that neighbouring windows of a paragraph share."""
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
        self.source = spec.train_language
        train = head.read(file_of(root, spec.train, self.source, where), self.source)
        try:
            head.observe(train)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        self.train = _cut(train, spec.train_rows, settings.max_train)
        dev = file_of(root, spec.dev, self.source, where)
        self.dev = _cut(head.read(dev, self.source), spec.dev_rows, settings.max_test)
        files = files_by_language(root, spec.test, where)
        wanted = set(files) if languages is None else {*languages, self.source}
        if not wanted & set(files):
            raise UserError(f"{where}: none of the languages {', '.join(languages or [])} is there, only {', '.join(files)}")
        self.test = {
            language: _cut(head.read(path, language), spec.test_rows, settings.max_test)
            for language, (path, _) in files.items()
            if language in wanted
        }
        if not self.train or not self.dev or not all(self.test.values()):
            raise UserError(f"{where}: a split has no examples; correct train_rows, dev_rows or test_rows in --tasks_file")
        self.scripts = {language: dominant_script(map(head.text, examples)) for language, examples in self.test.items()}


def _cut(examples: list[Example], rows: tuple[int, int] | None, most: int | None) -> list[Example]:
    chosen = examples if rows is None else examples[rows[0] : rows[1]]
    return chosen[:most]


def finetune_task(
    folder: Path,
    name: str,
    data: TaskData[Example],
    head: Head[Example],
    seeds: Sequence[int],
    settings: Settings,
    log: Callable[[str], None] = lambda line: None,
) -> TaskResult:
    """Fine-tune an encoder on a task whose files `head` has read, once per seed, and score every language.

    Returns:
        `metric`, `settings`, `seeds`, `scores` (one mapping language -> scores per seed), `dev` (best score per seed) and
        `table` (see transfer_table).
    """
    check_folder(folder)
    scores, dev = [], []
    log(
        f"{name}: {pluralize(len(data.train), 'example', ',')} in {data.source!r} to learn, "
        f"{pluralize(settings.epochs, 'epoch')}, {pluralize(len(seeds), 'seed')}, "
        f"{pluralize(len(data.test), 'language')} to test"
    )
    for seed in seeds:
        say = partial(_say_epoch, log, f"{name}, seed {seed}", count(1), settings.epochs, head.metric)
        best, by_language = _one_seed(folder, data, head, settings, seed, say)
        log(f"{name}, seed {seed}: {head.metric} {best:.3f} on the development set")
        dev.append(best)
        scores.append(by_language)
    main = [{language: of[head.metric] for language, of in row.items()} for row in scores]
    return {
        "metric": head.metric,
        "settings": settings.model_dump(),
        "seeds": list(seeds),
        "examples": {
            "train": len(data.train),
            "dev": len(data.dev),
            "test": {language: len(examples) for language, examples in data.test.items()},
        },
        "dev": dev,
        "scores": scores,
        "table": transfer_table(main, data.scripts, data.source),
    }


def _say_epoch(
    log: Callable[[str], None], what: str, numbers: Iterator[int], epochs: int, metric: str, score: float
) -> None:
    log(f"{what}, epoch {next(numbers)} of {epochs}: {metric} {score:.3f} on the development set")


def _one_seed(
    folder: Path, data: TaskData[Example], head: Head[Example], settings: Settings, seed: int, say: Callable[[float], None]
) -> tuple[float, dict[str, Scores]]:
    """(best development score, {language: scores}) of one training."""
    import transformers

    transformers.set_seed(seed)
    with opening(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model = head.model(str(folder))
    settings = settings.model_copy(update={"max_length": min(settings.max_length, longest_input(model.config, tokenizer))})
    train, dev = (head.features(examples, tokenizer, settings) for examples in (data.train, data.dev))

    def dev_score(output: EvalPrediction) -> Scores:
        score = head.scores(data.dev, dev, output.predictions, data.source)[head.metric]
        say(score)
        return {head.metric: score}

    with tempfile.TemporaryDirectory(prefix="dist_metaxlm-finetune-") as scratch:
        trainer = transformers.Trainer(
            model=model,
            args=_arguments(scratch, head.metric, settings, seed),
            train_dataset=_shown(train),
            eval_dataset=_shown(dev),
            data_collator=head.collator(tokenizer),
            compute_metrics=dev_score,
            preprocess_logits_for_metrics=lambda logits, labels: head.shrink(logits),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        scores: dict[str, Scores] = {}
        trainer.compute_metrics = None
        for language, examples in data.test.items():
            features = head.features(examples, tokenizer, settings)
            scores[language] = head.scores(examples, features, trainer.predict(_shown(features)).predictions, language)
        return float(trainer.state.best_metric), scores


def _arguments(scratch: str, metric: str, settings: Settings, seed: int) -> TrainingArguments:
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=scratch,
        seed=seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_only_model=True,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    # With several GPUs the Trainer would give each a batch and so multiply the batch size of the settings.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _shown(features: Sequence[Feature]) -> list[Feature]:
    return [{key: value for key, value in feature.items() if not key.startswith("_")} for feature in features]


def require_libraries(kind: str, seeds: Sequence[int]) -> None:
    """Raise UserError if a library is missing that this kind of task needs for training, scoring or intervals."""
    needed = ["accelerate", *(["seqeval"] if kind == "tagging" else []), *(["scipy"] if len(seeds) > 1 else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{kind} tasks need {', '.join(missing)}, missing here; pip install 'dist-metaxlm[evaluation]'")
