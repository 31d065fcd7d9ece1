"""Fine-tuning with one seed by transformers' Trainer, with a checkpoint after every epoch from which it resumes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dist_metaxlm import failpoints
from dist_metaxlm.evaluation.resume.progress import Progress
from dist_metaxlm.evaluation.tasks.encoders import longest_input, open_tokenizer, opening, takes_segments
from dist_metaxlm.reporting.metrics import write_json
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from transformers import EvalPrediction, TrainerCallback, TrainingArguments

    from dist_metaxlm.evaluation.tasks.finetune import Feature, Head, Row, Scores, Settings, TaskData, Work

Example = TypeVar("Example")


def learn_seed(
    folder: Path, data: TaskData[Example], head: Head[Example], seed: int, work: Work, checkpoints: Path, what: str
) -> tuple[float, dict[str, Scores], dict[str, list[Row]]]:
    """Learn a task with one seed, from the last epoch in `checkpoints` on, and score every language with the best epoch.

    Args:
        folder: the encoder.
        checkpoints: folder for the checkpoints of this seed.
        what: begins the lines of the log.

    Returns:
        (best development score, {language: scores}, {language: predictions}; the last empty unless `work.predictions`).
    """
    import transformers

    transformers.set_seed(seed)
    with opening(folder):
        tokenizer = open_tokenizer(folder)
        model = head.model(str(folder))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(work.settings.max_length, longest_input(model.config, tokenizer))
    settings = work.settings.model_copy(update={"max_length": longest})
    segments = takes_segments(model)
    train, dev = (head.features(examples, tokenizer, settings) for examples in (data.train, data.dev))

    def dev_score(output: EvalPrediction) -> Scores:
        return {head.metric: head.scores(data.dev, dev, output.predictions, data.source)[head.metric]}

    trainer = transformers.Trainer(
        model=model,
        args=arguments(str(checkpoints), head.metric, settings, seed),
        train_dataset=inputs_of(train, segments),
        eval_dataset=inputs_of(dev, segments),
        data_collator=head.collator(tokenizer),
        compute_metrics=dev_score,
        preprocess_logits_for_metrics=lambda logits, labels: head.shrink(logits),
        callbacks=[_reports(what, head.metric, settings.epochs, work)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    last = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.compute_metrics = None
    scores: dict[str, Scores] = {}
    rows: dict[str, list[Row]] = {}
    progress = Progress(work.log, what, len(data.test))
    for language, examples in data.test.items():
        features = head.features(examples, tokenizer, settings)
        predictions: Any = trainer.predict(inputs_of(features, segments)).predictions
        scores[language] = head.scores(examples, features, predictions, language)
        if work.predictions is not None:
            rows[language] = head.rows(examples, features, predictions, language)
        progress.reach(len(scores), "languages tested")
    best = trainer.state.best_metric
    return (math.nan if best is None else float(best)), scores, rows


def _reports(what: str, metric: str, epochs: int, work: Work) -> TrainerCallback:
    """The callback that writes lines of the log: the score of every epoch, and steps with the time left."""
    import transformers

    class Reports(transformers.TrainerCallback):  # type: ignore[misc]
        progress: Progress | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            warmup = work.settings.warmup_steps
            if warmup and warmup >= state.max_steps:
                work.log(
                    f"{what}: warmup_steps={warmup} is not below the {pluralize(state.max_steps, 'step')} of training, so "
                    f"the learning rate never reaches {work.settings.learning_rate:g}; lower it: --finetune warmup_steps=N"
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if self.progress is None:
                self.progress = Progress(work.log, what, state.max_steps, state.global_step)
            self.progress.reach(state.global_step, "steps")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
            score = metrics[f"eval_{metric}"]
            work.log(f"{what}, epoch {round(state.epoch)} of {epochs}: {metric} {score:.3f} on the development set")

        def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            failpoints.reach("evaluating.epoch", round(state.epoch))

    return Reports()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a folder; deletes incomplete ones, and all if the best epoch's is missing.

    The Trainer writes `trainer_state.json` last, so a checkpoint with a readable one is complete.
    """
    complete: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete[int(state["global_step"])] = (path, state)
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    if not complete:
        return None
    path, state = complete[max(complete)]
    best = folder / Path(state["best_model_checkpoint"] or path).name
    if best not in [other for other, _ in complete.values()]:
        for other, _ in complete.values():
            shutil.rmtree(other, ignore_errors=True)
        return None
    if state["best_model_checkpoint"] != str(best):  # the folder has moved since
        write_json(path / "trainer_state.json", {**state, "best_model_checkpoint": str(best)})
    return path


def arguments(checkpoints: str, metric: str, settings: Settings, seed: int) -> TrainingArguments:
    """The Trainer's arguments. checkpoints: folder; metric: the score by which the best epoch is chosen."""
    import transformers

    chosen = transformers.TrainingArguments(
        output_dir=checkpoints,
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
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    # With several GPUs the Trainer would give each a batch and so multiply the batch size of the settings.
    chosen._n_gpu = min(1, chosen.n_gpu)
    return chosen


def inputs_of(features: Sequence[Feature], segments: bool) -> list[Feature]:
    """Features without what is for scoring, and without segment ids if the model has none."""
    return [
        {key: value for key, value in feature.items() if not key.startswith("_") and (segments or key != "token_type_ids")}
        for feature in features
    ]
